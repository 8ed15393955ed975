"""Semi-supervised video object segmentation: masks of first frames in, masks of all frames out.

    videos, masks  ->  predict: PNGs as the official tool writes them

The folder of a video appears once all its frames are written, so that the same call continues with
the first video that is missing.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from sam2_jax.data.annotated import Video, VideoList
from sam2_jax.data.masks import davis_palette, read_palette_png
from sam2_jax.data.results import ObjectFolders, PaletteFolder
from sam2_jax.evaluate.annotator import box_around, click_on_frame
from sam2_jax.evaluate.layouts import shorten
from sam2_jax.files import write_file
from sam2_jax.model.memory_bank import FULL_CODE_LENGTH
from sam2_jax.predict.session import InferenceState
from sam2_jax.predict.video import SAM2VideoPredictor

PROMPTS = ("mask", "box", "1-click", "3-click", "5-click")
SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is prompted and what is written.

    Attributes:
        prompt: one of `PROMPTS`; boxes and clicks come from the masks.
        use_all_masks: prompts on all frames that have masks instead of the first one.
        later_objects: an object that appears after the first frame starts where it has its first mask.
        score_threshold: logits above it are the object.
        object_folders: a folder of PNGs for each object, which may overlap, instead of one PNG a frame.
        num_frames: only the first frames of each video; None is all.
    """

    prompt: str = "mask"
    use_all_masks: bool = False
    later_objects: bool = False
    score_threshold: float = 0.0
    object_folders: bool = False
    num_frames: int | None = None


def plan_prompts(video: Video, options: Options) -> dict[int, dict[int, list[int]]]:
    """Says which objects are prompted on which frames.

    Args:
        video: frames and masks.
        options: see `Options`.

    Returns:
        The objects by the frame on which they start, each with the frames on which it is prompted, ascending.

    Raises:
        ValueError: there is no object to track, or one appears later and `later_objects` is off.
    """
    given, names = list(video.annotated), video.frame_names
    if not given:
        raise ValueError(
            f"no mask of {video.name} belongs to one of its frames, which are {shorten(names)}"
        )
    if not options.later_objects:
        if given[0] > 0:
            raise ValueError(
                f"{video.name} has no mask of its first frame, {names[0]}; objects that appear later are "
                "tracked with --track-object-appearing-later-in-video"
            )
        given = given if options.use_all_masks else given[:1]
    prompted: dict[int, list[int]] = {}
    for t in given:
        for object_id, mask in video.masks(t).items():
            if object_id in prompted:
                prompted[object_id] += [t] if options.use_all_masks else []
            elif mask.any() or not (t or options.later_objects):  # a first mask may say: not yet
                if t > 0 and not options.later_objects:
                    raise ValueError(
                        f"object {object_id} of {video.name} has its first mask on frame {names[t]}, not on "
                        f"the first one, {names[0]}; such objects are tracked with "
                        "--track-object-appearing-later-in-video"
                    )
                prompted[object_id] = [t]
    if not any(video.masks(t)[i].any() for i, frames in prompted.items() for t in frames):
        raise ValueError(
            f"the masks of {video.name} on frame {shorten([names[t] for t in given])} are empty: there is "
            "no object to track"
        )
    plan: dict[int, dict[int, list[int]]] = {}
    for object_id, frames in sorted(prompted.items()):
        plan.setdefault(frames[0], {})[object_id] = frames
    return plan


@dataclasses.dataclass
class _Job:
    """A video that is being tracked."""

    video: Video
    plan: dict[int, dict[int, list[int]]]
    state: InferenceState

    def prompt(self, predictor: SAM2VideoPredictor, start: int, prompt: str) -> None:
        """Gives the prompts of the objects that start on a frame."""
        by_frame: dict[int, list[int]] = {}
        for object_id, frames in self.plan[start].items():
            for t in frames:
                by_frame.setdefault(t, []).append(object_id)
        for t in sorted(by_frame):
            masks = self.video.masks(t)
            for object_id in by_frame[t]:
                _give(predictor, self.state, t, object_id, masks[object_id], prompt)


def _written_ids(job: _Job) -> list[int]:
    """Objects that get masks: the tracked ones, and all that have a folder, which evaluators then expect."""
    ids = {i for objects in job.plan.values() for i in objects}
    if job.video.is_by_object:
        ids |= {i for t in job.video.annotated for i in job.video.masks(t)}
    return sorted(ids)


def _give(
    predictor: SAM2VideoPredictor,
    state: InferenceState,
    t: int,
    object_id: int,
    mask: np.ndarray,
    prompt: str,
) -> None:
    if prompt == "mask" or not mask.any():
        predictor.add_new_mask(state, t, object_id, mask)
    elif prompt == "box":
        predictor.add_new_points_or_box(state, t, object_id, box=box_around(mask))
    else:
        count = int(prompt.partition("-")[0])
        click_on_frame(predictor, state, t, object_id, np.zeros_like(mask), mask, count)


def track(
    predictor: SAM2VideoPredictor, videos: Sequence[Video], options: Options
) -> Iterator[tuple[int, int, list[int], np.ndarray]]:
    """Tracks the objects of several videos, which are spread over the devices of this process.

    Args:
        predictor: tracks; its configuration says whether objects may overlap, and whether they may start
            with an empty mask.
        videos: frames and masks of each.
        options: see `Options`.

    Yields:
        index of the video, frame index, the N ids of its objects, and (N, H, W) bool masks, for all
        frames; the mask of an object is empty before the frame on which it starts.

    Raises:
        ValueError: as `plan_prompts`, or masks that are not as large as the video.
    """
    jobs = []
    for video in videos:
        plan = plan_prompts(video, options)
        state = predictor.init_state(video.frames, keep_frames=FULL_CODE_LENGTH)
        jobs.append(_Job(video, plan, state))
        jobs[-1].prompt(predictor, min(plan), options.prompt)
    ids = [_written_ids(job) for job in jobs]
    for v, job in enumerate(jobs):
        empty = np.zeros((len(ids[v]), *job.video.size), bool)
        for t in range(min(job.plan)):
            yield v, t, ids[v], empty
    needs_logits = options.score_threshold != 0
    if len(jobs) == 1:
        results = predictor.propagate_in_video(jobs[0].state, return_logits=needs_logits)
        results = ((0, *result) for result in results)
    else:
        states = [job.state for job in jobs]
        results = predictor.propagate_in_videos(states, return_logits=needs_logits)
    for v, t, obj_ids, found in results:
        job = jobs[v]
        if t in job.plan and t > min(job.plan):
            job.prompt(predictor, t, options.prompt)
            obj_ids, found = job.state.obj_ids, job.state.video_masks(t, needs_logits)
        masks = np.zeros((len(ids[v]), *found.shape[2:]), bool)
        found = found > options.score_threshold if needs_logits else found
        masks[[ids[v].index(i) for i in obj_ids]] = found[:, 0]
        yield v, t, ids[v], masks


def predict(
    predictor: SAM2VideoPredictor,
    videos: VideoList,
    masks: VideoList,
    names: Sequence[str],
    out: str,
    options: Options,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Tracks videos and writes a folder of PNGs for each.

    Args:
        predictor: see `track`.
        videos: the frames.
        masks: the masks to prompt with.
        names: of the videos to track, as `missing` returns them.
        out: folder for the results.
        options: see `Options`.
        progress: called after every frame.

    Raises:
        ValueError: as `track`.
        OSError: a file cannot be written.
    """
    at_once = len(jax.local_devices())
    for first in range(0, len(names), at_once):
        group = names[first : first + at_once]
        partial = [os.path.join(out, f".{name}.partial") for name in group]
        with contextlib.ExitStack() as stack:
            opened, sinks = [], []
            for name, folder in zip(group, partial, strict=True):
                shutil.rmtree(folder, ignore_errors=True)
                whole = stack.enter_context(videos.open(name)).with_masks(masks.open(name))
                opened.append(whole.first(options.num_frames))
                sink = ObjectFolders if options.object_folders else PaletteFolder
                sinks.append(sink(folder, _palette(whole), whole.frame_names))
            for v, t, ids, found in track(predictor, opened, options):
                sinks[v].write(t, ids, found)
                progress()
        for name, folder in zip(group, partial, strict=True):
            os.rename(folder, os.path.join(out, name))


def _palette(video: Video) -> np.ndarray:
    """The colours of the masks to prompt with, if their files have any."""
    palette = read_palette_png(video.mask_file)[1] if video.mask_file else None
    return davis_palette() if palette is None else palette


def missing(out: str, names: Sequence[str], settings: dict) -> list[str]:
    """Prepares a folder for predictions, and says which videos are not in it yet.

    Args:
        out: the folder; made where it is missing.
        names: of all videos.
        settings: what the masks depend on; kept in the folder as JSON.

    Raises:
        ValueError: the folder holds masks that were made with other settings.
    """
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, SETTINGS)
    left = [name for name in names if not os.path.isdir(os.path.join(out, name))]
    text = json.dumps(settings, indent=1) + "\n"
    if len(left) < len(names):
        if not os.path.isfile(path):
            raise ValueError(
                f"{out} holds folders with the names of videos, but not made by this command; name another "
                "folder"
            )
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            said = ", ".join(f"{key} {before.get(key)!r}, now {settings[key]!r}" for key in changed)
            raise ValueError(
                f"{out} holds masks that were made with {said}; name another folder, or delete this one"
            )
    write_file(path, text.encode())
    return left
