"""One person's work on one video: prompts, masks, undo. Used in the worker's thread only.

Masks are kept as run lengths by frame and object, ready to be sent and downloaded.
"""

import collections
import dataclasses
import math
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np

from sam2_jax.data.masks import decode_rle, encode_rle
from sam2_jax.data.overlay import object_color
from sam2_jax.data.videos import Frames
from sam2_jax.predict.video import SAM2VideoPredictor
from sam2_jax.serve.folders import check_free_space
from sam2_jax.serve.limits import Limits, Refused

MAX_POINTS = 64  # of an object on a frame
_UNDO_STEPS = 30

Found = dict[int, dict[str, Any]]  # object -> {"mask": RLE, "score": float, "iou": float}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of an object on a frame.

    Attributes:
      points: (x, y) in pixels of the video.
      labels: one per point, 1 object, 0 background.
      box: x0, y0, x1, y1, or None.
      is_mask: whether a mask was given instead.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    is_mask: bool = False


@dataclasses.dataclass
class _Work:
    """What undo restores besides the predictor's state."""

    names: dict[int, str] = dataclasses.field(default_factory=dict)
    prompts: dict[tuple[int, int], Prompts] = dataclasses.field(default_factory=dict)
    found: dict[int, Found] = dataclasses.field(default_factory=dict)

    def copy(self) -> "_Work":
        return _Work(dict(self.names), dict(self.prompts), dict(self.found))


class Session:
    """A video with its objects.

    Attributes:
      frames: the video.
    """

    def __init__(
        self,
        predictor: SAM2VideoPredictor,
        frames: Frames,
        folder: str,
        memory_limit: int,
        limits: Limits,
    ):
        self._predictor, self._limits, self._folder = predictor, limits, folder
        self.frames = frames
        self._state = predictor.init_state(frames, memory_limit=memory_limit, spill_folder=folder)
        self._work = _Work()
        self._past: collections.deque = collections.deque(maxlen=_UNDO_STEPS)

    def _present(self) -> tuple:
        return self._predictor.snapshot(self._state), self._work.copy()

    def _remember(self) -> None:
        self._past.append(self._present())

    def _check_frame(self, frame: int) -> None:
        if not 0 <= frame < len(self.frames):
            raise Refused(
                422,
                f"There is no frame {frame}: the video has frames 0 to {len(self.frames) - 1}.",
            )

    def _check_object(self, obj: int) -> None:
        if obj not in self._work.names:
            known = ", ".join(map(str, self._work.names)) or "none yet"
            raise Refused(404, f"There is no object {obj}; there are: {known}.")

    def prompt(self, frame: int, obj: int, given: Prompts, rle: dict | None, add: bool) -> dict:
        """Prompts an object on a frame.

        Args:
          frame: index.
          obj: within 1..65534; a new id starts an object.
          given: points, a box or both; `is_mask` with `rle`.
          rle: the mask of the object instead, COCO run lengths in the size of the video.
          add: whether the points are added to those already there.

        Returns:
          See `frame_masks`.
        """
        self._check_frame(frame)
        if obj not in self._work.names and len(self._work.names) >= self._limits.objects:
            raise Refused(
                409,
                f"The session has {len(self._work.names)} objects, the most that this server "
                "allows: remove one first.",
            )
        check_free_space(self._folder, self._limits.free_mb)
        before = self._work.prompts.get((frame, obj), Prompts())
        if add and not given.box and not given.is_mask and not before.is_mask:
            given = dataclasses.replace(
                before, points=before.points + given.points, labels=before.labels + given.labels
            )
        if len(given.points) > MAX_POINTS:
            raise Refused(
                422,
                f"{len(given.points)} points on object {obj} in frame {frame}; at most {MAX_POINTS} "
                "are allowed: clear the frame and start with a box.",
            )
        past = self._present()
        if rle is not None:
            _, ids, logits = self._predictor.add_new_mask(
                self._state, frame, obj, self._decode(rle)
            )
        else:
            _, ids, logits = self._predictor.add_new_points_or_box(
                self._state, frame, obj, *_arrays(given), box=given.box
            )
        self._past.append(past)
        self._work.names.setdefault(obj, f"Object {obj}")
        self._work.prompts[frame, obj] = given
        return self._keep(frame, ids, logits > 0)

    def _decode(self, rle: dict) -> np.ndarray:
        size = [self.frames.height, self.frames.width]
        if list(rle["size"]) != size:
            raise Refused(
                422, f"The mask is {rle['size']}; {size}, the height and width, is expected."
            )
        return decode_rle(rle)

    def clear(self, frame: int, obj: int) -> dict:
        """Removes the prompts of an object on a frame."""
        self._check_frame(frame)
        self._check_object(obj)
        self._remember()
        self._predictor.clear_all_prompts_in_frame(self._state, frame, obj, need_output=False)
        self._work.prompts.pop((frame, obj), None)
        if not any(prompted == obj for _, prompted in self._work.prompts):
            self._forget_masks(obj)
        return self._keep(frame, self._state.obj_ids, self._state.video_masks(frame) > 0)

    def remove(self, obj: int) -> dict:
        """Removes an object."""
        self._check_object(obj)
        self._remember()
        self._predictor.remove_object(self._state, obj, need_output=False)
        del self._work.names[obj]
        for key in [key for key in self._work.prompts if key[1] == obj]:
            del self._work.prompts[key]
        self._forget_masks(obj)
        return self.describe()

    def _forget_masks(self, obj: int) -> None:
        for frame, found in list(self._work.found.items()):
            left = {other: one for other, one in found.items() if other != obj}
            if left:
                self._work.found[frame] = left
            else:
                del self._work.found[frame]

    def rename(self, obj: int, name: str) -> dict:
        """Names an object."""
        self._check_object(obj)
        self._work.names[obj] = name
        return self.describe()

    def undo(self) -> dict:
        """Undoes the last prompt, clearing, removal or tracking."""
        if not self._past:
            raise Refused(409, "There is nothing to undo.")
        snapshot, self._work = self._past.pop()
        self._predictor.restore(self._state, snapshot)
        return self.describe()

    def check_can_track(self, start: int | None) -> None:
        """Raises `Refused` if tracking cannot start."""
        if start is not None:
            self._check_frame(start)
        if not self._work.prompts:
            raise Refused(
                409, "No object has a prompt: click on one or draw a box around it first."
            )

    def track(
        self, start: int | None, count: int | None, directions: tuple[bool, ...]
    ) -> Generator[dict, None, None]:
        """Tracks all objects; yields what `frame_masks` returns, frame by frame.

        Args:
          start: first frame; None is the earliest prompted one.
          count: how many frames after it; None is all.
          directions: passes, False forwards and True backwards.
        """
        self.check_can_track(start)
        if start is None:
            start = min(frame for frame, _ in self._work.prompts)
        self._remember()
        done: set[int] = set()
        for is_reverse in directions:
            results = self._predictor.propagate_in_video(
                self._state, start, count, is_reverse, return_logits=False
            )
            for frame, ids, masks in results:
                if frame in done:
                    continue
                done.add(frame)
                check_free_space(self._folder, self._limits.free_mb)
                yield self._keep(frame, ids, masks)

    def _keep(self, frame: int, ids: Iterable[int], masks: np.ndarray) -> dict:
        scores, ious = self._predictor.get_scores(self._state, frame)
        found: Found = {}
        for obj, mask, score, iou in zip(ids, masks[:, 0], scores, ious, strict=True):
            if not math.isnan(score):
                found[obj] = {
                    "mask": encode_rle(mask),
                    "score": round(float(score), 4),
                    "iou": round(float(iou), 4),
                }
        if found:
            self._work.found[frame] = found
        else:
            self._work.found.pop(frame, None)
        return self.frame_masks(frame)

    def frame_masks(self, frame: int) -> dict:
        """{"frame": t, "objects": [{"object": 1, "mask": RLE, "score": ..., "iou": ...}, ...]}."""
        self._check_frame(frame)
        found = self._work.found.get(frame, {})
        return {"frame": frame, "objects": [{"object": obj, **one} for obj, one in found.items()]}

    def describe(self) -> dict:
        """The objects, the prompts and which frames have masks."""
        return {
            "objects": [
                {"object": obj, "name": name, "color": f"#{bytes(object_color(obj)).hex()}"}
                for obj, name in self._work.names.items()
            ],
            "prompts": [
                {"frame": frame, "object": obj, **dataclasses.asdict(given)}
                for (frame, obj), given in sorted(self._work.prompts.items())
            ],
            "frames_with_masks": sorted(self._work.found),
            "can_undo": bool(self._past),
        }

    def results(self) -> tuple[dict[int, str], dict[int, Found]]:
        """Names of the objects, and masks by frame, as they are now."""
        return dict(self._work.names), dict(sorted(self._work.found.items()))


def _arrays(given: Prompts) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not given.points:
        return None, None
    return np.array(given.points, np.float32), np.array(given.labels, np.int32)
