"""Interactive segmentation of videos, as the paper evaluates it: a simulated annotator corrects in rounds.

    video, target of an object  ->  play: frames that were prompted, J and F after each round

`offline`: the first frame is clicked on and the video tracked; then, in every round, the frame of
the lowest IoU gets clicks and the video is tracked again. `online`: the video is watched once;
where the IoU falls below a
threshold, that frame gets clicks, and tracking goes on from there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sam2_jax.data.annotated import Video
from sam2_jax.evaluate.annotator import click_on_frame
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
        """J and F after a number of rounds; a game that ended earlier keeps its last scores."""
        last = min(rounds, len(self.j)) - 1
        return self.j[last], self.f[last]


def play(
    predictor: SAM2VideoPredictor,
    video: Video,
    object_id: int,
    protocol: str = "offline",
    rounds: int = 8,
    clicks: int = 3,
    threshold: float = 0.75,
    progress: Callable[[], None] = lambda: None,
) -> Game:
    """Lets the annotator correct an object. The frames from the object's first one on are scored.

    Args:
        predictor: tracks.
        video: frames, and true masks on all of them or some.
        object_id: the object.
        protocol: one of `PROTOCOLS`.
        rounds: most frames that get clicks, starting with the first one that shows the object.
        clicks: on each of these frames.
        threshold: for `online`: frames of lower IoU get clicks.
        progress: called after every frame that is tracked.

    Raises:
        ValueError: the object is on no frame, or masks are not as large as the video.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"the protocol is {protocol!r}; one of {', '.join(PROTOCOLS)} is expected")
    empty = np.zeros(video.size, bool)
    true_mask = lambda t: video.masks(t).get(object_id, empty)
    start = next((t for t in video.annotated if true_mask(t).any()), None)
    if start is None:
        raise ValueError(
            f"object {object_id} of {video.name} is on none of its {len(video.frame_names)} frames"
        )
    scored = [t for t in video.annotated if t >= start]

    state = predictor.init_state(video.frames)
    game = Game(video.name, object_id, [], [], [])
    j, f = {}, {}
    t = start
    for n in range(rounds):
        prediction = state.video_masks(t, return_logits=False)[0, 0] if n else empty
        click_on_frame(predictor, state, t, object_id, prediction, true_mask(t), clicks)
        game.prompted.append(video.frame_names[t])
        first = start if protocol == "offline" else t
        for s, _, found in predictor.propagate_in_video(state, first, return_logits=False):
            if s in scored:
                pair = found[0, 0], true_mask(s)
                j[s], f[s] = region_similarity(*pair), boundary_accuracy(*pair)
            progress()
        game.j.append(float(np.mean([j[s] for s in scored])))
        game.f.append(float(np.mean([f[s] for s in scored])))
        if protocol == "offline":
            left = sorted((s for s in scored if j[s] < 1), key=j.__getitem__)
        else:
            left = [s for s in scored if s > t and j[s] < threshold]
        if not left:
            break
        t = left[0]
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
