"""Masks on their way to the picture: resized, cleaned, packed."""

import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.predict import postprocessing


@pytest.mark.parametrize(("size", "new_size"), [(16, 40), (16, 16), (16, 5), (16, 1), (1, 3)])
def test_weights_resize_as_masks_are_resized(size, new_size):
    eye = np.eye(size, dtype=np.float32)
    weights = postprocessing.resize_weights(size, new_size)
    expected = postprocessing.resize_masks(eye, eye, weights)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, np.asarray(expected).T, atol=1e-6)


def resized_to(masks, height, width):
    weights = (postprocessing.padded_weights(16, side) for side in (height, width))
    return postprocessing.resize_masks(masks, *weights)[..., :height, :width]


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
    answer = np.asarray(resized_to(masks, height, width))
    assert answer.shape == (2, 1, height, width)
    for mask, resized in zip(masks[:, 0], answer[:, 0], strict=True):
        expected = resize_by_formula(mask.astype(np.float64), height, width)
        np.testing.assert_allclose(resized, expected, atol=1e-5)


@pytest.fixture
def logits():
    return np.random.default_rng(0).standard_normal((2, 3, 4, 16, 16)).astype(np.float32)


def shown(logits, index, count, size, is_exclusive=False, return_logits=True, is_packed=None):
    masks = postprocessing.VideoMasks(
        logits, index, count, size, is_exclusive, return_logits, is_packed
    )
    return masks.get()


@pytest.mark.parametrize("size", [(40, 56), (33, 7), (1, 3)])
@pytest.mark.parametrize("is_exclusive", [False, True])
def test_bits_are_where_logits_are_positive(logits, size, is_exclusive):
    expected = shown(logits, 4, 3, size, is_exclusive)
    assert (expected.dtype, expected.shape) == (np.float32, (3, 1, *size))
    for is_packed in (True, False):
        masks = shown(logits, 4, 3, size, is_exclusive, False, is_packed)
        assert (masks.dtype, masks.shape) == (bool, expected.shape)
        np.testing.assert_array_equal(masks, expected > 0)


def test_the_masks_of_one_frame_are_shown(logits):
    for index in range(6):
        expected = resized_to(logits.reshape(6, 4, 16, 16)[index], 20, 30)
        np.testing.assert_array_equal(shown(logits, index, 4, (20, 30))[:, 0], expected)


def test_only_the_strongest_of_the_objects_is_left(logits):
    logits[0, 0, 2:] = 100  # padding, not an object
    plain = shown(logits, 0, 2, (20, 30))
    answer = shown(logits, 0, 2, (20, 30), is_exclusive=True)
    is_strongest = plain == plain.max(0)
    np.testing.assert_array_equal(answer, np.where(is_strongest, plain, np.minimum(plain, -10)))


def test_what_is_not_a_number_stays_so(logits):
    logits[0, 0, 1, 3, 4] = np.nan
    for is_exclusive in (False, True):
        filled = postprocessing.fill_holes(logits, 8)
        assert np.isnan(shown(filled, 0, 4, (16, 16), is_exclusive)[1, 0, 3, 4])


def test_holes_are_filled_in_float32():
    masks = jnp.full((1, 9, 9), 3, jnp.bfloat16).at[0, 2, 3].set(-5).at[0, 6:, 6:].set(-5)
    filled = postprocessing.fill_holes(masks, 8)
    assert filled.dtype == jnp.float32
    expected = np.array(masks, np.float32)
    expected[0, 2, 3] = 0.1
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(postprocessing.fill_holes(masks, 0), np.float32(masks))


def test_cleaning_leaves_small_things():
    masks = np.full((2, 1, 8, 8), -1, np.float32)
    masks[:, :, 1:3, 1:3] = 2
    cleaned = masks.copy()
    cleaned[0] = -10
    cleaned[1, :, 1] = -10
    kept = np.asarray(postprocessing.unless_empty(cleaned, masks, 0.0))
    np.testing.assert_array_equal(kept, np.stack([masks[0], cleaned[1]]))


def test_what_was_clicked_is_kept():
    masks = np.full((4, 2, 8, 8), -1, np.float32)
    masks[..., 1:3, 1:3] = masks[..., 5:7, 5:7] = 2
    cells = np.array([[[1.6, 2.2]], [[6, 6]], [[4, 4]], [[1.6, 2.2]]], np.float32)
    labels = np.array([[1], [1], [1], [2]])  # one beside both, one corner of a box
    kept = np.asarray(postprocessing.keep_clicked(masks, cells, labels, 0.0))
    expected = masks.copy()
    expected[0, :, 5:7, 5:7] = expected[1, :, 1:3, 1:3] = -10
    np.testing.assert_array_equal(kept, expected)
