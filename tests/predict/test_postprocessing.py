"""Masks on their way to the picture: resized, cleaned, packed."""

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from sam2_jax.predict import postprocessing


@pytest.mark.parametrize(("size", "new_size"), [(16, 40), (16, 16), (16, 5), (16, 1), (1, 3)])
def test_weights_resize_as_masks_are_resized(size, new_size):
    eye = np.eye(size, dtype=np.float32)
    expected = postprocessing.resize_masks(eye, size, new_size)
    weights = postprocessing.resize_weights(size, new_size)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, np.asarray(expected).T, atol=1e-6)


def resize_by_formula(mask, height, width):
    """Half-pixel centres, edges clamped, two neighbours whatever the scale."""

    def along(x, size):
        position = np.clip((np.arange(size) + 0.5) * len(x) / size - 0.5, 0, len(x) - 1)
        low = np.minimum(position.astype(int), len(x) - 1)
        high = np.minimum(low + 1, len(x) - 1)
        part = (position - low)[:, None]
        return x[low] * (1 - part) + x[high] * part

    return along(along(mask, height).T, width).T


@pytest.mark.parametrize(("height", "width"), [(40, 23), (16, 16), (5, 7), (3, 50)])
def test_masks_are_resized_without_antialiasing(height, width):
    masks = np.random.default_rng(0).standard_normal((2, 1, 16, 16)).astype(np.float32)
    answer = np.asarray(postprocessing.resize_masks(masks, height, width))
    assert answer.shape == (2, 1, height, width)
    for mask, resized in zip(masks[:, 0], answer[:, 0], strict=True):
        expected = resize_by_formula(mask.astype(np.float64), height, width)
        np.testing.assert_allclose(resized, expected, atol=1e-5)


def components(inside):
    """Sets of pixels that touch, also at corners, by flood filling."""
    left = set(map(tuple, np.argwhere(inside)))
    found = []
    while left:
        waiting, component = [left.pop()], set()
        while waiting:
            y, x = waiting.pop()
            component.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            waiting.extend(around)
        found.append(component)
    return found


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.float32, (2, 7, 9), elements=st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 4.0])
    ),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.5, -1.0]),
)
def test_small_holes_and_specks_are_those_of_a_flood_fill(masks, holes, specks, threshold):
    expected = masks.copy()
    for old, new in zip(masks, expected, strict=True):
        for area, inside, value in (
            (holes, old <= threshold, 10.0),
            (specks, old > threshold, -10.0),
        ):
            for component in components(inside):
                if len(component) <= area:
                    new[tuple(np.array(list(component)).T)] = value
    before = masks.copy()
    answer = postprocessing.clean_masks(
        masks, holes, specks, threshold=threshold, filled=10.0, removed=-10.0
    )
    np.testing.assert_array_equal(answer, expected)
    np.testing.assert_array_equal(masks, before)


def test_nothing_to_clean_gives_the_masks_themselves():
    masks = np.zeros((1, 4, 4), np.float32)
    assert postprocessing.clean_masks(masks, 0, 0, filled=1.0) is masks
