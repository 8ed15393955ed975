"""`sam2-jax evaluate` and `scripts/evaluate.py`: how good masks, or a model's, are."""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sam2_jax.commands.common import add_model, build

HELP = "Score masks, or let a model predict those of a benchmark."
EXAMPLES = """examples:
  sam2-jax evaluate vos --videos DAVIS --masks DAVIS --video-list DAVIS/ImageSets/2017/val.txt --out davis_out
  sam2-jax evaluate score --truth DAVIS --predictions davis_out --convention davis
  sam2-jax evaluate interactive --videos DAVIS --masks DAVIS --protocol offline --out clicks --checkpoint tiny/
  sam2-jax evaluate images --images val2017 --annotations instances_val2017.json --checkpoint tiny/

docs/evaluation.md has a command for every published benchmark."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the kinds of evaluation with their options."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="kind")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return kinds.add_parser(name, help=help, description=help)

    _add_score(add("score", "Score predicted masks of videos: J, F and J&F.").add_argument)
    _add_vos(add("vos", "Track the objects of first-frame masks through videos; write PNGs."))
    _add_interactive(add("interactive", "Let a simulated annotator correct tracked objects."))
    _add_images(add("images", "Segment objects in images by simulated clicks and by boxes."))


def _add_score(add: Callable) -> None:
    add(
        "--truth",
        required=True,
        metavar="DIR",
        help="true masks: a folder a video, or a benchmark's folder",
    )
    add("--predictions", required=True, metavar="DIR", help="predicted masks, likewise")
    add("--convention", choices=("sav", "davis"), default="sav", help="whose rules (default: sav)")
    add(
        "--out",
        metavar="DIR",
        help="folder of results.csv, .json and .html (default: the predictions)",
    )
    add(
        "--videos",
        metavar="DIR",
        help="frames for the pictures of results.html (default: the truth's)",
    )
    add("--video-list", metavar="FILE", help="text file that names the videos to score")
    add(
        "--strict", action="store_true", help="a video of the truth without predictions is an error"
    )
    add(
        "--do-not-skip-first-and-last-frame",
        dest="keep_ends",
        action="store_true",
        help="score the first and the last annotated frame as well",
    )
    add(
        "--train-meta",
        metavar="FILE",
        help="YouTube-VOS: meta.json of the training set, whose categories are the seen ones "
        "(default: ../train/meta.json beside the truth)",
    )
    _add_split(add)


def _add_split(add: Callable) -> None:
    add(
        "--split",
        default="validation",
        help="of a dataset given as tfds:NAME (default: validation)",
    )


def _add_videos(add: Callable) -> None:
    add(
        "--videos",
        "--base_video_dir",
        required=True,
        metavar="DIR",
        help="a folder of frames or an mp4 a video, a benchmark's folder, or tfds:NAME",
    )
    add(
        "--masks",
        "--input_mask_dir",
        required=True,
        metavar="DIR",
        help="masks: a folder a video, a benchmark's folder, or tfds:NAME",
    )
    add("--out", "--output_mask_dir", required=True, metavar="DIR", help="folder of the results")
    add("--video-list", "--video_list_file", metavar="FILE", help="text file that names the videos")
    add("--num-frames", type=int, metavar="N", help="only the first N frames of every video")
    _add_split(add)


def _add_vos(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_videos(add)
    add(
        "--prompt",
        choices=("mask", "box", "1-click", "3-click", "5-click"),
        default="mask",
        help="what is made of a mask to prompt with (default: mask)",
    )
    add(
        "--score-threshold",
        "--score_thresh",
        type=float,
        default=0.0,
        help="logits above it are the object (default: 0)",
    )
    add(
        "--use-all-masks",
        "--use_all_masks",
        action="store_true",
        help="prompt on all frames that have masks, not only on the first one",
    )
    add(
        "--per-obj-png-file",
        "--per_obj_png_file",
        action="store_true",
        help="write a folder of PNGs for every object (default: as the masks are)",
    )
    add(
        "--track-object-appearing-later-in-video",
        "--track_object_appearing_later_in_video",
        dest="later_objects",
        action="store_true",
        help="start an object that appears later where it has its first mask",
    )
    add(
        "--apply-postprocessing",
        "--apply_postprocessing",
        action="store_true",
        help="fill small holes, which published scores do without",
    )
    add_model(parser)
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    add("--sam2_cfg", dest="model", **hidden)
    add("--sam2_checkpoint", dest="checkpoint", **hidden)
    add("--use_vos_optimized_video_predictor", action="store_true", **hidden)  # always compiled


def _add_interactive(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_videos(add)
    add(
        "--protocol",
        choices=("offline", "online", "both"),
        default="both",
        help="correct the worst frame and track anew, or correct while watching once (default: both)",
    )
    add("--rounds", type=int, default=8, help="frames that get clicks, at most (default: 8)")
    add("--clicks", type=int, default=3, help="clicks on each of them (default: 3)")
    add(
        "--threshold",
        type=float,
        default=0.75,
        help="online: a frame of lower IoU gets clicks (default: 0.75)",
    )
    add_model(parser)


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of images")
    add(
        "--annotations",
        metavar="PATH",
        help="JSON of COCO; folder of label PNGs; folder of JSONs of SA-1B (default: --images)",
    )
    add("--out", required=True, metavar="DIR", help="folder of the results")
    add("--num-images", type=int, metavar="N", help="only the first N images")
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    for name in ("num_frames", "num_images", "rounds", "clicks"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1 is expected"
            )
    runs = {
        "score": _run_score,
        "vos": _run_vos,
        "interactive": _run_interactive,
        "images": _run_images,
    }
    runs[args.kind](args)


def _run_score(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax.evaluate import layouts, report
    from sam2_jax.evaluate.score import score, summarise

    truth = layouts.open_masks(args.truth, args.split)
    predictions = layouts.open_masks(args.predictions)
    print(f"truth:       {truth.where}\npredictions: {predictions.where}")
    names = layouts.choose(truth, predictions, args.video_list)
    left_out = [name for name in truth.names if name not in names]
    if left_out and not args.video_list:
        said = f"{len(left_out)} of {len(truth.names)} videos have no predictions: {layouts.shorten(left_out)}"
        if args.strict:
            raise ValueError(said)
        print(f"{said}; they are left out")

    start = time.monotonic()
    with tqdm(total=len(names), desc="score", unit="video") as bar:
        scores = score(truth, predictions, names, args.convention, not args.keep_ends, bar.update)
    num_frames = len({(s.video, stem) for s in scores for stem in s.stems})
    seconds = time.monotonic() - start
    total = summarise(scores, args.convention)
    rows = report.score_rows(scores, total, args.convention)
    print(f"\n{report.table(rows)}\n")
    print(f"{num_frames} frames in {seconds:.1f} s, {num_frames / seconds:.0f} frames/s")
    facts = {
        "truth": truth.where,
        "predictions": predictions.where,
        "convention": args.convention,
        "first and last frame": "scored" if args.keep_ends else "skipped",
    }
    of_kinds = _seen_and_unseen(args, scores)
    if of_kinds:
        print(report.table([of_kinds]))
        facts |= {name: f"{value:.1f}" for name, value in of_kinds.items()}

    out = args.out or args.predictions
    pictures = report.worst_frames(scores, truth, predictions, _videos_of_truth(args))
    files = {
        "results.csv": report.results_csv(scores, total),
        "results.json": report.results_json(scores, total | of_kinds, args.convention, facts),
        "results.html": report.page(
            f"J&F {total['J&F']:.1f}", facts, rows, report.score_charts(scores), pictures
        ),
    }
    if args.convention == "davis":
        files["results_davis.csv"] = report.rows_csv(rows)
    _write(out, files)


def _seen_and_unseen(args: argparse.Namespace, scores: Sequence[Any]) -> dict[str, float]:
    """Scores of YouTube-VOS, if its files of categories are there."""
    from sam2_jax.evaluate.score import read_categories, summarise_seen_and_unseen

    root = (
        args.truth
        if os.path.isdir(os.path.join(args.truth, "Annotations"))
        else os.path.dirname(os.path.abspath(args.truth))
    )
    meta = os.path.join(root, "meta.json")
    if not os.path.isfile(meta):
        return {}
    train_meta = args.train_meta or os.path.join(root, "..", "train", "meta.json")
    if not os.path.isfile(train_meta):
        print(
            f"seen and unseen categories are not told apart: there is no {train_meta} (--train-meta)"
        )
        return {}
    seen = set(read_categories(train_meta).values())
    return summarise_seen_and_unseen(scores, read_categories(meta), seen)


def _videos_of_truth(args: argparse.Namespace) -> Any:
    from sam2_jax.evaluate import layouts

    place = args.videos or args.truth
    if args.videos or place.startswith(layouts.CATALOGUE):
        return layouts.open_videos(place, args.split)
    benchmark = layouts.find_benchmark(place)
    return layouts.open_videos(place) if benchmark and benchmark.frames else None


def _open_both(args: argparse.Namespace) -> tuple[Any, Any, list[str]]:
    """The videos, their masks, and the names of those that have both."""
    from sam2_jax.evaluate import layouts

    videos = layouts.open_videos(args.videos, args.split)
    masks = layouts.open_masks(args.masks, args.split)
    print(f"videos: {videos.where}\nmasks:  {masks.where}")
    names = layouts.choose(videos, masks, args.video_list)
    if len(names) < len(videos.names) and not args.video_list:
        print(f"{len(names)} videos have masks")
    return videos, masks, names


def _settings(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What predictions depend on."""
    left_out = ("command", "kind", "out", "videos", "masks", "video_list", "checkpoint", "model")
    options = {name: value for name, value in vars(args).items() if name not in left_out}
    return {
        "model": model.name,
        "weights": model.fingerprint,
        **options,
        "image_size": model.config.image_size,
    }


def _run_vos(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax import build_sam2_video_predictor
    from sam2_jax.evaluate import layouts, vos

    videos, masks, names = _open_both(args)
    object_folders = args.per_obj_png_file or isinstance(masks[names[0]], layouts.ObjectMasks)
    predictor = build(
        args,
        build_sam2_video_predictor,
        apply_postprocessing=args.apply_postprocessing,
        non_overlap_masks=not object_folders,
    )
    options = vos.Options(
        args.prompt,
        args.use_all_masks,
        args.later_objects,
        args.score_threshold,
        object_folders,
        args.num_frames,
    )
    left = vos.missing(args.out, names, _settings(args, predictor.model))
    if len(left) < len(names):
        print(f"{len(names) - len(left)} of {len(names)} videos are in {args.out} already")
    lengths = {name: _length(videos, name, args.num_frames) for name in left}
    # Videos of like length share the devices best.
    left.sort(key=lengths.get, reverse=True)
    with tqdm(total=sum(lengths.values()), desc="propagate in video", unit="frame") as bar:
        vos.predict(predictor, videos, masks, left, args.out, options, bar.update)
        rate = bar.format_dict["rate"] or bar.n / max(bar.format_dict["elapsed"], 1e-9)
    print(f"{len(left)} videos, {bar.n} frames, {rate:.1f} frames/s with what was compiled")
    print(f"masks:  {args.out}")
    print(f"next:   sam2-jax evaluate score --truth {args.masks} --predictions {args.out}")


def _length(videos: Any, name: str, num_frames: int | None) -> int:
    from sam2_jax.evaluate.layouts import first_frames

    with videos[name] as source:
        return len(first_frames(source, num_frames)[1])


def _run_interactive(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax import build_sam2_video_predictor
    from sam2_jax.evaluate import charts, interactive, report
    from sam2_jax.evaluate.layouts import first_frames

    protocols = interactive.PROTOCOLS if args.protocol == "both" else (args.protocol,)
    videos, masks, names = _open_both(args)
    predictor = build(args, build_sam2_video_predictor, apply_postprocessing=False)
    games: dict[str, list[Any]] = {protocol: [] for protocol in protocols}
    with tqdm(names, desc="interactive", unit="video") as bar:
        for name in bar:
            with videos[name] as source:
                frames, stems = first_frames(source, args.num_frames)
                for object_id in interactive.object_ids(masks[name], stems):
                    bar.set_postfix_str(f"{name}, object {object_id}")
                    for protocol in protocols:
                        game = interactive.play(
                            predictor,
                            frames,
                            stems,
                            masks[name],
                            object_id,
                            protocol,
                            args.rounds,
                            args.clicks,
                            args.threshold,
                        )
                        games[protocol].append(game)
    rows = [
        {"protocol": protocol, **row}
        for protocol in protocols
        for row in interactive.curves(games[protocol])
    ]
    print(f"\n{report.table(rows)}\n")
    lines = {
        protocol: tuple(
            [r[key] for r in rows if r["protocol"] == protocol] for key in ("rounds", "J&F")
        )
        for protocol in protocols
    }
    chart = charts.line_chart(lines, "frames clicked on", "J&F")
    facts = {
        "videos": videos.where,
        "masks": masks.where,
        **{name: str(value) for name, value in _settings(args, predictor.model).items()},
    }
    _write(
        args.out,
        {
            "interactive.csv": report.rows_csv(rows),
            "interactive.json": report.games_json(rows, games, facts),
            "curve.svg": chart,
            "interactive.html": report.page(
                "Interactive segmentation", facts, rows, {"J&F": chart}
            ),
        },
    )


def _run_images(args: argparse.Namespace) -> None:
    import json

    from tqdm import tqdm

    from sam2_jax import SAM2ImagePredictor, build_sam2
    from sam2_jax.evaluate import charts, images, report

    videos = images.open_images(args.images, args.annotations, args.num_images)
    print(f"images: {args.images} ({len(videos)} with annotations)")
    predictor = SAM2ImagePredictor(build(args, build_sam2))
    scores = {}
    for index in tqdm(range(len(videos)), desc="images", unit="image"):
        video = videos[index]
        image, masks = images.read_image_masks(video)
        if len(masks):
            scores[video.name] = images.score_image(predictor, image, masks)
    if not scores:
        raise ValueError(f"no image in {args.images} has a mask that is not empty")
    rows = images.summarise(list(scores.values()))
    print(f"\n{report.table(rows)}\n")
    clicks = [row["mIoU"] for row in rows if row["prompt"] != images.BOX]
    chart = charts.line_chart({"mIoU": (range(1, len(clicks) + 1), clicks)}, "clicks", "mIoU")
    num_masks = sum(len(of_image[images.BOX]) for of_image in scores.values())
    facts = {"images": f"{args.images}, {len(scores)} images, {num_masks} masks"}
    facts |= {name: str(value) for name, value in _settings(args, predictor.model).items()}
    of_images = {
        name: {prompt: ious.round(4).tolist() for prompt, ious in of_image.items()}
        for name, of_image in scores.items()
    }
    _write(
        args.out,
        {
            "images.csv": report.rows_csv(rows),
            "images.json": json.dumps({**facts, "mIoU": rows, "IoU": of_images}, indent=1),
            "curve.svg": chart,
            "images.html": report.page("Images", facts, rows, {"mIoU": chart}),
        },
    )


def _write(out: str, files: Mapping[str, str]) -> None:
    """Writes text files into a folder; scores that were printed are no error if they cannot be written."""
    from sam2_jax.data.files import write_file

    try:
        os.makedirs(out, exist_ok=True)
        for name, text in files.items():
            write_file(os.path.join(out, name), text.encode())
    except OSError as error:
        print(f"warning: the results are not written: {error}; name another folder with --out")
        return
    print(f"results:     {', '.join(os.path.join(out, name) for name in files)}")
