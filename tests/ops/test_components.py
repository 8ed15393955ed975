import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from sam2_jax.ops import components
from sam2_jax.ops.components import clean_masks, small_components

find = jax.jit(small_components, static_argnums=1)


def expected_small(inside, max_area):
    def small(picture):
        labels, _ = scipy.ndimage.label(picture, np.ones((3, 3)))
        return picture & (np.bincount(labels.ravel())[labels] <= max_area)

    pictures = inside.reshape(-1, *inside.shape[-2:])
    return np.stack([small(picture) for picture in pictures]).reshape(inside.shape)


def snake(size):
    """One component that turns around at each border, of size**2 / 2 pixels or so."""
    picture = np.zeros((size, size), bool)
    picture[::2] = True
    picture[1::4, -1] = picture[3::4, 0] = True
    return picture


def spiral(size):
    """One component that winds inwards."""
    picture = np.zeros((size, size), bool)
    for k in range(0, size // 2, 2):
        picture[k, max(k - 1, 0) : size - k] = True
        picture[k : size - k, size - 1 - k] = True
        picture[size - 1 - k, k : size - k] = True
        picture[k + 2 : size - k, k] = True
    return picture


def chains(length):
    """Paths of `length` and `length + 1` pixels, in pictures of their own."""
    drawn = []
    for n in (length, length + 1):
        step = np.arange(n)
        for rows, columns in (
            (0 * step, step),
            (step, 0 * step - 1),
            (step, step),
            (step + 1, n - step),
            (step // 2, (step + 1) // 2),
            (np.minimum(step, n // 2), np.maximum(step - n // 2, 0)),
        ):
            picture = np.zeros((length + 3, length + 2), bool)
            picture[rows, columns] = True
            assert picture.sum() == n
            drawn.append(picture)
    return np.stack(drawn)


def pictures():
    """Bool pictures of any size up to that of the canvas."""
    rng = np.random.default_rng(0)
    for density in (0.05, 0.3, 0.4, 0.6, 0.95):
        yield from rng.random((3, *CANVAS)) < density
    yield from scipy.ndimage.gaussian_filter(rng.standard_normal((2, *CANVAS)), (0, 2, 2)) > 0.02
    for long in (snake(33), spiral(40)):
        assert scipy.ndimage.label(long, np.ones((3, 3)))[1] == 1
        yield from (long, ~long, long.T, long[::-1], long[:, ::-1])
    for length in (1, 2, 8, 15, 16, 35):
        yield from chains(length)
    yield np.zeros(CANVAS, bool)
    yield np.ones(CANVAS, bool)


def on_canvas(picture):
    height, width = picture.shape
    return np.pad(picture, ((0, CANVAS[0] - height), (0, CANVAS[1] - width)))


CANVAS = (41, 40)
PICTURES = np.stack([on_canvas(picture) for picture in pictures()])
NOISE = PICTURES[3:6]


@pytest.mark.parametrize("max_area", [0, 1, 2, 8, 9, 15, 16, 35, 800, 10_000])
def test_small_components_are_those_of_scipy(max_area):
    answer = find(PICTURES, max_area)
    assert answer.dtype == bool
    np.testing.assert_array_equal(answer, expected_small(PICTURES, max_area))


@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (2, 3)])
@pytest.mark.parametrize("max_area", [3, 20])
def test_pictures_may_be_narrow(shape, max_area):
    inside = np.random.default_rng(1).random((4, *shape)) < 0.8
    np.testing.assert_array_equal(find(inside, max_area), expected_small(inside, max_area))


@pytest.mark.parametrize("max_area", [8, 50])
def test_leading_axes_are_separate_pictures(max_area):
    inside = np.random.default_rng(1).random((2, 3, 20, 17)) < 0.4
    expected = expected_small(inside, max_area)
    assert expected.any()
    np.testing.assert_array_equal(find(inside, max_area), expected)
    mapped = jax.vmap(jax.vmap(lambda x: small_components(x, max_area)))
    np.testing.assert_array_equal(jax.jit(mapped)(inside), expected)
    # A component that reaches both ends of a picture does not go on in the next one.
    full = np.zeros((2, 4, max_area), bool)
    full[0, -1] = full[1, 0] = True
    np.testing.assert_array_equal(find(full, max_area), full)


def test_an_empty_batch_stays_one():
    assert find(np.zeros((0, 6, 6), bool), 8).shape == (0, 6, 6)
    assert find(np.zeros((0, 6, 6), bool), 30).shape == (0, 6, 6)


@pytest.mark.parametrize("max_area", [7.9, float("inf")])
def test_areas_may_be_fractions_and_infinite(max_area):
    np.testing.assert_array_equal(find(NOISE, max_area), expected_small(NOISE, max_area))


def test_small_areas_need_no_loop_and_no_scatter():
    program = str(jax.make_jaxpr(lambda x: small_components(x, 8))(np.zeros((2, 64, 64), bool)))
    assert "population_count" in program
    assert not any(word in program for word in ("while", "scan", "scatter", "gather", "callback"))


def expected_clean(masks, holes, sprinkles, threshold, filled, removed):
    cleaned = masks.copy()
    if holes > 0:
        cleaned[expected_small(masks <= threshold, holes)] = filled
    if sprinkles > 0:
        cleaned[expected_small(masks > threshold, sprinkles)] = removed
    return cleaned


@pytest.mark.parametrize(
    ("holes", "sprinkles"), [(8, 0), (0, 8), (8, 8), (1, 50), (50, 3), (10_000, 10_000)]
)
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_masks_are_cleaned(holes, sprinkles, threshold):
    rng = np.random.default_rng(2)
    masks = scipy.ndimage.gaussian_filter(rng.standard_normal((3, 50, 40)), (0, 1, 1))
    masks = (5 * masks).astype(np.float32)
    masks[rng.random(masks.shape) < 0.02] = np.nan
    masks[0, 5:9, 5:9] = threshold  # which is background
    clean = jax.jit(clean_masks, static_argnums=(1, 2))
    answer = clean(masks, holes, sprinkles, threshold=threshold, filled=0.1, removed=-10.0)
    expected = expected_clean(masks, holes, sprinkles, threshold, 0.1, -10.0)
    np.testing.assert_array_equal(answer, expected)
    assert np.isnan(answer).sum() == np.isnan(masks).sum() > 0
    assert (expected != masks)[~np.isnan(masks)].any()


def test_cleaning_can_be_off():
    masks = jnp.zeros((1, 4, 4))
    assert clean_masks(masks, 0, 0, filled=1.0) is masks


def test_the_type_of_logits_stays():
    masks = jnp.where(NOISE, 1.0, -1.0).astype(jnp.bfloat16)
    answer = clean_masks(masks, 8, 8, filled=jnp.float32(0.1), removed=-10.0)
    assert answer.dtype == jnp.bfloat16


def test_components_with_a_seed():
    inside = np.zeros((2, 8, 9), bool)
    inside[:, 1, 1:8] = inside[:, 2:5, 7] = inside[:, 5, 6] = (
        True  # around a corner, and across one
    )
    inside[:, 7, 0:3] = True
    seeds = np.zeros((2, 8, 9), bool)
    seeds[0, 5, 6] = seeds[0, 3, 3] = seeds[1, 7, 1] = True  # the second is not inside
    found = np.asarray(components.connected_to(inside, seeds))
    expected = inside.copy()
    expected[0, 7] = expected[1, :7] = False
    np.testing.assert_array_equal(found, expected)
