"""Softmax attention: one definition, and an execution for every kind of device.

    attention(q, k, v)                     everything at once
    attend_parts(q, k, v, used), merge     one softmax over keys that lie in several places

Scores and softmax are float32 everywhere; the weights have the type of the values when they meet them.
Executions, chosen by platform and shape, or by name:

    reference   the whole score matrix
    xla         the same in bounded memory, for small shapes and wherever no kernel fits
    cpu         chunks that stay in a core's caches; unused slots cost nothing
    cudnn       NVIDIA's fused attention, half precision (widths up to 128 from Ampere on, 256 from Hopper on)
    tpu         our Pallas kernel (`sam2_jax.ops.attention_tpu`)
    tokamax     the kernel of the package tokamax, if it is installed; by name only

Fused executions have the gradient of "xla".
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Key

from sam2_jax.ops import attention_cudnn, attention_tokamax, attention_tpu
from sam2_jax.structs import Array

IMPLEMENTATIONS = ("reference", "xla", "cpu", "cudnn", "tpu", "tokamax")

# Queries scored at a time where the whole would not fit; on CPU 256 to 2048 are equally fast.
_CHUNK = 512
_MANY = 1024  # queries, and keys, from which on a fused kernel is worth a launch of its own
_NEVER = np.float32(-1e30)  # finite, so that a row without any key gives numbers, not NaN

# Weighted sum of values, largest score, sum of the weights relative to it; see `attend_parts`.
Parts: TypeAlias = tuple[
    Float32[jax.Array, "n t e"], Float32[jax.Array, "n t 1"], Float32[jax.Array, "n t 1"]
]


def attention(
    q: Float[Array, "#b t heads d"],
    k: Float[Array, "#b s heads d"],
    v: Float[Array, "#b s heads e"],
    *,
    mask: Bool[Array, "#b 1 1 s"] | None = None,
    dropout: float = 0.0,
    dropout_key: Key[jax.Array, ""] | None = None,
    implementation: str | None = None,
) -> Float[jax.Array, "b t heads e"]:
    """Softmax attention, scaled by 1 / sqrt(d), in the conventions of `jax.nn.dot_product_attention`.

    Args:
      q: queries. A batch of 1 is shared by all others, here and below.
      k: keys.
      v: values, which may be narrower than keys.
      mask: keys that are False are ignored. None keeps all.
      dropout: chance that a weight is dropped after the softmax, in steps of 1/256.
      dropout_key: random key; without one nothing is dropped.
      implementation: one of `IMPLEMENTATIONS`; None chooses. Only "xla" and "cpu" drop weights, and only
        they and "reference" know masks.

    Returns:
      Weighted sums in the type of v.

    Raises:
      ValueError: an unknown implementation.
    """
    b, heads = max(q.shape[0], k.shape[0]), q.shape[2]
    if mask is not None:
        mask = jnp.broadcast_to(mask[:, 0, 0], (b, k.shape[1]))

    def by_kernel(kernel):
        def run(q, k, v):
            share = lambda x: jnp.broadcast_to(x, (b, *x.shape[1:]))
            return kernel(share(q), share(k), share(v)).astype(v.dtype)

        return _with_gradient_of(plain, run)

    def plain(q, k, v):
        return _in_chunks(q, k, v, mask, dropout, dropout_key, one_group_at_a_time=False)

    def in_caches(q, k, v):
        return _in_chunks(q, k, v, mask, dropout, dropout_key, one_group_at_a_time=True)

    executions = {
        "reference": lambda q, k, v: _reference(q, k, v, mask),
        "xla": plain,
        "cpu": in_caches,
        "cudnn": by_kernel(attention_cudnn.attention),
        "tpu": by_kernel(attention_tpu.attention),
        "tokamax": by_kernel(attention_tokamax.attention),
    }
    is_many = min(q.shape[1], k.shape[1]) >= _MANY
    has_extras = mask is not None or dropout_key is not None
    return _run(executions, implementation, is_many, has_extras, heads, q, k, v)


def attend_parts(
    q: Float[Array, "#n t d"],
    k: Float[Array, "n r s d"],
    v: Float[Array, "n r s e"],
    used: Bool[Array, "n r"],
    *,
    implementation: str | None = None,
) -> Parts:
    """One part of a softmax over n objects' keys, which lie in r slots of s each; one head.

    Args:
      q: queries, not yet scaled.
      k: keys.
      v: values.
      used: the slots that an object uses; the contents of others are ignored.
      implementation: one of `IMPLEMENTATIONS`; None chooses.

    Returns:
      The weighted sum of values; the largest score, or a very low one where no slot is used; the sum of the
      weights relative to it. See `merge`.

    Raises:
      ValueError: an unknown implementation.
    """
    executions = {
        "reference": _reference_parts,
        "xla": _parts_in_chunks,
        "cpu": _parts_in_caches,
        "cudnn": _with_gradient_of(_parts_in_chunks, attention_cudnn.attend_parts),
        "tpu": _with_gradient_of(_parts_in_chunks, attention_tpu.attend_parts),
        "tokamax": _with_gradient_of(_parts_in_chunks, attention_tokamax.attend_parts),
    }
    is_many = min(q.shape[1], k.shape[2]) >= _MANY
    return _run(executions, implementation, is_many, False, 1, q, k, v, used)


def merge(*parts: Parts) -> Float32[jax.Array, "n t e"]:
    """Joins parts of one softmax; zeros where no part had a key."""
    top = functools.reduce(jnp.maximum, [top for _, top, _ in parts])
    scaled = [(jnp.exp(own - top), out, total) for out, own, total in parts]
    total = sum(scale * total for scale, _, total in scaled)
    return sum(scale * out for scale, out, _ in scaled) / jnp.maximum(total, 1e-30)


def _run(executions, implementation, is_many, has_extras, heads, q, k, *rest):
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation is {implementation!r}; expected None or one of "
                f"{', '.join(IMPLEMENTATIONS)}."
            )
        return executions[implementation](q, k, *rest)
    if not is_many:
        return executions["xla"](q, k, *rest)
    by_platform = {"cpu": executions["cpu"], "default": executions["xla"]}
    if not has_extras:
        if attention_tpu.fits(q, k):
            by_platform["tpu"] = executions["tpu"]
        if attention_cudnn.fits(q, k):
            by_platform["cuda"] = executions["cudnn"]
    return jax.lax.platform_dependent(q, k, *rest, **by_platform)


def _with_gradient_of(plain: Callable, fused: Callable) -> Callable:
    run = jax.custom_vjp(lambda *args: fused(*args))
    run.defvjp(lambda *args: jax.vjp(plain, *args), lambda vjp, dy: vjp(dy))
    return run


def _reference(q, k, v, mask):
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, _NEVER)
    p = jax.nn.softmax(scores, -1)
    return jnp.einsum("bhts,bshe->bthe", p, v.astype(jnp.float32)).astype(v.dtype)


def _in_chunks(q, k, v, mask, dropout, dropout_key, one_group_at_a_time):
    """`attention` with at most `_CHUNK` of many queries scored at a time.

    Groups, an image and a head each, go one after the other if asked to: a chunk then stays in the caches.
    """
    b, heads = max(q.shape[0], k.shape[0]), q.shape[2]

    def group(x):  # one leading axis: the layout that products are fast in on CPU
        x = jnp.broadcast_to(x, (b, *x.shape[1:]))
        return x.transpose(0, 2, 1, 3).reshape(b * heads, *x.shape[1::2])

    q, k, v = group(q) * q.shape[-1] ** -0.5, group(k), group(v)
    bias = None
    if mask is not None:
        bias = jnp.repeat(jnp.where(mask, 0.0, _NEVER), heads, 0)[:, None]
    k = k.swapaxes(-1, -2)
    softmax = functools.partial(_softmax, dropout=dropout)
    if not _is_cut(q, k):
        out = softmax(q, k, v, bias, dropout_key)
    elif one_group_at_a_time:

        def one(xs):
            arrays, key = xs
            q, k, v, bias = jax.tree.map(lambda x: x[None], arrays)
            return _by_chunks(softmax, q, k, v, bias, key)[0]

        out = jax.lax.map(one, ((q, k, v, bias), _split(dropout_key, len(q))))
    else:
        out = _by_chunks(softmax, q, k, v, bias, dropout_key)
    return out.reshape(b, heads, *out.shape[1:]).transpose(0, 2, 1, 3)


def _is_cut(q, k):
    num_queries, num_keys = q.shape[1], k.shape[-1]
    return num_queries % _CHUNK == 0 and num_queries >= 4 * _CHUNK and num_keys >= _CHUNK


def _split(key, num):
    return None if key is None else jax.random.split(key, num)


def _by_chunks(softmax, q, k, v, bias, key):
    groups, t, d = q.shape
    chunks = q.reshape(groups, t // _CHUNK, _CHUNK, d).swapaxes(0, 1)
    # The backward pass scores a chunk again instead of remembering its scores.
    one = jax.checkpoint(lambda xs: softmax(xs[0], k, v, bias, xs[1]), prevent_cse=False)
    out = jax.lax.map(one, (chunks, _split(key, len(chunks))))
    return out.swapaxes(0, 1).reshape(groups, t, -1)


def _softmax(q, k, v, bias, dropout_key, dropout):
    """For scaled queries (..., T, D), keys (..., D, S) and values (..., S, E).

    Keys are turned once, before the chunks: in bfloat16 a CPU multiplies by them three times as fast.
    """
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    p = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = p.sum(-1, keepdims=True)
    if dropout_key is not None:
        # Eight random bits a weight are enough, and a quarter of the work of 32.
        dropped = round(256 * dropout)
        bits = jax.random.bits(dropout_key, p.shape, jnp.uint8)
        p = jnp.where(bits >= dropped, p * (256 / (256 - dropped)), 0.0)
    # Dividing after the product with the values touches E numbers a row instead of S.
    out = jnp.matmul(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)


def _scored(q, k, v, bias):
    """Parts for scaled queries (..., T, D), keys (..., D, S), values (..., S, E), bias (..., 1, S) or None."""
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    p = jnp.exp(scores - top)
    if bias is not None:
        p = jnp.where(bias < 0, 0.0, p)
    out = jnp.matmul(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out, top, p.sum(-1, keepdims=True)


def _flat(q, k, v, used):
    """One axis of keys: (N, T, D) scaled queries, (N, D, S), (N, S, E) and the (N, 1, S) bias."""
    n, r, cells, _ = k.shape
    flat = lambda x: x.reshape(n, r * cells, -1)
    bias = jnp.where(jnp.repeat(used, cells, 1), 0.0, _NEVER)[:, None]
    q = jnp.broadcast_to(q * q.shape[-1] ** -0.5, (n, *q.shape[1:]))
    return q, flat(k).swapaxes(-1, -2), flat(v), bias


def _reference_parts(q, k, v, used):
    return _scored(*_flat(q, k, v, used))


def _parts_in_chunks(q, k, v, used):
    q, k, v, bias = _flat(q, k, v, used)
    n, t, d = q.shape
    if not _is_cut(q, k):
        return _scored(q, k, v, bias)
    chunks = q.reshape(n, t // _CHUNK, _CHUNK, d).swapaxes(0, 1)
    one = jax.checkpoint(lambda q: _scored(q, k, v, bias), prevent_cse=False)
    parts = jax.lax.map(one, chunks)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(n, t, -1), parts)


def _parts_in_caches(q, k, v, used):
    """Object after object, slot after slot; a slot that is not used is really skipped."""
    n, (t, d), e = len(k), q.shape[1:], v.shape[-1]
    chunk = _CHUNK if t % _CHUNK == 0 else t

    def one_object(xs):
        q, k, v, used = xs
        chunks = q.reshape(t // chunk, chunk, d)
        nothing = (
            jnp.zeros((t // chunk, chunk, e), jnp.float32),
            jnp.full((t // chunk, chunk, 1), _NEVER, jnp.float32),
            jnp.zeros((t // chunk, chunk, 1), jnp.float32),
        )

        def slot(state, xs):
            k, v, is_used = xs
            k = k.T  # once, see `_softmax`

            @functools.partial(jax.checkpoint, prevent_cse=False)
            def fold(xs):
                q, out, top, total = xs
                new, new_top, new_total = _scored(q, k, v, None)
                higher = jnp.maximum(top, new_top)
                old_scale, scale = jnp.exp(top - higher), jnp.exp(new_top - higher)
                return out * old_scale + new * scale, higher, total * old_scale + new_total * scale

            read = lambda state: jax.lax.map(fold, (chunks, *state))
            return jax.lax.cond(is_used, read, lambda state: state, state), None

        state, _ = jax.lax.scan(slot, nothing, (k, v, used))
        return jax.tree.map(lambda x: x.reshape(t, -1), state)

    q = jnp.broadcast_to(q * d**-0.5, (n, t, d))
    # Not in a batch: under `vmap` a condition becomes a choice between two results, both of them computed.
    return jax.lax.map(one_object, (q, k, v, used))
