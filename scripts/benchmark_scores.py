"""Times `sam2-jax evaluate score` beside the algorithm of the official evaluator, on the same predictions.

    python scripts/benchmark_scores.py --truth DAVIS --predictions out

The other side does what the SA-V evaluator does, and is not its code: a process for every video, contours of
whole frames, and a dilation of both by OpenCV with a disk. Masks are a PNG of ids a frame. Both sides take
turns and print J&F, which must agree. Needs `opencv-python-headless` and Linux.
"""

import argparse
import functools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from sam2_jax.evaluate import layouts
from sam2_jax.evaluate.score import score, summarise


def contour(mask: np.ndarray) -> np.ndarray:
    """Marks the pixels of (H, W) bool that differ from a neighbour to the right or below."""
    padded = np.pad(mask, ((0, 1), (0, 1)), "edge")
    neighbours = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return np.logical_or.reduce([mask ^ other for other in neighbours])


def read_ids(path: str) -> np.ndarray:
    """Reads a mask; 255 counts as 1."""
    ids = np.asarray(Image.open(path))
    return np.where(ids == 255, 1, ids)


def score_video(truth: str, predictions: str, name: str) -> list[tuple[float, float]]:
    """J and F of every object of a video, in percent."""
    import cv2  # pyright: ignore[reportMissingImports]

    scores: dict[int, list[tuple[float, float]]] = {}
    for file in sorted(os.listdir(os.path.join(truth, name)))[1:-1]:
        ids = [read_ids(os.path.join(folder, name, file)) for folder in (predictions, truth)]
        radius = math.ceil(0.008 * math.hypot(*ids[0].shape))
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        disk = (x * x + y * y <= radius * radius).astype(np.uint8)
        for object_id in sorted({*np.unique(ids[0]), *np.unique(ids[1])} - {0}):
            masks = [side == object_id for side in ids]
            j = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
            found, wanted = contour(masks[0]), contour(masks[1])
            near_found, near_wanted = (
                cv2.dilate(side.astype(np.uint8), disk) > 0 for side in (found, wanted)
            )
            precision = (found & near_wanted).sum() / max(found.sum(), 1)
            recall = (wanted & near_found).sum() / max(wanted.sum(), 1)
            f = 2 * precision * recall / max(precision + recall, 1e-12)
            scores.setdefault(int(object_id), []).append((j, f))
    return [tuple(100 * np.mean(pairs, 0)) for pairs in scores.values()]


def theirs(truth: str, predictions: str, processes: int) -> float:
    """J&F of all objects by the official algorithm."""
    names = layouts.open_masks(predictions).keys
    of_video = functools.partial(score_video, truth, predictions)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        found = pool.map(of_video, names, chunksize=1)
    return float(np.mean([pair for pairs in found for pair in pairs]))


def ours(truth: str, predictions: str) -> float:
    """J&F of all objects by this project."""
    true, predicted = layouts.open_masks(truth), layouts.open_masks(predictions)
    return summarise(score(true, predicted, predicted.keys), "sav")["J&F"]


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--truth", required=True, help="a folder a video with a PNG of ids a frame")
    parser.add_argument("--predictions", required=True, help="the same")
    parser.add_argument("--processes", type=int, default=16, help="of the official algorithm")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sides: dict[str, Callable[[], float]] = {
        "official algorithm": lambda: theirs(args.truth, args.predictions, args.processes),
        "this project": lambda: ours(args.truth, args.predictions),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            result = side()
            seconds[name].append(time.perf_counter() - start)
            print(f"{name:20} J&F {result:.2f}  {seconds[name][-1]:.2f} s")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"\n{os.cpu_count()} cores\n\n| | median, s | fastest, s |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {medians[name]:.2f} | {min(times):.2f} |")
    print(f"| ratio | {medians['this project'] / medians['official algorithm']:.2f} | |")


if __name__ == "__main__":
    main()
