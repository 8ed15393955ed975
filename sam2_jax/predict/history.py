"""What a session knows of each object: its prompts, and the answers by frame, which outlive passes.

The device's bank is constant in size and lives for one pass over the video. `load_bank` fills one from here
before a click or a pass in either direction (reference.md section 10).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sam2_jax.config import ModelConfig
from sam2_jax.model import memory_bank, memory_policy
from sam2_jax.predict.preprocessing import bucket
from sam2_jax.predict.store import Kept
from sam2_jax.structs import MemoryBank


@dataclasses.dataclass
class Entry:
    """The answer for one object on one frame; its arrays are in the session's store.

    Attributes:
      kept_mask: (S/4, S/4) float32 logits, holes filled.
      iou: predicted IoU.
      score: object score logit.
      kept_pointer: (C,) float32.
      kept_memory: (H, W, M) in the bank's type; None until it is encoded.
      verdict: of the memory policy on a tracked frame, see `sam2_jax.model.memory_policy`.
      kept_policy: state of the memory policy after a tracked frame, leaves without N; () for none.
    """

    kept_mask: Kept
    iou: float
    score: float
    kept_pointer: Kept
    kept_memory: Kept | None = None
    verdict: int = memory_policy.RECENT
    kept_policy: Any = ()

    @property
    def mask(self) -> np.ndarray:
        """(S/4, S/4) float32 logits."""
        return self.kept_mask.get()

    @property
    def pointer(self) -> np.ndarray:
        """(C,) float32."""
        return self.kept_pointer.get()

    @property
    def memory(self) -> np.ndarray:
        """(H, W, M) in the bank's type."""
        return self.kept_memory.get()

    @property
    def policy(self) -> Any:
        """State of the memory policy."""
        return jax.tree.map(lambda kept: kept.get(), self.kept_policy)


@dataclasses.dataclass
class ObjectHistory:
    """One object of a session, everything by frame index.

    Attributes:
      points: prompts as (points (P, 2) in input pixels, labels (P,)).
      masks: mask prompts, (S, S) float32.
      prompted: answers on conditioning frames, in the order in which they were prompted.
      tracked: answers on the other frames.
      pending: answers to prompts since the last pass, and whether their frames will be conditioning ones.
      passes: direction (1 or -1) of the last pass over a frame.
    """

    points: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    masks: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    prompted: dict[int, Entry] = dataclasses.field(default_factory=dict)
    tracked: dict[int, Entry] = dataclasses.field(default_factory=dict)
    pending: dict[int, tuple[Entry, bool]] = dataclasses.field(default_factory=dict)
    passes: dict[int, int] = dataclasses.field(default_factory=dict)

    def copy(self) -> "ObjectHistory":
        """The object as it is now, whatever happens to this one later; answers are shared."""
        fields = dataclasses.fields(self)
        return ObjectHistory(**{field.name: dict(getattr(self, field.name)) for field in fields})

    def answer(self, frame: int) -> Entry | None:
        """The latest answer on a frame, if there is one."""
        if frame in self.pending:
            return self.pending[frame][0]
        return self.prompted.get(frame) or self.tracked.get(frame)

    def conditioning_frames(self) -> list[int]:
        """The frames from which the object can be tracked, now or once their memories are encoded."""
        coming = [t for t, (_, is_conditioning) in self.pending.items() if is_conditioning]
        return [*self.prompted, *coming]

    def clear_prompts(self, frame: int) -> None:
        """Takes back the prompts on a frame: what was answered there counts as tracked from now on.

        An object that is left without any prompt is forgotten altogether.
        """
        for kept in (self.points, self.masks, self.pending):
            kept.pop(frame, None)
        if frame in self.prompted:
            self.tracked[frame] = self.prompted.pop(frame)
            self.passes.pop(frame, None)
        if not self.conditioning_frames():
            self.pending.clear()
            self.tracked.clear()
            self.passes.clear()

    def forget_tracked_around(self, frame: int, reach: int) -> None:
        """Drops tracked answers up to `reach` frames away."""
        for t in [t for t in self.tracked if abs(t - frame) <= reach]:
            del self.tracked[t]

    def slots_to_fill(
        self, config: ModelConfig, now: int, direction: int
    ) -> tuple[dict[int, int], dict[int, int]]:
        """See `memory_bank.slots_to_fill`."""
        verdicts = {frame: entry.verdict for frame, entry in self.tracked.items()}
        return memory_bank.slots_to_fill(config, verdicts, now, direction)

    def keep_only_near(
        self, frames: tuple[int, ...], reach: int, config: ModelConfig, direction: int
    ) -> None:
        """Drops tracked answers further than `reach` from all of `frames`.

        A memory policy that chooses may look back further: what a pass at the first of `frames` still reads
        stays.
        """
        chosen: set[int] = set()
        if config.memory_policy != "recent":
            for slots in self.slots_to_fill(config, frames[0] + direction, direction):
                chosen |= set(slots.values())
        for t in [t for t in self.tracked if all(abs(t - a) > reach for a in frames)]:
            if t not in chosen:
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
    """Fills a bank with what is known for a click on frame `now`, or a pass that starts there.

    Args:
      config: sizes.
      objects: the objects.
      now: frame index.
      direction: 1 forwards, -1 backwards.
      num_frames: length of the video.
      num_objects: objects that the bank has room for, at least; it gets the next bucket.
      num_prompted: prompted frames, likewise.

    Returns:
      The bank, as host arrays.
    """
    rows = bucket(max(num_objects, len(objects)))
    slots = bucket(max([num_prompted, *[len(history.prompted) for history in objects]]))
    shapes = jax.eval_shape(lambda: memory_bank.empty(config, rows, slots, num_frames))
    bank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for frames in (bank.prompted_frames, bank.recent_frames, bank.recent_pointer_frames):
        frames.fill(memory_bank.EMPTY)

    policy = jax.tree.map(np.array, memory_policy.init(config, rows))
    for n, history in enumerate(objects):
        for slot, (frame, entry) in enumerate(history.prompted.items()):
            bank.prompted_frames[n, slot] = frame
            bank.prompted_memories[n, slot] = entry.memory
            bank.prompted_pointers[n, slot] = entry.pointer
        memories, pointers = history.slots_to_fill(config, now, direction)
        for slot, frame in memories.items():
            bank.recent_frames[n, slot] = frame
            bank.recent_memories[n, slot] = history.tracked[frame].memory
        for slot, frame in pointers.items():
            bank.recent_pointer_frames[n, slot] = frame
            bank.recent_pointers[n, slot] = history.tracked[frame].pointer
        past = [
            t for t, e in history.tracked.items() if (now - t) * direction > 0 and e.kept_policy
        ]
        if past:
            last = history.tracked[max(past, key=lambda t: t * direction)].policy
            for leaf, value in zip(jax.tree.leaves(policy), jax.tree.leaves(last), strict=True):
                leaf[n] = value
    return bank.replace(
        num_frames=np.int32(num_frames), direction=np.int32(direction), policy=policy
    )
