"""Attention by the Hopper kernel of tokamax, if that package is installed; by name only: no chip has timed it.

The kernel is reached through tokamax's private modules, since its public function keeps the parts of the
softmax to itself.
"""

import jax
import jax.numpy as jnp


def _kernel():
    try:
        from tokamax._src.ops.attention import (  # pyright: ignore[reportMissingImports]
            base,
            pallas_mosaic_gpu,
        )
    except ImportError as error:
        raise ValueError(
            "implementation='tokamax' needs the package tokamax (Python 3.12 or later): pip install tokamax."
        ) from error
    return pallas_mosaic_gpu.PallasMosaicGpuFlashAttention(), base.Mask


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Like `sam2_jax.ops.attention.attention`, everything of one batch size."""
    kernel, _ = _kernel()
    return kernel(q, k, v)


def attend_parts(
    q: jax.Array, k: jax.Array, v: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `sam2_jax.ops.attention.attend_parts`: slots ride the batch axis, an unused one has no keys."""
    kernel, mask = _kernel()
    n, r, cells, d = k.shape
    t, e = q.shape[1], v.shape[-1]
    one_head = lambda x: x.reshape(n * r, -1, 1, x.shape[-1])
    queries = one_head(jnp.broadcast_to(q[:, None], (n, r, t, d)))
    ends = jnp.where(used.reshape(-1, 1, 1), cells, 0).astype(jnp.int32)
    out, (top, total) = kernel(
        queries,
        one_head(k),
        one_head(v),
        mask=mask(k_end=ends),
        normalize_output=False,
        return_residuals=True,
    )
    is_used = used[..., None, None]
    slots = lambda x, width: x.astype(jnp.float32).reshape(n, r, t, width)
    top = jnp.where(is_used, slots(top, 1), -1e30)
    highest = top.max(1, keepdims=True)
    # What an unused slot says may be no number.
    scale = lambda x: (jnp.where(is_used, x, 0.0) * jnp.exp(top - highest)).sum(1)
    return scale(slots(out, e)), highest[:, 0], scale(slots(total, 1))
