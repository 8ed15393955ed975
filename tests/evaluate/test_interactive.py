import numpy as np
import pytest

from sam2_jax.evaluate import interactive
from sam2_jax.evaluate.interactive import Game, curves, play
from sam2_jax.evaluate.layouts import open_masks, open_videos
from sam2_jax.predict.video import SAM2VideoPredictor
from tests import toy
from tests.evaluate import drawn


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    with toy.counted_programs(toy.VIDEO_PROGRAMS):
        yield


class Oracle:
    """Answers in place of a model: right on frames that were clicked on, else the last such mask.

    A pass goes on to the end with the mask of the frame that was clicked on before.
    """

    def __init__(self):
        self.clicks, self.passes, self.shown = [], [], {}

    def init_state(self, frames):
        return self

    def add_new_points_or_box(self, state, t, object_id, points, labels, clear_old_points):
        self.clicks.append((t, points[0].tolist(), int(labels[0])))
        self.shown[t] = drawn.labels(t) == object_id
        return t, [object_id], 2.0 * self.shown[t][None, None] - 1

    def video_masks(self, t, return_logits):
        assert not return_logits
        return self.shown[t][None, None]

    def propagate_in_video(self, state, start, return_logits):
        assert not return_logits
        self.passes.append(start)
        known = {t for t, _, _ in self.clicks}
        for t in range(start, drawn.NUM_FRAMES):
            if t not in known:
                self.shown[t] = self.shown[t - 1]
            yield t, [1], self.shown[t][None, None]


def opened(root, masks=None):
    """A video with its masks."""
    return open_videos(str(root)).open("a").with_masks(open_masks(str(masks or root)).open("a"))


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture
def video(tmp_path):
    drawn.davis(tmp_path, ["a"])
    with opened(tmp_path) as video:
        yield video, 1


def test_offline_corrects_the_worst_frame_and_tracks_anew(oracle, video):
    game = play(oracle, *video, "offline")
    # The square moves a quarter of its width a frame: the last frame is the worst, then those far from both.
    assert game.prompted == ["00000", "00004", "00003", "00002", "00001"]
    assert oracle.passes == [0] * 5
    assert oracle.clicks[0][1:] == ([10, 8], 1)
    assert game.j == sorted(game.j)
    assert game.j[-1] == game.f[-1] == 1
    one_round = [1, 3 / 5, 1 / 3, 1 / 7, 0]
    assert game.j[0] == pytest.approx(np.mean(one_round))


def test_online_corrects_on_the_way(oracle, video):
    game = play(oracle, *video, "online", threshold=0.5)
    assert game.prompted == ["00000", "00002", "00004"]  # one frame later the IoU is 0.6, two 0.33
    assert oracle.passes == [0, 2, 4]
    assert game.j[-1] == pytest.approx(np.mean([1, 3 / 5, 1, 3 / 5, 1]))
    assert play(Oracle(), *video, "online", rounds=2).prompted == ["00000", "00001"]


def test_clicks_stop_where_nothing_is_wrong(oracle, video):
    play(oracle, *video, "offline", rounds=1, clicks=3)
    assert len(oracle.clicks) == 1  # the oracle needs no second one


def test_an_object_is_scored_from_where_it_appears(oracle, tmp_path):
    drawn.write_video(tmp_path / "frames" / "a")
    drawn.write_masks(tmp_path / "masks" / "a", first=(3, 0))
    (tmp_path / "masks" / "a" / "00002.png").unlink()  # annotations may have gaps
    with opened(tmp_path / "frames", tmp_path / "masks") as video:
        assert video.object_ids() == [1, 2]
        assert video.first(3).object_ids() == [2]
        game = play(oracle, video, 1, rounds=1)
        assert game.prompted == ["00003"]
        assert game.j[0] == pytest.approx(np.mean([1, 3 / 5]))
        with pytest.raises(ValueError, match="object 7 of a is on none of its 5 frames"):
            play(oracle, video, 7)
        with pytest.raises(ValueError, match="'half'; one of offline, online is expected"):
            play(oracle, video, 1, "half")


def test_a_model_plays_both_protocols(tmp_path):
    """The numbers of a model without training mean nothing, but must be there after every round."""
    drawn.davis(tmp_path, ["a"])
    predictor = SAM2VideoPredictor(toy.model(), chunk=1)
    with opened(tmp_path) as video:
        for protocol in interactive.PROTOCOLS:
            game = play(predictor, video, 1, protocol, rounds=2)
            assert game.prompted[0] == "00000"
            assert len(game.j) == len(game.f) == len(game.prompted) == 2
            assert 0 <= min(game.j + game.f) <= max(game.j + game.f) <= 1


def test_curves_keep_the_last_score_of_a_game_that_is_over():
    games = [Game("a", 1, ["0"], [0.5], [0.7]), Game("a", 2, ["0", "4"], [0.1, 0.3], [0.3, 0.5])]
    first, second = curves({"online": games})
    assert first == pytest.approx(first | {"J&F": 40, "J": 30, "F": 50, "frames clicked on": 1})
    assert second == pytest.approx(second | {"J&F": 50, "J": 40, "F": 60, "frames clicked on": 1.5})
    assert (second["protocol"], second["round"]) == ("online", 2)
