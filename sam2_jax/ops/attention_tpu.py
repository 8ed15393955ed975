"""Attention as a Pallas TPU kernel: keys wider than values, slots that are not used skipped.

The running softmax (Milakov and Gimelshein 2018) of one block of queries stays in the chip's vector memory
while blocks of keys pass by; scores are in powers of two, which the chip computes fastest.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128  # of a vector register: the row statistics are kept once in every lane
_QUERIES = 512  # at a time
_KEYS = 2048  # brought in at a time, and skipped or not
_SCORED = 512  # of them scored at a time
_VECTOR_MEMORY = 100 * 2**20
_NEVER = -1e30


def fits(q: jax.Array, k: jax.Array) -> bool:
    """Tells whether the numbers of queries and of keys (of a slot) are whole blocks."""
    keys = k.shape[-2] if k.ndim == 4 and q.ndim == 3 else k.shape[1]
    return _block(q.shape[1], _QUERIES) > 0 and _block(keys, _KEYS) > 0


def _block(length: int, most: int) -> int:
    """The largest multiple of a register's lanes that divides a length, `most` at most; 0 if there is none."""
    sizes = [size for size in range(_LANES, most + 1, _LANES) if length % size == 0]
    return sizes[-1] if sizes else 0


def _kernel(is_read, q, k, v, out, top, total, running_top, running_total, running_out, *, scored):
    """Folds one block of keys into the running softmax of one block of queries."""
    n, block = pl.program_id(0), pl.program_id(2)

    @pl.when(block == 0)
    def _():
        running_top[...] = jnp.full_like(running_top, _NEVER)
        running_total[...] = jnp.zeros_like(running_total)
        running_out[...] = jnp.zeros_like(running_out)

    @pl.when(is_read[n, block] > 0)
    def _():
        queries, width = q[0], v.shape[-1]
        wide = lambda x, n: x[:, :n] if n <= _LANES else jnp.tile(x, (1, n // _LANES))

        def fold(i, _):
            keys, values = (x[0, pl.ds(i * scored, scored)] for x in (k, v))
            scores = jax.lax.dot_general(
                queries, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )
            old_top = running_top[...]
            new_top = jnp.maximum(old_top, scores.max(1)[:, None])
            weights = jnp.exp2(scores - wide(new_top, scored))
            keep = jnp.exp2(old_top - new_top)
            running_total[...] = running_total[...] * keep + weights.sum(1)[:, None]
            running_top[...] = new_top
            product = jax.lax.dot(
                weights.astype(values.dtype), values, preferred_element_type=jnp.float32
            )
            running_out[...] = running_out[...] * wide(keep, width) + product

        jax.lax.fori_loop(0, k.shape[1] // scored, fold, None, unroll=True)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        out[0], top[0], total[0] = running_out[...], running_top[...], running_total[...]


def _flash(q, k, v, is_read, keys, interpret):
    """Parts, in powers of two, of (N or 1, T, D) scaled queries over (N, S, D) keys and (N, S, E) values.

    Args:
      q: see above.
      k: see above.
      v: see above.
      is_read: (N, S / keys) int32, 0 skips a block of keys.
      keys: in a block.
      interpret: runs without a TPU.
    """
    (n, s, d), (t, e) = k.shape, (q.shape[1], v.shape[-1])
    queries, is_shared = _block(t, _QUERIES), q.shape[0] == 1
    of_queries = lambda width: pl.BlockSpec((1, queries, width), lambda n, i, j, _: (n, i, 0))
    of_keys = lambda width: pl.BlockSpec((1, keys, width), lambda n, i, j, _: (n, j, 0))
    shapes = [(e, jnp.float32), (_LANES, jnp.float32), (_LANES, jnp.float32)]
    out, top, total = pl.pallas_call(
        functools.partial(_kernel, scored=_block(keys, _SCORED)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(n, t // queries, s // keys),
            in_specs=[
                pl.BlockSpec((1, queries, d), lambda n, i, j, _: (0 if is_shared else n, i, 0)),
                of_keys(d),
                of_keys(e),
            ],
            out_specs=[of_queries(width) for width, _ in shapes],
            scratch_shapes=[
                pltpu.VMEM((queries, width), jnp.float32) for width in (_LANES, _LANES, e)
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct((n, t, width), dtype) for width, dtype in shapes],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_VECTOR_MEMORY,
        ),
        interpret=interpret,
        name="sam2_attention",
    )(is_read, q, k, v)
    return out, top[..., :1], total[..., :1]


def _scaled(q):
    """Queries whose scores are powers of two."""
    return (q.astype(jnp.float32) * (q.shape[-1] ** -0.5 * math.log2(math.e))).astype(q.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool = False) -> jax.Array:
    """Like `sam2_jax.ops.attention.attention`, everything of one batch size.

    Args:
      q: see there.
      k: see there.
      v: see there.
      interpret: runs without a TPU, slowly.
    """
    b, t, heads, _ = q.shape
    flat = lambda x: x.swapaxes(1, 2).reshape(b * heads, x.shape[1], x.shape[-1])
    keys = _block(k.shape[1], _KEYS)
    everything = jnp.ones((b * heads, k.shape[1] // keys), jnp.int32)
    out, _, total = _flash(flat(_scaled(q)), flat(k), flat(v), everything, keys, interpret)
    return (out / total).astype(v.dtype).reshape(b, heads, t, -1).swapaxes(1, 2)


def attend_parts(
    q: jax.Array, k: jax.Array, v: jax.Array, used: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `sam2_jax.ops.attention.attend_parts`.

    Args:
      q: see there.
      k: see there.
      v: see there.
      used: see there.
      interpret: runs without a TPU, slowly.
    """
    n, r, cells, _ = k.shape
    keys = _block(cells, _KEYS)
    is_read = jnp.repeat(used.astype(jnp.int32), cells // keys, 1)
    flat = lambda x: x.reshape(n, r * cells, -1)
    out, top, total = _flash(_scaled(q), flat(k), flat(v), is_read, keys, interpret)
    return out, top * math.log(2), total
