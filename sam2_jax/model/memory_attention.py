"""Memory attention: the current frame looks at what was remembered.

frame (L, C)  x  memory slots (R, L, M) + object pointers (X, M)   ->   conditioned frame (N, L, C)
"""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Bool, Float

from sam2_jax.config import ModelConfig
from sam2_jax.model import encodings
from sam2_jax.model.encodings import Table
from sam2_jax.model.layers import Dense, LayerNorm, uniform, uniform_but
from sam2_jax.model.repeat import repeat
from sam2_jax.ops.attention import attend_parts, attention, merge
from sam2_jax.structs import Array

_WIDER = 8  # channels inside an MLP, in C; 2048 in the released models


@struct.dataclass
class Memory:
    """What all layers read, in compute type; R slots of L cells, X tokens of object pointers.

    Attributes:
      slots: values.
      slot_keys: the same with their positions, from which a layer makes its keys.
      slot_mask: which are read.
      pointers: values.
      pointer_keys: like slot_keys.
      pointer_mask: which are read.
    """

    slots: Float[Array, "n r l m"]
    slot_keys: Float[Array, "n r l m"]
    slot_mask: Bool[Array, "n r"]
    pointers: Float[Array, "n x m"]
    pointer_keys: Float[Array, "n x m"]
    pointer_mask: Bool[Array, "n x"]


class Projection(nn.Module):
    """A dense layer whose parts can be used apart, since attention in M channels needs its algebra.

    Attributes:
      width: channels of the output.
      is_of_place: whether the bias makes a cell look at its own place to begin with; one beside it weighs
        0.1 of it. Tracking then begins as a copy of the last mask. From the original's distribution it
        begins as a mean over the map, which takes long to leave.
    """

    width: int
    is_of_place: bool = False

    @nn.compact
    def __call__(
        self, input_width: int
    ) -> tuple[Float[jax.Array, "{input_width} {self.width}"], Float[jax.Array, " {self.width}"]]:
        """Returns kernel and bias."""
        init = uniform(input_width)
        kernel = self.param("kernel", init, (input_width, self.width))
        if self.is_of_place:
            places = encodings.fastest_rotary(self.width)
            init = uniform_but(input_width, places, self.width**0.25)
        return kernel, self.param("bias", init, (self.width,))


class RotaryAttention(nn.Module):
    """One-head attention whose queries and keys turn with their place on the map.

    Attributes:
      width: C.
      dtype: compute type.
      dropout: of the attention weights, while training.
      is_of_place: see `Projection`.
    """

    width: int
    dtype: str
    dropout: float = 0.0
    is_of_place: bool = False

    def setup(self) -> None:
        """Creates the parts."""
        self.q_proj = Projection(self.width, self.is_of_place)
        self.k_proj = Projection(self.width, self.is_of_place)
        self.v_proj = Projection(self.width)
        self.out_proj = Dense(self.width, self.dtype)

    def _turned(self, projection: nn.Module, input_width: int) -> tuple[jax.Array, jax.Array]:
        order = encodings.rotary_order(self.width)
        kernel, bias = projection(input_width)
        return kernel[:, order].astype(self.dtype), bias[order].astype(self.dtype)

    def _dropout_key(self, is_training: bool) -> jax.Array | None:
        return self.make_rng("dropout") if is_training and self.dropout else None

    def self_attention(
        self, x: Float[Array, "b l c"], table: Table, is_training: bool = False
    ) -> Float[jax.Array, "b l c"]:
        """Lets the cells of a map look at each other."""
        (wq, bq), (wk, bk) = (
            self._turned(proj, x.shape[-1]) for proj in (self.q_proj, self.k_proj)
        )
        wv, bv = self.v_proj(x.shape[-1])
        q = encodings.rotate(x @ wq + bq, table)
        k = encodings.rotate(x @ wk + bk, table)
        v = x @ wv.astype(self.dtype) + bv.astype(self.dtype)
        one_head = (x[:, :, None] for x in (q, k, v))
        key = self._dropout_key(is_training)
        x = attention(*one_head, dropout=self.dropout, dropout_key=key)
        return self.out_proj(x[:, :, 0])

    def cross_attention(
        self, x: Float[Array, "#n l c"], memory: Memory, table: Table, is_training: bool = False
    ) -> Float[jax.Array, "n l c"]:
        """Lets the cells of a map look at the memory of each object.

        The value projection is applied after the weighted sum: rows of the softmax add up to 1, so
        softmax(S) (V W + b) = (softmax(S) V) W + b, in M instead of C channels.
        """
        wq, bq = self._turned(self.q_proj, x.shape[-1])
        wk, bk = self._turned(self.k_proj, memory.slots.shape[-1])
        wv, bv = self.v_proj(memory.slots.shape[-1])
        q = encodings.rotate(x @ wq + bq, table)
        slot_keys = encodings.rotate(memory.slot_keys @ wk + bk, table)
        pointer_keys = memory.pointer_keys @ wk + bk
        wv, bv = wv.astype(self.dtype), bv.astype(self.dtype)
        if is_training:
            key = self._dropout_key(is_training)
            read = _read_at_once(q, memory, slot_keys, pointer_keys, self.dropout, key)
            # With dropout the rows no longer add up to 1; the last channel says to what.
            return self.out_proj(read[..., :-1] @ wv + read[..., -1:] * bv)
        one_token = lambda x: x[:, :, None]  # a pointer's token is a slot of its own
        read = merge(
            attend_parts(q, slot_keys, memory.slots, memory.slot_mask),
            attend_parts(
                q, one_token(pointer_keys), one_token(memory.pointers), memory.pointer_mask
            ),
        )
        return self.out_proj(read.astype(self.dtype) @ wv + bv)


def _read_at_once(q, memory, slot_keys, pointer_keys, dropout, dropout_key):
    """Attends (N or 1, L, C) to all slots and pointers together, with dropout: (N, L, M + 1).

    The last channel is the sum of a row's weights.
    """
    n, r, cells, _ = memory.slots.shape
    flat = lambda slots: slots.reshape(n, r * cells, -1)
    values = jnp.concatenate([flat(memory.slots), memory.pointers], 1)
    values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1)
    keys = jnp.concatenate([flat(slot_keys), pointer_keys], 1)
    mask = jnp.concatenate([jnp.repeat(memory.slot_mask, cells, 1), memory.pointer_mask], 1)
    one_head = (x[:, :, None] for x in (q, keys, values))
    read = attention(*one_head, mask=mask[:, None, None], dropout=dropout, dropout_key=dropout_key)
    return read[:, :, 0]


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memory, feed-forward; pre-norm, with residuals."""

    config: ModelConfig
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "#n l c"], memory: Memory, table: Table, is_training: bool = False
    ) -> Float[jax.Array, "n l c"]:
        """Applies the layer; a map that objects share becomes one for each at the cross-attention."""
        c, dtype = self.config.hidden_dim, self.config.dtype
        rate = self.dropout
        norm = lambda name: LayerNorm(1e-5, dtype, name=name)
        drop = nn.Dropout(rate, deterministic=not is_training)
        own = RotaryAttention(c, dtype, rate, name="self_attn")
        x = x + drop(own.self_attention(norm("norm1")(x), table, is_training))
        cross = RotaryAttention(c, dtype, rate, True, name="cross_attn_image")
        x = x + drop(cross.cross_attention(norm("norm2")(x), memory, table, is_training))
        y = drop(nn.relu(Dense(_WIDER * c, dtype, name="linear1")(norm("norm3")(x))))
        return x + drop(Dense(c, dtype, name="linear2")(y))


class MemoryAttention(nn.Module):
    """The stack of layers and the final norm (paper section 4, "Memory attention").

    Attributes:
      config: sizes.
      dropout: of everything, while it trains.
      remat: what the backward pass computes again; see `repeat.rematerialise`.
    """

    config: ModelConfig
    dropout: float = 0.0
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "#n l c"],
        feature_positions: Float[Array, "... l c"],
        slots: Float[Array, "n r l m"],
        slot_positions: Float[Array, "n r l m"],
        slot_mask: Bool[Array, "n r"],
        pointers: Float[Array, "n x m"],
        pointer_positions: Float[Array, "n x m"],
        pointer_mask: Bool[Array, "n x"],
        is_training: bool = False,
    ) -> Float[jax.Array, "n l c"]:
        """Conditions a frame on the memory of each object.

        Args:
          features: stride-16 map of the frame; a single one is shared by all objects.
          feature_positions: encoding of its cells.
          slots: memories.
          slot_positions: encoding of their cells and of their time.
          slot_mask: which are read.
          pointers: object pointers, cut into M channels; they have no place on the map.
          pointer_positions: encoding of their time.
          pointer_mask: which are read.
          is_training: applies dropout (random stream "dropout").
        """
        config = self.config
        n, _, cells, m = slots.shape
        chex.assert_shape(pointers, (n, None, m))
        cast = lambda x: x.astype(config.dtype)
        slots, pointers = cast(slots), cast(pointers)
        memory = Memory(
            slots,
            slots + cast(slot_positions),
            slot_mask,
            pointers,
            pointers + cast(pointer_positions),
            pointer_mask,
        )
        table = encodings.rotary_table(round(cells**0.5), config.hidden_dim)
        x = cast(features) + 0.1 * cast(feature_positions)
        names = [f"layers_{i}" for i in range(config.memory_attention_layers)]
        if is_training and not self.is_initializing():
            x = jnp.broadcast_to(x, (n, *x.shape[1:]))
            layer = MemoryAttentionLayer(config, self.dropout, parent=None)
            apply = lambda layer, x, _: layer(x, memory, table, True)
            x = repeat(self, layer, names, x, apply, remat=self.remat)
        else:
            for name in names:
                x = MemoryAttentionLayer(config, name=name)(x, memory, table)
        return LayerNorm(1e-5, config.dtype, name="norm")(x)
