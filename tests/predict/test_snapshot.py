"""Undo: a session taken back to a snapshot answers as if nothing had come after it."""

import numpy as np
import pytest

from sam2_jax.predict.video import SAM2VideoPredictor
from tests import toy
from tests.parity.reference_scene import scene


@pytest.fixture(scope="module")
def predictor():
    with toy.counted_programs(toy.VIDEO_PROGRAMS):
        yield SAM2VideoPredictor(toy.model(), chunk=1)


def masks_of(results):
    return {frame: (list(ids), masks.copy()) for frame, ids, masks in results}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for frame, (ids, masks) in first.items():
        assert ids == second[frame][0]
        np.testing.assert_array_equal(masks, second[frame][1])


def test_restore_undoes_clicks_passes_and_removals(predictor):
    state = predictor.init_state(scene(4, 48, 64))
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    fresh = predictor.snapshot(state)
    tracked = masks_of(predictor.propagate_in_video(state))
    done = predictor.snapshot(state)

    predictor.add_new_points_or_box(state, 2, 1, [[50, 30]], [0])
    predictor.remove_object(state, 1)
    predictor.restore(state, done)
    answered = predictor.get_scores(state, 3)
    predictor.restore(state, fresh)
    assert np.isnan(predictor.get_scores(state, 3)[0]).all()
    assert_same(masks_of(predictor.propagate_in_video(state)), tracked)
    predictor.restore(state, done)  # a snapshot can be taken up again
    np.testing.assert_array_equal(predictor.get_scores(state, 3), answered)


def test_a_correction_after_restoring_is_the_same_correction(predictor):
    def corrected(state):
        predictor.add_new_points_or_box(state, 2, 1, [[50, 30]], [0])
        return masks_of(predictor.propagate_in_video(state, 2))

    state = predictor.init_state(scene(4, 48, 64))
    predictor.add_new_points_or_box(state, 0, 1, [[20, 20]], [1])
    list(predictor.propagate_in_video(state))
    snapshot = predictor.snapshot(state)
    first = corrected(state)
    predictor.restore(state, snapshot)
    assert_same(corrected(state), first)
