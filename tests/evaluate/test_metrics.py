from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from sam2_jax.data.masks import read_mask_png
from sam2_jax.evaluate import metrics

DAVIS = Path(__file__).resolve().parents[3] / "shared" / "data" / "davis2016"

pairs = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def square(side, first, last):
    mask = np.zeros((side, side), bool)
    mask[first:last, first:last] = True
    return mask


def slow_boundary(mask):
    """The definition, pixel by pixel; a neighbour outside of the picture never differs."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            near = mask[y : y + 2, x : x + 2]
            found[y, x] = near.any() and not near.all()
    return found


def slow_f(prediction, target, radius):
    found, wanted = slow_boundary(prediction), slow_boundary(target)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    precision = ndimage.binary_dilation(wanted, disk)[found].mean()
    recall = ndimage.binary_dilation(found, disk)[wanted].mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_iou():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert metrics.iou(a, b) == pytest.approx(1 / 3)
    assert metrics.iou(a, a) == metrics.iou(a & ~a, b & ~b) == 1
    assert metrics.iou(a, a & ~a) == metrics.iou(a & ~a, a) == 0
    assert metrics.region_similarity(a[None], b[None]) == pytest.approx(1 / 3)


def test_boundary_of_a_shifted_square():
    target = square(250, 100, 150)  # the diagonal is 354 pixels, so contours may be 3 apart
    for shift in range(4):
        assert metrics.boundary_accuracy(np.roll(target, shift, 1), target) == 1
    assert 0.4 < metrics.boundary_accuracy(np.roll(target, 4, 1), target) < 0.6
    assert metrics.boundary_accuracy(np.roll(target, (60, 60), (0, 1)), target) == 0


def test_boundary_of_empty_masks():
    mask, empty = square(40, 10, 30), np.zeros((40, 40), bool)
    assert metrics.boundary_accuracy(empty, empty) == 1
    assert metrics.boundary_accuracy(empty, ~empty) == 1  # a full picture has no contour either
    assert metrics.boundary_accuracy(mask, empty) == metrics.boundary_accuracy(empty, mask) == 0


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_boundary_equals_the_definition(pair):
    assert metrics.boundary_accuracy(*pair) == pytest.approx(slow_f(*pair, radius=1))


@pytest.mark.parametrize("shape", [(90, 160), (200, 340)])
def test_boundary_of_large_masks_equals_the_definition(shape):
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, 9, 9))
    prediction, target = field > 0.03
    radius = int(np.ceil(0.008 * np.hypot(*shape)))
    expected = slow_f(prediction, target, radius)
    assert 0.1 < expected < 0.9
    assert metrics.boundary_accuracy(prediction, target) == pytest.approx(expected)


def test_video_scores_skip_the_first_and_the_last_frame():
    targets = np.stack([square(20, 5, 15)] * 4)
    predictions = targets.copy()
    predictions[[0, 3]] = False
    assert metrics.video_scores(predictions, targets) == (1, 1)
    j, f = metrics.video_scores(predictions, targets, skip_first_and_last=False)
    assert j == f == 0.5


def test_video_scores_start_where_the_object_appears():
    shape, empty = square(20, 5, 15), np.zeros((20, 20), bool)
    targets = np.stack([empty, empty, empty, shape, empty, empty])
    predictions = np.stack([empty, empty, empty, empty, empty, empty])
    # Frames 1 and 2 do not count, 3 is missed, 4 is right.
    assert metrics.video_scores(predictions, targets) == (0.5, 0.5)
    predictions[2] = shape
    assert metrics.video_scores(predictions, targets) == pytest.approx((1 / 3, 1 / 3))


def test_video_scores_without_the_object():
    targets = np.stack([square(20, 5, 15), square(20, 0, 0), square(20, 5, 15)])
    assert metrics.video_scores(targets, targets) is None
    assert metrics.video_scores(targets, targets, skip_first_and_last=False) == (1, 1)


def test_errors():
    mask = np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match=r"\(4, 5\) uint8 and the target \(4, 5\) bool"):
        metrics.iou(mask.astype(np.uint8), mask)
    for function in (metrics.region_similarity, metrics.boundary_accuracy):
        with pytest.raises(ValueError, match=r"\(H, W\) bool and one shape are expected"):
            function(mask, mask.T)
        with pytest.raises(ValueError, match=r"\(H, W\) bool and one shape are expected"):
            function(mask[None], mask[None])
    with pytest.raises(ValueError, match="at least 3 annotated frames"):
        metrics.video_scores(np.stack([mask] * 2), np.stack([mask] * 2))


@pytest.mark.skipif(not DAVIS.is_dir(), reason=f"no real data in {DAVIS}")
@pytest.mark.parametrize(
    ("sequence", "j_and_f", "j", "f"),
    [
        ("blackswan", 95.9, 94.3, 97.4),
        ("car-shadow", 92.3, 92.8, 91.7),
        ("drift-straight", 68.6, 66.5, 70.7),
        ("horsejump-high", 82.3, 77.4, 87.2),
    ],
)
def test_scores_of_the_original_evaluator(sequence, j_and_f, j, f):
    targets, predictions = (
        np.stack([read_mask_png(path) > 0 for path in sorted((DAVIS / folder).glob("*.png"))])
        for folder in (f"Annotations/480p/{sequence}", f"predictions_osvos/{sequence}")
    )
    scores = np.array(metrics.video_scores(predictions, targets)) * 100
    np.testing.assert_allclose([scores.mean(), *scores], [j_and_f, j, f], atol=0.1)


def test_statistics_of_davis():
    """Quarters of eight frames are 0..2, 2..4, 4..5 and 5..7: edges at 1, 2.75, 4.5, 6.25 and 8, rounded."""
    scores = np.array([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    found = metrics.statistics(scores)
    assert found.mean == pytest.approx(0.65)
    assert found.recall == 5 / 8  # 0.5 is not more than 0.5
    assert found.decay == pytest.approx(0.9 - 0.4)
    assert metrics.statistics(np.array([0.5])) == (0.5, 0, 0)
    with pytest.raises(ValueError, match=r"scores are \(0,\); \(T,\), at least one"):
        metrics.statistics(np.array([]))
