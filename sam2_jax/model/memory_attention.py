"""Memory attention: let the current frame look at what was remembered.

frame (L, C)  x  memory slots (R, L, M) + object pointers (X, M)   ->   conditioned frame (N, L, C)
"""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from sam2_jax.config import Sam2Config
from sam2_jax.model import encodings
from sam2_jax.model.attention import attend, attend_slots
from sam2_jax.model.layers import LayerNorm
from sam2_jax.model.remat import rematerialise

_WIDER = 8  # channels inside an MLP, in C; 2048 in the released models


class Projection(nn.Module):
    """A dense layer whose parts can be used apart, since attention in M channels needs its algebra."""

    width: int

    @nn.compact
    def __call__(self, input_width: int) -> tuple[jax.Array, jax.Array]:
        """Returns kernel (input_width, width) and bias (width,)."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (input_width, self.width))
        return kernel, self.param("bias", nn.initializers.zeros, (self.width,))


class RotaryAttention(nn.Module):
    """One-head attention whose queries and keys turn with their place on the map."""

    width: int
    dtype: str
    dropout: float = 0.0  # of the attention weights, while training

    def setup(self):
        """Creates the parts."""
        self.q_proj = Projection(self.width)
        self.k_proj = Projection(self.width)
        self.v_proj = Projection(self.width)
        self.out_proj = nn.Dense(self.width, dtype=self.dtype)

    def _turned(self, projection: nn.Module, input_width: int) -> tuple[jax.Array, jax.Array]:
        order = encodings.rotary_order(self.width)
        kernel, bias = projection(input_width)
        return kernel[:, order].astype(self.dtype), bias[order].astype(self.dtype)

    def _dropout_key(self, is_training: bool) -> jax.Array | None:
        return self.make_rng("dropout") if is_training and self.dropout else None

    def self_attention(self, x: jax.Array, table, is_training: bool = False) -> jax.Array:
        """Maps (B, L, C) to (B, L, C)."""
        (wq, bq), (wk, bk) = (
            self._turned(proj, x.shape[-1]) for proj in (self.q_proj, self.k_proj)
        )
        wv, bv = self.v_proj(x.shape[-1])
        q = encodings.rotate(x @ wq + bq, table)[:, :, None]
        k = encodings.rotate(x @ wk + bk, table)[:, :, None]
        v = (x @ wv.astype(self.dtype) + bv.astype(self.dtype))[:, :, None]
        x = attend(q, k, v, dropout=self.dropout, dropout_key=self._dropout_key(is_training))
        return self.out_proj(x[:, :, 0])

    def cross_attention(
        self, x: jax.Array, memory: "Memory", table, is_training: bool = False
    ) -> jax.Array:
        """Maps queries (N or 1, L, C) to (N, L, C).

        The value projection is applied after the weighted sum: rows of the softmax add up to 1, so
        softmax(S) (V W + b) = (softmax(S) V) W + b, in M instead of C channels.
        """
        wq, bq = self._turned(self.q_proj, x.shape[-1])
        wk, bk = self._turned(self.k_proj, memory.slots.shape[-1])
        wv, bv = self.v_proj(memory.slots.shape[-1])
        q = encodings.rotate(x @ wq + bq, table)
        slot_keys = lambda slot: encodings.rotate(slot @ wk + bk, table)
        pointer_keys = memory.pointers_and_positions @ wk + bk
        wv, bv = wv.astype(self.dtype), bv.astype(self.dtype)
        if is_training:
            key = self._dropout_key(is_training)
            read = memory.read_at_once(q, slot_keys, pointer_keys, self.dropout, key)
            # With dropout the rows no longer add up to 1; the last channel says to what.
            return self.out_proj(read[..., :-1] @ wv + read[..., -1:] * bv)
        read = attend_slots(
            q,
            memory.slots_and_positions,
            memory.slots,
            memory.slot_mask,
            slot_keys,
            pointer_keys,
            memory.pointers,
            memory.pointer_mask,
        )
        return self.out_proj(read.astype(self.dtype) @ wv + bv)


class Memory:
    """Keys and values of the bank in compute type, shared by all layers (see `MemoryAttention`)."""

    def __init__(self, slots, slot_positions, slot_mask, pointers, pointer_positions, pointer_mask):
        self.slots, self.slot_mask = slots, slot_mask
        self.slots_and_positions = slots + slot_positions
        self.pointers, self.pointer_mask = pointers, pointer_mask
        self.pointers_and_positions = pointers + pointer_positions

    def read_at_once(self, q, slot_keys, pointer_keys, dropout, dropout_key):
        """Attends (N or 1, L, C) to all slots and pointers together, empty ones masked: (N, L, M + 1).

        Unlike the running softmax over slots it remembers little for the backward pass, and no device waits
        for a condition that differs between videos. The last channel is the sum of a row's weights.
        """
        n, r, cells, _ = self.slots.shape
        flat = lambda slots: slots.reshape(n, r * cells, -1)
        values = jnp.concatenate([flat(self.slots), self.pointers], 1)
        values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1)
        keys = jnp.concatenate([flat(slot_keys(self.slots_and_positions)), pointer_keys], 1)
        mask = jnp.concatenate([jnp.repeat(self.slot_mask, cells, 1), self.pointer_mask], 1)
        one_head = (x[:, :, None] for x in (q, keys, values))
        return attend(*one_head, mask, dropout, dropout_key)[:, :, 0]


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memory, feed-forward; pre-norm, with residuals."""

    config: Sam2Config

    @nn.compact
    def __call__(self, x: jax.Array, memory: Memory, table, is_training: bool = False) -> jax.Array:
        """Maps (N or 1, L, C) to (N, L, C); the objects part ways at the cross-attention."""
        c, dtype = self.config.hidden_dim, self.config.dtype
        rate = self.config.memory_attention_dropout
        norm = lambda name: LayerNorm(1e-5, dtype, name=name)
        drop = nn.Dropout(rate, deterministic=not is_training)
        attention = lambda name: RotaryAttention(c, dtype, rate, name=name)
        y = attention("self_attn").self_attention(norm("norm1")(x), table, is_training)
        x = x + drop(y)
        y = norm("norm2")(x)
        x = x + drop(attention("cross_attn_image").cross_attention(y, memory, table, is_training))
        y = drop(nn.relu(nn.Dense(_WIDER * c, dtype=dtype, name="linear1")(norm("norm3")(x))))
        return x + drop(nn.Dense(c, dtype=dtype, name="linear2")(y))


class MemoryAttention(nn.Module):
    """The stack of layers and the final norm (paper section 4, "Memory attention")."""

    config: Sam2Config

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        feature_positions: jax.Array,
        slots: jax.Array,
        slot_positions: jax.Array,
        slot_mask: jax.Array,
        pointers: jax.Array,
        pointer_positions: jax.Array,
        pointer_mask: jax.Array,
        is_training: bool = False,
    ) -> jax.Array:
        """Conditions a frame on the memory of each object.

        Args:
          features: (1 or N, L, C) stride-16 map of the frame; 1 is shared by all objects.
          feature_positions: (L, C) or like features.
          slots: (N, R, L, M) memories.
          slot_positions: like slots.
          slot_mask: (N, R) bool, which are read.
          pointers: (N, X, M) object pointers, cut into M channels; they have no place on the map.
          pointer_positions: like pointers.
          pointer_mask: (N, X) bool.
          is_training: drops some of everything (random stream "dropout").

        Returns:
          (N, L, C).
        """
        n, _, cells, m = slots.shape
        chex.assert_shape(pointers, (n, None, m))
        dtype = jnp.dtype(self.config.dtype)
        cast = lambda x: x.astype(dtype)
        memory = Memory(
            cast(slots),
            cast(slot_positions),
            slot_mask,
            cast(pointers),
            cast(pointer_positions),
            pointer_mask,
        )
        table = encodings.rotary_table(round(cells**0.5), self.config.hidden_dim)
        x = cast(features) + 0.1 * cast(feature_positions)
        layers = [
            MemoryAttentionLayer(self.config, name=f"layers_{i}")
            for i in range(self.config.memory_attention_layers)
        ]
        if is_training and not self.is_initializing():
            x = self._in_a_scan(layers, jnp.broadcast_to(x, (n, *x.shape[1:])), memory, table)
        else:
            for layer in layers:
                x = layer(x, memory, table)
        return LayerNorm(1e-5, self.config.dtype, name="norm")(x)

    def _in_a_scan(self, layers, x, memory, table):
        """Applies equal layers as one scan: compiled once, and only what lies between them is remembered."""
        params = jax.tree.map(lambda *x: jnp.stack(x), *(layer.variables for layer in layers))
        pure = layers[0].clone(parent=None)

        def body(x, xs):
            params, key = xs
            return pure.apply(params, x, memory, table, True, rngs={"dropout": key}), None

        keys = jax.random.split(self.make_rng("dropout"), len(layers))
        return jax.lax.scan(rematerialise(body, self.config.remat), x, (params, keys))[0]
