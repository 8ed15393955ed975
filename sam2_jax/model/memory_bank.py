"""Memory bank: what tracking remembers, as pure functions on a pytree of static shapes.

    empty  ->  bank;   read(bank, now)  ->  Recollection;   write_*(bank, frame, ...)  ->  bank

Rules of the paper's section 4 ("Memory bank") as the released code applies them (reference.md 1.12, 10):
every prompted frame is remembered, plus the last six tracked frames and the pointers of the last fifteen.
Temporal codes come from `now - frame` when reading, so the order of the slots never matters.
"""

import jax
import jax.numpy as jnp
from flax import struct

from sam2_jax.config import Sam2Config
from sam2_jax.structs import MemoryBank

EMPTY = -1
FULL_CODE_LENGTH = 16  # frames from which on the pointers' time code no longer depends on the video


@struct.dataclass
class Recollection:
    """What is read for one frame.

    Attributes:
      slots: (N, K + R, H, W, M) memories.
      slot_codes: (N, K + R) int32 row of the temporal table: 0 for the frame before, ..., the last for
        prompted frames.
      slot_mask: (N, K + R) bool, which slots are read.
      pointers: (N, K + 15, C) object pointers.
      pointer_times: (N, K + 15) float32 distance in time, 1 is the farthest that is read.
      pointer_mask: (N, K + 15) bool.
    """

    slots: jax.Array
    slot_codes: jax.Array
    slot_mask: jax.Array
    pointers: jax.Array
    pointer_times: jax.Array
    pointer_mask: jax.Array


def num_recent(config: Sam2Config) -> int:
    """R, the slots for recent memories; with a temporal stride the last frame has one of its own."""
    return max(config.num_maskmem - 1, 1) + (config.memory_temporal_stride_for_eval > 1)


def num_pointers(config: Sam2Config) -> int:
    """Slots for recent object pointers."""
    return max(config.max_obj_ptrs_in_encoder - 1, 1)


def empty(
    config: Sam2Config, num_objects: int, num_prompted: int = 1, num_frames: int = FULL_CODE_LENGTH
) -> MemoryBank:
    """Returns a bank that remembers nothing.

    Args:
      config: sizes.
      num_objects: N.
      num_prompted: K, prompted frames remembered per object; `write` replaces the least useful
        when there are more.
      num_frames: length of the video. A stream leaves the default.
    """
    n, k, r = num_objects, num_prompted, num_recent(config)
    pointers = num_pointers(config)
    grid, m, c = config.grid, config.memory_dim, config.hidden_dim
    return MemoryBank(
        prompted_memories=jnp.zeros((n, k, grid, grid, m), config.memory_dtype),
        prompted_pointers=jnp.zeros((n, k, c), jnp.float32),
        prompted_frames=jnp.full((n, k), EMPTY, jnp.int32),
        recent_memories=jnp.zeros((n, r, grid, grid, m), config.memory_dtype),
        recent_frames=jnp.full((n, r), EMPTY, jnp.int32),
        recent_pointers=jnp.zeros((n, pointers, c), jnp.float32),
        recent_pointer_frames=jnp.full((n, pointers), EMPTY, jnp.int32),
        num_frames=jnp.asarray(num_frames, jnp.int32),
        direction=jnp.asarray(1, jnp.int32),
    )


def recent_slot(config: Sam2Config, frame: jax.Array | int) -> jax.Array | int:
    """Ring slot of a tracked frame: fixed by its index, so that writing order never matters."""
    stride, slots = config.memory_temporal_stride_for_eval, max(config.num_maskmem - 1, 1)
    if stride == 1:
        return frame % slots
    # Only multiples of the stride and the last frame are ever read; that one has the extra slot.
    is_multiple = frame % stride == 0
    return is_multiple * (frame // stride % slots) + (1 - is_multiple) * slots


def recent_frames_to_read(
    config: Sam2Config, now: jax.Array | int, direction: jax.Array | int
) -> list[jax.Array | int]:
    """The frames whose memories are read at `now`, nearest first: t - 1, ..., t - 6 when tracking forwards.

    With a temporal stride r, the frame before and then multiples of r.
    """
    stride = config.memory_temporal_stride_for_eval
    # Time measured along the direction of tracking turns both directions into one rule.
    ahead = now * direction
    grid_point = (ahead - 2) // stride * stride
    frames = [ahead - 1] + [grid_point - i * stride for i in range(config.num_maskmem - 2)]
    return [frame * direction for frame in frames[: config.num_maskmem - 1]]


def _selected(frames: jax.Array, now: jax.Array, limit: int) -> jax.Array:
    """(K,) bool: the prompted frames that the published rule picks when at most `limit` may be attended.

    The nearest before `now`, the nearest at or after it, then by distance; ties go to the one prompted first.
    """
    distance = jnp.abs(frames - now)
    far = jnp.iinfo(jnp.int32).max
    is_used = frames >= 0
    k = frames.shape[0]

    def nearest(candidates):
        index = jnp.argmin(jnp.where(candidates, distance, far))
        return (jnp.arange(k) == index) & candidates

    first = nearest(is_used & (frames < now)) | nearest(is_used & (frames >= now))
    rank = jnp.where(first, -1, jnp.where(is_used, distance, far))
    order = jnp.argsort(rank, stable=True)
    return is_used & (jnp.argsort(order) < limit)


def _match(frames: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each of (K,) frames: whether it is among (R,) wanted ones, and at which place."""
    hits = (frames[:, None] == wanted[None]) & (frames[:, None] >= 0)
    return hits.any(-1), (hits * jnp.arange(wanted.shape[0])).sum(-1)


def read(config: Sam2Config, bank: MemoryBank, now: jax.Array) -> Recollection:
    """Chooses what frame `now` looks at, and how far away in time it is.

    A recent memory counts only at distance 1 to 6 in the direction of tracking, a recent pointer at 1 to 15
    (less in a video shorter than 16 frames). A prompted frame inside the window leaves its place empty.
    Prompted frames that are not selected (`max_cond_frames_in_attn`) count as recent ones.
    """
    now, direction = jnp.asarray(now, jnp.int32), bank.direction
    wanted = jnp.array(recent_frames_to_read(config, now, direction), jnp.int32)
    prompted_code = config.num_maskmem - 1
    pointer_limit = jnp.minimum(bank.num_frames, config.max_obj_ptrs_in_encoder)
    furthest = jnp.maximum(pointer_limit - 1, 1)  # a video of one frame has no distances

    def one_object(prompted_frames, recent_frames, pointer_frames):
        is_prompted = prompted_frames >= 0
        limit = config.max_cond_frames_in_attn
        if 0 < limit < prompted_frames.shape[0]:
            selected = _selected(prompted_frames, now, limit)
        else:
            selected = is_prompted

        in_window, place = _match(prompted_frames, wanted)
        codes = jnp.where(selected, prompted_code, place)
        slots = selected | (is_prompted & in_window)
        recent, recent_place = _match(recent_frames, wanted)

        # Distances along the direction of tracking: positive is the past.
        past = (now - prompted_frames) * direction
        in_reach = is_prompted & (past >= 1) & (past < pointer_limit)
        pointers = selected
        if config.only_obj_ptrs_in_the_past_for_eval:
            pointers = selected & (past >= 0)
        times = past if config.use_signed_tpos_enc_to_obj_ptrs else jnp.abs(past)
        times = jnp.where(selected, times, past)
        recent_past = (now - pointer_frames) * direction
        recent_reach = (pointer_frames >= 0) & (recent_past >= 1) & (recent_past < pointer_limit)
        return (
            jnp.concatenate([codes, recent_place]),
            jnp.concatenate([slots, recent]),
            jnp.concatenate([times, recent_past]) / furthest,
            jnp.concatenate([pointers | (~selected & in_reach), recent_reach]),
        )

    codes, slot_mask, times, pointer_mask = jax.vmap(one_object)(
        bank.prompted_frames, bank.recent_frames, bank.recent_pointer_frames
    )
    return Recollection(
        slots=jnp.concatenate([bank.prompted_memories, bank.recent_memories], 1),
        slot_codes=codes.astype(jnp.int32),
        slot_mask=slot_mask,
        pointers=jnp.concatenate([bank.prompted_pointers, bank.recent_pointers], 1),
        pointer_times=times.astype(jnp.float32),
        pointer_mask=pointer_mask,
    )


def _put(slots: jax.Array, position: jax.Array, value: jax.Array, where: jax.Array) -> jax.Array:
    """Replaces entry `position` of (R, ...) by `value` if `where`."""
    old = jax.lax.dynamic_index_in_dim(slots, position, 0, keepdims=False)
    value = jnp.where(where, value.astype(slots.dtype), old)
    return jax.lax.dynamic_update_index_in_dim(slots, value, position, 0)


def write(
    config: Sam2Config,
    bank: MemoryBank,
    frame: jax.Array,
    memories: jax.Array,
    pointers: jax.Array,
    where: jax.Array,
    is_prompted: jax.Array,
) -> MemoryBank:
    """Remembers a frame.

    A tracked frame takes its place in the rings, unless it already is a prompted frame of that object. A
    prompted frame takes the slot that it already has, else an empty one, else that of the frame which the
    published selection rule would attend last; it is no longer remembered as a tracked frame.

    Args:
      config: sizes.
      bank: the bank.
      frame: () int32 index.
      memories: (N, H, W, M).
      pointers: (N, C).
      where: (N,) bool, the objects that remember it.
      is_prompted: (N,) bool, the objects for which it is a prompted frame.

    Returns:
      The bank with it.
    """
    bank = _write_recent(config, bank, frame, memories, pointers, where & ~is_prompted)
    return _write_prompted(bank, frame, memories, pointers, where & is_prompted)


def _write_recent(config, bank, frame, memories, pointers, where):
    where = where & ~(bank.prompted_frames == frame).any(1)
    slot, pointer_slot = recent_slot(config, frame), frame % num_pointers(config)
    put = jax.vmap(_put, (0, None, 0, 0))
    frames = jnp.broadcast_to(frame, where.shape)
    return bank.replace(
        recent_memories=put(bank.recent_memories, slot, memories, where),
        recent_frames=put(bank.recent_frames, slot, frames, where),
        recent_pointers=put(bank.recent_pointers, pointer_slot, pointers, where),
        recent_pointer_frames=put(bank.recent_pointer_frames, pointer_slot, frames, where),
    )


def _write_prompted(bank, frame, memories, pointers, where):
    def slot_of(frames):
        k = frames.shape[0]
        kept = _selected(jnp.append(frames, frame), frame, k)[:k]
        is_same = frames == frame
        return jnp.where(is_same.any(), is_same.argmax(), kept.argmin())

    position = jax.vmap(slot_of)(bank.prompted_frames)
    put = jax.vmap(_put)
    frames = jnp.broadcast_to(frame, where.shape)
    forget = lambda stored: jnp.where(where[:, None] & (stored == frame), EMPTY, stored)
    return bank.replace(
        prompted_memories=put(bank.prompted_memories, position, memories, where),
        prompted_pointers=put(bank.prompted_pointers, position, pointers, where),
        prompted_frames=put(bank.prompted_frames, position, frames, where),
        recent_frames=forget(bank.recent_frames),
        recent_pointer_frames=forget(bank.recent_pointer_frames),
    )
