"""What a session knows of each object: its prompts, and its results by frame, which outlive propagations.

The device's bank is constant in size and lives for one propagation. `load_bank` fills one from here before a
click, or before a propagation in either direction.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sam2_jax.config import ModelConfig
from sam2_jax.model import memory_bank, memory_policy
from sam2_jax.model.retention import EMPTY, RECENT, rules
from sam2_jax.predict.preprocessing import bucket
from sam2_jax.predict.store import Kept
from sam2_jax.structs import MemoryBank


@dataclasses.dataclass
class Entry:
    """The result for one object on one frame; its arrays are in the session's store.

    Attributes:
      mask: (S/4, S/4) float32 logits, holes filled.
      iou: predicted IoU.
      score: object score logit.
      pointer: (C,) float32.
      memory: (H, W, M) in the bank's type; None until it is encoded.
      retention: of a tracked frame, see `sam2_jax.model.retention`.
      policy: state of the memory policy after a tracked frame, leaves without N; () if it has none.
    """

    mask: Kept
    iou: float
    score: float
    pointer: Kept
    memory: Kept | None = None
    retention: int = RECENT
    policy: Any = ()

    def encoded(self) -> np.ndarray:
        """The memory of a frame that is no longer pending."""
        assert self.memory is not None, "the session encodes memories before a bank is filled"
        return self.memory.get()


@dataclasses.dataclass
class ObjectHistory:
    """One object of a session, everything by frame index.

    Attributes:
      points: prompts as (points (P, 2) in input pixels, labels (P,)).
      masks: mask prompts, (S, S) float32.
      prompted: results on conditioning frames, in the order in which they were prompted.
      tracked: results on the other frames.
      pending: results of prompts since the last propagation, and whether their frames will be conditioning
        ones.
      directions: 1 or -1, of the last propagation over a frame.
    """

    points: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    masks: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    prompted: dict[int, Entry] = dataclasses.field(default_factory=dict)
    tracked: dict[int, Entry] = dataclasses.field(default_factory=dict)
    pending: dict[int, tuple[Entry, bool]] = dataclasses.field(default_factory=dict)
    directions: dict[int, int] = dataclasses.field(default_factory=dict)

    def copy(self) -> "ObjectHistory":
        """The object as it is now, whatever happens to this one later; results are shared."""
        fields = dataclasses.fields(self)
        return ObjectHistory(**{field.name: dict(getattr(self, field.name)) for field in fields})

    def latest(self, frame: int) -> Entry | None:
        """The latest result on a frame, if there is one."""
        if frame in self.pending:
            return self.pending[frame][0]
        return self.prompted.get(frame) or self.tracked.get(frame)

    def conditioning_frames(self) -> list[int]:
        """The frames from which the object can be tracked, now or once their memories are encoded."""
        coming = [t for t, (_, is_conditioning) in self.pending.items() if is_conditioning]
        return [*self.prompted, *coming]

    def clear_prompts(self, frame: int) -> None:
        """Removes the prompts on a frame: its result counts as tracked from now on.

        An object left without any prompt loses all its results.
        """
        for kept in (self.points, self.masks, self.pending):
            kept.pop(frame, None)
        if frame in self.prompted:
            self.tracked[frame] = self.prompted.pop(frame)
            self.directions.pop(frame, None)
        if not self.conditioning_frames():
            self.pending.clear()
            self.tracked.clear()
            self.directions.clear()

    def drop_tracked_around(self, frame: int, reach: int) -> None:
        """Drops tracked results up to `reach` frames away."""
        for t in [t for t in self.tracked if abs(t - frame) <= reach]:
            del self.tracked[t]

    def slots(self, config: ModelConfig, now: int, direction: int) -> list[dict[int, int]]:
        """Slot to tracked frame, of memories and of pointers, as `now` finds them; see `Chosen.fill`."""
        kept = {frame: entry.retention for frame, entry in self.tracked.items()}
        return [rule.fill(kept, now, direction) for rule in rules(config)]

    def keep_only_near(
        self, frames: tuple[int, ...], reach: int, config: ModelConfig, direction: int
    ) -> None:
        """Drops tracked results further than `reach` from all of `frames`.

        What a memory policy chose stays while a propagation at the first of `frames` still reads it.
        """
        far = {t for t in self.tracked if all(abs(t - near) > reach for near in frames)}
        if far:
            now = frames[0] + direction
            for rule, slots in zip(rules(config), self.slots(config, now, direction), strict=True):
                far -= set(slots.values()) - set(rule.wanted(now, direction))
        for t in far:
            del self.tracked[t]


def load_bank(
    config: ModelConfig,
    objects: Sequence[ObjectHistory],
    now: int,
    direction: int,
    num_frames: int,
    num_objects: int = 1,
    num_prompted: int = 1,
) -> MemoryBank:
    """Fills a bank for a click on frame `now`, or for a propagation that starts there.

    Args:
      config: sizes.
      objects: the objects.
      now: frame index.
      direction: 1 forwards, -1 backwards.
      num_frames: length of the video.
      num_objects: objects that the bank has room for at least, rounded up to a bucket.
      num_prompted: prompted frames, likewise.

    Returns:
      The bank, as host arrays.
    """
    rows = bucket(max(num_objects, len(objects)))
    slots = bucket(max([num_prompted, *[len(history.prompted) for history in objects]]))
    shapes = jax.eval_shape(lambda: memory_bank.empty(config, rows, slots, num_frames))
    bank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for frames in (bank.prompted_frames, bank.recent_frames, bank.recent_pointer_frames):
        frames.fill(EMPTY)

    policy = jax.tree.map(np.array, memory_policy.init(config, rows))
    for n, history in enumerate(objects):
        for slot, (frame, entry) in enumerate(history.prompted.items()):
            bank.prompted_frames[n, slot] = frame
            bank.prompted_memories[n, slot] = entry.encoded()
            bank.prompted_pointers[n, slot] = entry.pointer.get()
        memories, pointers = history.slots(config, now, direction)
        for slot, frame in memories.items():
            bank.recent_frames[n, slot] = frame
            bank.recent_memories[n, slot] = history.tracked[frame].encoded()
        for slot, frame in pointers.items():
            bank.recent_pointer_frames[n, slot] = frame
            bank.recent_pointers[n, slot] = history.tracked[frame].pointer.get()
        past = [t for t, e in history.tracked.items() if (now - t) * direction > 0 and e.policy]
        if past:
            last = history.tracked[max(past, key=lambda t: t * direction)].policy
            for leaf, kept in zip(jax.tree.leaves(policy), jax.tree.leaves(last), strict=True):
                leaf[n] = kept.get()
    return bank.replace(
        num_frames=np.int32(num_frames), direction=np.int32(direction), policy=policy
    )
