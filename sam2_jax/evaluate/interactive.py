"""Interactive segmentation of videos, as the paper evaluates it: a simulated annotator corrects in rounds.

    video, truth of an object  ->  play: frames that were prompted, J and F after each round

`offline`: the first frame is clicked on and the video tracked; then again and again the frame of the lowest IoU
gets clicks, and the video is tracked anew. `online`: the video is watched once; where the IoU falls below a
threshold, that frame gets clicks, and tracking goes on from there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sam2_jax.data.videos import Frames
from sam2_jax.evaluate.annotator import click_on_frame
from sam2_jax.evaluate.layouts import MaskVideo
from sam2_jax.evaluate.metrics import boundary_accuracy, region_similarity
from sam2_jax.predict.video import SAM2VideoPredictor

PROTOCOLS = ("offline", "online")


@dataclasses.dataclass(frozen=True)
class Game:
    """How an object of a video was segmented.

    Attributes:
        video: its name.
        object_id: the object.
        prompted: names of the frames that got clicks, in that order.
        j: mean region similarity over all annotated frames after each round, within 0..1.
        f: mean boundary accuracy, likewise.
    """

    video: str
    object_id: int
    prompted: list[str]
    j: list[float]
    f: list[float]

    def after(self, rounds: int) -> tuple[float, float]:
        """J and F after so many rounds; a game that ended earlier keeps its last ones."""
        last = min(rounds, len(self.j)) - 1
        return self.j[last], self.f[last]


def object_ids(masks: MaskVideo, stems: Sequence[str]) -> list[int]:
    """Returns the objects that are to be seen on any of the frames of a video."""
    found: set[int] = set()
    for stem in stems:
        if masks.has(stem):
            found |= {i for i, mask in masks.read(stem)[1].items() if mask.any()}
    return sorted(found)


def play(
    predictor: SAM2VideoPredictor,
    frames: Frames,
    stems: Sequence[str],
    truth: MaskVideo,
    object_id: int,
    protocol: str = "offline",
    rounds: int = 8,
    clicks: int = 3,
    threshold: float = 0.75,
    progress: Callable[[], None] = lambda: None,
) -> Game:
    """Lets the annotator correct an object. Frames from its first one on are scored.

    Args:
        predictor: tracks.
        frames: of the video.
        stems: their names.
        truth: true masks, on all frames or some.
        object_id: the object.
        protocol: one of `PROTOCOLS`.
        rounds: frames that get clicks, at most; the first one is the first on which the object is seen.
        clicks: on each of them.
        threshold: of `online`: a frame of lower IoU gets clicks.
        progress: is called after every frame that is tracked.

    Raises:
        ValueError: the object is on no frame, or masks are not as large as the video.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"the protocol is {protocol!r}; one of {', '.join(PROTOCOLS)} is expected")
    size = frames.height, frames.width
    empty = np.zeros(size, bool)

    def true_mask(t: int) -> np.ndarray:
        found, masks = truth.read(stems[t])
        if found != size:
            raise ValueError(
                f"the masks of frame {stems[t]} of {truth.name} are {found[1]}x{found[0]}, but the video is "
                f"{size[1]}x{size[0]}"
            )
        return masks.get(object_id, empty)

    annotated = [t for t, stem in enumerate(stems) if truth.has(stem)]
    start = next((t for t in annotated if true_mask(t).any()), None)
    if start is None:
        raise ValueError(
            f"object {object_id} of {truth.name} is on none of its {len(stems)} frames"
        )
    scored = [t for t in annotated if t >= start]

    state = predictor.init_state(frames)
    game = Game(truth.name, object_id, [], [], [])
    j, f = {}, {}
    t = start
    for n in range(rounds):
        prediction = state.video_masks(t, return_logits=False)[0, 0] if n else empty
        click_on_frame(predictor, state, t, object_id, prediction, true_mask(t), clicks)
        game.prompted.append(stems[t])
        first = start if protocol == "offline" else t
        for s, _, found in predictor.propagate_in_video(state, first, return_logits=False):
            if s >= start and truth.has(stems[s]):
                pair = found[0, 0], true_mask(s)
                j[s], f[s] = region_similarity(*pair), boundary_accuracy(*pair)
            progress()
        game.j.append(float(np.mean([j[s] for s in scored])))
        game.f.append(float(np.mean([f[s] for s in scored])))
        if protocol == "offline":
            t = min(scored, key=j.get)
            is_over = j[t] == 1
        else:
            t = next((s for s in scored if s > t and j[s] < threshold), None)
            is_over = t is None
        if is_over:
            break
    return game


def curves(games: Mapping[str, Sequence[Game]]) -> list[dict[str, str | int | float]]:
    """Returns J&F, J and F in percent, means over objects, of each protocol after each round."""
    rows: list[dict[str, str | int | float]] = []
    for protocol, played in games.items():
        for n in range(1, max(len(game.j) for game in played) + 1):
            j, f = (100 * float(mean) for mean in np.mean([game.after(n) for game in played], 0))
            prompted = float(np.mean([min(n, len(game.j)) for game in played]))
            row = {"protocol": protocol, "round": n, "J&F": (j + f) / 2, "J": j, "F": f}
            rows.append(row | {"frames clicked on": prompted})
    return rows
