"""`sam2-jax evaluate` and `scripts/evaluate.py`: how good masks, or a model's, are."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

    def add(name: str, help: str) -> Callable:
        return kinds.add_parser(name, help=help, description=help).add_argument

    _add_score(add("score", "Score predicted masks of videos: J, F and J&F."))


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


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    {"score": _run_score}[args.kind](args)


def _run_score(args: argparse.Namespace) -> None:
    import time

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
        print(f"warning: {said}; they are left out")

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
