"""Memory bank: what tracking keeps of the past, as pure functions on a pytree of static shapes.

    empty  ->  bank;   read(bank, now)  ->  MemoryTokens;   write(bank, frame, ...)  ->  bank

The rules are those of SAM 2 (arXiv 2408.00714, section 4, "Memory bank") as its released code applies them:
every prompted frame is kept, plus the last six tracked frames and the pointers of the last fifteen. Which
tracked frames are kept, and how they are read, is told in `sam2_jax.model.retention`. Temporal codes come
from `now - frame` when reading, so the order of the slots never matters.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import ArrayLike, Bool, Float, Float32, Int, Int32

from sam2_jax.config import ModelConfig
from sam2_jax.model import memory_policy
from sam2_jax.model.retention import EMPTY, NEVER, RECENT, places_of, rules
from sam2_jax.structs import Array, MemoryBank

FULL_CODE_LENGTH = 16  # frames from which on the pointers' time code no longer depends on the video


@struct.dataclass
class MemoryTokens:
    """What is read for one frame: that of K prompted frames, then that of tracked ones.

    Attributes:
      slots: memories; r = K + 6.
      slot_codes: row of the temporal table: 0 for the frame before, ..., the last for prompted frames.
      slot_mask: which slots are read.
      pointers: object pointers; x = K + 15.
      pointer_times: distance in time, 1 is the farthest that is read.
      pointer_mask: which pointers are read.
    """

    slots: Float[Array, "n r h w m"]
    slot_codes: Int32[Array, "n r"]
    slot_mask: Bool[Array, "n r"]
    pointers: Float32[Array, "n x c"]
    pointer_times: Float32[Array, "n x"]
    pointer_mask: Bool[Array, "n x"]


def empty(
    config: ModelConfig, num_objects: int, num_prompted: int = 1, num_frames: int = FULL_CODE_LENGTH
) -> MemoryBank:
    """Returns an empty bank.

    Args:
      config: sizes.
      num_objects: N.
      num_prompted: K, prompted frames kept per object; `write` replaces the least useful when there are
        more.
      num_frames: length of the video. A stream leaves the default.
    """
    n, k = num_objects, num_prompted
    r, pointers = (rule.num_slots for rule in rules(config))
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
        policy=jax.tree.map(jnp.asarray, memory_policy.init(config, n)),
    )


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


def read(config: ModelConfig, bank: MemoryBank, now: Int[ArrayLike, ""]) -> MemoryTokens:
    """Chooses what frame `now` looks at, and how far away in time it is.

    Tracked frames are read by the rules of the memory policy, and none beyond the length of a video shorter
    than 16 frames. A prompted frame that is not selected (`max_cond_frames_in_attn`) is read as a tracked
    one.

    Args:
      config: sizes and memory policy.
      bank: of N objects.
      now: frame index.

    Returns:
      The tokens of N objects.
    """
    now, direction = jnp.asarray(now, jnp.int32), bank.direction
    rule, pointer_rule = rules(config)
    prompted_code = config.num_maskmem - 1
    pointer_limit = jnp.minimum(bank.num_frames, config.max_obj_ptrs_in_encoder) - 1
    furthest = jnp.maximum(pointer_limit, 1).astype(
        jnp.float32
    )  # a video of one frame has no distances

    def one_object(bank):
        frames = bank.prompted_frames
        is_prompted = frames >= 0
        limit = config.max_cond_frames_in_attn
        is_limited = 0 < limit < frames.shape[0]
        selected = _selected(frames, now, limit) if is_limited else is_prompted

        def as_tracked(rule, limit):
            places, is_wanted = places_of(frames, rule.wanted(now, direction))
            return places, ~selected & is_wanted & (places < limit)

        # Distances along the direction of tracking: positive is the past.
        past = (now - frames) * direction
        is_after_prompted = (is_prompted & (past == 1)).any()

        places, is_tracked = as_tracked(rule, prompted_code)
        recent = rule.read(
            bank.recent_memories,
            bank.recent_frames,
            now,
            direction,
            is_after_prompted,
            prompted_code,
        )
        recent_codes = jnp.where(recent.is_anchor, prompted_code, recent.places)

        pointer_places, is_tracked_pointer = as_tracked(pointer_rule, pointer_limit)
        is_pointer = selected
        if config.only_obj_ptrs_in_the_past_for_eval:
            is_pointer = selected & (past >= 0)
        times = past if config.use_signed_tpos_enc_to_obj_ptrs else jnp.abs(past)
        pointers = pointer_rule.read(
            bank.recent_pointers,
            bank.recent_pointer_frames,
            now,
            direction,
            is_after_prompted,
            pointer_limit,
        )
        join = lambda prompted, recent: jnp.concatenate([prompted, recent])
        return MemoryTokens(
            slots=join(bank.prompted_memories, recent.values),
            slot_codes=join(jnp.where(selected, prompted_code, places), recent_codes),
            slot_mask=join(selected | is_tracked, recent.is_read),
            pointers=join(bank.prompted_pointers, pointers.values),
            pointer_times=join(
                jnp.where(selected, times, pointer_places + 1), pointers.places + 1
            ).astype(jnp.float32)
            / furthest,
            pointer_mask=join(is_pointer | is_tracked_pointer, pointers.is_read),
        )

    per_object = bank.replace(num_frames=None, direction=None)
    return jax.vmap(one_object)(per_object)


def _put(slots: jax.Array, position: jax.Array, value: jax.Array, where: jax.Array) -> jax.Array:
    """Replaces entry `position` of (R, ...) by `value` if `where`."""
    old = jax.lax.dynamic_index_in_dim(slots, position, 0, keepdims=False)
    value = jnp.where(where, value.astype(slots.dtype), old)
    return jax.lax.dynamic_update_index_in_dim(slots, value, position, 0)


def write(
    config: ModelConfig,
    bank: MemoryBank,
    frame: Int[ArrayLike, ""],
    memories: Float[Array, "n h w m"],
    pointers: Float[Array, "n c"],
    where: Bool[Array, " n"],
    is_prompted: Bool[Array, " n"],
    retention: Int[Array, " n"] | Int[ArrayLike, ""] = RECENT,
) -> MemoryBank:
    """Adds a frame.

    A tracked frame takes its place, unless it already is a prompted frame of that object. A prompted frame
    takes the slot that it already has, else an empty one, else that of the frame which the published
    selection rule would attend last; it no longer counts as a tracked frame.

    Args:
      config: sizes and memory policy.
      bank: of N objects.
      frame: its index.
      memories: of it.
      pointers: likewise.
      where: the objects that keep it.
      is_prompted: the objects for which it is a prompted frame.
      retention: of the memory policy.

    Returns:
      The bank with it.
    """
    retention = jnp.broadcast_to(retention, where.shape)
    is_tracked = where & ~is_prompted & ~(bank.prompted_frames == frame).any(1)

    def write_tracked(rule, values, frames, new_values):
        def one_object(values, frames, value, retention, where):
            slot, remaining = rule.make_room(frames, frame, bank.direction, retention)
            frames, is_kept = jnp.where(where, remaining, frames), where & (retention != NEVER)
            return _put(values, slot, value, is_kept), _put(frames, slot, frame, is_kept)

        return jax.vmap(one_object)(values, frames, new_values, retention, is_tracked)

    rule, pointer_rule = rules(config)
    recent_memories, recent_frames = write_tracked(
        rule, bank.recent_memories, bank.recent_frames, memories
    )
    recent_pointers, recent_pointer_frames = write_tracked(
        pointer_rule, bank.recent_pointers, bank.recent_pointer_frames, pointers
    )
    bank = bank.replace(
        recent_memories=recent_memories,
        recent_frames=recent_frames,
        recent_pointers=recent_pointers,
        recent_pointer_frames=recent_pointer_frames,
    )
    return _write_prompted(bank, frame, memories, pointers, where & is_prompted)


def _write_prompted(bank, frame, memories, pointers, where):
    def slot_of(frames):
        k = frames.shape[0]
        kept = _selected(jnp.append(frames, frame), frame, k)[:k]
        is_same = frames == frame
        return jnp.where(is_same.any(), is_same.argmax(), kept.argmin())

    position = jax.vmap(slot_of)(bank.prompted_frames)
    put = jax.vmap(_put)
    frames = jnp.broadcast_to(frame, where.shape)
    without = lambda stored: jnp.where(where[:, None] & (stored == frame), EMPTY, stored)
    return bank.replace(
        prompted_memories=put(bank.prompted_memories, position, memories, where),
        prompted_pointers=put(bank.prompted_pointers, position, pointers, where),
        prompted_frames=put(bank.prompted_frames, position, frames, where),
        recent_frames=without(bank.recent_frames),
        recent_pointer_frames=without(bank.recent_pointer_frames),
    )
