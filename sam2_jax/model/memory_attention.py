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

_FEEDFORWARD = 2048


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

    def self_attention(self, x: jax.Array, table) -> jax.Array:
        """Maps (B, L, C) to (B, L, C)."""
        (wq, bq), (wk, bk) = (
            self._turned(proj, x.shape[-1]) for proj in (self.q_proj, self.k_proj)
        )
        wv, bv = self.v_proj(x.shape[-1])
        q = encodings.rotate(x @ wq + bq, table)[:, :, None]
        k = encodings.rotate(x @ wk + bk, table)[:, :, None]
        v = (x @ wv.astype(self.dtype) + bv.astype(self.dtype))[:, :, None]
        return self.out_proj(attend(q, k, v)[:, :, 0])

    def cross_attention(self, x: jax.Array, memory: "Memory", table) -> jax.Array:
        """Maps queries (N or 1, L, C) to (N, L, C).

        The value projection is applied after the weighted sum: rows of the softmax add up to 1, so
        softmax(S) (V W + b) = (softmax(S) V) W + b, in M instead of C channels.
        """
        wq, bq = self._turned(self.q_proj, x.shape[-1])
        wk, bk = self._turned(self.k_proj, memory.slots.shape[-1])
        wv, bv = self.v_proj(memory.slots.shape[-1])
        q = encodings.rotate(x @ wq + bq, table)
        read = attend_slots(
            q,
            memory.slots_and_positions,
            memory.slots,
            memory.slot_mask,
            lambda slot: encodings.rotate(slot @ wk + bk, table),
            memory.pointers_and_positions @ wk + bk,
            memory.pointers,
            memory.pointer_mask,
        )
        read = read.astype(self.dtype) @ wv.astype(self.dtype) + bv.astype(self.dtype)
        return self.out_proj(read)


class Memory:
    """Keys and values of the bank in compute type, shared by all layers (see `MemoryAttention`)."""

    def __init__(self, slots, slot_positions, slot_mask, pointers, pointer_positions, pointer_mask):
        self.slots, self.slot_mask = slots, slot_mask
        self.slots_and_positions = slots + slot_positions
        self.pointers, self.pointer_mask = pointers, pointer_mask
        self.pointers_and_positions = pointers + pointer_positions


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memory, feed-forward; pre-norm, with residuals."""

    config: Sam2Config

    @nn.compact
    def __call__(self, x: jax.Array, memory: Memory, table) -> jax.Array:
        """Maps (N or 1, L, C) to (N, L, C); the objects part ways at the cross-attention."""
        c, dtype = self.config.hidden_dim, self.config.dtype
        norm = lambda name: LayerNorm(1e-5, dtype, name=name)
        x = x + RotaryAttention(c, dtype, name="self_attn").self_attention(norm("norm1")(x), table)
        cross = RotaryAttention(c, dtype, name="cross_attn_image")
        x = x + cross.cross_attention(norm("norm2")(x), memory, table)
        y = nn.relu(nn.Dense(_FEEDFORWARD, dtype=dtype, name="linear1")(norm("norm3")(x)))
        return x + nn.Dense(c, dtype=dtype, name="linear2")(y)


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
        for i in range(self.config.memory_attention_layers):
            x = MemoryAttentionLayer(self.config, name=f"layers_{i}")(x, memory, table)
        return LayerNorm(1e-5, self.config.dtype, name="norm")(x)
