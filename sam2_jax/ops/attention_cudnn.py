"""Attention by cuDNN's fused kernel, on NVIDIA GPUs in half precision."""

from typing import Any

import jax
import jax.numpy as jnp

_cudnn: Any
try:
    from jax._src.cudnn import fused_attention_stablehlo as _cudnn
except ImportError:  # private to JAX, so it may move
    _cudnn = None

_NEVER = -1e30


def fits(q: jax.Array, k: jax.Array) -> bool:
    """Tells whether cuDNN takes queries and keys of these types and widths on this machine's GPU.

    Where there is none, the program is compiled for another machine, and a Hopper chip is assumed.
    """
    width = q.shape[-1]
    if _cudnn is None or q.dtype not in (jnp.bfloat16, jnp.float16) or width % 8 or width > 256:
        return False
    if jax.default_backend() != "gpu":
        return True
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if capability is None:  # not NVIDIA's
        return False
    return float(capability) >= (9.0 if width > 128 else 8.0)


def _call(q, k, v, key_lengths):
    """Returns (B, T, heads, D) in the type of q, and the float32 log-sum-exp (B, heads, T).

    The public function checks the GPU of this machine while tracing, and rounds the log-sum-exp to bfloat16.
    """
    nothing = jnp.zeros(0, q.dtype)
    lengths, kind = (nothing, nothing), _cudnn.MaskType.NO_MASK
    if key_lengths is not None:
        lengths = (jnp.full(len(q), q.shape[1], jnp.int32), key_lengths)
        kind = _cudnn.MaskType.PADDING
    return _cudnn._dot_product_attention_fwd_p_wrapper.bind(
        q,
        k,
        v,
        nothing,
        *lengths,
        nothing,
        nothing,
        nothing,
        nothing,
        scale=q.shape[-1] ** -0.5,
        seed=0,
        dropout_rate=0.0,
        variadic_args=(False, False),
        mask_type=kind,
        layout=_cudnn.AttentionLayout.BTNH.value,
        sliding_window_length=None,
        is_training=key_lengths is not None,
    )


def _widened(v, width):
    """Values as wide as keys, as cuDNN wants them."""
    return jnp.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, width - v.shape[-1])])


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Like `sam2_jax.ops.attention.attention`, everything of one batch size."""
    (out,) = _call(q, k, _widened(v, q.shape[-1]), None)
    return out[..., : v.shape[-1]]


def attend_parts(
    q: jax.Array, k: jax.Array, v: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `sam2_jax.ops.attention.attend_parts`: slots ride the batch axis, an unused one has no keys."""
    n, r, cells, d = k.shape
    t, e = q.shape[1], v.shape[-1]
    queries = jnp.broadcast_to(q[:, None], (n, r, t, d)).reshape(n * r, t, 1, d)
    keys = k.reshape(n * r, cells, 1, d)
    values = _widened(v, d).reshape(n * r, cells, 1, d)
    out, log_sum = _call(queries, keys, values, jnp.where(used.ravel(), cells, 0).astype(jnp.int32))
    out = out[:, :, 0, :e].reshape(n, r, t, e).astype(jnp.float32)
    log_sum = jnp.where(used[..., None], log_sum.reshape(n, r, t), _NEVER)
    top = log_sum.max(1)
    weights = jnp.where(used[..., None], jnp.exp(log_sum - top[:, None]), 0.0)[..., None]
    # What an unused slot says may be no number.
    out = jnp.where(used[..., None, None], out, 0.0)
    return (weights * out).sum(1), top[..., None], weights.sum(1)
