"""Scores of predicted masks of videos, as the evaluators of SA-V and of DAVIS give them.

    truth, predictions  ->  score: ObjectScores of every object  ->  summarise: J&F, J, F of all

Conventions differ in what counts. `sav`: objects that are in the truth on a scored frame, each from the first
frame on which it is in the truth or in the prediction. `davis`: objects of the first frame, on all scored
frames; recall and decay are given as well. Both score annotated frames only, and skip the first and the last.
"""

import collections
import concurrent.futures
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from sam2_jax.evaluate.layouts import MaskVideo, Videos, shorten
from sam2_jax.evaluate.metrics import boundary_accuracy, region_similarity, statistics

logger = logging.getLogger(__name__)

CONVENTIONS = ("sav", "davis")


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """Scores of an object of a video.

    Attributes:
        video: its name.
        object_id: the object.
        stems: names of the T frames that count.
        j: (T,) region similarity, within 0..1.
        f: (T,) boundary accuracy, within 0..1.
    """

    video: str
    object_id: int
    stems: list[str]
    j: np.ndarray
    f: np.ndarray

    def row(self, convention: str) -> dict[str, float]:
        """Returns J&F, J and F in percent, and recall and decay of J and F with the convention `davis`."""
        j, f = statistics(self.j), statistics(self.f)
        row = {"J&F": (j.mean + f.mean) / 2, "J": j.mean, "F": f.mean}
        if convention == "davis":
            row |= {
                "J recall": j.recall,
                "J decay": j.decay,
                "F recall": f.recall,
                "F decay": f.decay,
            }
        return {name: 100 * value for name, value in row.items()}


@dataclasses.dataclass(frozen=True)
class _Pair:
    """An object on a frame: its scores, and where it is to be seen."""

    j: float
    f: float
    in_truth: bool
    in_prediction: bool


_BOTH_EMPTY = _Pair(1.0, 1.0, False, False)


def score(
    truth: Videos,
    predictions: Videos,
    names: Sequence[str],
    convention: str = "sav",
    skip_first_and_last: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> list[ObjectScores]:
    """Scores predictions, on all cores.

    Args:
        truth: true masks.
        predictions: predicted ones.
        names: videos to score, in both.
        convention: "sav" or "davis".
        skip_first_and_last: annotated frame of every video.
        progress: is called after every video.

    Returns:
        The objects that count, by video and id.

    Raises:
        ValueError: a prediction is missing, differs in size, or no id in it is one of the truth; a file is
            damaged; or nothing is left to score.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"the convention is {convention!r}; one of {', '.join(CONVENTIONS)} is expected"
        )
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        jobs = {
            name: _submit(pool, truth[name], predictions[name], skip_first_and_last)
            for name in names
        }
        scores, ids = [], {}
        for name, frames in jobs.items():
            pairs = {stem: future.result() for stem, future in frames.items()}
            jobs[name].clear()
            scores += _object_scores(truth[name], pairs, convention)
            ids[name] = _ids(pairs, "in_truth"), _ids(pairs, "in_prediction")
            progress()
    finally:
        pool.shutdown(cancel_futures=True)
    _check_ids(ids)
    if not scores:
        raise ValueError("nothing is left to score: the truth is empty on all frames that count")
    return scores


def _submit(
    pool: concurrent.futures.Executor, truth: MaskVideo, prediction: MaskVideo, skip: bool
) -> dict[str, concurrent.futures.Future]:
    scored = _scored(truth, skip)
    missing = [
        f"{stem} of object {i}" if i is not None else stem
        for stem, ids in scored.items()
        for i in ids or [None]
        if not prediction.has(stem, i)
    ]
    if missing:
        raise ValueError(
            f"{truth.name}: {len(missing)} of the masks to score are not in the predictions: frame "
            f"{shorten(missing)}"
        )
    return {
        stem: pool.submit(_score_frame, truth, prediction, stem, ids)
        for stem, ids in scored.items()
    }


def _scored(truth: MaskVideo, skip: bool) -> dict[str, list[int] | None]:
    """The frames to score, and the objects on each; None is all."""
    cut = slice(1, -1) if skip else slice(None)
    own = truth.stems_of()
    if own is None:
        scored = dict.fromkeys(truth.stems[cut])
    else:
        scored = collections.defaultdict(list)
        for object_id, stems in own.items():
            for stem in stems[cut]:
                scored[stem].append(object_id)
        scored = {stem: scored[stem] for stem in truth.stems if stem in scored}
    if not scored:
        raise ValueError(
            f"{truth.name} has {len(truth.stems)} annotated frames, of which none is left to score; at least "
            "3 are expected, or 1 where the first and the last are not skipped"
        )
    return scored


def _score_frame(
    truth: MaskVideo, prediction: MaskVideo, stem: str, ids: list[int] | None
) -> dict[int, _Pair]:
    """Scores the objects that are in the truth or in the prediction of a frame."""
    size, true_masks = truth.read(stem)
    other_size, masks = prediction.read(stem)
    if size != other_size:
        raise ValueError(
            f"{truth.name}: the prediction of frame {stem} is {other_size[1]}x{other_size[0]}, but the truth "
            f"is {size[1]}x{size[0]}; masks are scored in the size of the truth"
        )
    empty = np.zeros(size, bool)
    pairs = {}
    for object_id in {*true_masks, *masks} if ids is None else ids:
        pair = masks.get(object_id, empty), true_masks.get(object_id, empty)
        if pair[0].any() or pair[1].any():
            pairs[object_id] = _Pair(
                region_similarity(*pair),
                boundary_accuracy(*pair),
                bool(pair[1].any()),
                bool(pair[0].any()),
            )
    return pairs


def _object_scores(
    truth: MaskVideo, pairs: dict[str, dict[int, _Pair]], convention: str
) -> list[ObjectScores]:
    own = truth.stems_of()
    found = []
    for object_id in sorted(_counted(truth, pairs, convention)):
        stems = [stem for stem in pairs if own is None or stem in own[object_id]]
        of_object = [pairs[stem].get(object_id, _BOTH_EMPTY) for stem in stems]
        if convention == "sav":
            start = next(t for t, pair in enumerate(of_object) if pair is not _BOTH_EMPTY)
            stems, of_object = stems[start:], of_object[start:]
        if stems:
            j, f = (np.array([getattr(pair, kind) for pair in of_object]) for kind in "jf")
            found.append(ObjectScores(truth.name, object_id, stems, j, f))
    return found


def _counted(truth: MaskVideo, pairs: dict[str, dict[int, _Pair]], convention: str) -> set[int]:
    if convention == "sav":
        return _ids(pairs, "in_truth")
    _, first = truth.read(truth.stems[0])
    return {i for i, mask in first.items() if i != 255 and mask.any()}  # DAVIS: 255 is void


def _ids(pairs: dict[str, dict[int, _Pair]], where: str) -> set[int]:
    return {i for by_id in pairs.values() for i, pair in by_id.items() if getattr(pair, where)}


def _check_ids(ids: dict[str, tuple[set[int], set[int]]]) -> None:
    """Tells of predicted objects that no truth has; an error if no predicted object has one."""
    unknown = {
        name: predicted - true for name, (true, predicted) in ids.items() if predicted - true
    }
    if not unknown:
        return
    name, others = next(iter(unknown.items()))
    if not any(true & predicted for true, predicted in ids.values()):
        raise ValueError(
            f"no predicted object is one of the truth: ids are compared as they are, and those of {name} are "
            f"{sorted(others)[:5]} in the predictions and {sorted(ids[name][0])[:5]} in the truth"
        )
    logger.warning(
        "%d videos have predicted objects that are not in the truth and do not count, such as %s of %s",
        len(unknown), sorted(others)[:5], name,
    )  # fmt: skip


def summarise(scores: Sequence[ObjectScores], convention: str) -> dict[str, float]:
    """Returns the means over objects of what `ObjectScores.row` gives."""
    rows = [scored.row(convention) for scored in scores]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def summarise_seen_and_unseen(
    scores: Sequence[ObjectScores], categories: dict[tuple[str, int], str], seen: set[str]
) -> dict[str, float]:
    """Returns the scores of YouTube-VOS, in percent.

    Args:
        scores: of objects.
        categories: of objects, by video and id; see `read_categories`.
        seen: the categories that are in the training set.

    Returns:
        G, the mean of the others: J seen, J unseen, F seen, F unseen. A kind without objects is left out.
    """
    parts: dict[str, list[float]] = {}
    for scored in scores:
        category = categories.get((scored.video, scored.object_id))
        if category is None:
            continue
        kind = "seen" if category in seen else "unseen"
        row = scored.row("sav")
        for name in "JF":
            parts.setdefault(f"{name} {kind}", []).append(row[name])
    means = {
        name: float(np.mean(parts[name])) for name in sorted(parts, key=lambda name: name[::-1])
    }
    return {"G": float(np.mean(list(means.values()))), **means} if means else {}


def read_categories(path: str) -> dict[tuple[str, int], str]:
    """Reads the category of every object, by video and id, from a `meta.json` of YouTube-VOS.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file of categories: {path}")
    try:
        with open(path, encoding="utf-8") as file:
            videos = json.load(file)["videos"]
        return {
            (name, int(object_id)): found["category"]
            for name, video in videos.items()
            for object_id, found in video["objects"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no meta.json of YouTube-VOS, which names videos, the objects of each and the category "
            "of each object"
        ) from error
