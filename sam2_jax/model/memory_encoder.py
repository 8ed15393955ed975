"""Memory encoder: folds a frame's features and its mask into one memory.

features (B, H, W, C)  +  mask (B, 16H, 16W)   ->   memory (B, H, W, M)
"""

import chex
import jax
from flax import linen as nn
from jaxtyping import Float

from sam2_jax.config import ModelConfig
from sam2_jax.model.layers import Conv, Dense, DepthwiseConv, LayerNorm, constant, gelu
from sam2_jax.structs import Array

_HALVINGS = 4  # 2**4 = 16, from mask pixels to feature cells


class MaskDownsampler(nn.Module):
    """Halves a mask four times, quadrupling channels as it goes."""

    width: int
    dtype: str

    @nn.compact
    def __call__(
        self, mask: Float[Array, "b h w"]
    ) -> Float[jax.Array, "b h//16 w//16 {self.width}"]:
        """Makes features of a mask."""
        x = mask[..., None].astype(self.dtype)
        for i in range(_HALVINGS):  # numbered as in the checkpoints: convolution, norm, GELU
            conv = Conv(4 * x.shape[-1], (3, 3), 2, 1, dtype=self.dtype, name=f"encoder_{3 * i}")
            x = gelu(LayerNorm(1e-6, self.dtype, name=f"encoder_{3 * i + 1}")(conv(x)))
        return Conv(self.width, (1, 1), dtype=self.dtype, name=f"encoder_{3 * _HALVINGS}")(x)


class ConvNextBlock(nn.Module):
    """Depthwise 7 x 7, then a two-layer MLP, scaled and added back (Liu et al. 2022)."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[jax.Array, "b h w c"]:
        """Applies the block."""
        c = x.shape[-1]
        y = DepthwiseConv((7, 7), self.dtype, name="dwconv")(x)
        y = LayerNorm(1e-6, self.dtype, name="norm")(y)
        y = gelu(Dense(4 * c, self.dtype, name="pwconv1")(y))
        y = Dense(c, self.dtype, name="pwconv2")(y)
        gamma = self.param("gamma", constant(1e-6), (c,))
        return x + y * gamma.astype(self.dtype)


class MemoryEncoder(nn.Module):
    """Fuses what was seen with what was segmented (paper section 4, "Memory encoder")."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, features: Float[Array, "#n h w c"], mask: Float[Array, "n 16*h 16*w"]
    ) -> Float[jax.Array, "n h w {self.config.memory_dim}"]:
        """Encodes one memory per object, in compute type.

        Args:
          features: raw stride-16 map, before memory attention.
          mask: probabilities, already scaled and shifted.
        """
        _, h, w, c = features.shape
        chex.assert_shape(mask, (None, 16 * h, 16 * w))
        dtype = self.config.dtype
        x = Conv(c, (1, 1), dtype=dtype, name="pix_feat_proj")(features)
        x = x + MaskDownsampler(c, dtype, name="mask_downsampler")(mask)
        for i in range(2):
            x = ConvNextBlock(dtype, name=f"fuser_{i}")(x)
        return Conv(self.config.memory_dim, (1, 1), dtype=dtype, name="out_proj")(x)
