"""Prompt encoder: points, boxes and masks become tokens and a dense map.

points (N, P, 2), labels (N, P)  ->  tokens (N, P, C)
mask logits (N, 4H, 4W)          ->  dense map (N, H, W, C)
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Float32

from sam2_jax.config import ModelConfig
from sam2_jax.model import encodings
from sam2_jax.model.layers import Conv, LayerNorm, gelu, normal
from sam2_jax.structs import Array, Prompt


class FourierPositions(nn.Module):
    """Position encoding with fixed random frequencies, which checkpoints carry.

    Attributes:
      width: channels.
      deviation: of the frequencies when drawn.
    """

    width: int
    deviation: float = 1.0

    @nn.compact
    def __call__(self, position: Float[Array, "*b 2"]) -> Float32[jax.Array, "*b {self.width}"]:
        """Encodes positions (x, y) in [0, 1]."""
        name = "positional_encoding_gaussian_matrix"
        gaussian = self.param(name, normal(self.deviation), (2, self.width // 2))
        return encodings.fourier(position, jax.lax.stop_gradient(gaussian))


class PromptEncoder(nn.Module):
    """Tokens for points and boxes, a dense map for masks (Kirillov et al. 2023, section 3)."""

    config: ModelConfig

    def setup(self) -> None:
        """Creates the parts."""
        c, dtype = self.config.hidden_dim, self.config.dtype
        embedding = lambda name: self.param(name, normal(1.0), (1, c))
        # Of the original's frequencies, 1, places less than 0.08 of the picture apart are alike. A cell of a
        # small map is wider, so that a click would share its code with no cell and be unlearned as noise.
        self.pe_layer = FourierPositions(c, min(1.0, self.config.grid / 16))
        self.by_label = [embedding(f"point_embeddings_{i}") for i in range(4)]
        self.not_a_point_embed = embedding("not_a_point_embed")
        self.no_mask_embed = embedding("no_mask_embed")
        # Numbered as in the checkpoints: convolution, norm, GELU, convolution, norm, GELU, convolution.
        self.mask_downscaling_0 = Conv(4, (2, 2), 2, dtype=dtype)
        self.mask_downscaling_1 = LayerNorm(1e-6, dtype)
        self.mask_downscaling_3 = Conv(16, (2, 2), 2, dtype=dtype)
        self.mask_downscaling_4 = LayerNorm(1e-6, dtype)
        self.mask_downscaling_6 = Conv(c, (1, 1), dtype=dtype)

    def __call__(
        self, prompt: Prompt
    ) -> tuple[Float32[jax.Array, "n p c"], Bool[Array, "n p"], Float[jax.Array, "#n h w c"]]:
        """Encodes prompts.

        Returns:
          The tokens; their mask, False for padding (label -2), which no attention may see; the dense map to
          add to the image embedding.
        """
        tokens, token_mask = self._encode_points(prompt.points, prompt.labels)
        return tokens, token_mask, self._encode_mask(prompt)

    def _encode_points(self, points, labels):
        # A point names the middle of its pixel.
        position = self.pe_layer((points + 0.5) / self.config.image_size)
        table = jnp.concatenate([self.not_a_point_embed, *self.by_label])
        is_point = labels >= 0
        tokens = jnp.where(is_point[..., None], position, 0.0) + table[jnp.maximum(labels, -1) + 1]
        return tokens, labels >= -1

    def _encode_mask(self, prompt):
        nothing = self.no_mask_embed[:, None, None]
        if prompt.mask_logits is None:
            grid = self.config.grid
            return jnp.broadcast_to(nothing, (1, grid, grid, nothing.shape[-1]))
        x = prompt.mask_logits[..., None].astype(self.config.dtype)
        x = gelu(self.mask_downscaling_1(self.mask_downscaling_0(x)))
        x = gelu(self.mask_downscaling_4(self.mask_downscaling_3(x)))
        x = self.mask_downscaling_6(x)
        return jnp.where(prompt.has_mask_logits[:, None, None, None], x, nothing.astype(x.dtype))

    def dense_positions(self) -> Float32[jax.Array, "1 h w c"]:
        """Encoding of the middle of every cell of the map."""
        centre = (np.arange(self.config.grid, dtype=np.float32) + 0.5) / self.config.grid
        x, y = np.meshgrid(centre, centre)
        return self.pe_layer(jnp.asarray(np.stack([x, y], -1)))[None]
