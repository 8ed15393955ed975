"""`sam2-jax track`: what is pointed at, through a video file, a folder of frames, a pipe or a camera."""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam2_jax.commands.common import add_model, build, drawn_prompts, object_ids
from sam2_jax.commands.outputs import File, Folder, check_outputs
from sam2_jax.commands.prompts import Groups, add_prompts, arrays, group_prompts

HELP = "Track what is pointed at through a video or a stream."
EXAMPLES = """examples:
  sam2-jax track bedroom.mp4 --point 210,350 --checkpoint sam2.1_hiera_tiny.pt --out overlay.mp4
  sam2-jax track in.mp4 --point 1:210,350 --box 2:300,0,500,400@30 --masks masks/ --rle masks.json
  ffmpeg -i rtsp://host/stream -f mpegts - | sam2-jax track - --point 210,350 --rle masks.json
  sam2-jax track --camera 0 --box 300,0,500,400 --image-size 512 --out camera.mp4

prompts:
  --point X,Y      a click on the object, in pixels of the video
  --point X,Y,0    a click on what is not the object
  --box X0,Y0,X1,Y1
  --mask FILE.png  palette PNG: every id in it is an object; black and white PNG: one object
  Put OBJECT: before a prompt to name its object (default 1), @FRAME after it for a frame other than 0."""


def _raw_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WIDTHxHEIGHT")
    return int(match[2]), int(match[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "video", nargs="?", help="video file, folder of pictures, or - for standard input"
    )
    source.add_argument("--camera", metavar="DEVICE", help="number or name of a camera")
    parser.add_argument(
        "--raw", type=_raw_size, metavar="WxH", help="standard input is raw RGB, 3 bytes a pixel"
    )
    add_prompts(parser)
    parser.add_argument("--out", "--output", metavar="FILE.mp4", help="overlay video")
    parser.add_argument("--masks", metavar="DIR", help="folder for one DAVIS palette PNG a frame")
    parser.add_argument(
        "--object-masks", metavar="DIR", help="folder for one PNG an object and frame, as SA-V has"
    )
    parser.add_argument("--boxes", metavar="DIR", help="folder for x,y,w,h text, a file an object")
    parser.add_argument("--rle", metavar="FILE.json", help="masks as COCO run lengths")
    parser.add_argument("--num-frames", type=int, metavar="N", help="only the first N frames")
    parser.add_argument(
        "--memory-policy",
        metavar="NAME",
        help="which frames to remember: recent (default), quality, motion or distractor",
    )
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    if args.num_frames is not None and args.num_frames < 1:
        raise ValueError(f"--num-frames is {args.num_frames}; at least 1 is expected")
    is_stream = args.camera is not None or args.video == "-"
    if args.raw and args.video != "-":
        raise ValueError(
            "--raw describes standard input: name it, as in sam2-jax track - --raw 640x480"
        )
    name = "camera" if args.camera is not None else "stream" if is_stream else Path(args.video).stem
    has_output = args.masks or args.object_masks or args.boxes or args.rle
    if not (args.out or has_output):
        args.out = f"{name}_overlay.mp4"
    files = {"--out": (args.out, (".mp4",)), "--rle": (args.rle, (".json",))}
    folders = {
        "--masks": (args.masks, ("*.png",)),
        "--object-masks": (args.object_masks, ("*/*.png",)),
        "--boxes": (args.boxes, ("*.txt",)),
    }
    check_outputs(
        [File(name, path, suffixes) for name, (path, suffixes) in files.items() if path]
        + [Folder(name, path, names) for name, (path, names) in folders.items() if path],
        ([] if is_stream else [args.video]) + [p.value for p in args.prompts if p.kind == "mask"],
    )
    if is_stream:
        _run_stream(args, name)
    else:
        _run_file(args)


def _build(args: argparse.Namespace) -> Any:
    from sam2_jax import build_sam2_video_predictor

    overrides = {"memory_policy": args.memory_policy} if args.memory_policy else {}
    return build(args, build_sam2_video_predictor, **overrides)


@contextlib.contextmanager
def _sinks(args: argparse.Namespace, video: str, frames: Any) -> Iterator[list]:
    """The outputs for masks; they are finished, and their places printed, however the work ends."""
    from sam2_jax.data.results import BoxFiles, ObjectFolders, PaletteFolder, RleFile
    from sam2_jax.data.videos import Frames

    names, times = None, None
    if isinstance(frames, Frames):  # a stream does not know yet what will come
        names, times = frames.names, [round(frames.time(t), 6) for t in range(len(frames))]
    size = frames.height, frames.width
    makers = {
        "masks": lambda path: PaletteFolder(path, frame_names=names),
        "object_masks": lambda path: ObjectFolders(path, frame_names=names),
        "boxes": BoxFiles,
        "rle": lambda path: RleFile(path, video, *size, frames.fps, names, times),
    }
    with contextlib.ExitStack() as stack:
        chosen = {key: make for key, make in makers.items() if getattr(args, key)}
        yield [stack.enter_context(make(getattr(args, key))) for key, make in chosen.items()]
    for key in chosen:
        print(f"{key.replace('_', ' ')}: {getattr(args, key)}")


def _run_file(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax.data.media import VideoWriter
    from sam2_jax.data.overlay import draw_overlay
    from sam2_jax.data.results import RleResults
    from sam2_jax.data.videos import FirstFrames, open_frames

    with open_frames(args.video) as frames:
        if args.num_frames is not None:
            frames = FirstFrames(frames, args.num_frames)
        num_frames = len(frames)
        groups = group_prompts(args.prompts, frames.height, frames.width)
        for _, t in groups:
            if t >= num_frames:
                raise ValueError(
                    f"there is no frame {t}: the video has {num_frames} frames, from 0"
                    + _place_of_name(frames.names, t)
                )
        object_ids(groups, args.masks)
        predictor = _build(args)
        kept, failure = RleResults(), None
        with _sinks(args, Path(args.video).name, frames) as sinks:
            results = _track(predictor, frames, groups)
            with tqdm(results, total=num_frames, desc="propagate in video", unit="frame") as bar:
                bar.set_postfix_str("compiling")
                try:
                    for t, obj_ids, masks in bar:
                        for sink in (*sinks, kept) if args.out else sinks:
                            sink.write(t, obj_ids, masks[:, 0])
                        if bar.n:  # the programs for prompts and for tracking are compiled
                            bar.set_postfix_str("")
                except (ValueError, OSError) as error:
                    if not bar.n:
                        raise
                    failure = ValueError(f"{error}. The {bar.n} frames before it are kept.")
        if args.out:
            with VideoWriter(args.out, frames.fps, frames.pixel_aspect) as video:
                for t in tqdm(sorted(kept), desc="draw overlay", unit="frame"):
                    obj_ids, masks = kept.masks(t)
                    drawn = draw_overlay(frames[t], masks, obj_ids, **drawn_prompts(groups, t))
                    video.write(drawn, frames.time(t))
            print(f"overlay: {args.out}")
    if failure:
        raise failure


def _place_of_name(names: Sequence[str] | None, number: int) -> str:
    """A hint for who gave the number in the name of a picture instead of the index of its frame."""
    for place, name in enumerate(names or ()):
        if re.fullmatch(f"0*{number}", name):
            return f"; {name} is frame {place}: @ counts frames"
    return ""


def _track(predictor: Any, frames: Any, groups: Groups) -> Iterator[tuple[int, list, np.ndarray]]:
    """Tracks from the earliest prompt to the end, then from it back to the start."""
    from sam2_jax.model.memory_bank import FULL_CODE_LENGTH

    state = predictor.init_state(frames, keep_frames=FULL_CODE_LENGTH)
    for (obj, t), group in sorted(groups.items()):
        if group["mask"]:
            predictor.add_new_mask(state, t, obj, group["mask"][0])
        else:
            predictor.add_new_points_or_box(state, t, obj, **arrays(group))
    start = min(t for _, t in groups)
    yield from predictor.propagate_in_video(state, start, return_logits=False)
    backwards = predictor.propagate_in_video(state, start, reverse=True, return_logits=False)
    for t, obj_ids, masks in backwards:
        if t != start:
            yield t, obj_ids, masks


def _run_stream(args: argparse.Namespace, name: str) -> None:
    from tqdm import tqdm

    from sam2_jax import SAM2StreamPredictor
    from sam2_jax.data.media import VideoWriter
    from sam2_jax.data.overlay import draw_overlay
    from sam2_jax.data.streams import open_camera, read_stream

    is_camera = args.camera is not None
    stream = open_camera(args.camera) if is_camera else read_stream(sys.stdin.buffer, args.raw)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stream)
        groups = group_prompts(args.prompts, stream.height, stream.width)
        object_ids(groups, args.masks)
        predictor = SAM2StreamPredictor(_build(args))
        video = stack.enter_context(VideoWriter(args.out, stream.fps)) if args.out else None
        sinks = stack.enter_context(_sinks(args, name, stream))
        count = 0
        try:
            for frame in tqdm(stream, desc="track stream", unit="frame"):
                if args.raw and count == 0:
                    _check_row_length(frame)
                obj_ids, masks = _answer(predictor, frame, groups)
                masks = masks[:, 0]
                for sink in sinks:
                    sink.write(count, obj_ids, masks)
                if video is not None:
                    prompts = drawn_prompts(groups, count)
                    drawn = draw_overlay(frame, masks, obj_ids, **prompts)
                    video.write(drawn, stream.time)
                count += 1
                if count == args.num_frames:
                    break
        except KeyboardInterrupt:  # the usual end of a camera
            print(f"stopped after {count} frames", file=sys.stderr)
    if args.out:
        print(f"overlay: {args.out}")
    late = [t for _, t in groups if t >= count]
    if late:
        said = f"warning: the stream ended after {count} frames, before the prompts on {late}"
        print(said, file=sys.stderr)


def _check_row_length(frame: np.ndarray) -> None:
    """Refuses raw pixels whose rows resemble each other at another distance than the given width."""
    height, width, _ = frame.shape
    grey = frame.reshape(-1, 3).mean(1)
    grey -= grey.mean()
    spectrum = np.abs(np.fft.rfft(grey, 2 * grey.size)) ** 2
    likeness = np.fft.irfft(spectrum)[: grey.size] / np.arange(grey.size, 0, -1)
    lags = np.arange(max(width // 3, 16), min(3 * width, grey.size // 2) + 1)
    if not lags.size or likeness[0] < 1:  # a single colour
        return
    best = int(lags[likeness[lags].argmax()])
    if likeness[best] > 0.8 * likeness[0] and likeness[width] < 0.5 * likeness[0]:
        raise ValueError(
            f"--raw is {width}x{height}, but the data looks like rows of {best} pixels: give the width and "
            "height of the frames, and pixels of R, G and B (ffmpeg -f rawvideo -pix_fmt rgb24)"
        )


def _answer(predictor: Any, frame: np.ndarray, groups: Groups) -> tuple[list, np.ndarray]:
    """Tracks to the next frame, and answers the prompts on it."""
    obj_ids, masks = predictor.track(frame, return_logits=False)
    for (obj, t), group in sorted(groups.items()):
        if t != predictor.frame_idx:
            continue
        if group["mask"]:
            obj_ids, logits = predictor.add_new_mask(obj, group["mask"][0])
        else:
            obj_ids, logits = predictor.add_new_points_or_box(obj, **arrays(group))
        masks = logits > 0
    return obj_ids, masks
