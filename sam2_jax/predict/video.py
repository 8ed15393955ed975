"""Track what is pointed at through a video: the original's `SAM2VideoPredictor`.

Frames are read ahead and scanned in chunks of a fixed size, each one call of one compiled program; all objects
ride its batch axis, and several videos an axis before it.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sam2_jax.build import Model, build_model, load_pretrained, model_of
from sam2_jax.checkpoint import Checkpoint
from sam2_jax.config import POSTPROCESSING_SESSION, POSTPROCESSING_VIDEO
from sam2_jax.data.results import MaskSink
from sam2_jax.data.videos import Frames, open_frames
from sam2_jax.module_like import ModuleLike, lets_unknown_pass
from sam2_jax.outputs import as_array, hand_out
from sam2_jax.predict import propagation, session_file
from sam2_jax.predict.session import FrameMasks, InferenceState, Snapshot
from sam2_jax.predict.store import DEFAULT_LIMIT, Store

POSTPROCESSING = POSTPROCESSING_VIDEO | POSTPROCESSING_SESSION
_CHUNK = 8  # frames per call of the compiled program, where calls wait for a device

Video = str | os.PathLike | Sequence[np.ndarray] | np.ndarray | Iterable[np.ndarray] | Frames


@lets_unknown_pass
class SAM2VideoPredictor(ModuleLike):
    """Prompts on any frame, tracking in both directions.

    Attributes:
      model: the model and its parameters.
      chunk: frames per call of the compiled program.
    """

    def __init__(self, model: Model, chunk: int | None = None):
        """Makes a predictor.

        Args:
          model: from `build_sam2`.
          chunk: frames per call of the compiled program; results differ by float rounding only. None is 1 on
            CPU, where masks then arrive frame by frame, and 8 elsewhere.
        """
        self.model = model_of(model)
        self.chunk = chunk or (1 if jax.default_backend() == "cpu" else _CHUNK)

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> "SAM2VideoPredictor":
        """Loads a released model by its hub name, or a local folder or file; see `load_pretrained`."""
        return cls(load_pretrained(model_id, POSTPROCESSING, **kwargs))

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
          video_path: a video file, a folder of JPEG, PNG, WebP, BMP or TIFF frames, frames (T, H, W, 3)
            uint8, a list of frames, or an iterator of them, of which the last few are kept.
          offload_video_to_cpu: accepted for the original's sake; frames always are on the host.
          offload_state_to_cpu: accepted likewise; answers go to the host when there are many.
          async_loading_frames: accepted likewise; frames are read ahead while a video is tracked.
          keep_frames: how far from the current and the prompted frames answers are kept for later clicks;
            None keeps all (0.75 MiB a frame and object at 1024 px), 16 is enough for passes without
            further clicks.
          memory_limit: bytes of answers that are kept in memory, beside 1 GiB on an accelerator; what goes
            beyond is on disk.
          spill_folder: where on disk; None is the system's temporary folder.
          results: takes the masks of every tracked frame, in the size of the video: for example
            `sam2_jax.data.results.RleResults()` or `PaletteFolder("masks/")`.

        Returns:
          The session, `inference_state` of the other methods.

        Raises:
          FileNotFoundError, ValueError: the video cannot be opened; the message says why.
        """
        del offload_video_to_cpu, offload_state_to_cpu, async_loading_frames
        store = Store(memory_limit, spill_folder)
        return InferenceState(self.model, open_frames(video_path), store, keep_frames, results)

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
        return inference_state.add_points_or_box(
            frame_idx, obj_id, points, labels, clear_old_points, normalize_coords, box
        )

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
        return inference_state.add_mask(frame_idx, obj_id, mask)

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
        state.clear_prompts(frame_idx, obj_id)
        return (frame_idx, state.obj_ids, state.video_masks(frame_idx)) if need_output else None

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
        state = inference_state
        frames = state.remove(obj_id, strict)
        if not (need_output and state.objects):
            frames = []
        return state.obj_ids, [(t, state.video_masks(t)) for t in frames]

    def reset_state(self, inference_state: InferenceState) -> None:
        """Forgets all objects and prompts; the video stays open."""
        inference_state.reset()

    def snapshot(self, inference_state: InferenceState) -> Snapshot:
        """Remembers all objects, prompts and answers as they are now, for `restore`.

        Answers are shared with the session, not copied, so that a snapshot before every click costs little.
        """
        return inference_state.snapshot()

    def restore(self, inference_state: InferenceState, snapshot: Snapshot) -> None:
        """Takes a session back to a snapshot of it: what came after is undone, bit for bit.

        Args:
          inference_state: the session that the snapshot is of.
          snapshot: from `snapshot`; it can be taken up again later.
        """
        inference_state.restore(snapshot)

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
        return inference_state.scores(frame_idx)

    # What programs call of the original's inside.

    def _obj_id_to_idx(self, inference_state: InferenceState, obj_id: int | str) -> int:
        """The place of a known object among the masks."""
        return inference_state["obj_id_to_idx"][obj_id]

    def _obj_idx_to_id(self, inference_state: InferenceState, obj_idx: int) -> int | str:
        """The object at a place among the masks."""
        return inference_state.obj_ids[obj_idx]

    def _get_obj_num(self, inference_state: InferenceState) -> int:
        """How many objects there are."""
        return len(inference_state.objects)

    def _apply_non_overlapping_constraints(self, pred_masks: Any) -> Any:
        """(N, 1, H, W) scores -> at a pixel only the highest stays, the others are at most -10.

        The original's tool for semi-supervised segmentation calls it under this name.
        """
        scores = np.asarray(as_array(pred_masks), np.float32)
        is_highest = np.arange(len(scores))[:, None, None, None] == scores.argmax(0)
        kept = np.where(is_highest, scores, scores.clip(max=-10))
        is_array = isinstance(pred_masks, np.ndarray | jax.Array)
        return hand_out(kept, "numpy" if is_array else "torch")

    def propagate_in_video_preflight(self, inference_state: InferenceState) -> None:
        """Encodes memories of the frames prompted since the last pass; `propagate_in_video` does it."""
        inference_state.encode_prompted()

    def propagate_in_video(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
        return_logits: bool = True,
    ) -> Iterator[FrameMasks]:
        """Tracks all objects through the video.

        Prompts, new objects and removals between two frames count from the next frame on.

        Args:
          inference_state: from `init_state`.
          start_frame_idx: first frame; None is the earliest prompted one.
          max_frame_num_to_track: how many frames after the first; None goes to the end.
          reverse: track towards frame 0.
          return_logits: False is much faster for large videos: only the masks leave the device.

        Yields:
          frame index, the object ids, and their masks (N, 1, H, W): float32 logits, or bool.

        Raises:
          RuntimeError: no object has a prompt.
          ValueError: there is no such frame, or one that cannot be read is reached; all before it is kept.
        """
        one = self._propagation(
            inference_state, start_frame_idx, max_frame_num_to_track, reverse, return_logits
        )
        return propagation.run_one(one)

    def propagate_in_videos(
        self,
        inference_states: Sequence[InferenceState],
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
        return_logits: bool = True,
    ) -> Iterator[tuple[int, int, list[int | str], np.ndarray]]:
        """Tracks through several videos at once, spread over the devices of this process.

        The videos may differ in size, length, prompts and number of objects. The numbers are those of
        `propagate_in_video` on each.

        Args:
          inference_states: a session for each video.
          start_frame_idx: see `propagate_in_video`; the same for all.
          max_frame_num_to_track: likewise.
          reverse: likewise.
          return_logits: likewise.

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
            self._propagation(
                state, start_frame_idx, max_frame_num_to_track, reverse, return_logits
            )
            for state in inference_states
        ]
        return propagation.run_many(runs, jax.local_devices())

    def _propagation(
        self,
        state: InferenceState,
        start: int | None,
        count: int | None,
        reverse: bool,
        return_logits: bool,
    ) -> propagation.Propagation:
        prompted = [t for history in state.objects.values() for t in history.conditioning_frames()]
        if not prompted:
            raise RuntimeError(
                "No object has a prompt: add points, a box or a mask before tracking."
            )
        start = min(prompted) if start is None else state.check_frame(start)
        if count is not None and count < 0:
            raise ValueError(f"max_frame_num_to_track is {count}; 0 or more is expected.")
        if reverse:  # as in the original, a reverse pass from the first frame has nothing to do
            last = 0 if count is None else max(start - count, 0)
            order = range(start, last - 1, -1) if start else range(0)
        else:
            order = range(start, sys.maxsize if count is None else start + count + 1)
        direction = -1 if reverse else 1
        return propagation.Propagation(state, order, direction, self.chunk, return_logits)

    def save_state(self, inference_state: InferenceState, path: str | os.PathLike) -> None:
        """Writes a session to a file, from which it goes on in another process with the same numbers.

        The video itself is not in it.

        Args:
          inference_state: from `init_state`.
          path: the file; an older one stays until the new one is complete.

        Raises:
          OSError: it cannot be written.
        """
        session_file.save(inference_state, path)

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
        store = Store(memory_limit, spill_folder)
        return session_file.load(self.model, path, video_path, store, results)


def build_sam2_video_predictor(
    model: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | Checkpoint | None = None,
    device: Any = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
    **kwargs: Any,
) -> SAM2VideoPredictor:
    """Builds a video predictor; arguments and errors as for `build_sam2`.

    Post-processing fills holes up to 8 cells, chooses masks by stability, and binarises masks that answer
    prompts before they are remembered.
    """
    postprocessing = POSTPROCESSING if apply_postprocessing else {}
    del device, vos_optimized
    built = build_model(
        model,
        checkpoint,
        postprocessing,
        mode=mode,
        hydra_overrides_extra=hydra_overrides_extra,
        **kwargs,
    )
    return SAM2VideoPredictor(built)
