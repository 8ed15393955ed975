"""Retention: which tracked frames a bank keeps and reads, described once for the device and the host.

A rule is a few numbers and four functions of them, all of one object:

    wanted                 which frames are read, where their indices alone tell
    make_room, read        on the device, as the bank is written and read frame by frame
    fill                   on the host: what a bank would hold that was written up to some frame

`Latest` is the published rule of SAM 2, `Chosen` that of the policies in `sam2_jax.model.memory_policy`,
which keep good frames however long ago they were. `rules` tells which of them apply.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Shaped

from sam2_jax.config import ModelConfig
from sam2_jax.structs import Array

# How long a tracked frame is kept, in increasing order.
NEVER = 0  # it is not read at all
ONCE = 1  # it is read while it is the newest
RECENT = 2  # it is read until enough newer ones were chosen
ANCHOR = 3  # likewise, but counted apart and without a sense of time

EMPTY = -1  # frame index of an empty slot
_FAR = np.iinfo(np.int32).max

Index: TypeAlias = Int[Array, ""] | np.integer | int


class Line(NamedTuple):
    """What is read of one object's tracked frames.

    Attributes:
      values: of the slots.
      places: 0 is the frame before, and so on into the past.
      is_read: whether each is.
      is_anchor: those of them that have no place in time.
    """

    values: Shaped[jax.Array, "l ..."]
    places: Int[jax.Array, " l"]
    is_read: Bool[jax.Array, " l"]
    is_anchor: Bool[jax.Array, " l"]


@dataclasses.dataclass(frozen=True)
class Latest:
    """The frames just before the current one, by distance; with a stride, the frame before and multiples of it.

    A frame's index tells its slot, so that the order of writing never matters.

    Attributes:
      count: how many are read.
      stride: distance between those beyond the frame before.
    """

    count: int
    stride: int = 1

    @property
    def num_slots(self) -> int:
        """R; with a stride, the frame before has a slot of its own."""
        return self.count + (self.stride > 1)

    def slot(self, frame: Index) -> Index:
        """The slot of a frame."""
        is_multiple = frame % self.stride == 0
        return is_multiple * (frame // self.stride % self.count) + (1 - is_multiple) * self.count

    def wanted(self, now: Index, direction: Index) -> list[Index]:
        """The frames read at `now`, nearest first: t - 1, ..., t - 6 when tracking forwards."""
        # Time measured along the direction of tracking turns both directions into one rule.
        ahead = now * direction
        newest_multiple = (ahead - 2) // self.stride * self.stride
        older = [newest_multiple - i * self.stride for i in range(self.count - 1)]
        return [frame * direction for frame in (ahead - 1, *older)]

    def make_room(
        self, frames: Int[Array, " r"], frame: Index, direction: Index, retention: Index
    ) -> tuple[Index, Int[Array, " r"]]:
        """See `Chosen.make_room`."""
        del direction, retention
        return self.slot(frame), frames

    def read(
        self,
        values: Shaped[Array, "r ..."],
        frames: Int[Array, " r"],
        now: Index,
        direction: Index,
        is_after_prompted: Bool[Array, ""],
        limit: Index,
    ) -> Line:
        """See `Chosen.read`."""
        del is_after_prompted  # a prompted frame leaves its place empty
        places, is_wanted = places_of(frames, self.wanted(now, direction))
        return Line(values, places, is_wanted & (places < limit), jnp.zeros(frames.shape, bool))

    def fill(self, retention: Mapping[int, int], now: int, direction: int) -> dict[int, int]:
        """See `Chosen.fill`."""
        wanted = map(int, self.wanted(now, direction))
        kept = [t for t in wanted if retention.get(t, NEVER) != NEVER]
        return {int(self.slot(t)): t for t in kept}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Frames that a policy chose, from the newest back; their rank is their place in time.

    A frame replaces the oldest of its kind, however long ago that was. The frame before has the first place,
    also when it is a prompted one. Anchors have the code of prompted frames, except as the frame before, and
    take room from the end of the line.

    Attributes:
      count: how many are read.
      num_anchors: slots for `ANCHOR`s; with them, the newest frame is read even if it is not the one before.
    """

    count: int
    num_anchors: int = 0

    @property
    def _kinds(self) -> np.ndarray:
        """(R,) the retention that each slot is for."""
        return np.array([RECENT] * self.count + [ONCE] + [ANCHOR] * self.num_anchors)

    @property
    def num_slots(self) -> int:
        """R, which is more than are read."""
        return len(self._kinds)

    def wanted(self, now: Index, direction: Index) -> list[Index]:
        """The one frame whose place does not depend on what else was chosen."""
        return [now - direction]

    def make_room(
        self, frames: Int[Array, " r"], frame: Index, direction: Index, retention: Index
    ) -> tuple[Index, Int[Array, " r"]]:
        """Finds a slot for a tracked frame.

        Args:
          frames: frame indices in the slots.
          frame: the one that comes.
          direction: of tracking.
          retention: of the frame.

        Returns:
          Its slot, and the frames that stay, the slot's own included.
        """
        age = (frame - frames) * direction
        # Slots that are empty, or hold what the direction of tracking has not reached yet, go first.
        age = jnp.where((frames < 0) | (age <= 0), _FAR, age)
        slot = jnp.where(self._kinds == retention, age, -1).argmax()
        is_over = (frames == frame) | ((self._kinds == ONCE) & (retention > ONCE))
        return slot, jnp.where(is_over, EMPTY, frames)

    def read(
        self,
        values: Shaped[Array, "r ..."],
        frames: Int[Array, " r"],
        now: Index,
        direction: Index,
        is_after_prompted: Bool[Array, ""],
        limit: Index,
    ) -> Line:
        """Chooses what a frame reads, in order of time: whatever the slots, the same numbers.

        Args:
          values: of the slots.
          frames: their frame indices.
          now: the frame that reads.
          direction: of tracking.
          is_after_prompted: whether the frame before is a prompted one.
          limit: places that are read at most.

        Returns:
          The line, L = `count`.
        """
        kinds = self._kinds
        past = jnp.where(frames >= 0, (now - frames) * direction, 0)
        is_before, is_older = past == 1, past > 1
        is_anchor = is_older & (kinds == ANCHOR)
        in_line = kinds == RECENT
        if self.num_anchors:
            in_line = in_line | (kinds == ONCE)
        in_line = is_before | (is_older & in_line)
        places = (in_line & (past < past[:, None])).sum(-1) + is_after_prompted
        in_line = in_line & (places < limit - is_anchor.sum())
        is_read = in_line | is_anchor
        order = jnp.argsort(jnp.where(is_read, past, _FAR), stable=True)[: self.count]
        return Line(values[order], places[order], is_read[order], is_anchor[order])

    def fill(self, retention: Mapping[int, int], now: int, direction: int) -> dict[int, int]:
        """Tells what a bank holds that was written frame by frame up to `now`.

        Args:
          retention: of every tracked frame of one object, by index.
          now: index of the frame that is to be read for.
          direction: 1 when tracking forwards, -1 backwards.

        Returns:
          Slot to frame index; slots that are not named stay empty.
        """
        past = [t for t, kept in retention.items() if (now - t) * direction > 0 and kept != NEVER]
        newest_first = sorted(past, key=lambda t: -t * direction)
        slots = {}
        for kind in (RECENT, ONCE, ANCHOR):
            candidates = newest_first[:1] if kind == ONCE else newest_first
            chosen = [t for t in candidates if retention[t] == kind]
            slots |= zip(np.flatnonzero(self._kinds == kind).tolist(), chosen, strict=False)
        return slots


class Rules(NamedTuple):
    """What is kept of tracked frames: their memories and their object pointers."""

    memories: Latest | Chosen
    pointers: Latest | Chosen


def rules(config: ModelConfig) -> Rules:
    """What a model's memory policy keeps."""
    memories, pointers = max(config.num_maskmem - 1, 1), max(config.max_obj_ptrs_in_encoder - 1, 1)
    latest_pointers = Latest(pointers)
    return {
        "recent": Rules(Latest(memories, config.memory_temporal_stride_for_eval), latest_pointers),
        # Of the three published selections only SAM 3's is one of pointers, too.
        "quality": Rules(Chosen(memories), Chosen(pointers)),
        "motion": Rules(Chosen(memories), latest_pointers),
        "distractor": Rules(Chosen(memories, num_anchors=memories // 2), latest_pointers),
    }[config.memory_policy]


def places_of(
    frames: Int[Array, " k"], wanted: list[Index]
) -> tuple[Int[jax.Array, " k"], Bool[jax.Array, " k"]]:
    """For each frame: its place in a list of wanted ones, and whether it is there."""
    hits = (frames[:, None] == jnp.array(wanted, jnp.int32)) & (frames[:, None] >= 0)
    return (hits * jnp.arange(len(wanted), dtype=jnp.int32)).sum(-1, dtype=jnp.int32), hits.any(-1)
