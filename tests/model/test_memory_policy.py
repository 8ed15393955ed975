"""What each memory policy decides, on answers made by hand, and the filter against a plain one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from sam2_jax.config import MEMORY_POLICIES
from sam2_jax.model import memory_policy
from sam2_jax.model.retention import ANCHOR, NEVER, ONCE, RECENT
from sam2_jax.structs import Segmentation
from tests import toy

SIDE = 40
update = jax.jit(memory_policy.update, static_argnums=0)


def box(x, y, width=8, height=12):
    """(40, 40) logits of a filled box with its top-left cell at x, y."""
    mask = np.full((SIDE, SIDE), -5, np.float32)
    mask[y : y + height, x : x + width] = 5
    return mask


NOTHING = np.full((SIDE, SIDE), -1024, np.float32)


def answer(masks, ious=0.9, scores=5.0, others=None):
    """An answer for (N, 40, 40) masks; `others` are one more candidate of each object."""
    masks = np.stack(masks)
    n = len(masks)
    others = masks if others is None else np.stack(others)
    fill = lambda value: np.broadcast_to(np.float32(value), (n,)).copy()
    return Segmentation(
        candidates=np.stack([masks, masks, others, masks], 1),
        candidate_ious=np.full((n, 4), 0.5, np.float32),
        is_multimask=np.ones(n, bool),
        masks=masks,
        ious=fill(ious),
        scores=fill(scores),
        pointers=np.zeros((n, 4), np.float32),
    )


def run(name, answers, frames=None):
    """The retention (T, N) and states of a sequence of answers."""
    config = toy.config(memory_policy=name)
    state = memory_policy.init(config, answers[0].ious.shape[0])
    where = np.ones(answers[0].ious.shape[0], bool)
    retention, states = [], []
    for t, given in zip(range(len(answers)) if frames is None else frames, answers, strict=True):
        state, kept = update(config, state, np.int32(t), given, where)
        retention.append(np.asarray(kept))
        states.append(jax.device_get(state))
    return np.stack(retention), states


def moving(count, step=1):
    return [answer([box(2 + step * t, 10)]) for t in range(count)]


def test_recent_remembers_everything():
    answers = [answer([box(3, 3)]), answer([NOTHING], ious=0.0, scores=-9.0)]
    assert run("recent", answers)[0].tolist() == [[RECENT], [RECENT]]


@pytest.mark.parametrize("name", ["quality", "motion"])
@pytest.mark.parametrize(
    ("iou", "score", "kept"),
    [(0.9, 3.0, RECENT), (0.51, 0.1, RECENT), (0.4, 3.0, ONCE), (0.9, -0.1, ONCE)],
)
def test_a_good_frame_is_visible_and_has_a_good_iou(name, iou, score, kept):
    assert run(name, [answer([box(3, 3)], iou, score)])[0].tolist() == [[kept]]


def plain_kalman(boxes, dt):
    """The filter of 8 numbers with full matrices, in float64; (mean, covariance) after each box."""
    motion = np.eye(8) + dt * np.eye(8, k=4)
    observe = np.eye(4, 8)
    heights = lambda h, place, speed, a, va: np.diag(
        np.square([place * h, place * h, a, place * h, speed * h, speed * h, va, speed * h])
    )
    mean = np.concatenate([boxes[0], np.zeros(4)])
    covariance = heights(boxes[0][3], 2 / 20, 10 / 160, 1e-2, 1e-5)
    steps = [(mean, covariance)]
    for z in boxes[1:]:
        noise = heights(mean[3], 1 / 20, 1 / 160, 1e-2, 1e-5)
        mean, covariance = motion @ mean, motion @ covariance @ motion.T + noise
        r = np.diag(np.square([mean[3] / 20, mean[3] / 20, 1e-1, mean[3] / 20]))
        gain = covariance @ observe.T @ np.linalg.inv(observe @ covariance @ observe.T + r)
        mean = mean + gain @ (z - observe @ mean)
        covariance = covariance - gain @ observe @ covariance
        steps.append((mean, covariance))
    return steps


@pytest.mark.parametrize("direction", [1, -1])
def test_the_filter_equals_one_with_full_matrices(direction):
    rng = np.random.default_rng(0)
    places = np.cumsum(rng.integers(0, 3, (12, 2)), 0)
    sizes = rng.integers(4, 12, (12, 2))
    corners = [
        (int(x), int(y), int(w), int(h)) for (x, y), (w, h) in zip(places, sizes, strict=True)
    ]
    frames = 50 + direction * np.arange(12)
    _, states = run("motion", [answer([box(*c)]) for c in corners], frames)
    boxes = [np.array([x + w / 2, y + h / 2, w / h, h]) for x, y, w, h in corners]
    for state, (mean, covariance) in zip(states, plain_kalman(boxes, direction), strict=True):
        close = lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-4)
        close(state.position, mean[:4])
        close(state.velocity, mean[4:])
        close(state.variance, np.diag(covariance)[:4])
        close(state.covariance, np.diag(covariance, 4))
        close(state.velocity_variance, np.diag(covariance)[4:])
    assert states[-1].frame == frames[-1]


def test_a_filter_that_turns_round_expects_the_object_where_it_came_from():
    config = toy.config(memory_policy="motion")
    state = jax.tree.map(jnp.asarray, run("motion", moving(20))[1][-1])
    back = jax.jit(memory_policy._predict)(state, jnp.int32(9))
    assert abs(float(back.position[0, 0]) - (2 + 9 + 4)) < 1
    one = np.ones(1, bool)
    retention = [update(config, state, np.int32(18), answer([box(x, 10)]), one)[1] for x in (20, 1)]
    assert [int(v[0]) for v in retention] == [RECENT, ONCE]


@pytest.mark.parametrize(("count", "kept"), [(15, ONCE), (14, RECENT)])
def test_a_jump_is_gated_once_the_filter_is_stable(count, kept):
    retention, _ = run("motion", [*moving(count), answer([box(30, 26)])])
    assert (retention[:-1] == RECENT).all()
    assert retention[-1] == kept
    assert (run("quality", [*moving(count), answer([box(30, 26)])])[0] == RECENT).all()


@pytest.mark.parametrize(
    "bad", [answer([box(5, 5)], ious=0.2), answer([NOTHING], scores=-3.0)], ids=["iou", "absent"]
)
def test_a_lost_object_restarts_the_filter(bad):
    """What comes back elsewhere is not gated, and starts a filter of its own."""
    retention, states = run("motion", [*moving(18), bad, answer([box(30, 26)])])
    assert retention[-2:].tolist() == [[ONCE], [RECENT]]
    assert [int(s.num_stable[0]) for s in states[-3:]] == [18, 0, 1]
    np.testing.assert_allclose(states[-1].position, [[34, 32, 8 / 12, 12]], rtol=1e-6)
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(states)])).all()


def distracted(x=25, y=10):
    """A sure answer one of whose candidates also holds another box."""
    return answer([box(2, 10)], others=[np.maximum(box(2, 10), box(x, y))])


def test_an_anchor_needs_candidates_that_disagree():
    same = answer([box(2, 10)])
    assert run("distractor", [same] * 4)[0].ravel().tolist() == [RECENT, ONCE, ONCE, ONCE]
    retention = run("distractor", [same, same, distracted(), same])[0]
    assert retention.ravel().tolist() == [RECENT, ONCE, ANCHOR, ONCE]


def test_a_candidate_that_only_grows_a_little_makes_no_anchor():
    close_by = distracted(4, 10)
    assert run("distractor", [close_by] * 3)[0].ravel().tolist() == [RECENT, ONCE, ONCE]


def test_specks_beside_a_larger_piece_are_ignored():
    """The largest piece lies close by, a single far cell would widen the box."""
    other = np.maximum(box(2, 10), box(4, 10))
    other[39, 39] = 5
    given = answer([box(2, 10)], others=[other])
    assert run("distractor", [given] * 3)[0].ravel().tolist() == [RECENT, ONCE, ONCE]


def test_anchors_keep_their_distance():
    retention = run("distractor", [distracted()] * 15)[0].ravel()
    assert np.flatnonzero(retention == ANCHOR).tolist() == [1, 7, 13]
    backwards = run("distractor", [distracted()] * 15, range(20, 5, -1))[0].ravel()
    assert np.flatnonzero(backwards == ANCHOR).tolist() == [1, 7, 13]


@pytest.mark.parametrize(
    "unsure",
    [
        distracted().replace(ious=np.array([0.7], np.float32)),
        answer([box(2, 10, 8, 16)], others=[np.maximum(box(2, 10, 8, 16), box(25, 10))]),
    ],
    ids=["iou", "area"],
)
def test_an_anchor_needs_a_sure_mask_of_the_usual_size(unsure):
    same = answer([box(2, 10)])
    assert run("distractor", [same, same, unsure])[0].ravel().tolist() == [RECENT, ONCE, ONCE]


def test_a_frame_without_the_object_is_never_read_and_changes_no_area():
    same, absent = answer([box(2, 10)]), answer([NOTHING], scores=-3.0)
    retention, states = run("distractor", [same, same, absent, absent, same, absent])
    assert retention.ravel().tolist() == [RECENT, ONCE, NEVER, NEVER, ONCE, NEVER]
    assert states[-1].areas[0, -3:].tolist() == [96, 96, 96]
    assert (states[-1].areas[0, :-3] == 0).all()


@pytest.mark.parametrize("density", [0.0, 0.3, 0.45, 0.6, 1.0])
def test_the_largest_component_is_scipys(density):
    rng = np.random.default_rng(7)
    for _ in range(4):
        inside = rng.random((17, 23)) < density
        labels, count = scipy.ndimage.label(inside, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        found = np.asarray(jax.jit(memory_policy._largest_component)(inside))
        assert found.sum() == sizes.max()
        assert not count or len(np.unique(labels[found])) == 1
        assert (inside | ~found).all()


def drawn_answers(count, num_objects):
    """Answers that make every policy say different things, stacked over time."""
    rng = np.random.default_rng(1)

    def one(t):
        masks = [
            box(2 + t // 2 + n, 10) if rng.random() < 0.8 else NOTHING for n in range(num_objects)
        ]
        others = [np.maximum(mask, box(28, 24)) for mask in masks]
        drawn = answer(masks, others=others)
        return drawn.replace(
            ious=rng.uniform(0.4, 1, num_objects).astype(np.float32),
            scores=np.float32([5.0 if mask.max() > 0 else -5.0 for mask in masks]),
        )

    return [one(t) for t in range(count)]


@pytest.mark.parametrize("name", MEMORY_POLICIES)
def test_a_scan_equals_single_steps_and_objects_do_not_see_each_other(name):
    config = toy.config(memory_policy=name)
    answers = drawn_answers(25, 3)
    retention, states = run(name, answers)
    if name != "recent":
        assert len(np.unique(retention)) > 1
    stacked = jax.tree.map(lambda *x: np.stack(x), *answers)
    where = np.ones(3, bool)

    @jax.jit
    def scanned(state, answers):
        step = lambda state, xs: memory_policy.update(config, state, *xs, where)
        return jax.lax.scan(step, state, (jnp.arange(25), answers))

    start = jax.tree.map(jnp.asarray, memory_policy.init(config, 3))
    last, again = scanned(start, stacked)
    np.testing.assert_array_equal(again, retention)
    chex.assert_trees_all_close(jax.device_get(last), states[-1], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(last, start)
    for n in range(3):
        pick = lambda tree, n=n: jax.tree.map(lambda x: x[n : n + 1], tree)
        alone, alone_states = run(name, [pick(a) for a in answers])
        np.testing.assert_array_equal(alone, retention[:, n : n + 1])
        chex.assert_trees_all_close(alone_states[-1], pick(states[-1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["motion", "distractor"])
def test_objects_that_are_not_tracked_keep_their_state(name):
    config = toy.config(memory_policy=name)
    start = memory_policy.init(config, 2)
    where = np.array([True, False])
    given = answer([box(2, 10), box(2, 10)])
    state, _ = update(config, start, np.int32(3), given, where)
    second = lambda tree: jax.tree.map(lambda x: np.asarray(x)[1], tree)
    chex.assert_trees_all_equal(second(state), second(start))
    first = [
        np.asarray(a[0] != b[0]).any()
        for a, b in zip(*map(jax.tree.leaves, (state, start)), strict=True)
    ]
    assert any(first)
