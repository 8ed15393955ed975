"""Two-way transformer: prompt tokens and image exchange information in both directions.

tokens (N, K, C), image (N, L, C)  ->  the same shapes
"""

import jax
from flax import linen as nn
from jaxtyping import Bool, Float

from sam2_jax.model.layers import MLP, Dense, LayerNorm
from sam2_jax.ops.attention import attention
from sam2_jax.structs import Array

_HEADS = 8
_DEPTH = 2
_WIDER = 8  # channels inside an MLP, in C; 2048 in the released models


class Attention(nn.Module):
    """Multi-head attention with its own inner width."""

    inner_width: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        q: Float[Array, "#n t c"],
        k: Float[Array, "#n s c"],
        v: Float[Array, "#n s c"],
        key_mask: Bool[Array, "#n s"] | None = None,
    ) -> Float[jax.Array, "n t c"]:
        """Lets queries look at keys, except where their mask is False."""

        def project(x, name):
            x = Dense(self.inner_width, self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], _HEADS, -1)

        mask = None if key_mask is None else key_mask[:, None, None]
        width = q.shape[-1]
        q, k, v = project(q, "q_proj"), project(k, "k_proj"), project(v, "v_proj")
        x = attention(q, k, v, mask=mask)
        return Dense(width, self.dtype, name="out_proj")(x.reshape(*x.shape[:2], -1))


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, MLP, image to tokens; post-norm."""

    is_first: bool
    dtype: str

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "n k c"],
        image: Float[Array, "#n l c"],
        token_positions: Float[Array, "n k c"],
        image_positions: Float[Array, "1 l c"],
        token_mask: Bool[Array, "n k"],
    ) -> tuple[Float[jax.Array, "n k c"], Float[jax.Array, "n l c"]]:
        """Applies the block to tokens and image."""
        c = tokens.shape[-1]
        norm = lambda name: LayerNorm(1e-5, self.dtype, name=name)

        attend = Attention(c, self.dtype, name="self_attn")
        if self.is_first:  # the tokens still are their own positions: neither encoding nor residual
            tokens = attend(tokens, tokens, tokens, token_mask)
        else:
            q = tokens + token_positions
            tokens = tokens + attend(q, q, tokens, token_mask)
        tokens = norm("norm1")(tokens)

        attend = Attention(c // 2, self.dtype, name="cross_attn_token_to_image")
        q, k = tokens + token_positions, image + image_positions
        tokens = norm("norm2")(tokens + attend(q, k, image))
        mlp = MLP((_WIDER * c, c), dtype=self.dtype, name="mlp")
        tokens = norm("norm3")(tokens + mlp(tokens))

        attend = Attention(c // 2, self.dtype, name="cross_attn_image_to_token")
        q = tokens + token_positions
        return tokens, norm("norm4")(image + attend(k, q, tokens, token_mask))


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    dtype: str

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "n k c"],
        image: Float[Array, "#n l c"],
        image_positions: Float[Array, "1 l c"],
        token_mask: Bool[Array, "n k"],
    ) -> tuple[Float[jax.Array, "n k c"], Float[jax.Array, "n l c"]]:
        """Runs the transformer.

        Args:
          tokens: as first given they also serve as their own position encoding.
          image: the map, row after row.
          image_positions: encoding of its cells.
          token_mask: False for padding.

        Returns:
          Tokens and image.
        """
        positions = tokens
        for i in range(_DEPTH):
            block = TwoWayBlock(i == 0, self.dtype, name=f"layers_{i}")
            tokens, image = block(tokens, image, positions, image_positions, token_mask)
        attend = Attention(tokens.shape[-1] // 2, self.dtype, name="final_attn_token_to_image")
        tokens = tokens + attend(tokens + positions, image + image_positions, image)
        return LayerNorm(1e-5, self.dtype, name="norm_final_attn")(tokens), image
