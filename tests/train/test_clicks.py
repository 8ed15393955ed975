import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_jax.experiment import Interaction
from sam2_jax.train.clicks import draw_plan, first_click, jittered_box, next_click

SIZE = 24
click = jax.jit(next_click)
box = jax.jit(jittered_box)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), density=st.floats(0.0, 1.0))
def test_clicks_are_in_the_error_and_say_which(seed, density):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, SIZE, SIZE)) < density
    (x, y), label = click(jax.random.key(seed), prediction, truth)
    x, y = int(x), int(y)
    if (prediction != truth).any():
        assert prediction[y, x] != truth[y, x]
    elif not truth.all():
        assert not truth[y, x]
    assert bool(label) == truth[y, x]


def test_clicks_are_spread_evenly_over_the_error():
    truth = rectangle(3, 3, 7, 5) | rectangle(20, 20, 22, 22)
    keys = jax.random.split(jax.random.key(0), 6000)
    points, labels = jax.vmap(first_click, (0, None))(keys, truth)
    counts = np.zeros((SIZE, SIZE))
    np.add.at(counts, (np.asarray(points[:, 1], int), np.asarray(points[:, 0], int)), 1)
    assert (counts[~truth] == 0).all()
    assert np.asarray(labels).all()
    np.testing.assert_allclose(counts[truth], 6000 / truth.sum(), rtol=0.25)


def test_an_absent_object_is_a_click_on_the_background():
    _, label = first_click(jax.random.key(0), jnp.zeros((SIZE, SIZE), bool))
    assert int(label) == 0


def test_ignored_pixels_get_no_click():
    truth, ignored = rectangle(3, 3, 7, 5), rectangle(7, 0, SIZE, SIZE)
    ignored[0] = True
    clicks = jax.vmap(next_click, (0, None, None, None))
    keys = jax.random.split(jax.random.key(0), 200)
    for prediction in (truth & False, truth | ignored, truth, ~truth):
        points, labels = clicks(keys, prediction, truth, ignored)
        x, y = np.asarray(points, int).T
        assert not ignored[y, x].any()
        np.testing.assert_array_equal(labels, truth[y, x])
        if (prediction ^ truth)[~ignored].any():
            assert (prediction ^ truth)[y, x].all()
        else:
            assert not truth[y, x].any()


def test_boxes_are_tight_up_to_a_tenth_of_their_sides():
    truth = rectangle(2, 4, 22, 9)
    corners = np.stack([box(jax.random.key(i), truth) for i in range(200)])
    middle = np.array([[2, 4], [21, 8]])
    room = 0.1 * np.array([19, 4])
    assert (np.abs(corners - middle) <= room + 1e-5).all()
    assert (np.abs(corners - middle).max(0) > 0.8 * room).all()


def test_boxes_stay_in_the_image_and_move_by_20_pixels_at_most():
    truth = np.ones((512, 512), bool)
    corners = np.stack([jittered_box(jax.random.key(i), truth) for i in range(50)])
    assert corners.min() == 0
    assert corners.max() == 511
    assert corners[:, 0].max() <= 20
    assert corners[:, 1].min() >= 491


def plans(interaction, num_frames=8, count=300):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: draw_plan(key, num_frames, interaction))(keys)


def test_every_frame_is_visited_once_prompted_ones_first_the_rest_in_time():
    plan = jax.tree.map(np.asarray, plans(Interaction()))
    for frames, is_initial in zip(plan.frames, plan.is_initial, strict=True):
        assert sorted(frames) == list(range(8))
        assert frames[0] == 0
        n = is_initial.sum()
        assert is_initial[:n].all()
        assert (np.diff(frames[n:]) > 0).all()


def test_the_published_shares_of_starts_and_corrections():
    plan = jax.tree.map(np.asarray, plans(Interaction()))
    assert plan.starts_from_masks.mean() == pytest.approx(0.5, abs=0.1)
    assert set(plan.is_initial.sum(1)) == {1, 2}
    corrected = plan.is_corrected.sum(1)
    assert (corrected[plan.starts_from_masks] == 0).all()
    assert set(corrected[~plan.starts_from_masks]) == {1, 2}
    # The prompted frames are among the corrected ones.
    by_points = ~plan.starts_from_masks
    assert (plan.is_corrected[by_points] | ~plan.is_initial[by_points]).all()


def test_images_start_from_points():
    plan = jax.tree.map(np.asarray, plans(Interaction(point_probability=0.0), num_frames=1))
    assert not plan.starts_from_masks.any()
    assert plan.is_initial.all()
    assert plan.is_corrected.all()


def test_corrections_can_be_left_out():
    plan = plans(Interaction(max_corrected_frames=0))
    assert not np.asarray(plan.is_corrected).any()
