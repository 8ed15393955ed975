"""Scores of predicted masks of videos, as the evaluators of SA-V and of DAVIS give them.

    target, predictions  ->  score: ObjectScores of every object  ->  summarise: J&F, J, F of all

Conventions differ in what counts. `sav`: objects that are in the target on a scored frame, each from the first
frame on which it is in the target or in the prediction. `davis`: objects of the first frame, on all scored
frames; recall and decay are given as well. Both score annotated frames only, and skip the first and the last.
"""

import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from sam2_jax.data.annotated import Video, VideoList
from sam2_jax.evaluate.layouts import shorten
from sam2_jax.evaluate.metrics import boundary_accuracy, region_similarity, statistics
from sam2_jax.files import read_json

logger = logging.getLogger(__name__)

CONVENTIONS = ("sav", "davis")


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """Scores of an object of a video.

    Attributes:
        video: its name.
        object_id: the object.
        frame_names: of the T frames that count.
        j: (T,) region similarity, within 0..1.
        f: (T,) boundary accuracy, within 0..1.
    """

    video: str
    object_id: int
    frame_names: list[str]
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
    """An object on a frame: its scores, and whether the target and the prediction show it."""

    j: float
    f: float
    in_target: bool
    in_prediction: bool


_BOTH_EMPTY = _Pair(1.0, 1.0, False, False)


def score(
    target: VideoList,
    predictions: VideoList,
    names: Sequence[str],
    convention: str = "sav",
    skip_first_and_last: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> list[ObjectScores]:
    """Scores predictions, on all cores.

    Args:
        target: true masks.
        predictions: predicted ones.
        names: videos to score, in both.
        convention: "sav" or "davis".
        skip_first_and_last: annotated frame of every video.
        progress: called after every video.

    Returns:
        The objects that count, by video and id.

    Raises:
        ValueError: a prediction is missing or differs in size, no predicted id is in the target, a
            file is damaged, or nothing is left to score.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"the convention is {convention!r}; one of {', '.join(CONVENTIONS)} is expected"
        )
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        jobs = {
            name: _submit(pool, target.open(name), predictions.open(name), skip_first_and_last)
            for name in names
        }
        scores, ids = [], {}
        for name, frames in jobs.items():
            pairs = {t: future.result() for t, future in frames.items()}
            jobs[name].clear()
            scores += _object_scores(target.open(name), pairs, convention)
            ids[name] = _ids(pairs, "in_target"), _ids(pairs, "in_prediction")
            progress()
    finally:
        pool.shutdown(cancel_futures=True)
    _check_ids(ids)
    if not scores:
        raise ValueError("nothing is left to score: the target is empty on all frames that count")
    return scores


def _submit(
    pool: concurrent.futures.Executor, target: Video, prediction: Video, skip: bool
) -> dict[int, concurrent.futures.Future]:
    """Starts to score the frames of a target."""
    scored = _scored(target, skip)
    places = {prediction.frame_names[t]: t for t in prediction.annotated}
    missing = []
    for t, ids in scored.items():
        name = target.frame_names[t]
        if name not in places:
            missing += [name] if ids is None else [f"{name} of object {i}" for i in ids]
        elif ids is not None and prediction.is_by_object:
            there = prediction.masks(places[name])
            missing += [f"{name} of object {i}" for i in ids if i not in there]
    if missing:
        raise ValueError(
            f"{target.name}: {len(missing)} of the masks to score are not in the predictions: frame "
            f"{shorten(missing)}"
        )
    return {
        t: pool.submit(_score_frame, target, t, prediction, places[target.frame_names[t]], ids)
        for t, ids in scored.items()
    }


def _own_frames(video: Video) -> dict[int, list[int]] | None:
    """The frames that each object has masks on; None where the objects share all frames."""
    if not video.is_by_object:
        return None
    own: dict[int, list[int]] = {}
    for t in video.annotated:
        for object_id in video.masks(t):
            own.setdefault(object_id, []).append(t)
    return own


def _scored(target: Video, skip: bool) -> dict[int, list[int] | None]:
    """The frames to score, and the objects on each; None is all."""
    cut = slice(1, -1) if skip else slice(None)
    own = _own_frames(target)
    scored: dict[int, list[int] | None]
    if own is None:
        scored = dict.fromkeys(target.annotated[cut])
    else:
        on_frame = {
            t: [i for i, frames in own.items() if t in frames[cut]] for t in target.annotated
        }
        scored = {t: ids for t, ids in on_frame.items() if ids}
    if not scored:
        raise ValueError(
            f"{target.name} has {len(target.annotated)} annotated frames, of which none is left to score; at "
            "least 3 are expected, or 1 where the first and the last are not skipped"
        )
    return scored


def _score_frame(
    target: Video, t: int, prediction: Video, place: int, ids: list[int] | None
) -> dict[int, _Pair]:
    """Scores the objects that are in the target or in the prediction of a frame."""
    expected, found = target.masks(t), prediction.masks(place)
    if expected.size != found.size:
        raise ValueError(
            f"{target.name}: the prediction of frame {target.frame_names[t]} is "
            f"{found.size[1]}x{found.size[0]}, but the target is {expected.size[1]}x{expected.size[0]}; "
            "masks are scored in the size of the target"
        )
    empty = np.zeros(expected.size, bool)
    pairs = {}
    for object_id in {*expected, *found} if ids is None else ids:
        pair = found.get(object_id, empty), expected.get(object_id, empty)
        if pair[0].any() or pair[1].any():
            pairs[object_id] = _Pair(
                region_similarity(*pair),
                boundary_accuracy(*pair),
                bool(pair[1].any()),
                bool(pair[0].any()),
            )
    return pairs


def _object_scores(
    target: Video, pairs: dict[int, dict[int, _Pair]], convention: str
) -> list[ObjectScores]:
    own = _own_frames(target)
    found = []
    for object_id in sorted(_counted(target, pairs, convention)):
        frames = [t for t in pairs if own is None or t in own[object_id]]
        of_object = [pairs[t].get(object_id, _BOTH_EMPTY) for t in frames]
        if convention == "sav":
            start = next(t for t, pair in enumerate(of_object) if pair is not _BOTH_EMPTY)
            frames, of_object = frames[start:], of_object[start:]
        if frames:
            j, f = (np.array([getattr(pair, kind) for pair in of_object]) for kind in "jf")
            names = [target.frame_names[t] for t in frames]
            found.append(ObjectScores(target.name, object_id, names, j, f))
    return found


def _counted(target: Video, pairs: dict[int, dict[int, _Pair]], convention: str) -> set[int]:
    if convention == "sav":
        return _ids(pairs, "in_target")
    return set(target.object_ids(target.annotated[0]))


def _ids(pairs: dict[int, dict[int, _Pair]], where: str) -> set[int]:
    return {i for by_id in pairs.values() for i, pair in by_id.items() if getattr(pair, where)}


def _check_ids(ids: dict[str, tuple[set[int], set[int]]]) -> None:
    """Warns of predicted objects that are not in the target; it is an error if none of them is."""
    unknown = {
        name: predicted - true for name, (true, predicted) in ids.items() if predicted - true
    }
    if not unknown:
        return
    name, others = next(iter(unknown.items()))
    if not any(true & predicted for true, predicted in ids.values()):
        raise ValueError(
            f"no predicted object is in the target: ids are compared as they are, and those of {name} are "
            f"{sorted(others)[:5]} in the predictions and {sorted(ids[name][0])[:5]} in the target"
        )
    logger.warning(
        "%d videos have predicted objects that are not in the target and do not count, such as %s of %s",
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
        ValueError: the file has another layout.
    """
    document = read_json(path)
    try:
        return {
            (name, int(object_id)): found["category"]
            for name, video in document["videos"].items()
            for object_id, found in video["objects"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a meta.json of YouTube-VOS, which names videos, the objects of each and the "
            "category of each object"
        ) from error
