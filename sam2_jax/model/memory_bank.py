"""Memory bank: what tracking remembers, as pure functions on a pytree of static shapes.

    empty  ->  bank;   read(bank, now)  ->  Recollection;   write_*(bank, frame, ...)  ->  bank

Rules of the paper's section 4 ("Memory bank") as the released code applies them (reference.md 1.12, 10):
every prompted frame is remembered, plus the last six tracked frames and the pointers of the last fifteen.
Temporal codes come from `now - frame` when reading, so the order of the slots never matters.

A memory policy that chooses (`ModelConfig.memory_policy`, `sam2_jax.model.memory_policy`) gives every slot for
tracked frames a verdict for which it is: six for RECENT ones, one for a newest frame that is only read ONCE,
and with distractors three for ANCHORs. A frame replaces the oldest of its kind, however long ago that was.
What is read stands in line from the newest back, and its place there is its temporal code; the frame before
has the first place, also when it is a prompted one. Anchors have the code of prompted frames, except as the
frame before, and take room from the end of the line. Lines are read in order of time, so a bank that was
filled from a store (`slots_to_fill`) reads bit for bit as one that was written frame by frame.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sam2_jax.config import ModelConfig
from sam2_jax.model import memory_policy
from sam2_jax.model.memory_policy import ANCHOR, NEVER, ONCE, RECENT
from sam2_jax.structs import MemoryBank

EMPTY = -1
FULL_CODE_LENGTH = 16  # frames from which on the pointers' time code no longer depends on the video


@struct.dataclass
class Recollection:
    """What is read for one frame; R = 6.

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


def _kinds(config: ModelConfig) -> np.ndarray | None:
    """(R,) int the verdict that each slot for tracked frames is for; None if its frame index tells the slot."""
    if config.memory_policy == "recent":
        return None
    r = config.num_maskmem - 1
    anchors = r // 2 if config.memory_policy == "distractor" else 0
    return np.array([RECENT] * r + [ONCE] + [ANCHOR] * anchors)


def _pointer_kinds(config: ModelConfig) -> np.ndarray | None:
    """The same for object pointers."""
    # Of the three published selections only SAM 3's is one of pointers, too.
    if config.memory_policy != "quality":
        return None
    return np.array([RECENT] * max(config.max_obj_ptrs_in_encoder - 1, 1) + [ONCE])


def num_recent(config: ModelConfig) -> int:
    """R, the slots for memories of tracked frames."""
    kinds = _kinds(config)
    if kinds is not None:
        return len(kinds)
    # With a temporal stride the last frame has a slot of its own.
    return max(config.num_maskmem - 1, 1) + (config.memory_temporal_stride_for_eval > 1)


def num_pointers(config: ModelConfig) -> int:
    """Slots for object pointers of tracked frames."""
    kinds = _pointer_kinds(config)
    return max(config.max_obj_ptrs_in_encoder - 1, 1) if kinds is None else len(kinds)


def empty(
    config: ModelConfig, num_objects: int, num_prompted: int = 1, num_frames: int = FULL_CODE_LENGTH
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
        policy=jax.tree.map(jnp.asarray, memory_policy.init(config, n)),
    )


def recent_slot(config: ModelConfig, frame: jax.Array | int) -> jax.Array | int:
    """Ring slot of a tracked frame: fixed by its index, so that writing order never matters."""
    stride, slots = config.memory_temporal_stride_for_eval, max(config.num_maskmem - 1, 1)
    if stride == 1:
        return frame % slots
    # Only multiples of the stride and the last frame are ever read; that one has the extra slot.
    is_multiple = frame % stride == 0
    return is_multiple * (frame // stride % slots) + (1 - is_multiple) * slots


def recent_frames_to_read(
    config: ModelConfig, now: jax.Array | int, direction: jax.Array | int
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


def slots_to_fill(
    config: ModelConfig, verdicts: Mapping[int, int], now: int, direction: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Tells which stored frames a bank holds that was written frame by frame up to `now`; for the host.

    Args:
      config: sizes and memory policy.
      verdicts: of one object, by the index of every tracked frame in store.
      now: index of the frame that is to be read for.
      direction: 1 when tracking forwards, -1 backwards.

    Returns:
      Slot to frame index, of the memories and of the pointers of tracked frames. Slots that are not named
      stay empty.
    """
    kinds, pointer_kinds = _kinds(config), _pointer_kinds(config)
    if kinds is None:
        frames = [t for t in recent_frames_to_read(config, now, direction) if t in verdicts]
        memories = {recent_slot(config, t): t for t in frames}
    else:
        memories = _fill(kinds, verdicts, now, direction)
    if pointer_kinds is None:
        reach = num_pointers(config)
        near = [now - direction * distance for distance in range(1, reach + 1)]
        is_held = lambda t: t in verdicts and (kinds is None or verdicts[t] != NEVER)
        pointers = {t % reach: t for t in near if is_held(t)}
    else:
        pointers = _fill(pointer_kinds, verdicts, now, direction)
    return memories, pointers


def _fill(kinds, verdicts, now, direction):
    past = [t for t in verdicts if (now - t) * direction >= 1 and verdicts[t] != NEVER]
    newest_first = sorted(past, key=lambda t: -t * direction)
    filled = {}
    for kind in (RECENT, ONCE, ANCHOR):
        candidates = newest_first[:1] if kind == ONCE else newest_first
        chosen = [t for t in candidates if verdicts[t] == kind]
        filled |= dict(zip(np.flatnonzero(kinds == kind).tolist(), chosen, strict=False))
    return filled


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


def _line_up(
    kinds: np.ndarray, past: jax.Array, is_after_prompted: jax.Array, room: int, looks_back: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Chooses what is read of one object's (R,) slots, newest first.

    Args:
      kinds: (R,) of the slots.
      past: (R,) int32 distance of their frames, positive is the past; 0 for empty slots.
      is_after_prompted: () bool, whether the frame before is a prompted one.
      room: L, what is read at most.
      looks_back: whether a ONCE frame is read when it is not the frame before.

    Returns:
      (L,) int32 slots, (L,) int32 their places in the line, 0 is the frame before, (L,) bool which are read in
      the line, and (L,) bool which as anchors.
    """
    is_before = past == 1
    is_anchor = (past > 1) & (kinds == ANCHOR)
    in_line = is_before | ((past > 1) & ((kinds == RECENT) | ((kinds == ONCE) & looks_back)))
    place = (in_line & (past < past[:, None])).sum(-1) + is_after_prompted
    in_line = in_line & (place < room - is_anchor.sum())
    far = jnp.iinfo(jnp.int32).max
    order = jnp.argsort(jnp.where(in_line | is_anchor, past, far), stable=True)[:room]
    return order, place[order], in_line[order], is_anchor[order]


def read(config: ModelConfig, bank: MemoryBank, now: jax.Array) -> Recollection:
    """Chooses what frame `now` looks at, and how far away in time it is.

    A recent memory counts only at distance 1 to 6 in the direction of tracking, a recent pointer at 1 to 15
    (less in a video shorter than 16 frames). A prompted frame inside the window leaves its place empty.
    Prompted frames that are not selected (`max_cond_frames_in_attn`) count as recent ones. A memory policy
    that chooses counts places in the line instead of distances.
    """
    now, direction = jnp.asarray(now, jnp.int32), bank.direction
    kinds, pointer_kinds = _kinds(config), _pointer_kinds(config)
    wanted = recent_frames_to_read(config, now, direction)
    # In a line, a prompted frame that is not selected has a place only as the frame before.
    wanted = jnp.array(wanted if kinds is None else wanted[:1], jnp.int32)
    prompted_code = config.num_maskmem - 1
    pointer_limit = jnp.minimum(bank.num_frames, config.max_obj_ptrs_in_encoder)
    furthest = jnp.maximum(pointer_limit - 1, 1)  # a video of one frame has no distances

    def read_recent(frames, is_after_prompted):
        if kinds is None:
            is_read, place = _match(frames, wanted)
            return jnp.arange(frames.shape[0]), place, is_read
        past = jnp.where(frames >= 0, (now - frames) * direction, 0)
        looks_back = config.memory_policy == "distractor"
        order, place, in_line, is_anchor = _line_up(
            kinds, past, is_after_prompted, config.num_maskmem - 1, looks_back
        )
        return order, jnp.where(is_anchor, prompted_code, place), in_line | is_anchor

    def read_pointers(frames, is_after_prompted):
        past = (now - frames) * direction
        if pointer_kinds is None:
            in_reach = (frames >= 0) & (past >= 1) & (past < pointer_limit)
            return jnp.arange(frames.shape[0]), past, in_reach
        past, room = jnp.where(frames >= 0, past, 0), config.max_obj_ptrs_in_encoder - 1
        order, place, in_line, _ = _line_up(pointer_kinds, past, is_after_prompted, room, False)
        return order, place + 1, in_line & (place + 1 < pointer_limit)

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

        # Distances along the direction of tracking: positive is the past.
        past = (now - prompted_frames) * direction
        is_after_prompted = (is_prompted & (past == 1)).any()
        order, recent_codes, recent = read_recent(recent_frames, is_after_prompted)

        in_reach = is_prompted & (past >= 1) & (past < pointer_limit)
        if pointer_kinds is not None:
            in_reach = in_reach & (past == 1)
        pointers = selected
        if config.only_obj_ptrs_in_the_past_for_eval:
            pointers = selected & (past >= 0)
        times = past if config.use_signed_tpos_enc_to_obj_ptrs else jnp.abs(past)
        times = jnp.where(selected, times, past)
        pointer_order, recent_times, recent_reach = read_pointers(pointer_frames, is_after_prompted)
        return (
            order,
            jnp.concatenate([codes, recent_codes]),
            jnp.concatenate([slots, recent]),
            pointer_order,
            jnp.concatenate([times, recent_times]) / furthest,
            jnp.concatenate([pointers | (~selected & in_reach), recent_reach]),
        )

    order, codes, slot_mask, pointer_order, times, pointer_mask = jax.vmap(one_object)(
        bank.prompted_frames, bank.recent_frames, bank.recent_pointer_frames
    )
    take = jax.vmap(lambda x, i: x[i])
    recent, pointers = bank.recent_memories, bank.recent_pointers
    recent = recent if kinds is None else take(recent, order)
    pointers = pointers if pointer_kinds is None else take(pointers, pointer_order)
    return Recollection(
        slots=jnp.concatenate([bank.prompted_memories, recent], 1),
        slot_codes=codes.astype(jnp.int32),
        slot_mask=slot_mask,
        pointers=jnp.concatenate([bank.prompted_pointers, pointers], 1),
        pointer_times=times.astype(jnp.float32),
        pointer_mask=pointer_mask,
    )


def _put(slots: jax.Array, position: jax.Array, value: jax.Array, where: jax.Array) -> jax.Array:
    """Replaces entry `position` of (R, ...) by `value` if `where`."""
    old = jax.lax.dynamic_index_in_dim(slots, position, 0, keepdims=False)
    value = jnp.where(where, value.astype(slots.dtype), old)
    return jax.lax.dynamic_update_index_in_dim(slots, value, position, 0)


def write(
    config: ModelConfig,
    bank: MemoryBank,
    frame: jax.Array,
    memories: jax.Array,
    pointers: jax.Array,
    where: jax.Array,
    is_prompted: jax.Array,
    verdicts: jax.Array | None = None,
) -> MemoryBank:
    """Remembers a frame.

    A tracked frame takes its place, unless it already is a prompted frame of that object. A prompted frame
    takes the slot that it already has, else an empty one, else that of the frame which the published
    selection rule would attend last; it is no longer remembered as a tracked frame.

    Args:
      config: sizes and memory policy.
      bank: the bank.
      frame: () int32 index.
      memories: (N, H, W, M).
      pointers: (N, C).
      where: (N,) bool, the objects that remember it.
      is_prompted: (N,) bool, the objects for which it is a prompted frame.
      verdicts: (N,) int32 of the memory policy; "recent" does without.

    Returns:
      The bank with it.
    """
    is_tracked = where & ~is_prompted & ~(bank.prompted_frames == frame).any(1)
    bank = _write_recent(config, bank, frame, memories, pointers, is_tracked, verdicts)
    return _write_prompted(bank, frame, memories, pointers, where & is_prompted)


def _write_recent(config, bank, frame, memories, pointers, where, verdicts):
    is_kept = where if verdicts is None else where & (verdicts != NEVER)
    new_frames = jnp.broadcast_to(frame, where.shape)

    def put(kinds, ring_slot, stored, frames, values):
        slot, axis = ring_slot, None
        if kinds is not None:
            make_room = jax.vmap(functools.partial(_make_room, kinds), (0, None, None, 0, 0))
            slot, frames = make_room(frames, frame, bank.direction, verdicts, where)
            axis = 0
        put = jax.vmap(_put, (0, axis, 0, 0))
        return put(stored, slot, values, is_kept), put(frames, slot, new_frames, is_kept)

    slot, pointer_slot = recent_slot(config, frame), frame % num_pointers(config)
    recent = put(_kinds(config), slot, bank.recent_memories, bank.recent_frames, memories)
    recent_pointers = put(
        _pointer_kinds(config),
        pointer_slot,
        bank.recent_pointers,
        bank.recent_pointer_frames,
        pointers,
    )
    return bank.replace(
        recent_memories=recent[0],
        recent_frames=recent[1],
        recent_pointers=recent_pointers[0],
        recent_pointer_frames=recent_pointers[1],
    )


def _make_room(kinds, frames, frame, direction, verdict, where):
    """The slot of one object that a frame takes, and (R,) the frames that stay, the slot's own included."""
    age = (frame - frames) * direction
    # Slots that are empty, or hold what the direction of tracking has not reached yet, go first.
    age = jnp.where((frames < 0) | (age <= 0), jnp.iinfo(jnp.int32).max, age)
    slot = jnp.where(kinds == verdict, age, -1).argmax()
    is_over = (frames == frame) | ((kinds == ONCE) & (verdict > ONCE))
    return slot, jnp.where(where & is_over, EMPTY, frames)


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
