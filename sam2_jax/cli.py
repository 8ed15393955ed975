"""The command `sam2-jax`: segment pictures, track videos, convert checkpoints.

Errors are one line on standard error and exit status 2.
"""

import argparse
import csv
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

_IMAGE_EXAMPLE = """example:
  sam2-jax image truck.jpg --point 500,375 --out truck.png --checkpoint sam2.1_hiera_tiny.pt"""
_EVERYTHING_EXAMPLE = """example:
  sam2-jax everything photo.jpg --out masks/ --checkpoint sam2.1_hiera_tiny.pt
  sam2-jax everything photo.jpg --out masks/ --points-per-side 64 --crop-n-layers 1 --pred-iou-thresh 0.7

files in the folder:
  overlay.png  all masks over the picture
  masks.json   COCO run lengths, boxes and scores
  masks.csv    the same as a table, without the masks"""
_TRACK_EXAMPLE = """examples:
  sam2-jax track bedroom.mp4 --point 210,350 --checkpoint sam2.1_hiera_tiny.pt --out overlay.mp4
  sam2-jax track in.mp4 --point 1:210,350 --box 2:300,0,500,400@30 --masks masks/ --rle masks.json

prompts:
  --point X,Y      a click on the object, in pixels of the video
  --point X,Y,0    a click on what is not the object
  --box X0,Y0,X1,Y1
  --mask FILE.png  palette PNG: every id in it is an object; black and white PNG: one object
  Put OBJECT: before a prompt to name its object (default 1), @FRAME after it for another frame than 0."""
_CONVERT_EXAMPLE = """examples:
  sam2-jax convert --input sam2.1_hiera_tiny.pt --output tiny/
  sam2-jax convert --input tiny/ --output sam2.1_hiera_tiny.safetensors"""

# Options of `everything`: arguments of SAM2AutomaticMaskGenerator, whose defaults hold.
_GENERATOR_OPTIONS = (
    ("points_per_side", int, "clicks along a side of the picture (default 32)"),
    ("points_per_batch", int, "clicks decoded at once (default 64)"),
    ("pred_iou_thresh", float, "least predicted IoU of a mask (default 0.8; 0 keeps all)"),
    ("stability_score_thresh", float, "least stability of a mask (default 0.95; 0 keeps all)"),
    (
        "stability_score_offset",
        float,
        "change of the threshold that stability is about (default 1)",
    ),
    ("mask_threshold", float, "logits above it are the object (default 0)"),
    ("box_nms_thresh", float, "largest IoU of the boxes of two masks (default 0.7)"),
    ("crop_n_layers", int, "layers of crops that are segmented as well (default 0)"),
    ("crop_nms_thresh", float, "as --box-nms-thresh, between crops (default 0.7)"),
    ("crop_overlap_ratio", float, "overlap of the first layer's crops (default 0.341)"),
    ("crop_n_points_downscale_factor", int, "clicks a side shrink by it a layer (default 1)"),
    ("min_mask_region_area", int, "cells of a hole or speck that is removed (default 0)"),
)

_NUMBER = r"-?\d+(?:\.\d+)?"


class UserPrompt(NamedTuple):
    """One prompt of the command line.

    Attributes:
      kind: "point", "box" or "mask".
      obj: object id; None for a mask whose ids name the objects.
      frame: frame index.
      value: [x, y, label], [x0, y0, x1, y1], or the path of a mask.
    """

    kind: str
    obj: int | None
    frame: int
    value: Any


def _numbers(kind: str, counts: tuple[int, ...], usage: str) -> Callable[[str], UserPrompt]:
    def parse(text: str) -> UserPrompt:
        match = re.fullmatch(rf"(?:(\d+):)?({_NUMBER}(?:,{_NUMBER})*)(?:@(\d+))?", text)
        numbers = [float(x) for x in match[2].split(",")] if match else []
        if len(numbers) not in counts:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {usage}")
        if kind == "point":
            label = numbers[2] if len(numbers) == 3 else 1
            if label not in (0, 1):
                raise argparse.ArgumentTypeError(
                    f"{text!r}: the third number is a label, 1 object or 0 background"
                )
            numbers = [*numbers[:2], label]
        elif numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
            raise argparse.ArgumentTypeError(f"{text!r}: the box is empty, {usage} is expected")
        return UserPrompt(kind, int(match[1] or 1), int(match[3] or 0), numbers)

    return parse


def _mask_prompt(text: str) -> UserPrompt:
    match = re.fullmatch(r"(?:(\d+):)?(.+?)(?:@(\d+))?", text)
    return UserPrompt("mask", int(match[1]) if match[1] else None, int(match[3] or 0), match[2])


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    point = _numbers("point", (2, 3), "[OBJECT:]X,Y[,LABEL][@FRAME]")
    box = _numbers("box", (4,), "[OBJECT:]X0,Y0,X1,Y1[@FRAME]")
    add = lambda name, type, metavar, help: parser.add_argument(
        name, dest="prompts", action="append", type=type, metavar=metavar, help=help, default=[]
    )
    add("--point", point, "X,Y", "click on an object; repeatable")
    add("--box", box, "X0,Y0,X1,Y1", "box around an object; repeatable")
    add("--mask", _mask_prompt, "FILE.png", "mask of one or several objects; repeatable")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="released model, for example sam2.1_hiera_tiny")
    parser.add_argument("--checkpoint", help="official .pt, .safetensors, or a converted folder")
    parser.add_argument(
        "--image-size", type=int, default=1024, help="side of the model's input (default 1024)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type"
    )


class _Parser(argparse.ArgumentParser):
    """Reports errors like `main` does: in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sam2-jax", description="Segment anything in images and videos, with JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, run, help, epilog):
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    image = command("image", _image, "Segment what is pointed at in a picture.", _IMAGE_EXAMPLE)
    image.add_argument("image", help="picture file")
    _add_prompts(image)
    image.add_argument("--out", help="overlay picture (default: <image>_overlay.png)")
    image.add_argument("--masks", metavar="FILE.png", help="palette PNG of the objects")
    _add_model(image)

    everything = command(
        "everything", _everything, "Segment everything in a picture.", _EVERYTHING_EXAMPLE
    )
    everything.add_argument("image", help="picture file")
    everything.add_argument("--out", metavar="DIR", help="folder (default: <image>_masks)")
    _add_model(everything)
    for name, type, help in _GENERATOR_OPTIONS:
        flag = f"--{name.replace('_', '-')}"
        everything.add_argument(flag, type=type, metavar="N", help=help)
    everything.add_argument(
        "--use-m2m", action="store_true", help="decode every mask once more from itself"
    )

    track = command("track", _track, "Track what is pointed at through a video.", _TRACK_EXAMPLE)
    track.add_argument("video", help="video file, or a folder of JPEG or PNG frames")
    _add_prompts(track)
    track.add_argument("--out", metavar="FILE.mp4", help="overlay video")
    track.add_argument("--masks", metavar="DIR", help="folder for one DAVIS palette PNG a frame")
    track.add_argument("--rle", metavar="FILE.json", help="masks as COCO run lengths")
    track.add_argument("--num-frames", type=int, metavar="N", help="only the first N frames")
    _add_model(track)

    convert = command("convert", _convert, "Convert checkpoints.", _CONVERT_EXAMPLE)
    convert.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["convert"]:  # the converter has a parser of its own
        return _convert(argv[1:])
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            _cache_compiled_programs()
            args.run(args)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"sam2-jax {args.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sam2-jax {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _cache_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that only the first run of a size waits for the compiler."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "sam2_jax" / "xla"))


def _convert(argv: list[str]) -> int:
    from checkpoints_convert.convert import main as convert

    return convert(argv)


def _build(args: argparse.Namespace, builder: Callable) -> Any:
    return builder(args.model, args.checkpoint, image_size=args.image_size, dtype=args.dtype)


def _check_prompts(
    prompts: list[UserPrompt], height: int, width: int, num_frames: int
) -> dict[tuple[int, int], dict[str, list]]:
    """Groups prompts by (object, frame); masks are read and split by id.

    Raises:
      ValueError: none given, outside of the picture, or several boxes or masks for one object.
    """
    from sam2_jax.data.masks import read_mask_png

    if not prompts:
        raise ValueError(
            "no prompt was given: add --point X,Y, --box X0,Y0,X1,Y1 or --mask FILE.png"
        )
    groups: dict[tuple[int, int], dict[str, list]] = {}
    add = lambda obj, frame, kind, value: groups.setdefault(
        (obj, frame), {"point": [], "box": [], "mask": []}
    )[kind].append(value)
    for kind, obj, frame, value in prompts:
        if frame >= num_frames:
            raise ValueError(
                f"there is no frame {frame}: the video has {num_frames} frames, from 0"
            )
        if kind == "mask":
            ids = read_mask_png(value)
            if ids.shape != (height, width):
                raise ValueError(
                    f"{value} is {ids.shape[1]} x {ids.shape[0]} pixels, the video {width} x {height}"
                )
            present = [int(i) for i in np.unique(ids) if i]
            if obj is not None or present == [255]:
                add(obj or 1, frame, "mask", ids > 0)
            elif not present:
                raise ValueError(f"{value} has no object: every pixel is 0")
            else:
                for i in present:
                    add(i, frame, "mask", ids == i)
            continue
        x, y = (
            value[::2] if kind == "box" else value[:1],
            value[1::2] if kind == "box" else value[1:2],
        )
        if not (all(0 <= v <= width for v in x) and all(0 <= v <= height for v in y)):
            given = ",".join(f"{v:g}" for v in (value if kind == "box" else value[:2]))
            raise ValueError(f"{kind} {given} is outside of the picture, {width} x {height} pixels")
        add(obj, frame, kind, value)
    for (obj, frame), group in groups.items():
        if (
            len(group["box"]) > 1
            or len(group["mask"]) > 1
            or (group["mask"] and group["box"] + group["point"])
        ):
            raise ValueError(
                f"object {obj} has several boxes, or a mask and another prompt, on frame {frame}: name "
                "different objects by OBJECT: before the prompt, as in --box 2:10,20,30,40"
            )
    return groups


def _arrays(group: dict[str, list]) -> dict[str, np.ndarray | None]:
    """Points, labels and box of one object as the predictors take them."""
    points = np.array(group["point"], np.float32).reshape(-1, 3)
    box = np.array(group["box"][0], np.float32) if group["box"] else None
    if not len(points):
        return {"points": None, "labels": None, "box": box}
    return {"points": points[:, :2], "labels": points[:, 2].astype(np.int32), "box": box}


def _drawn_prompts(groups: dict[tuple[int, int], dict[str, list]], frame: int) -> dict[str, Any]:
    """Prompts of a frame as `draw_overlay` takes them."""
    here = [group for (_, t), group in groups.items() if t == frame]
    points = np.array([p for group in here for p in group["point"]]).reshape(-1, 3)
    boxes = [box for group in here for box in group["box"]]
    return {"points": points[:, :2], "labels": points[:, 2], "boxes": np.array(boxes)}


def _image(args: argparse.Namespace) -> None:
    from PIL import Image

    from sam2_jax import SAM2ImagePredictor, build_sam2
    from sam2_jax.data import media
    from sam2_jax.data.masks import pack_masks, write_palette_png
    from sam2_jax.data.overlay import draw_overlay

    image = media.read_image(args.image)
    groups = _check_prompts(args.prompts, *image.shape[:2], num_frames=1)
    if any(group["mask"] for group in groups.values()):
        raise ValueError("a mask prompts a video; a picture takes --point and --box")
    out = Path(args.out or f"{Path(args.image).stem}_overlay.png")
    for path in (out, args.masks):
        if path:
            _check_folder(Path(path))

    ids = _object_ids(groups, args.masks)

    predictor = SAM2ImagePredictor(_build(args, build_sam2))
    predictor.set_image(image)
    masks = []
    for (obj, _), group in groups.items():
        prompt = _arrays(group)
        is_ambiguous = prompt["box"] is None and len(prompt["points"]) == 1
        candidates, ious, _ = predictor.predict(
            prompt["points"], prompt["labels"], prompt["box"], multimask_output=is_ambiguous
        )
        best = int(np.argmax(ious))
        masks.append(candidates[best])
        share = 100 * masks[-1].mean()
        print(f"object {obj}: predicted IoU {ious[best]:.3f}, {share:.1f} % of the picture")
    overlay = draw_overlay(image, np.stack(masks), ids, **_drawn_prompts(groups, 0))
    Image.fromarray(overlay).save(out)
    print(f"overlay: {out}")
    if args.masks:
        write_palette_png(args.masks, pack_masks(np.stack(masks), ids))
        print(f"masks:   {args.masks}")


def _everything(args: argparse.Namespace) -> None:
    from PIL import Image
    from tqdm import tqdm

    from sam2_jax import SAM2AutomaticMaskGenerator, build_sam2
    from sam2_jax.data import media

    image = media.read_image(args.image)
    out = Path(args.out or f"{Path(args.image).stem}_masks")
    _check_folder(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder, new or old")
    options = {name: getattr(args, name) for name, *_ in _GENERATOR_OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}

    generator = SAM2AutomaticMaskGenerator(
        _build(args, build_sam2), output_mode="coco_rle", use_m2m=args.use_m2m, **options
    )
    total = sum(4**layer * len(grid) for layer, grid in enumerate(generator.point_grids))
    with tqdm(total=total, desc="segment everything", unit="click") as bar:
        found = generator.generate(image, progress=bar.update)
    masks = np.zeros((len(found), *image.shape[:2]), bool)
    for i, annotation in enumerate(found):
        annotation["id"] = i + 1
        masks[i] = media.decode_rle(annotation["segmentation"])

    out.mkdir(exist_ok=True)
    order = np.argsort([-annotation["area"] for annotation in found], kind="stable")
    ids = [int(i) + 1 for i in order]
    Image.fromarray(media.draw_overlay(image, masks[order], ids)).save(out / "overlay.png")
    _write_annotations(out, args.image, image.shape[:2], found)
    if found:
        covered = 100 * masks.any(0).mean()
        print(f"{len(found)} masks, which cover {covered:.1f} % of the picture")
    else:
        print(
            "0 masks were found: lower --pred-iou-thresh or --stability-score-thresh, or raise "
            "--points-per-side"
        )
    print(f"written: {out / 'overlay.png'}, {out / 'masks.json'}, {out / 'masks.csv'}")


def _write_annotations(
    folder: Path, image: str, size: tuple[int, int], annotations: list[dict[str, Any]]
) -> None:
    """Writes masks.json, {image, height, width, annotations}, and masks.csv, a row for each annotation."""
    document = {
        "image": Path(image).name,
        "height": size[0],
        "width": size[1],
        "annotations": annotations,
    }
    (folder / "masks.json").write_text(json.dumps(document))
    with open(folder / "masks.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        box, point = ("x", "y", "width", "height"), ("point_x", "point_y")
        table.writerow(["id", "area", *box, "predicted_iou", "stability_score", *point])
        for a in annotations:
            scores = [f"{a[name]:.4f}" for name in ("predicted_iou", "stability_score")]
            point = [round(v, 2) for v in a["point_coords"][0]]
            table.writerow([a["id"], a["area"], *a["bbox"], *scores, *point])


def _object_ids(groups: dict[tuple[int, int], dict], masks: str | None) -> list[int]:
    """Ids of the prompted objects; fails if they are to be written as a palette PNG that cannot hold them."""
    ids = [obj for obj, _ in groups]
    if masks and not all(1 <= obj <= 255 for obj in ids):
        raise ValueError(f"object ids are {ids}, but the pixels of --masks hold 1 to 255 only")
    return ids


def _check_folder(path: Path) -> None:
    """Fails before the work, not after it."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")


def _track(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax import build_sam2_video_predictor
    from sam2_jax.data import media, videos
    from sam2_jax.data.masks import encode_rle, pack_masks, write_palette_png

    with videos.open_frames(args.video) as frames:
        num_frames = len(frames)
        if args.num_frames is not None:
            if args.num_frames < 1:
                raise ValueError(f"--num-frames is {args.num_frames}; at least 1 is expected")
            num_frames = min(num_frames, args.num_frames)
            frames = videos.FirstFrames(frames, num_frames)
        groups = _check_prompts(args.prompts, frames.height, frames.width, num_frames)
        out = args.out
        if not (out or args.masks or args.rle):
            out = f"{Path(args.video).stem}_overlay.mp4"
        for path in (out, args.rle):
            if path:
                _check_folder(Path(path))
        ids = sorted(set(_object_ids(groups, args.masks)))

        predictor = _build(args, build_sam2_video_predictor)
        if args.masks:
            Path(args.masks).mkdir(parents=True, exist_ok=True)
        results = _track_all(predictor, frames, groups)
        masks: dict[int, list[dict]] = {}
        with tqdm(results, total=num_frames, desc="propagate in video", unit="frame") as bar:
            bar.set_postfix_str("compiling")
            for t, obj_ids, logits in bar:
                if masks:  # the program for prompts and the one for tracking are there
                    bar.set_postfix_str("")
                by_id = dict(zip(obj_ids, logits[:, 0] > 0, strict=True))
                masks[t] = [encode_rle(by_id[i]) for i in ids]
                if args.masks:
                    path = Path(args.masks) / f"{t:05d}.png"
                    packed = pack_masks(np.stack([by_id[i] for i in ids]), ids)
                    write_palette_png(path, packed)
        if args.masks:
            print(f"masks:   {args.masks}")
        if args.rle:
            _write_rle(Path(args.rle), args.video, frames, ids, masks)
            print(f"rle:     {args.rle}")
        if out:
            drawn = tqdm(
                _overlays(frames, groups, ids, masks),
                total=num_frames,
                desc="draw overlay",
                unit="frame",
            )
            media.write_video(out, drawn, frames.fps)
            print(f"overlay: {out}")


def _track_all(predictor, frames, groups) -> Iterator[tuple[int, list, np.ndarray]]:
    """Tracks from the earliest prompt to the end, then from it back to the start."""
    from sam2_jax.model.memory_bank import FULL_CODE_LENGTH

    state = predictor.init_state(frames, keep_frames=FULL_CODE_LENGTH)
    for (obj, t), group in sorted(groups.items()):
        if group["mask"]:
            predictor.add_new_mask(state, t, obj, group["mask"][0])
        else:
            predictor.add_new_points_or_box(state, t, obj, **_arrays(group))
    start = min(t for _, t in groups)
    yield from predictor.propagate_in_video(state, start)
    for t, obj_ids, logits in predictor.propagate_in_video(state, start, reverse=True):
        if t != start:
            yield t, obj_ids, logits


def _overlays(frames, groups, ids, masks) -> Iterator[np.ndarray]:
    from sam2_jax.data.masks import decode_rle
    from sam2_jax.data.overlay import draw_overlay

    for t in range(len(frames)):
        decoded = np.stack([decode_rle(rle) for rle in masks[t]])
        yield draw_overlay(frames[t], decoded, ids, **_drawn_prompts(groups, t))


def _write_rle(
    path: Path, video: str, frames, ids: list[int], masks: dict[int, list[dict]]
) -> None:
    """Writes {video, height, width, fps, objects, frames: {frame: {object: RLE}}}."""
    document = {
        "video": Path(video).name,
        "height": frames.height,
        "width": frames.width,
        "fps": frames.fps,
        "objects": ids,
        "frames": {str(t): dict(zip(map(str, ids), masks[t], strict=True)) for t in sorted(masks)},
    }
    path.write_text(json.dumps(document))
