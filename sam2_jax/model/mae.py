"""A masked autoencoder around the trunk: it learns from pictures alone (Ryali et al. 2023, arXiv 2306.00989).

picture (B, S, S, 3), kept units (B, K)  ->  trunk, on these alone  ->  decoder  ->  pixels of all units

A unit is 32 px wide. The first two stages attend inside of a unit, and so does the block that opens the third;
what follows attends to everything that is kept. As in the published model, the last stage keeps the stride of
the third, 16 px, which is that of the predictions.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Float32, Int, Key

from sam2_jax.model.hiera import Block, Hiera, merge_windows, split_windows
from sam2_jax.model.layers import Conv, Dense, LayerNorm, normal
from sam2_jax.model.repeat import repeat
from sam2_jax.structs import Array

UNIT = 32  # px
_CELL = 16  # px of what is predicted from one token


def num_kept(image_size: int, mask_ratio: float) -> int:
    """Returns how many units of a picture stay.

    Raises:
      ValueError: none does, or all do.
    """
    units = (image_size // UNIT) ** 2
    kept = int(units * (1 - mask_ratio))
    if not 0 < kept < units:
        raise ValueError(
            f"mae.mask_ratio {mask_ratio} keeps {kept} of the {units} units of {UNIT} px in a picture of "
            f"{image_size} px; at least one must stay and one be hidden."
        )
    return kept


def draw_kept(
    key: Key[jax.Array, ""], batch: int, image_size: int, kept: int
) -> Int[jax.Array, "{batch} {kept}"]:
    """Draws which units stay, by their numbers in rows, for every picture anew."""
    noise = jax.random.uniform(key, (batch, (image_size // UNIT) ** 2))
    return jnp.argsort(noise, 1)[:, :kept]


def _is_kept(kept: jax.Array, units: int) -> jax.Array:
    """(B, K) numbers -> (B, units, units) bool."""
    return jax.nn.one_hot(kept, units**2, dtype=bool).any(1).reshape(-1, units, units)


def _enlarge(x: jax.Array, factor: int) -> jax.Array:
    """Every entry of (B, H, W) becomes a square."""
    return jnp.repeat(jnp.repeat(x, factor, 1), factor, 2)


class MaskedHiera(Hiera):
    """The trunk on some units of a picture, with the parameters of `Hiera`."""

    q_pool: int = 2

    @nn.compact
    def __call__(
        self, image: Float[Array, "b s s 3"], kept: Int[Array, "b k"], is_training: bool = False
    ) -> list[Float[jax.Array, "b k _ _ _"]]:
        """Encodes the units that are kept.

        Args:
          image: normalised. What is hidden is of mean colour to the patches that overlap it.
          kept: numbers of the units.
          is_training: whether samples skip branches; see `Hiera`.

        Returns:
          For every unit, what stages 1, 2 and 4 give: (B, K, 8, 8, C), (B, K, 4, 4, 2 C), (B, K, 2, 2, 8 C).
        """
        c, (b, side) = self.config, image.shape[:2]
        image = image * _enlarge(_is_kept(kept, side // UNIT), UNIT)[..., None]
        x = Conv(c.embed_dim, (7, 7), 4, 3, self.dtype, name="patch_embed")(image)
        x = x + self._positions(*x.shape[1:3]).astype(x.dtype)
        units = split_windows(x, UNIT // 4)
        units = units.reshape(b, -1, *units.shape[1:])
        x = jnp.take_along_axis(units, kept[:, :, None, None, None], 1)
        x = x.reshape(-1, *x.shape[2:])
        scales = self._branch_scales(b) if is_training else None

        maps, done = [], 0
        for stage, num_blocks in enumerate(c.stages):
            for size in (1, num_blocks - 1):
                if size:
                    indices, done = range(done, done + size), done + size
                    x = self._blocks(x, stage, indices, [0] * size, scales)
                if stage == 2:  # from here on, all units attend to each other
                    x = x.reshape(b, -1, *x.shape[2:])
            if stage != 2:
                tokens = x.shape[2]
                maps.append(x.reshape(b, -1, tokens, tokens, x.shape[-1]))
        return maps


class MaskedDecoder(nn.Module):
    """Joins what the stages gave and predicts the pixels of all units.

    Attributes:
      width: channels.
      depth: blocks.
      heads: of each block.
      remat: what the backward pass computes again; see `repeat.rematerialise`.
    """

    width: int
    depth: int
    heads: int
    dtype: str = "float32"
    remat: str = "none"

    @nn.compact
    def __call__(
        self, maps: list[Float[Array, "b k _ _ _"]], kept: Int[Array, "b k"], image_size: int
    ) -> Float32[jax.Array, "b n 768"]:
        """Predicts pixels.

        Args:
          maps: from `MaskedHiera`.
          kept: numbers of the units that they are of.
          image_size: side of the picture.

        Returns:
          For N cells of 16 x 16 px, in rows, their normalised pixels, by channel, row and column.
        """
        (b, k), units = kept.shape, image_size // UNIT
        *fine, last = maps
        x = last.reshape(b * k, *last.shape[2:])
        cells = x.shape[1]  # along a unit
        for i, y in enumerate(fine):
            stride = y.shape[2] // cells
            fuse = Conv(x.shape[-1], (stride, stride), stride, 0, self.dtype, name=f"fusion_{i}")
            x = x + fuse(y.reshape(b * k, *y.shape[2:]))
        x = Dense(self.width, self.dtype, name="embed")(
            LayerNorm(1e-6, self.dtype, name="encoder_norm")(x)
        )
        token = self.param("mask_token", normal(0.02), (1, 1, self.width)).astype(x.dtype)
        whole = jnp.broadcast_to(token, (b, units**2, cells, cells, self.width))
        whole = whole.at[jnp.arange(b)[:, None], kept].set(x.reshape(b, k, *x.shape[1:]))
        side = units * cells
        x = merge_windows(whole.reshape(-1, cells, cells, self.width), side, side)
        positions = self.param("pos_embed", normal(0.02), (1, side, side, self.width))
        x = x + positions.astype(x.dtype)
        names = [f"blocks_{i}" for i in range(self.depth)]
        if self.is_initializing():
            for name in names:
                x = Block(self.width, self.heads, 0, self.dtype, name=name)(x)
        else:
            block = Block(self.width, self.heads, 0, self.dtype, parent=None)
            x = repeat(self, block, names, x, lambda block, x, _: block(x), None, self.remat)
        x = LayerNorm(1e-6, self.dtype, name="norm")(x)
        x = Dense(3 * _CELL**2, self.dtype, name="pred")(x)
        return x.reshape(b, side**2, -1).astype(jnp.float32)


def pixel_loss(
    image: Float[Array, "b s s 3"], predicted: Float[Array, "b n 768"], kept: Int[Array, "b k"]
) -> Float[jax.Array, " b"]:
    """Mean squared error of hidden pixels, which are normalised in every cell of 16 x 16 px.

    Args:
      image: normalised.
      predicted: from `MaskedDecoder`.
      kept: numbers of the units that are not hidden.
    """
    b, side = image.shape[:2]
    n = side // _CELL
    cells = image.reshape(b, n, _CELL, n, _CELL, 3).transpose(0, 1, 3, 5, 2, 4).reshape(b, n**2, -1)
    variance = cells.var(-1, ddof=1, keepdims=True)
    target = (cells - cells.mean(-1, keepdims=True)) * jax.lax.rsqrt(variance + 1e-6)
    hidden = ~_enlarge(_is_kept(kept, side // UNIT), UNIT // _CELL).reshape(b, -1)
    error = jnp.square(predicted - target).mean(-1)
    return (error * hidden).sum(1) / hidden.sum(1)
