"""Attention kernels in plain JAX: never a score matrix of all queries by all keys.

Scores and softmax are float32. Long query axes are cut into chunks that fit a cache, and the keys of the
memory bank are visited slot by slot with a running softmax (Milakov and Gimelshein 2018), so that empty
slots cost nothing.
"""

import functools

import jax
import jax.numpy as jnp

QUERY_CHUNK = 512  # on CPU 256 to 2048 are equally fast; it bounds the memory of the scores
_NEVER = -1e30  # finite, so that a row without any key gives numbers, not NaN


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention, scaled by 1 / sqrt(D).

    Args:
      q: (B, Tq, heads, D). A batch of 1 is shared by all others, here and below.
      k: (B, Tk, heads, D).
      v: (B, Tk, heads, E).
      key_mask: (B, Tk) bool, False keys are ignored; None keeps all.
      dropout: chance that a weight is dropped after the softmax, in steps of 1/256.
      dropout_key: random key; without one nothing is dropped.

    Returns:
      (B, Tq, heads, E) in the type of v.
    """
    b = max(q.shape[0], k.shape[0])
    heads = q.shape[2]

    def merge(x):  # one leading batch axis: the layout that CPU matrix products are fast in
        x = jnp.broadcast_to(x, (b, *x.shape[1:]))
        return x.transpose(0, 2, 1, 3).reshape(b * heads, *x.shape[1::2])

    bias = None
    if key_mask is not None:
        bias = jnp.where(jnp.broadcast_to(key_mask, (b, k.shape[1])), 0.0, _NEVER)
        bias = jnp.repeat(bias, heads, 0)[:, None]
    q = merge(q) * q.shape[-1] ** -0.5
    out = _by_query_chunks(q, merge(k), merge(v), bias, dropout, dropout_key)
    return out.reshape(b, heads, *out.shape[1:]).transpose(0, 2, 1, 3)


def _by_query_chunks(q, k, v, bias, dropout, dropout_key):
    """`_softmax_attention` of (G, Tq, D), `QUERY_CHUNK` queries at a time when there are many."""
    _, t, d = q.shape
    has_few_keys = bias is not None and k.shape[1] < QUERY_CHUNK
    if t % QUERY_CHUNK or t < 4 * QUERY_CHUNK or has_few_keys:
        return _softmax_attention(q, k, v, bias, dropout, dropout_key)

    def split(key, num):
        return None if key is None else jax.random.split(key, num)

    def chunks_in_turn(q, k, v, bias, key):
        chunks = q.reshape(-1, t // QUERY_CHUNK, QUERY_CHUNK, d).swapaxes(0, 1)
        one = lambda xs: _softmax_attention(xs[0], k, v, bias, dropout, xs[1])
        out = jax.lax.map(
            jax.checkpoint(one, prevent_cse=False), (chunks, split(key, chunks.shape[0]))
        )
        return out.swapaxes(0, 1).reshape(q.shape[0], t, -1)

    def groups_in_turn(q, k, v, bias, key):  # keeps a chunk in the cache of a CPU
        one = lambda xs: chunks_in_turn(*jax.tree.map(lambda x: x[None], xs[:4]), xs[4])[0]
        return jax.lax.map(one, (q, k, v, bias, split(key, q.shape[0])))

    return jax.lax.platform_dependent(
        q, k, v, bias, dropout_key, cpu=groups_in_turn, default=chunks_in_turn
    )


def _softmax_attention(q, k, v, bias, dropout, dropout_key):
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    p = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = p.sum(-1, keepdims=True)
    if dropout_key is not None:
        # Eight random bits a weight are enough, and a quarter of the work of 32.
        dropped = round(256 * dropout)
        bits = jax.random.bits(dropout_key, p.shape, jnp.uint8)
        p = jnp.where(bits >= dropped, p * (256 / (256 - dropped)), 0.0)
    # Dividing after the value product touches E numbers a row instead of Tk.
    out = jnp.matmul(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)


def attend_slots(
    q: jax.Array,
    slots: jax.Array,
    slot_values: jax.Array,
    slot_mask: jax.Array,
    project_keys: callable,
    extra_keys: jax.Array,
    extra_values: jax.Array,
    extra_mask: jax.Array,
) -> jax.Array:
    """One-head attention over a few large slots of keys and some extra keys, scaled by 1 / sqrt(D).

    Args:
      q: (N or 1, T, D) queries.
      slots: (N, R, L, M) what `project_keys` makes the keys of a slot from.
      slot_values: (N, R, L, E) values.
      slot_mask: (N, R) bool; a False slot is not read.
      project_keys: maps (L, M) to (L, D) keys.
      extra_keys: (N, X, D).
      extra_values: (N, X, E).
      extra_mask: (N, X) bool.

    Returns:
      (N, T, E) float32; zeros where an object has nothing to read.
    """
    n, t = slots.shape[0], q.shape[1]
    q = jnp.broadcast_to(q * q.shape[-1] ** -0.5, (n, *q.shape[1:]))
    chunk = QUERY_CHUNK if t % QUERY_CHUNK == 0 else t
    # Big maps are read object by object, which keeps a chunk in the cache and lets each skip its own empty
    # slots; small ones together.
    together = max(1, 4 * QUERY_CHUNK // t)

    def visit(state, q, k, v, bias):
        """Folds the keys k into the running softmax of every query."""

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def fold(args):
            q, top, total, out = args
            scores = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
            if bias is not None:
                scores = scores + bias
            new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
            new_top = jax.lax.stop_gradient(new_top)
            p = jnp.exp(scores - new_top)
            if bias is not None:
                p = jnp.where(bias < 0, 0.0, p)
            keep = jnp.exp(top - new_top)
            value = jnp.matmul(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return new_top, total * keep + p.sum(-1, keepdims=True), out * keep + value

        return jax.lax.map(fold, (q, *state))

    def one_object(args):
        q, slots, slot_values, slot_mask, extra_keys, extra_values, extra_mask = args
        q = q.reshape(t // chunk, chunk, -1)
        state = (
            jnp.full((*q.shape[:2], 1), _NEVER),
            jnp.zeros((*q.shape[:2], 1)),
            jnp.zeros((*q.shape[:2], slot_values.shape[-1])),
        )
        bias = jnp.where(extra_mask, 0.0, _NEVER)[None]
        state = visit(state, q, extra_keys, extra_values, bias)

        def slot(state, xs):
            slot, values, is_used = xs
            read = lambda state: visit(state, q, project_keys(slot), values, None)
            if together == 1:
                return jax.lax.cond(is_used, read, lambda state: state, state), None
            # In a batch nothing can be skipped, and `cond` would give each object weights of its own.
            keep = lambda new, old: jnp.where(is_used, new, old)
            return jax.tree.map(keep, read(state), state), None

        (_, total, out), _ = jax.lax.scan(slot, state, (slots, slot_values, slot_mask))
        return (out / jnp.maximum(total, 1e-30)).reshape(t, -1)

    xs = (q, slots, slot_values, slot_mask, extra_keys, extra_values, extra_mask)
    if together >= n:
        return jax.vmap(one_object)(xs)
    return jax.lax.map(one_object, xs, batch_size=together)
