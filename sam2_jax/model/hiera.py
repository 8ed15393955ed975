"""Hiera: the hierarchical vision transformer that is the image encoder's trunk (Ryali et al. 2023).

image (B, S, S, 3) -> four maps of stride 4, 8, 16, 32

Tokens lie in the order of the map, or in that of the windows in which they attend to each other:
(B * windows, side, side, C). Layers that see one token at a time take either order, and pooling turns windows
of 8 x 8 into those of 4 x 4 that the next stage has, so that stages 1 and 2 are laid out once.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Key

from sam2_jax.config import HieraConfig
from sam2_jax.model.layers import MLP, Conv, Dense, LayerNorm, SplitDense, constant, gelu
from sam2_jax.model.repeat import repeat
from sam2_jax.ops.attention import attention
from sam2_jax.ops.resize import cubic_weights
from sam2_jax.structs import Array


def split_windows(x: jax.Array, window: int) -> jax.Array:
    """(B, H, W, C) -> (B * windows, window, window, C), zero-padded at the right and the bottom."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(b, rows, window, columns, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window, window, c)


def merge_windows(x: jax.Array, height: int, width: int) -> jax.Array:
    """Inverse of `split_windows`, cropped to (B, height, width, C)."""
    window, c = x.shape[1], x.shape[-1]
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    x = x.reshape(-1, rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * window, columns * window, c)[:, :height, :width]


def _lay_out(x: jax.Array, side: int, old: int, new: int) -> jax.Array:
    """Tokens of maps of a side, from windows of side `old` into those of side `new`; 0 is the map itself."""
    if old == new:
        return x
    x = merge_windows(x, side, side) if old else x
    return split_windows(x, new) if new else x


def _pool(x: jax.Array) -> jax.Array:
    """2 x 2 maximum: (B, H, W, C) -> (B, H/2, W/2, C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    # Not as a reduction, which compilers for TPU and CPU are slow at.
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class WindowAttention(nn.Module):
    """Self-attention inside each window; a block that opens a stage pools its queries 2 x 2.

    Attributes:
      width: output channels.
      heads: number of heads.
      has_pooled_queries: whether the queries, and so the output, have half the side.
    """

    width: int
    heads: int
    has_pooled_queries: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[jax.Array, "b _ _ {self.width}"]:
        """Every entry of the batch is one window."""
        b, h, w, _ = x.shape
        q, k, v = SplitDense(self.width, 3, self.dtype, name="qkv")(x)
        if self.has_pooled_queries:
            q, h, w = _pool(q), h // 2, w // 2
        split_heads = lambda x: x.reshape(b, -1, self.heads, self.width // self.heads)
        x = attention(split_heads(q), split_heads(k), split_heads(v)).reshape(b, h, w, self.width)
        return Dense(self.width, self.dtype, name="proj")(x)


class Block(nn.Module):
    """Pre-norm transformer block.

    Attributes:
      width: output channels; if they differ from the input's, the block opens a stage.
      heads: number of heads.
      window: side of the attention windows; 0 attends over all of what it is given.
      pools: whether a block that opens a stage halves the side.
    """

    width: int
    heads: int
    window: int
    dtype: str
    pools: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        branch_scales: Float[Array, "2 _"] | None = None,
        is_global: Bool[Array, ""] | None = None,
    ) -> Float[jax.Array, "b _ _ {self.width}"]:
        """Applies the block.

        Args:
          x: the map, or windows of it.
          branch_scales: factors of what attention and MLP add to each map, as `drop_path` draws them; None
            is 1.
          is_global: True attends over the whole map in spite of `window`; None is False.
        """
        opens_stage = x.shape[-1] != self.width
        pools = opens_stage and self.pools
        y = LayerNorm(1e-6, self.dtype, name="norm1")(x)
        if opens_stage:
            x = Dense(self.width, self.dtype, name="proj")(y)
            x = _pool(x) if pools else x
        b, height, width, _ = x.shape

        attend = WindowAttention(self.width, self.heads, pools, self.dtype, name="attn")

        def in_windows(attend, y):
            return merge_windows(attend(split_windows(y, self.window)), height, width)

        if is_global is not None:
            y = nn.cond(is_global, lambda attend, y: attend(y), in_windows, attend, y)
        else:
            y = in_windows(attend, y) if self.window else attend(y)

        def scale(y, branch):
            if branch_scales is None:
                return y
            scales = jnp.repeat(branch_scales[branch], b // branch_scales.shape[1])
            return (y * scales[:, None, None, None]).astype(y.dtype)

        x = x + scale(y, 0)
        y = LayerNorm(1e-6, self.dtype, name="norm2")(x)
        y = MLP((4 * self.width, self.width), gelu, self.dtype, name="mlp")(y)
        return x + scale(y, 1)


def drop_path(
    key: Key[jax.Array, ""], rates: Float[Array, " blocks"], batch: int
) -> Float[jax.Array, "blocks 2 {batch}"]:
    """Draws which samples skip which branches of which blocks (Huang et al. 2016).

    Args:
      key: random key.
      rates: chance of a skip, for each block.
      batch: number of samples.

    Returns:
      Factors: 0, or 1 / (1 - rate), so that the mean is 1.
    """
    keep = 1 - rates[:, None, None]
    return jax.random.bernoulli(key, keep, (len(rates), 2, batch)) / keep


class Hiera(nn.Module):
    """The trunk: patches, positions, four stages of blocks.

    Attributes:
      config: sizes.
      dtype: compute type.
      remat: what the backward pass computes again; see `repeat.rematerialise`.
      drop_path_rate: of the last block while it trains; grows linearly from 0.
      q_pool: stages after the first that begin with half the side.
    """

    config: HieraConfig
    dtype: str = "float32"
    remat: str = "none"
    drop_path_rate: float = 0.0
    q_pool: int = 3

    @nn.compact
    def __call__(
        self, image: Float[Array, "b s s 3"], is_training: bool = False
    ) -> list[Float[jax.Array, "b _ _ _"]]:
        """Maps a normalised image to maps (B, S/4, S/4, width) ... (B, S/32, S/32, 8 width).

        While training, samples skip branches by drop path, drawn from the random stream "dropout".
        """
        c = self.config
        x = Conv(c.embed_dim, (7, 7), 4, 3, self.dtype, name="patch_embed")(image)
        side, window = x.shape[1], 0  # of the map, and of the windows that tokens lie in
        x = x + self._positions(side, side).astype(x.dtype)
        scales = self._branch_scales(x.shape[0]) if is_training else None

        maps, done = [], 0
        for stage, num_blocks in enumerate(c.stages):
            # The block that opens a stage still has the windows of the stage before.
            groups = [(1, c.window_sizes[stage - 1])] if stage else []
            groups.append((num_blocks - len(groups), c.window_sizes[stage]))
            for size, own_window in groups:
                indices, done = range(done, done + size), done + size
                if not size:
                    continue
                is_global = [i in c.global_attention_blocks for i in indices]
                wanted = 0 if any(is_global) or side % own_window else own_window
                x, window = _lay_out(x, side, window, wanted), wanted
                inside = [0 if wanted or whole else own_window for whole in is_global]
                x = self._blocks(x, stage, indices, inside, scales)
                if x.shape[1] != (window or side):  # pooled
                    side, window = side // 2, window // 2
            maps.append(_lay_out(x, side, window, 0))
        return maps

    def _blocks(self, x, stage, indices, windows, scales):
        """Applies blocks of one stage, which are equal but for their windows."""
        c = self.config
        sizes = c.widths[stage], c.num_heads * 2**stage
        block = functools.partial(Block, *sizes, dtype=self.dtype, pools=stage <= self.q_pool)
        names = [f"blocks_{i}" for i in indices]
        if scales is None or self.is_initializing():
            for name, window in zip(names, windows, strict=True):
                x = block(window=window, name=name)(x)
            return x
        scales = scales[indices.start : indices.stop]
        is_global = jnp.array(windows) == 0 if len(set(windows)) > 1 else None
        layer = block(window=max(windows), parent=None)
        call = lambda block, x, xs: block(x, *xs)
        return repeat(self, layer, names, x, call, (scales, is_global), self.remat)

    def _branch_scales(self, batch):
        num_blocks, rate = sum(self.config.stages), self.drop_path_rate
        if not rate:
            return jnp.ones((num_blocks, 2, batch), jnp.float32)
        return drop_path(
            self.make_rng("dropout"), jnp.linspace(0, rate, num_blocks, dtype=jnp.float32), batch
        )

    def _positions(self, height: int, width: int) -> jax.Array:
        """(1, height, width, C): a coarse table resized to the map plus a fine one tiled over it."""
        c = self.config.embed_dim
        coarse = self.param("pos_embed", constant(0.0), (1, *self.config.position_grid, c))
        window = self.config.window_sizes[0]
        fine = self.param("pos_embed_window", constant(0.0), (1, window, window, c))
        rows = cubic_weights(coarse.shape[1], height)
        columns = cubic_weights(coarse.shape[2], width)
        coarse = jnp.einsum("yh,xw,bhwc->byxc", rows, columns, coarse)
        return coarse + jnp.tile(fine, (1, height // window, width // window, 1))
