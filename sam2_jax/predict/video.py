"""Track what is pointed at through a video: the original's `SAM2VideoPredictor`.

Frames are pulled when they are needed and scanned in chunks of a fixed size, each one call of one compiled
program; all objects ride its batch axis, and several videos an axis before it.
"""

import operator
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sam2_jax.build import Model, build_model, load_pretrained
from sam2_jax.config import POSTPROCESSING_VIDEO
from sam2_jax.data.results import MaskSink
from sam2_jax.data.videos import Frames, open_frames
from sam2_jax.predict import passes, session_file, transforms
from sam2_jax.predict.answers import answer, remember_prompts, video_masks, with_mask, with_points
from sam2_jax.predict.session import Entry, InferenceState, ObjectStore
from sam2_jax.predict.vault import DEFAULT_LIMIT, Vault

_CHUNK = 8  # frames per call of the compiled program, where calls wait for a device

Video = str | os.PathLike | Sequence[np.ndarray] | np.ndarray | Iterable[np.ndarray] | Frames
FrameMasks = tuple[int, list[int | str], np.ndarray]
Snapshot = dict[int | str, ObjectStore]  # opaque to users


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
        video_path: Video,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
        *,
        keep_frames: int | None = None,
        memory_limit: int = DEFAULT_LIMIT,
        spill_folder: str | os.PathLike | None = None,
        results: MaskSink | None = None,
    ) -> InferenceState:
        """Opens a video; nothing is decoded before it is needed.

        Args:
          video_path: a video file, a folder of JPEG or PNG frames, frames (T, H, W, 3) uint8, a list of
            frames, or an iterator of them, of which the last few are kept.
          offload_video_to_cpu: accepted for the original's sake; frames always are on the host.
          offload_state_to_cpu: accepted likewise; the store always is on the host.
          async_loading_frames: accepted likewise; frames are decoded when they are needed.
          keep_frames: how far from the current and the prompted frames answers are kept for later clicks;
            None keeps all (0.75 MiB a frame and object at 1024 px), 16 is enough for passes without
            further clicks.
          memory_limit: bytes of answers that are kept in memory; what goes beyond is on disk.
          spill_folder: where on disk; None is the system's temporary folder.
          results: takes the masks of every tracked frame, in the size of the video: for example
            `sam2_jax.data.results.RleResults()` or `PaletteFolder("masks/")`.

        Returns:
          The session, `inference_state` of the other methods.

        Raises:
          FileNotFoundError, ValueError: the video cannot be opened; the message says why.
        """
        del offload_video_to_cpu, offload_state_to_cpu, async_loading_frames
        return InferenceState(
            open_frames(video_path),
            vault=Vault(memory_limit, spill_folder),
            keep_frames=keep_frames,
            results=results,
        )

    def add_new_points_or_box(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: int | str,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: np.ndarray | None = None,
    ) -> FrameMasks:
        """Points at an object on a frame. A new id starts a new object, at any time.

        Args:
          inference_state: from `init_state`.
          frame_idx: frame index.
          obj_id: the object, a whole number from 0 or a text.
          points: (P, 2) points (x, y) in pixels of the video.
          labels: (P,) 1 object, 0 background.
          clear_old_points: replace earlier points of this object on this frame instead of adding to them.
          normalize_coords: False means that coordinates are in [0, 1] already.
          box: (4,) x0, y0, x1, y1; needs `clear_old_points`.

        Returns:
          frame_idx, the object ids, and their mask logits (N, 1, H, W) float32 on this frame.

        Raises:
          ValueError: no prompt, one that does not fit or lies outside of the frame, or a frame that does not
            exist or cannot be read. The session is as it was before.
        """
        state, size = inference_state, self.model.config.image_size
        obj_id, frame_idx = check_object_id(obj_id), self._check_frame(state, frame_idx)
        if points is None and box is None:
            raise ValueError("No prompt was given: pass points and labels, or a box.")
        if box is not None and not clear_old_points:
            raise ValueError("A box replaces earlier points: pass it with clear_old_points=True.")
        height, width = state.frames.height, state.frames.width
        points, labels = transforms.join_prompts(points, labels, box)
        if len(points) != 1:
            raise ValueError(f"{len(points)} prompts were given for one object; expected one.")
        transforms.check_points(points, labels, height, width, normalize_coords)
        points = transforms.scale_points(points[0], height, width, size, normalize_coords)
        labels = labels[0]

        store = state.objects.get(obj_id, ObjectStore())
        if not clear_old_points and frame_idx in store.points:
            old_points, old_labels = store.points[frame_idx]
            points = np.concatenate([old_points, points])
            labels = np.concatenate([old_labels, labels])
        prompt = with_points(self.model.config, store, frame_idx, points, labels)
        said = answer(self.model, state, frame_idx, store, prompt)
        store.points[frame_idx] = (points, labels)
        store.masks.pop(frame_idx, None)
        return self._take(state, frame_idx, obj_id, store, said)

    def add_new_points(self, *args: Any, **kwargs: Any) -> FrameMasks:
        """The original's older name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    def add_new_mask(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: int | str,
        mask: np.ndarray,
    ) -> FrameMasks:
        """Gives the mask of an object on a frame.

        Args:
          inference_state: from `init_state`.
          frame_idx: frame index.
          obj_id: the object, a whole number from 0 or a text.
          mask: (H, W) bool or 0/1, in the size of the video or any other. An empty one says that an object
            known from other frames is not to be seen here.

        Returns:
          As `add_new_points_or_box`.

        Raises:
          ValueError: the mask is not two-dimensional or holds nothing, or there is no such frame. The session
            is as it was before.
        """
        state = inference_state
        obj_id, frame_idx = check_object_id(obj_id), self._check_frame(state, frame_idx)
        mask = np.asarray(mask)
        if mask.ndim != 2 or 0 in mask.shape:
            raise ValueError(f"The mask has shape {mask.shape}; expected (height, width).")
        store = state.objects.get(obj_id, ObjectStore())
        if not mask.any() and not ({*store.prompted, *store.pending} - {frame_idx}):
            raise ValueError(
                f"The mask of object {obj_id!r} is empty: there is nothing to track. Only an object that is "
                "prompted on another frame can be absent on this one."
            )
        mask = transforms.mask_to_input(mask, self.model.config.image_size)
        said = answer(self.model, state, frame_idx, store, with_mask(mask))
        store.masks[frame_idx] = mask
        store.points.pop(frame_idx, None)
        return self._take(state, frame_idx, obj_id, store, said)

    def _check_frame(self, state: InferenceState, frame_idx: int) -> int:
        frame_idx = operator.index(frame_idx)
        if not state.frames.exists(frame_idx):
            raise ValueError(
                f"There is no frame {frame_idx}; the video has frames 0 to {state.num_frames - 1}."
            )
        return frame_idx

    def _take(
        self,
        state: InferenceState,
        frame_idx: int,
        obj_id: int | str,
        store: ObjectStore,
        said: tuple[Entry, bool],
    ) -> FrameMasks:
        store.pending.pop(frame_idx, None)  # the order of prompts counts
        store.pending[frame_idx] = said
        state.objects[obj_id] = store
        state.version += 1
        return self._masks(state, frame_idx)

    def _masks(self, state: InferenceState, frame_idx: int) -> FrameMasks:
        return frame_idx, state.obj_ids, video_masks(self.model.config, state, frame_idx)

    def clear_all_prompts_in_frame(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: int | str,
        need_output: bool = True,
    ) -> FrameMasks | None:
        """Takes back all prompts of an object on a frame.

        An object that is left without any prompt keeps its id and has no mask until it is prompted again.

        Returns:
          As `add_new_points_or_box`; None without `need_output`.

        Raises:
          ValueError: there is no such frame or object.
        """
        state = inference_state
        obj_id, frame_idx = check_object_id(obj_id), self._check_frame(state, frame_idx)
        if obj_id not in state.objects:
            raise ValueError(f"There is no object {obj_id!r}; the session has {state.obj_ids}.")
        state.objects[obj_id].clear_prompts(frame_idx)
        state.version += 1
        return self._masks(state, frame_idx) if need_output else None

    def remove_object(
        self,
        inference_state: InferenceState,
        obj_id: int | str,
        strict: bool = False,
        need_output: bool = True,
    ) -> tuple[list[int | str], list[tuple[int, np.ndarray]]]:
        """Forgets an object; the others keep their ids.

        Args:
          inference_state: from `init_state`.
          obj_id: the object.
          strict: whether an unknown object is an error.
          need_output: whether the masks of the others are wanted.

        Returns:
          The ids that are left, and (frame index, mask logits (N, 1, H, W)) of the frames on which the object
          was prompted.

        Raises:
          ValueError: there is no such object, with `strict`.
        """
        state, obj_id = inference_state, check_object_id(obj_id)
        if obj_id not in state.objects:
            if strict:
                raise ValueError(f"There is no object {obj_id!r}; the session has {state.obj_ids}.")
            return state.obj_ids, []
        store = state.objects.pop(obj_id)
        state.version += 1
        frames = sorted({*store.points, *store.masks}) if need_output and state.objects else []
        return state.obj_ids, [(t, video_masks(self.model.config, state, t)) for t in frames]

    def reset_state(self, inference_state: InferenceState) -> None:
        """Forgets all objects and prompts; the video stays open."""
        inference_state.objects.clear()
        inference_state.version += 1

    def snapshot(self, inference_state: InferenceState) -> Snapshot:
        """Remembers all objects, prompts and answers as they are now, for `restore`.

        Answers are shared with the session, not copied, so that a snapshot before every click costs little.
        """
        return {obj_id: store.copy() for obj_id, store in inference_state.objects.items()}

    def restore(self, inference_state: InferenceState, snapshot: Snapshot) -> None:
        """Takes a session back to a snapshot of it: what came after is undone, bit for bit.

        Args:
          inference_state: the session that the snapshot is of.
          snapshot: from `snapshot`; it can be taken up again later.
        """
        inference_state.objects.clear()
        inference_state.objects.update({obj_id: s.copy() for obj_id, s in snapshot.items()})
        inference_state.version += 1

    def get_scores(
        self, inference_state: InferenceState, frame_idx: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """How sure the model is of a frame.

        Returns:
          Object score logits (N,) float32, above 0 where the object is visible, and predicted IoUs (N,)
          float32, both in the order of the object ids; NaN for an object without any answer on the frame.

        Raises:
          ValueError: there is no such frame.
        """
        state = inference_state
        frame_idx = self._check_frame(state, frame_idx)
        answers = [store.answer(frame_idx) for store in state.objects.values()]
        scores = [(said.score, said.iou) if said else (np.nan, np.nan) for said in answers]
        scores, ious = np.array(scores, np.float32).reshape(-1, 2).T
        return scores, ious

    def propagate_in_video_preflight(self, inference_state: InferenceState) -> None:
        """Encodes memories of the frames prompted since the last pass; `propagate_in_video` does it."""
        remember_prompts(self.model, inference_state)

    def propagate_in_video(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[FrameMasks]:
        """Tracks all objects through the video.

        Prompts, new objects and removals between two frames count from the next frame on.

        Args:
          inference_state: from `init_state`.
          start_frame_idx: first frame; None is the earliest prompted one.
          max_frame_num_to_track: how many frames after the first; None goes to the end.
          reverse: track towards frame 0.

        Yields:
          frame index, the object ids, and their mask logits (N, 1, H, W) float32.

        Raises:
          RuntimeError: no object has a prompt.
          ValueError: there is no such frame, or one that cannot be read is reached; all before it is kept.
        """
        this = self._pass(inference_state, start_frame_idx, max_frame_num_to_track, reverse)
        return passes.run(self.model, this)

    def propagate_in_videos(
        self,
        inference_states: Sequence[InferenceState],
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, int, list[int | str], np.ndarray]]:
        """Tracks through several videos at once, spread over the devices of this process.

        The videos may differ in size, length, prompts and number of objects. The numbers are those of
        `propagate_in_video` on each.

        Args:
          inference_states: a session for each video.
          start_frame_idx: see `propagate_in_video`; the same for all.
          max_frame_num_to_track: likewise.
          reverse: likewise.

        Yields:
          index of the video, and what `propagate_in_video` yields for it: `chunk` frames of one video, then
          of the next.

        Raises:
          RuntimeError, ValueError: as `propagate_in_video`, or one session given twice.
        """
        if not inference_states or len({id(state) for state in inference_states}) < len(
            inference_states
        ):
            raise ValueError("One session for each video is expected, at least one, none twice.")
        runs = [
            self._pass(state, start_frame_idx, max_frame_num_to_track, reverse)
            for state in inference_states
        ]
        return passes.run_many(self.model, runs, jax.local_devices())

    def _pass(
        self, state: InferenceState, start: int | None, count: int | None, reverse: bool
    ) -> passes.Pass:
        prompted = [t for store in state.objects.values() for t in store.conditioning_frames()]
        if not prompted:
            raise RuntimeError(
                "No object has a prompt: add points, a box or a mask before tracking."
            )
        start = min(prompted) if start is None else self._check_frame(state, start)
        if count is not None and count < 0:
            raise ValueError(f"max_frame_num_to_track is {count}; 0 or more is expected.")
        if reverse:  # as in the original, a reverse pass from the first frame has nothing to do
            last = 0 if count is None else max(start - count, 0)
            order = range(start, last - 1, -1) if start else range(0)
        else:
            order = range(start, sys.maxsize if count is None else start + count + 1)
        return passes.Pass(self.model, state, order, -1 if reverse else 1, self.chunk)

    def save_state(self, inference_state: InferenceState, path: str | os.PathLike) -> None:
        """Writes a session to a file, from which it goes on in another process with the same numbers.

        The video itself is not in it.

        Args:
          inference_state: from `init_state`.
          path: the file; an older one stays until the new one is complete.

        Raises:
          OSError: it cannot be written.
        """
        session_file.save(self.model, inference_state, path)

    def load_state(
        self,
        path: str | os.PathLike,
        video_path: Video | None = None,
        *,
        memory_limit: int = DEFAULT_LIMIT,
        spill_folder: str | os.PathLike | None = None,
        results: MaskSink | None = None,
    ) -> InferenceState:
        """Takes up a session that `save_state` wrote.

        Args:
          path: the file.
          video_path: the video; None opens the one that the session was on, if that was a file or a folder.
          memory_limit: see `init_state`.
          spill_folder: likewise.
          results: likewise.

        Returns:
          The session.

        Raises:
          FileNotFoundError: there is no such file or video.
          ValueError: not a session, one of another model, or of a video of another size or length.
        """
        vault = Vault(memory_limit, spill_folder)
        state = session_file.load(self.model, path, video_path, vault)
        state.results = results
        return state


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
