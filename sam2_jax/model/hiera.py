"""Hiera: the hierarchical vision transformer that is the image encoder's trunk (Ryali et al. 2023).

image (B, S, S, 3) -> four maps of stride 4, 8, 16, 32
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from sam2_jax.config import HieraConfig
from sam2_jax.model.attention import attend
from sam2_jax.model.layers import MLP, LayerNorm, cubic_weights, gelu
from sam2_jax.model.remat import rematerialise

_STRIP = 16  # rows: a block's temporaries then stay in the CPU's caches (docs/performance.md)


def _split_windows(x: jax.Array, window: int) -> jax.Array:
    """(B, H, W, C) -> (B * windows, window, window, C), zero-padded at the right and the bottom."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(b, rows, window, columns, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window, window, c)


def _merge_windows(x: jax.Array, height: int, width: int) -> jax.Array:
    """Inverse of `_split_windows`, cropped to (B, height, width, C)."""
    window, c = x.shape[1], x.shape[-1]
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    x = x.reshape(-1, rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * window, columns * window, c)[:, :height, :width]


def _pool(x: jax.Array) -> jax.Array:
    """2 x 2 maximum: (B, H, W, C) -> (B, H/2, W/2, C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


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
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, h, w, C) to (B, h or h/2, w or w/2, width); every batch entry is one window."""
        b, h, w, _ = x.shape
        q, k, v = jnp.split(nn.Dense(3 * self.width, dtype=self.dtype, name="qkv")(x), 3, -1)
        if self.has_pooled_queries:
            q, h, w = _pool(q), h // 2, w // 2
        split_heads = lambda x: x.reshape(b, -1, self.heads, self.width // self.heads)
        x = attend(split_heads(q), split_heads(k), split_heads(v)).reshape(b, h, w, self.width)
        return nn.Dense(self.width, dtype=self.dtype, name="proj")(x)


class Block(nn.Module):
    """Pre-norm transformer block.

    Attributes:
      width: output channels; if they differ from the input's, the block opens a stage.
      heads: number of heads.
      window: side of the attention windows; 0 attends over the whole map.
    """

    width: int
    heads: int
    window: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        branch_scales: jax.Array | None = None,
        is_global: jax.Array | None = None,
    ) -> jax.Array:
        """Maps (B, H, W, C) to (B, H, W, width), half the side if the block opens a stage.

        Args:
          x: the map.
          branch_scales: (2, B) factors of what attention and MLP add, as `drop_path` draws them; None is 1.
          is_global: () bool, True attends over the whole map in spite of `window`; None is False.
        """
        opens_stage = x.shape[-1] != self.width
        y = LayerNorm(1e-6, self.dtype, name="norm1")(x)
        if opens_stage:
            x = _pool(nn.Dense(self.width, dtype=self.dtype, name="proj")(y))
        _, height, width, _ = x.shape

        attention = WindowAttention(self.width, self.heads, opens_stage, self.dtype, name="attn")
        if is_global is not None:
            variables, pure = attention.variables, attention.clone(parent=None)
            attention = functools.partial(pure.apply, variables)
        in_windows = lambda y: _merge_windows(
            attention(_split_windows(y, self.window)), height, width
        )
        if is_global is not None:
            y = jax.lax.cond(is_global, attention, in_windows, y)
        else:
            y = in_windows(y) if self.window else attention(y)

        def scale(y, branch):
            if branch_scales is None:
                return y
            return (y * branch_scales[branch][:, None, None, None]).astype(y.dtype)

        x = x + scale(y, 0)
        y = LayerNorm(1e-6, self.dtype, name="norm2")(x)
        y = MLP((4 * self.width, self.width), gelu, self.dtype, name="mlp")(y)
        return x + scale(y, 1)


def drop_path(key: jax.Array, rates: jax.Array, batch: int) -> jax.Array:
    """Draws which samples skip which branches of which blocks (Huang et al. 2016).

    Args:
      key: random key.
      rates: (K,) chance of a skip, for each block.
      batch: B.

    Returns:
      (K, 2, B) float32 factors: 0, or 1 / (1 - rate), so that the mean is 1.
    """
    keep = 1 - rates[:, None, None]
    return jax.random.bernoulli(key, keep, (len(rates), 2, batch)) / keep


def _apply(block: Block, x: jax.Array) -> jax.Array:
    """Applies a block; on CPU strip by strip, where its windows do not reach across strips."""
    b, height, width, c = x.shape
    is_local = block.window and _STRIP % block.window == 0 and height % _STRIP == 0
    if not is_local or block.is_initializing():
        return block(x)
    variables, pure = block.variables, block.clone(parent=None)

    def strip_by_strip(x):
        strips = x.reshape(-1, 1, _STRIP, width, c)
        y = jax.lax.map(lambda strip: pure.apply(variables, strip), strips)
        return y.reshape(b, -1, *y.shape[3:])

    at_once = lambda x: pure.apply(variables, x)
    return jax.lax.platform_dependent(x, cpu=strip_by_strip, default=at_once)


def _train(blocks: list[Block], x: jax.Array, branch_scales: jax.Array, remat: str) -> jax.Array:
    """Applies the blocks of a stage; those after the opening one are alike and run as a loop.

    What is compiled, above all for TPUs, is then two blocks a stage, however deep it is.
    """
    if x.shape[-1] != blocks[0].width:
        pure = blocks[0].clone(parent=None)
        opener = rematerialise(pure.apply, remat, in_loop=False)
        x = opener(blocks[0].variables, x, branch_scales[0])
        blocks, branch_scales = blocks[1:], branch_scales[1:]
    if not blocks:
        return x
    windows = [block.window for block in blocks]
    pure = blocks[0].clone(parent=None, window=max(windows))
    is_global = jnp.array(windows) == 0 if len(set(windows)) > 1 else None

    def body(x, xs):
        return pure.apply(xs[0], x, *xs[1:]), None

    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(b.variables for b in blocks))
    body = rematerialise(body, remat, in_loop=len(blocks) > 1)
    return jax.lax.scan(body, x, (variables, branch_scales, is_global))[0]


class Hiera(nn.Module):
    """The trunk: patches, positions, four stages of blocks.

    Attributes:
      config: sizes.
      dtype: compute type.
      remat: what the backward pass computes again; see `remat.rematerialise`.
    """

    config: HieraConfig
    dtype: str = "float32"
    remat: str = "none"

    @nn.compact
    def __call__(self, image: jax.Array, is_training: bool = False) -> list[jax.Array]:
        """Maps a normalised image (B, S, S, 3) to maps (B, S/4, S/4, width) ... (B, S/32, S/32, 8 width).

        While training, samples skip branches by drop path, drawn from the random stream "dropout".
        """
        c = self.config
        x = nn.Conv(c.embed_dim, (7, 7), 4, padding=3, dtype=self.dtype, name="patch_embed")(image)
        x = x + self._positions(*x.shape[1:3]).astype(x.dtype)

        if is_training:
            scales = jnp.ones((sum(c.stages), 2, x.shape[0]))
            if c.drop_path_rate:
                rates = jnp.linspace(0, c.drop_path_rate, sum(c.stages))
                scales = drop_path(self.make_rng("dropout"), rates, x.shape[0])
        maps, done = [], 0
        for blocks in self._stages():
            if is_training and not self.is_initializing():
                x = _train(blocks, x, scales[done : done + len(blocks)], self.remat)
            else:
                for block in blocks:
                    x = _apply(block, x)
            done += len(blocks)
            maps.append(x)
        return maps

    def _stages(self) -> list[list[Block]]:
        c, stages = self.config, []
        for stage, num_blocks in enumerate(c.stages):
            first, blocks = sum(c.stages[:stage]), []
            for i in range(first, first + num_blocks):
                # The block that opens a stage still has the windows of the stage before.
                window = c.window_sizes[max(stage - (i == first), 0)]
                if i in c.global_attention_blocks:
                    window = 0
                heads = c.num_heads * 2**stage
                name = f"blocks_{i}"
                blocks.append(Block(c.widths[stage], heads, window, self.dtype, name=name))
            stages.append(blocks)
        return stages

    def _positions(self, height: int, width: int) -> jax.Array:
        """(1, height, width, C): a coarse table resized to the map plus a fine one tiled over it."""
        c = self.config.embed_dim
        coarse = self.param("pos_embed", nn.initializers.zeros, (1, *self.config.position_grid, c))
        window = self.config.window_sizes[0]
        fine = self.param("pos_embed_window", nn.initializers.zeros, (1, window, window, c))
        rows = cubic_weights(coarse.shape[1], height)
        columns = cubic_weights(coarse.shape[2], width)
        coarse = jnp.einsum("yh,xw,bhwc->byxc", rows, columns, coarse)
        return coarse + jnp.tile(fine, (1, height // window, width // window, 1))
