"""What a video session keeps on the host: for every object and frame, all that later clicks may read.

The device bank is constant in size and lives for one pass over the video. The session store is indexed by
frame, outlives passes, and `load_bank` fills a bank from it before a click or a pass in either direction
(reference.md section 10).
"""

import collections
import dataclasses
from typing import Any

import jax
import numpy as np

from sam2_jax.config import Sam2Config
from sam2_jax.model import memory_bank, memory_policy
from sam2_jax.predict.transforms import bucket
from sam2_jax.structs import MemoryBank


@dataclasses.dataclass
class Entry:
    """The answer for one object on one frame.

    Attributes:
      mask: (S/4, S/4) float32 logits, holes filled.
      iou: predicted IoU.
      score: object score logit.
      pointer: (C,) float32.
      memory: (H, W, M) in the bank's type; None until it is encoded.
      verdict: of the memory policy on a tracked frame, see `sam2_jax.model.memory_policy`.
      policy: state of the memory policy after a tracked frame, leaves without N; () for none.
    """

    mask: np.ndarray
    iou: float
    score: float
    pointer: np.ndarray
    memory: np.ndarray | None
    verdict: int = memory_policy.RECENT
    policy: Any = ()


@dataclasses.dataclass
class ObjectStore:
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

    def answer(self, frame: int) -> Entry | None:
        """The latest answer on a frame, if there is one."""
        if frame in self.pending:
            return self.pending[frame][0]
        return self.prompted.get(frame) or self.tracked.get(frame)

    def forget_tracked_around(self, frame: int, reach: int) -> None:
        """Drops tracked answers up to `reach` frames away."""
        for t in [t for t in self.tracked if abs(t - frame) <= reach]:
            del self.tracked[t]

    def keep_only_near(self, frame: int, reach: int) -> None:
        """Drops tracked answers that are further than `reach` from `frame` and from every prompted frame."""
        anchors = (frame, *self.prompted)
        for t in [t for t in self.tracked if all(abs(t - a) > reach for a in anchors)]:
            del self.tracked[t]


def load_bank(
    config: Sam2Config, objects: list[ObjectStore], now: int, direction: int, num_frames: int
) -> MemoryBank:
    """Fills a bank with what the store holds for a click on frame `now`, or a pass that starts there.

    Args:
      config: sizes.
      objects: the objects; the bank has room for `bucket(len(objects))`.
      now: frame index.
      direction: 1 forwards, -1 backwards.
      num_frames: length of the video.

    Returns:
      The bank, as host arrays.
    """
    num_prompted = bucket(max(len(o.prompted) for o in objects))
    shapes = jax.eval_shape(
        lambda: memory_bank.empty(config, bucket(len(objects)), num_prompted, num_frames)
    )
    bank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for frames in (bank.prompted_frames, bank.recent_frames, bank.recent_pointer_frames):
        frames.fill(memory_bank.EMPTY)

    policy = jax.tree.map(np.array, memory_policy.init(config, bucket(len(objects))))
    for n, store in enumerate(objects):
        for slot, (frame, entry) in enumerate(store.prompted.items()):
            bank.prompted_frames[n, slot] = frame
            bank.prompted_memories[n, slot] = entry.memory
            bank.prompted_pointers[n, slot] = entry.pointer
        verdicts = {frame: entry.verdict for frame, entry in store.tracked.items()}
        memories, pointers = memory_bank.slots_to_fill(config, verdicts, now, direction)
        for slot, frame in memories.items():
            bank.recent_frames[n, slot] = frame
            bank.recent_memories[n, slot] = store.tracked[frame].memory
        for slot, frame in pointers.items():
            bank.recent_pointer_frames[n, slot] = frame
            bank.recent_pointers[n, slot] = store.tracked[frame].pointer
        past = [t for t, e in store.tracked.items() if (now - t) * direction > 0 and e.policy]
        if past:
            last = store.tracked[max(past, key=lambda t: t * direction)].policy
            for leaf, value in zip(jax.tree.leaves(policy), jax.tree.leaves(last), strict=True):
                leaf[n] = value
    return bank.replace(
        num_frames=np.int32(num_frames), direction=np.int32(direction), policy=policy
    )


class Recent(collections.OrderedDict):
    """A dictionary that forgets what was used least recently."""

    def __init__(self, limit: int):
        super().__init__()
        self._limit = limit

    def get_or_make(self, key, make):
        """Returns the value of `key`, made by `make()` if it is not there."""
        if key not in self:
            self[key] = make()
            if len(self) > self._limit:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]
