"""A session on one video: prompts, results, and every change of either."""

import collections
import functools
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam2_jax.build import Model
from sam2_jax.data.masks import as_mask
from sam2_jax.data.results import MaskSink
from sam2_jax.data.videos import Frames
from sam2_jax.model.sam2 import NO_OBJECT, Sam2
from sam2_jax.outputs import as_array, hand_out
from sam2_jax.predict import preprocessing
from sam2_jax.predict.history import Entry, ObjectHistory, load_bank
from sam2_jax.predict.postprocessing import LOGIT_LIMIT, VideoMasks, fill_holes
from sam2_jax.predict.state_keys import StateKeys
from sam2_jax.predict.store import Store
from sam2_jax.structs import Features, MemoryBank, Prompt, Segmentation
from sam2_jax.track import encode

FrameMasks = tuple[int, list[int | str], Any]  # the masks as `outputs` says
Snapshot = dict[int | str, ObjectHistory]  # opaque to users

_KEPT_FEATURES = 2  # encoded frames kept for further clicks on them

_jit = functools.partial(jax.jit, static_argnums=0)
_encode = _jit(encode)


@_jit
def _segment_first(sam2: Sam2, params: dict, features: Features, prompt: Prompt) -> Segmentation:
    embedding = sam2.apply({"params": params}, features, method="add_no_memory_embedding")
    return sam2.apply({"params": params}, embedding, features, prompt, method="segment")


@_jit
def _segment_again(
    sam2: Sam2, params: dict, bank: MemoryBank, features: Features, index: jax.Array, prompt: Prompt
) -> Segmentation:
    embedding = sam2.apply({"params": params}, bank, features, index, method="condition_on_memory")
    return sam2.apply({"params": params}, embedding, features, prompt, False, method="segment")


@_jit
def _encode_memory(
    sam2: Sam2, params: dict, features: Features, masks: jax.Array, scores: jax.Array
) -> jax.Array:
    is_prompted = jnp.ones(scores.shape, bool)
    return sam2.apply(
        {"params": params}, features, masks, scores, is_prompted, method="encode_memory"
    )


def check_object_id(obj_id: Any) -> int | str:
    """Returns the id of an object as it is stored.

    Raises:
      ValueError: it is neither a whole number from 0 nor a text.
    """
    if isinstance(obj_id, str) and obj_id:
        return obj_id
    try:
        number = operator.index(obj_id)
    except TypeError:
        number = -1
    if number < 0 or isinstance(obj_id, bool):
        raise ValueError(
            f"The object id is {obj_id!r}; a whole number from 0 or a non-empty text is expected."
        )
    return number


class InferenceState(StateKeys):
    """A session on one video: hand it to the predictor's methods. It answers the keys of the original's state.

    Attributes:
      model: segments and tracks.
      frames: the video.
      store: holds the arrays of the results.
      keep_frames: see `SAM2VideoPredictor.init_state`.
      results: see `SAM2VideoPredictor.init_state`.
      objects: the history of each object, by the id that the user gave it.
      version: grows with every change that a running propagation has to take up.
    """

    def __init__(
        self,
        model: Model,
        frames: Frames,
        store: Store | None = None,
        keep_frames: int | None = None,
        results: MaskSink | None = None,
        objects: dict[int | str, ObjectHistory] | None = None,
    ):
        """Opens a session; `objects` is those of an earlier one."""
        self.model, self.frames = model, frames
        self.store = store or Store()
        self.keep_frames, self.results = keep_frames, results
        self.objects: dict[int | str, ObjectHistory] = objects or {}
        self.version = 0
        self._features: collections.OrderedDict[int, Features] = collections.OrderedDict()

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return len(self.frames)

    @property
    def obj_ids(self) -> list[int | str]:
        """Ids of the objects, in the order of the masks."""
        return list(self.objects)

    @property
    def code_length(self) -> int:
        """Frames of the video as far as they matter: the pointers' time code depends on the first few only."""
        limit = self.model.config.max_obj_ptrs_in_encoder
        return limit if self.frames.exists(limit - 1) else len(self.frames)

    def check_frame(self, frame: int) -> int:
        """Returns a frame index; a ValueError says that there is no such frame."""
        frame = operator.index(frame)
        if not self.frames.exists(frame):
            raise ValueError(
                f"There is no frame {frame}; the video has frames 0 to {self.num_frames - 1}."
            )
        return frame

    def scores(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SAM2VideoPredictor.get_scores`."""
        frame = self.check_frame(frame)
        entries = [history.latest(frame) for history in self.objects.values()]
        scores = [(entry.score, entry.iou) if entry else (np.nan, np.nan) for entry in entries]
        scores, ious = (
            hand_out(np.ascontiguousarray(x), self.model.outputs)
            for x in np.array(scores, np.float32).reshape(-1, 2).T
        )
        return scores, ious

    def video_masks(self, frame: int, return_logits: bool = True) -> Any:
        """Masks of all objects on a frame.

        Returns:
          (N, 1, H, W) float32 logits, far below zero for an object without any result, or bool.
        """
        entries = [history.latest(frame) for history in self.objects.values()]
        if not entries:
            size = self.frames.height, self.frames.width
            nothing = np.zeros((0, 1, *size), np.float32 if return_logits else bool)
            return hand_out(nothing, self.model.outputs)
        side = self.model.config.mask_size
        masks = np.full((preprocessing.bucket(len(entries)), side, side), NO_OBJECT, np.float32)
        for mask, entry in zip(masks, entries, strict=False):
            if entry:
                mask[:] = entry.mask.get()
        return self.show(masks, 0, len(entries), return_logits).get()

    def show(
        self, masks: jax.Array | np.ndarray, index: int, count: int, return_logits: bool
    ) -> VideoMasks:
        """Starts to bring masks to the size of the video; see `VideoMasks`."""
        size = self.frames.height, self.frames.width
        is_exclusive = self.model.session.non_overlap_masks
        return VideoMasks(
            masks, index, count, size, is_exclusive, return_logits, outputs=self.model.outputs
        )

    def add_points_or_box(
        self,
        frame: int,
        obj_id: int | str,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        clear_old_points: bool,
        normalize_coords: bool,
        box: np.ndarray | None,
    ) -> FrameMasks:
        """See `SAM2VideoPredictor.add_new_points_or_box`."""
        obj_id, frame = check_object_id(obj_id), self.check_frame(frame)
        if points is None and box is None:
            raise ValueError("No prompt was given: pass points and labels, or a box.")
        if box is not None and not clear_old_points:
            raise ValueError("A box replaces earlier points: pass it with clear_old_points=True.")
        height, width = self.frames.height, self.frames.width
        all_points, all_labels = preprocessing.join_prompts(points, labels, box)
        if len(all_points) != 1:
            raise ValueError(
                f"{len(all_points)} prompts were given for object {obj_id!r}; expected one: give each "
                "box a call of its own, with another obj_id."
            )
        preprocessing.check_points(all_points, all_labels, height, width, normalize_coords)
        size = self.model.config.image_size
        new = preprocessing.scale_points(all_points[0], height, width, size, normalize_coords)
        new_labels = all_labels[0]

        history = self.objects.get(obj_id, ObjectHistory())
        if not clear_old_points and frame in history.points:
            old, old_labels = history.points[frame]
            new, new_labels = np.concatenate([old, new]), np.concatenate([old_labels, new_labels])
        result = self._segment(frame, history, self._point_prompt(history, frame, new, new_labels))
        history.points[frame] = (new, new_labels)
        history.masks.pop(frame, None)
        return self._add(frame, obj_id, history, result)

    def add_mask(self, frame: int, obj_id: int | str, mask: np.ndarray) -> FrameMasks:
        """See `SAM2VideoPredictor.add_new_mask`."""
        obj_id, frame = check_object_id(obj_id), self.check_frame(frame)
        mask = as_mask(as_array(mask))
        history = self.objects.get(obj_id, ObjectHistory())
        is_known = bool({*history.prompted, *history.pending} - {frame})
        if not (mask.any() or is_known or self.model.session.allow_empty_masks):
            raise ValueError(
                f"The mask of object {obj_id!r} is empty: there is nothing to track. Only an object that is "
                "prompted on another frame can be absent on this one, unless the predictor is built with "
                "allow_empty_masks=True."
            )
        mask = preprocessing.mask_to_input(mask, self.model.config.image_size)
        prompt = preprocessing.pad_points(np.zeros((1, 1, 2)), np.full((1, 1), -1))
        prompt = prompt.replace(masks=mask[None], has_mask=np.ones(1, bool))
        result = self._segment(frame, history, prompt)
        history.masks[frame] = mask
        history.points.pop(frame, None)
        return self._add(frame, obj_id, history, result)

    def _point_prompt(
        self, history: ObjectHistory, frame: int, points: np.ndarray, labels: np.ndarray
    ) -> Prompt:
        """Points (P, 2) with labels (P,); the mask that is on the frame is fed back with them."""
        prompt = preprocessing.pad_points(points[None], labels[None])
        before, side = history.latest(frame), self.model.config.mask_size
        logits = before.mask.get() if before else np.zeros((side, side), np.float32)
        return prompt.replace(
            mask_logits=np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)[None],
            has_mask_logits=np.array([before is not None]),
        )

    def _segment(self, frame: int, history: ObjectHistory, prompt: Prompt) -> tuple[Entry, bool]:
        """Segments by a prompt of one object; the session stays as it is.

        Returns:
          The entry, whose memory is encoded before the next propagation, and whether the frame will be a
          conditioning one.
        """
        config, module, params = self.model.config, self.model.module, self.model.params
        features = self._encoded(frame)
        is_initial = frame not in history.directions
        if is_initial or prompt.masks is not None:
            result = _segment_first(module, params, features, prompt)
        else:
            direction = history.directions[frame]
            bank = load_bank(config, [history], frame, direction, self.code_length)
            result = _segment_again(module, params, bank, features, np.int32(frame), prompt)
        entry = Entry(
            mask=self.store.keep(fill_holes(result.masks, self.model.session.fill_hole_area)).at(0),
            iou=float(result.ious[0]),
            score=float(result.scores[0]),
            pointer=self.store.keep(result.pointers).at(0),
        )
        return entry, is_initial or self.model.session.add_all_frames_to_correct_as_cond

    def _encoded(self, frame: int) -> Features:
        if frame not in self._features:
            image = preprocessing.frame_to_input(self.frames[frame], self.model.config.image_size)
            self._features[frame] = _encode(self.model.module, self.model.params, image[None])
            if len(self._features) > _KEPT_FEATURES:
                self._features.popitem(last=False)
        self._features.move_to_end(frame)
        return self._features[frame]

    def _add(
        self, frame: int, obj_id: int | str, history: ObjectHistory, result: tuple[Entry, bool]
    ) -> FrameMasks:
        history.pending.pop(frame, None)  # the order of prompts counts
        history.pending[frame] = result
        self.objects[obj_id] = history
        self._change()
        return frame, self.obj_ids, self.video_masks(frame)

    def _change(self) -> None:
        self.version += 1

    def clear_prompts(self, frame: int, obj_id: int | str) -> None:
        """See `SAM2VideoPredictor.clear_all_prompts_in_frame`."""
        obj_id, frame = check_object_id(obj_id), self.check_frame(frame)
        self._check_known(obj_id)
        self.objects[obj_id].clear_prompts(frame)
        self._change()

    def _check_known(self, obj_id: int | str) -> None:
        if obj_id not in self.objects:
            raise ValueError(f"There is no object {obj_id!r}; the session has {self.obj_ids}.")

    def remove(self, obj_id: int | str, strict: bool) -> list[int]:
        """See `SAM2VideoPredictor.remove_object`; returns the frames on which the object was prompted."""
        obj_id = check_object_id(obj_id)
        if strict:
            self._check_known(obj_id)
        if obj_id not in self.objects:
            return []
        history = self.objects.pop(obj_id)
        self._change()
        return sorted({*history.points, *history.masks})

    def reset(self) -> None:
        """Removes all objects."""
        self.objects.clear()
        self._change()

    def snapshot(self) -> Snapshot:
        """All objects as they are now."""
        return {obj_id: history.copy() for obj_id, history in self.objects.items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Takes all objects back to a snapshot."""
        self.objects.clear()
        self.objects.update({obj_id: history.copy() for obj_id, history in snapshot.items()})
        self._change()

    def encode_prompted(self) -> None:
        """Encodes the memories of frames prompted since the last propagation, which reads them from now on."""
        config = self.model.config
        for frame in sorted({t for history in self.objects.values() for t in history.pending}):
            pending = [h.pending[frame][0] for h in self.objects.values() if frame in h.pending]
            padded = pending + pending[:1] * (preprocessing.bucket(len(pending)) - len(pending))
            memories = _encode_memory(
                self.model.module,
                self.model.params,
                self._encoded(frame),
                np.stack([entry.mask.get() for entry in padded]),
                np.array([entry.score for entry in padded], np.float32),
            )
            kept = self.store.keep(memories[: len(pending)])
            for n, entry in enumerate(pending):
                entry.memory = kept.at(n)
        for history in self.objects.values():
            for frame, (entry, is_conditioning) in history.pending.items():
                if self.model.session.clear_non_cond_mem_around_input:
                    history.drop_tracked_around(frame, config.memory_window)
                if is_conditioning:
                    history.prompted[frame] = entry
                    history.tracked.pop(frame, None)
                elif frame not in history.prompted:
                    history.tracked[frame] = entry
            history.pending.clear()

    def record(
        self,
        frame: int,
        direction: int,
        objects: Sequence[ObjectHistory],
        entries: Sequence[Entry | None],
    ) -> None:
        """Takes the results of a propagation on a frame; an entry is None for an object prompted there."""
        config = self.model.config
        for history, entry in zip(objects, entries, strict=True):
            history.directions[frame] = direction
            if frame not in history.prompted:
                history.tracked[frame] = entry
            elif self.model.session.clear_non_cond_mem_around_input:
                history.drop_tracked_around(frame, config.memory_window)
                self._change()
            if self.keep_frames is not None:
                near = (frame, *history.prompted)
                history.keep_only_near(near, self.keep_frames, config, direction)
        if not all(entry is None or np.isfinite(entry.score + entry.iou) for entry in entries):
            warnings.warn(
                f"Frame {frame}: the model's output is not a number (NaN or infinite), so its masks mean "
                "nothing. Check that the checkpoint is complete and its weights are finite.",
                RuntimeWarning,
                stacklevel=2,
            )

    def drop_before(self, now: int, max_prompted: int) -> None:
        """Drops what a stream at frame `now` never reads again, and all but the last few prompted frames."""
        config = self.model.config
        reach = max(config.memory_window, config.max_obj_ptrs_in_encoder)
        for history in self.objects.values():
            history.keep_only_near((now,), reach, config, direction=1)
            for by_frame in (history.points, history.masks, history.directions):
                for t in [t for t in by_frame if t < now]:
                    del by_frame[t]
            for t in list(history.prompted)[:-max_prompted]:
                del history.prompted[t]
