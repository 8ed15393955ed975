"""`sam2-jax evaluate` and `scripts/evaluate.py`: scores masks, or a model."""

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sam2_jax.commands.common import build
from sam2_jax.commands.evaluate_options import EXAMPLES, add_arguments
from sam2_jax.commands.outputs import Folder, check_outputs

__all__ = ["EXAMPLES", "HELP", "add_arguments", "run"]

HELP = "Score masks, or let a model predict those of a benchmark."


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    for name in ("num_frames", "num_images", "rounds", "clicks"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1 is expected"
            )
    if args.kind != "score":  # score writes beside what it scores
        names = ("*.png",) if args.kind == "vos" else ("results.*",)
        read = (
            (args.images, args.annotations) if args.kind == "images" else (args.videos, args.masks)
        )
        places = [place for place in read if place and not place.startswith("tfds:")]
        check_outputs([Folder("--out", args.out, names)], places)
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

    target = layouts.open_masks(args.target, args.split)
    predictions = layouts.open_masks(args.predictions)
    print(f"target:      {target.where}\npredictions: {predictions.where}")
    names = layouts.choose(target, predictions, args.video_list)
    if args.num_frames is not None:
        target = _first_predicted(target, predictions, args.num_frames)
    left_out = [name for name in target.keys if name not in names]
    if left_out and not args.video_list:
        said = f"{len(left_out)} of {len(target.keys)} videos have no predictions: {layouts.shorten(left_out)}"
        if args.strict:
            raise ValueError(said)
        print(f"{said}; they are left out")

    start = time.monotonic()
    with tqdm(total=len(names), desc="score", unit="video") as bar:
        scores = score(target, predictions, names, args.convention, not args.keep_ends, bar.update)
    num_frames = len({(s.video, name) for s in scores for name in s.frame_names})
    seconds = time.monotonic() - start
    total = summarise(scores, args.convention)
    print(f"\n{report.table(report.score_rows(scores, total, args.convention))}\n")
    print(f"{num_frames} frames in {seconds:.1f} s, {num_frames / seconds:.0f} frames/s")
    facts = {
        "target": target.where,
        "predictions": predictions.where,
        "convention": args.convention,
        "first and last frame": "scored" if args.keep_ends else "skipped",
    }
    if args.num_frames is not None:
        facts["frames"] = f"the first {args.num_frames} of every video"
    of_kinds = _seen_and_unseen(args, scores)
    if of_kinds:
        print(report.table([of_kinds]))
        facts |= {name: f"{value:.1f}" for name, value in of_kinds.items()}

    pictures = report.worst_frames(scores, target, predictions, _videos_of_target(args))
    files = report.score_files(scores, total | of_kinds, args.convention, facts, pictures)
    _write(args.out or args.predictions, files)


def _first_predicted(target: Any, predictions: Any, count: int) -> Any:
    """The target, with masks only on the first frames that were predicted of each video."""
    from sam2_jax.data.annotated import VideoList

    def open(name: str) -> Any:
        video, first = target.open(name), set(predictions.open(name).frame_names[:count])
        annotated = [t for t in video.annotated if video.frame_names[t] in first]
        return dataclasses.replace(video, annotated=annotated)

    return VideoList(target.keys, open, target.where)


def _seen_and_unseen(args: argparse.Namespace, scores: Sequence[Any]) -> dict[str, float]:
    """Scores of YouTube-VOS, if its category files are there."""
    from sam2_jax.evaluate.score import read_categories, summarise_seen_and_unseen

    root = (
        args.target
        if os.path.isdir(os.path.join(args.target, "Annotations"))
        else os.path.dirname(os.path.abspath(args.target))
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


def _videos_of_target(args: argparse.Namespace) -> Any:
    from sam2_jax.evaluate import layouts

    place = args.videos or args.target
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
    benchmark = layouts.find_benchmark(args.videos)
    if benchmark and benchmark.lists and not args.video_list:
        print(f"lists:  {layouts.shorten(benchmark.lists)} (--video-list takes one)")
    if len(names) < len(videos.keys) and not args.video_list:
        print(f"{len(names)} videos have masks")
    return videos, masks, names


def _settings(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What predictions depend on."""
    left_out = ("command", "kind", "out", "videos", "masks", "video_list", "checkpoint", "model")
    options = {name: value for name, value in vars(args).items() if name not in left_out}
    return {
        "model": model.name,
        "weights": model.digest,
        **options,
        "image_size": model.config.image_size,
    }


def _run_vos(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax import build_sam2_video_predictor
    from sam2_jax.evaluate import vos

    videos, masks, names = _open_both(args)
    object_folders = args.per_obj_png_file or masks.open(names[0]).is_by_object
    predictor = build(
        args,
        build_sam2_video_predictor,
        apply_postprocessing=args.apply_postprocessing,
        non_overlap_masks=not object_folders,
        allow_empty_masks=True,
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
    # Videos of similar length share the devices best.
    left.sort(key=lengths.__getitem__, reverse=True)
    start = time.monotonic()
    with tqdm(total=sum(lengths.values()), desc="propagate in video", unit="frame") as bar:
        vos.predict(predictor, videos, masks, left, args.out, options, bar.update)
    if left:
        seconds = time.monotonic() - start
        print(
            f"{len(left)} videos, {bar.n} frames in {seconds:.1f} s, {bar.n / seconds:.1f} frames/s"
        )
    print(f"masks:  {args.out}")
    first = "" if args.num_frames is None else f" --num-frames {args.num_frames}"
    print(f"next:   sam2-jax evaluate score --target {args.masks} --predictions {args.out}{first}")


def _length(videos: Any, name: str, num_frames: int | None) -> int:
    with videos.open(name) as video:
        return len(video.first(num_frames).frame_names)


def _run_interactive(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax import build_sam2_video_predictor
    from sam2_jax.evaluate import interactive, report

    protocols = interactive.PROTOCOLS if args.protocol == "both" else (args.protocol,)
    videos, masks, names = _open_both(args)
    predictor = build(args, build_sam2_video_predictor, apply_postprocessing=False)
    games: dict[str, list[Any]] = {protocol: [] for protocol in protocols}
    with tqdm(desc="interactive", unit="frame") as bar:
        for n, name in enumerate(names, start=1):
            with videos.open(name) as source:
                video = source.with_masks(masks.open(name)).first(args.num_frames)
                for object_id in video.object_ids():
                    bar.set_postfix_str(f"{name}, video {n} of {len(names)}, object {object_id}")
                    for protocol in protocols:
                        game = interactive.play(
                            predictor,
                            video,
                            object_id,
                            protocol,
                            args.rounds,
                            args.clicks,
                            args.threshold,
                            bar.update,
                        )
                        games[protocol].append(game)
    if not any(games.values()):
        raise ValueError(f"no mask in {masks.where} shows an object")
    rows = interactive.curves(games)
    print(f"\n{report.table(rows)}\n")
    facts = {"videos": videos.where, "masks": masks.where, **_settings(args, predictor.model)}
    _write(args.out, report.game_files(games, rows, facts))


def _run_images(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sam2_jax import SAM2ImagePredictor, build_sam2
    from sam2_jax.evaluate import images, report

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
    num_masks = sum(len(of_image[images.BOX]) for of_image in scores.values())
    facts = {"images": f"{args.images}, {len(scores)} images, {num_masks} masks"}
    _write(args.out, report.image_files(scores, rows, facts | _settings(args, predictor.model)))


def _write(out: str, files: Mapping[str, str]) -> None:
    """Writes text files into a folder; only warns if that fails, since the scores have been printed."""
    from sam2_jax.files import write_file

    try:
        os.makedirs(out, exist_ok=True)
        for name, text in files.items():
            write_file(os.path.join(out, name), text.encode())
    except OSError as error:
        print(f"warning: the results cannot be written: {error}; name another folder with --out")
        return
    print(f"results:     {', '.join(os.path.join(out, name) for name in files)}")
