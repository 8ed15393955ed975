"""Mask decoder: image embedding and prompt tokens become candidate masks and their scores.

embedding (N, H, W, C), tokens (N, P, C)  ->  masks (N, 4, 4H, 4W), IoUs (N, 4), object score (N,)
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Bool, Float, Float32

from sam2_jax.config import ModelConfig
from sam2_jax.model.layers import MLP, Conv, Dense, LayerNorm, Upsample2x2, gelu, normal
from sam2_jax.model.two_way import TwoWayTransformer
from sam2_jax.structs import Array

NUM_MASKS = 4  # one for clear prompts, three for ambiguous ones
_ALWAYS_VISIBLE = 10.0  # score logit of models without an object score


@struct.dataclass
class Decoded:
    """All outputs of the decoder, before any choice.

    Attributes:
      masks: logits; the first mask answers clear prompts, the other three ambiguous ones.
      ious: predicted IoU.
      tokens: mask tokens, from which object pointers are made.
      scores: logit that the object is visible.
    """

    masks: Float32[Array, "n 4 q q"]
    ious: Float32[Array, "n 4"]
    tokens: Float[Array, "n 4 c"]
    scores: Float32[Array, " n"]


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling with high-resolution skips, and the heads (paper appendix D.1)."""

    config: ModelConfig

    def setup(self) -> None:
        """Creates the parts."""
        config = self.config
        c, dtype = config.hidden_dim, config.dtype
        embedding = lambda name, n: self.param(name, normal(1.0), (n, c))
        self.iou_token = embedding("iou_token", 1)
        self.mask_tokens = embedding("mask_tokens", NUM_MASKS)
        self.transformer = TwoWayTransformer(dtype)
        self.output_upscaling_0 = Upsample2x2(c // 4, dtype)
        self.output_upscaling_1 = LayerNorm(1e-6, dtype)
        self.output_upscaling_3 = Upsample2x2(c // 8, dtype)
        if config.use_high_res_features_in_sam:
            self.conv_s0 = Conv(c // 8, (1, 1), dtype=dtype)
            self.conv_s1 = Conv(c // 4, (1, 1), dtype=dtype)
        self.output_hypernetworks_mlps = [
            MLP((c, c, c // 8), dtype=dtype) for _ in range(NUM_MASKS)
        ]
        self.iou_prediction_head = MLP((c, c, NUM_MASKS), dtype=dtype)
        if config.pred_obj_scores:
            self.obj_score_token = embedding("obj_score_token", 1)
            is_mlp = config.pred_obj_scores_mlp
            self.pred_obj_score_head = MLP((c, c, 1), dtype=dtype) if is_mlp else Dense(1, dtype)

    def project_high_res(
        self, maps: list[Float[Array, "b _ _ c"]]
    ) -> tuple[Float[jax.Array, "b _ _ _"], ...]:
        """Narrows the stride-4 and stride-8 maps for the skips; done once a frame, not once a prompt."""
        if not self.config.use_high_res_features_in_sam:
            return ()
        return self.conv_s0(maps[0]), self.conv_s1(maps[1])

    def __call__(
        self,
        embedding: Float[Array, "#n h w c"],
        positions: Float[Array, "1 h w c"],
        tokens: Float[Array, "n p c"],
        token_mask: Bool[Array, "n p"],
        dense: Float[Array, "#n h w c"],
        high_res: tuple[Float[Array, "#n _ _ _"], ...],
    ) -> Decoded:
        """Decodes all masks of all prompts.

        Args:
          embedding: conditioned image embedding.
          positions: encoding of the cells.
          tokens: prompt tokens.
          token_mask: False for padding.
          dense: encoded mask prompt.
          high_res: skips (N or 1, 4H, 4W, C/8) and (N or 1, 2H, 2W, C/4), or empty.

        Returns:
          `Decoded`.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        n = tokens.shape[0]
        _, h, w, c = embedding.shape

        own = [self.iou_token, self.mask_tokens]
        if config.pred_obj_scores:
            own = [self.obj_score_token, *own]
        own = jnp.broadcast_to(jnp.concatenate(own), (n, sum(x.shape[0] for x in own), c))
        first = own.shape[1] - NUM_MASKS  # of the mask tokens; the IoU token is right before it
        tokens = jnp.concatenate([own, tokens], 1).astype(dtype)
        token_mask = jnp.concatenate([jnp.ones(own.shape[:2], bool), token_mask], 1)

        image = (embedding.astype(dtype) + dense.astype(dtype)).reshape(-1, h * w, c)
        positions = positions.astype(dtype).reshape(1, h * w, c)
        tokens, image = self.transformer(tokens, image, positions, token_mask)

        mask_tokens = tokens[:, first : first + NUM_MASKS]
        x = self.output_upscaling_0(image.reshape(n, h, w, c))
        if high_res:
            x = x + high_res[1]
        x = self.output_upscaling_3(gelu(self.output_upscaling_1(x)))
        if high_res:
            x = x + high_res[0]
        x = gelu(x)
        weights = jnp.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1
        )
        masks = jnp.matmul(
            weights, x.reshape(n, -1, c // 8).swapaxes(1, 2), preferred_element_type=jnp.float32
        )

        ious = self.iou_prediction_head(tokens[:, first - 1]).astype(jnp.float32)
        if config.iou_prediction_use_sigmoid:
            ious = jax.nn.sigmoid(ious)
        if config.pred_obj_scores:
            scores = self.pred_obj_score_head(tokens[:, 0])[:, 0].astype(jnp.float32)
        else:
            scores = jnp.full((n,), _ALWAYS_VISIBLE, jnp.float32)
        return Decoded(masks.reshape(n, NUM_MASKS, 4 * h, 4 * w), ious, mask_tokens, scores)
