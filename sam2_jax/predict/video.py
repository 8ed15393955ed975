"""Track what is pointed at through a video: the original's `SAM2VideoPredictor`.

Frames are pulled when they are needed and scanned in chunks of a fixed size, each one call of one compiled
program; all objects ride its batch axis.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam2_jax.build import Model, build_model, load_pretrained
from sam2_jax.config import POSTPROCESSING_VIDEO
from sam2_jax.data.videos import Frames, open_frames
from sam2_jax.model.sam2 import NO_OBJECT, Sam2
from sam2_jax.predict import transforms
from sam2_jax.predict.session import Entry, ObjectStore, Recent, load_bank
from sam2_jax.structs import Features, Frame, MemoryBank, Prediction, Prompt, Segmentation
from sam2_jax.track import encode, propagate

_CHUNK = 8  # frames per call of the compiled program, where calls wait for a device
_KEPT_FEATURES = 2  # encoded frames kept for further clicks on them
_LOGIT_LIMIT = 32.0  # of a mask that is fed back with new clicks
_HOLE_LOGIT = 0.1

_jit = functools.partial(jax.jit, static_argnums=0)
_encode = _jit(encode)
_propagate = _jit(propagate)


@_jit
def _answer_first(sam2: Sam2, params: dict, features: Features, prompt: Prompt) -> Segmentation:
    embedding = sam2.apply({"params": params}, features, method="forget")
    return sam2.apply({"params": params}, embedding, features, prompt, method="segment")


@_jit
def _answer_again(
    sam2: Sam2, params: dict, bank: MemoryBank, features: Features, index: jax.Array, prompt: Prompt
) -> Segmentation:
    embedding = sam2.apply({"params": params}, bank, features, index, method="recall")
    return sam2.apply({"params": params}, embedding, features, prompt, False, method="segment")


@_jit
def _remember(sam2: Sam2, params: dict, features: Features, masks: jax.Array, scores: jax.Array):
    is_prompted = jnp.ones(scores.shape, bool)
    return sam2.apply({"params": params}, features, masks, scores, is_prompted, method="remember")


def _keep_winner(masks: np.ndarray) -> np.ndarray:
    """Non-overlap: at every pixel of (N, 1, H, W) logits only the strongest object stays above -10."""
    winner = np.arange(len(masks))[:, None, None, None] == masks.argmax(0)
    return np.where(winner, masks, np.minimum(masks, -10.0))


@dataclasses.dataclass
class InferenceState:
    """A session on one video. Treat it as opaque and hand it to the predictor's methods.

    Attributes:
      frames: the video.
      objects: what is known of each object, by the id that the user gave it.
      features: encoded frames that were clicked on lately.
      keep_frames: see `SAM2VideoPredictor.init_state`.
    """

    frames: Frames
    objects: dict[Any, ObjectStore] = dataclasses.field(default_factory=dict)
    features: Recent = dataclasses.field(default_factory=lambda: Recent(_KEPT_FEATURES))
    keep_frames: int | None = None

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return len(self.frames)

    @property
    def obj_ids(self) -> list:
        """Ids of the objects, in the order of the masks."""
        return list(self.objects)


class SAM2VideoPredictor:
    """Prompts on any frame, tracking in both directions.

    Attributes:
      model: the model and its parameters.
      chunk: frames per call of the compiled program.
    """

    def __init__(self, model: Model, chunk: int | None = None):
        """Makes a predictor.

        Args:
          model: from `build_sam2`.
          chunk: frames per call of the compiled program; it changes no bit of the result. None is 1 on CPU,
            where masks then arrive frame by frame, and 8 elsewhere.
        """
        self.model = model
        self.chunk = chunk or (1 if jax.default_backend() == "cpu" else _CHUNK)

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> "SAM2VideoPredictor":
        """Loads a released model by its hub name, or a local folder or file; see `load_pretrained`."""
        return cls(load_pretrained(model_id, POSTPROCESSING_VIDEO, **kwargs))

    def init_state(
        self,
        video_path: str | os.PathLike | Sequence[np.ndarray] | np.ndarray | Frames,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
        *,
        keep_frames: int | None = None,
    ) -> InferenceState:
        """Opens a video; nothing is decoded before it is needed.

        Args:
          video_path: a video file, a folder of JPEG or PNG frames, or frames (T, H, W, 3) uint8.
          offload_video_to_cpu: accepted for the original's sake; frames always are on the host.
          offload_state_to_cpu: accepted likewise; the store always is on the host.
          async_loading_frames: accepted likewise; frames are decoded when they are needed.
          keep_frames: how far from the current and the prompted frames answers are kept for later clicks;
            None keeps all (0.75 MiB a frame and object at 1024 px), 16 is enough for passes without
            further clicks.

        Returns:
          The session, `inference_state` of the other methods.

        Raises:
          FileNotFoundError, ValueError: the video cannot be opened; the message says why.
        """
        del offload_video_to_cpu, offload_state_to_cpu, async_loading_frames
        return InferenceState(open_frames(video_path), keep_frames=keep_frames)

    def add_new_points_or_box(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: Any,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: np.ndarray | None = None,
    ) -> tuple[int, list, np.ndarray]:
        """Points at an object on a frame. A new id starts a new object, at any time.

        Args:
          inference_state: from `init_state`.
          frame_idx: frame index.
          obj_id: any hashable id of the object.
          points: (P, 2) points (x, y) in pixels of the video.
          labels: (P,) 1 object, 0 background.
          clear_old_points: replace earlier points of this object on this frame instead of adding to them.
          normalize_coords: False means that coordinates are in [0, 1] already.
          box: (4,) x0, y0, x1, y1; needs `clear_old_points`.

        Returns:
          frame_idx, the object ids, and their mask logits (N, 1, H, W) float32 on this frame.

        Raises:
          ValueError: no prompt, shapes that do not fit, or a frame that does not exist.
        """
        state, size = inference_state, self.model.config.image_size
        self._check_frame(state, frame_idx)
        if points is None and box is None:
            raise ValueError("No prompt was given: pass points and labels, or a box.")
        if box is not None and not clear_old_points:
            raise ValueError("A box replaces earlier points: pass it with clear_old_points=True.")
        points, labels = transforms.join_prompts(points, labels, box)
        if len(points) != 1:
            raise ValueError(f"{len(points)} prompts were given for one object; expected one.")
        height, width = state.frames.height, state.frames.width
        points = transforms.scale_points(points[0], height, width, size, normalize_coords)
        labels = labels[0]

        store = state.objects.setdefault(obj_id, ObjectStore())
        if not clear_old_points and frame_idx in store.points:
            old_points, old_labels = store.points[frame_idx]
            points, labels = (
                np.concatenate([old_points, points]),
                np.concatenate([old_labels, labels]),
            )
        store.points[frame_idx] = (points, labels)
        store.masks.pop(frame_idx, None)

        prompt = transforms.pad_points(points[None], labels[None])
        before = store.answer(frame_idx)
        mask_size = self.model.config.mask_size
        logits = before.mask if before else np.zeros((mask_size, mask_size), np.float32)
        prompt = prompt.replace(
            mask_logits=np.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)[None],
            has_mask_logits=np.array([before is not None]),
        )
        return self._answer(state, frame_idx, store, prompt)

    def add_new_points(self, *args: Any, **kwargs: Any) -> tuple[int, list, np.ndarray]:
        """The original's older name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    def add_new_mask(
        self, inference_state: InferenceState, frame_idx: int, obj_id: Any, mask: np.ndarray
    ) -> tuple[int, list, np.ndarray]:
        """Gives the mask of an object on a frame.

        Args:
          inference_state: from `init_state`.
          frame_idx: frame index.
          obj_id: any hashable id of the object.
          mask: (H, W) bool or 0/1, in the size of the video or any other.

        Returns:
          As `add_new_points_or_box`.

        Raises:
          ValueError: the mask is not two-dimensional, or there is no such frame.
        """
        state = inference_state
        self._check_frame(state, frame_idx)
        if np.ndim(mask) != 2:
            raise ValueError(f"The mask has shape {np.shape(mask)}; expected (height, width).")
        store = state.objects.setdefault(obj_id, ObjectStore())
        mask = transforms.mask_to_input(mask, self.model.config.image_size)
        store.masks[frame_idx] = mask
        store.points.pop(frame_idx, None)
        prompt = transforms.pad_points(np.zeros((1, 1, 2)), np.full((1, 1), -1))
        prompt = prompt.replace(masks=mask[None], has_mask=np.ones(1, bool))
        return self._answer(state, frame_idx, store, prompt)

    def _check_frame(self, state, frame_idx):
        if not 0 <= frame_idx < state.num_frames:
            raise ValueError(
                f"There is no frame {frame_idx}; the video has frames 0 to {state.num_frames - 1}."
            )

    def _features(self, state, frame_idx) -> Features:
        def make():
            image = transforms.frame_to_input(state.frames[frame_idx], self.model.config.image_size)
            return _encode(self.model.module, self.model.params, image[None])

        return state.features.get_or_make(frame_idx, make)

    def _answer(self, state, frame_idx, store, prompt) -> tuple[int, list, np.ndarray]:
        """Answers a prompt of one object. What it adds to the memory is encoded before the next pass."""
        config, module, params = self.model.config, self.model.module, self.model.params
        features = self._features(state, frame_idx)
        is_initial = frame_idx not in store.passes
        if is_initial or prompt.masks is not None:
            answer = _answer_first(module, params, features, prompt)
        else:
            bank = load_bank(config, [store], frame_idx, store.passes[frame_idx], state.num_frames)
            answer = _answer_again(module, params, bank, features, np.int32(frame_idx), prompt)
        is_conditioning = is_initial or config.add_all_frames_to_correct_as_cond
        entry = Entry(
            mask=self._fill_holes(np.asarray(answer.masks[0])),
            iou=float(answer.ious[0]),
            score=float(answer.scores[0]),
            pointer=np.asarray(answer.pointers[0]),
            memory=None,
        )
        store.pending.pop(frame_idx, None)
        store.pending[frame_idx] = (entry, is_conditioning)
        return frame_idx, state.obj_ids, self._video_masks(state, frame_idx)

    def _fill_holes(self, masks: np.ndarray) -> np.ndarray:
        return transforms.clean_masks(
            masks, self.model.config.fill_hole_area, 0, filled=_HOLE_LOGIT
        )

    def _video_masks(self, state, frame_idx) -> np.ndarray:
        """(N, 1, H, W) logits of all objects; far below zero for one without any answer on the frame."""
        size = self.model.config.mask_size
        nothing = np.full((size, size), NO_OBJECT, np.float32)
        answers = [store.answer(frame_idx) for store in state.objects.values()]
        masks = [answer.mask if answer else nothing for answer in answers]
        padded = masks + [nothing] * (transforms.bucket(len(masks)) - len(masks))
        masks = transforms.resize_masks(
            np.stack(padded)[:, None], state.frames.height, state.frames.width
        )
        masks = np.asarray(masks)[: len(answers)]
        return _keep_winner(masks) if self.model.config.non_overlap_masks else masks

    def propagate_in_video_preflight(self, inference_state: InferenceState) -> None:
        """Encodes memories of the frames prompted since the last pass; `propagate_in_video` does it."""
        state, config = inference_state, self.model.config
        reach = config.memory_temporal_stride_for_eval * config.num_maskmem
        for frame_idx in sorted({t for store in state.objects.values() for t in store.pending}):
            stores = [store for store in state.objects.values() if frame_idx in store.pending]
            entries = [store.pending[frame_idx][0] for store in stores]
            padded = entries + entries[:1] * (transforms.bucket(len(entries)) - len(entries))
            memories = _remember(
                self.model.module,
                self.model.params,
                self._features(state, frame_idx),
                np.stack([entry.mask for entry in padded]),
                np.array([entry.score for entry in padded], np.float32),
            )
            for entry, memory in zip(entries, np.asarray(memories), strict=False):
                entry.memory = memory
        for store in state.objects.values():
            for frame_idx, (entry, is_conditioning) in store.pending.items():
                if config.clear_non_cond_mem_around_input:
                    store.forget_tracked_around(frame_idx, reach)
                if is_conditioning:
                    store.prompted[frame_idx] = entry
                    store.tracked.pop(frame_idx, None)
                elif frame_idx not in store.prompted:
                    store.tracked[frame_idx] = entry
            store.pending.clear()

    def propagate_in_video(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list, np.ndarray]]:
        """Tracks all objects through the video.

        Args:
          inference_state: from `init_state`.
          start_frame_idx: first frame; None is the earliest prompted one.
          max_frame_num_to_track: how many frames after the first; None goes to the end.
          reverse: track towards frame 0.

        Yields:
          frame index, the object ids, and their mask logits (N, 1, H, W) float32.

        Raises:
          RuntimeError: no object has a prompt.
          ValueError: there is no such frame.
        """
        state = inference_state
        self.propagate_in_video_preflight(state)
        prompted = [t for store in state.objects.values() for t in store.prompted]
        if not prompted:
            raise RuntimeError(
                "No object has a prompt: add points, a box or a mask before tracking."
            )
        start = min(prompted) if start_frame_idx is None else start_frame_idx
        self._check_frame(state, start)
        count = state.num_frames if max_frame_num_to_track is None else max_frame_num_to_track
        if reverse:  # as in the original, a reverse pass from the first frame has nothing to do
            order = range(start, max(start - count, 0) - 1, -1) if start else range(0)
        else:
            order = range(start, min(start + count, state.num_frames - 1) + 1)
        return self._track(state, order, -1 if reverse else 1)

    def _track(self, state, order: range, direction: int):
        if not order:
            return
        config, module, params = self.model.config, self.model.module, self.model.params
        stores = list(state.objects.values())
        bank = jax.device_put(load_bank(config, stores, order[0], direction, state.num_frames))
        reach = config.memory_temporal_stride_for_eval * config.num_maskmem
        # A prompted frame that clears what is around it ends the chunk: the bank is then loaded anew.
        length = 1 if config.clear_non_cond_mem_around_input else self.chunk
        for i in range(0, len(order), length):
            chunk = order[i : i + length]
            to_track = [t for t in chunk if any(t not in store.prompted for store in stores)]
            if to_track:
                bank, prediction = _propagate(module, params, bank, self._clip(state, to_track))
                prediction = jax.device_get(prediction)
            for t in chunk:
                is_cleared = False
                for n, store in enumerate(stores):
                    store.passes[t] = direction
                    if t not in store.prompted:
                        store.tracked[t] = self._entry(prediction, to_track.index(t), n)
                    elif config.clear_non_cond_mem_around_input:
                        store.forget_tracked_around(t, reach)
                        is_cleared = True
                    if state.keep_frames is not None:
                        store.keep_only_near(t, state.keep_frames)
                if is_cleared:
                    bank = load_bank(config, stores, t + direction, direction, state.num_frames)
                yield t, state.obj_ids, self._video_masks(state, t)

    def _clip(self, state, frame_indices: list[int]) -> Frame:
        """Frames as model input, padded to `chunk`."""
        size = self.model.config.image_size
        images = np.zeros((self.chunk, size, size, 3), np.uint8)
        for k, t in enumerate(frame_indices):
            images[k] = transforms.frame_to_input(state.frames[t], size)
        indices = np.full(self.chunk, -1, np.int32)
        indices[: len(frame_indices)] = frame_indices
        return Frame(images, indices)

    def _entry(self, prediction: Prediction, k: int, n: int) -> Entry:
        # Copies, so that one kept entry does not keep its whole chunk alive.
        return Entry(
            mask=self._fill_holes(prediction.masks[k, n].copy()),
            iou=float(prediction.ious[k, n]),
            score=float(prediction.scores[k, n]),
            pointer=prediction.pointers[k, n].copy(),
            memory=prediction.memories[k, n].copy(),
        )


def build_sam2_video_predictor(
    model: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    *,
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> SAM2VideoPredictor:
    """Builds a video predictor; arguments and errors as for `build_sam2`.

    Post-processing fills holes up to 8 cells, chooses masks by stability, and binarises masks that answer
    prompts before they are remembered.
    """
    postprocessing = POSTPROCESSING_VIDEO if apply_postprocessing else {}
    return SAM2VideoPredictor(build_model(model, checkpoint, postprocessing, **kwargs))
