import hypothesis
import hypothesis.extra.numpy
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from sam2_jax.model.sam2 import IMAGE_MEAN, IMAGE_STD
from sam2_jax.predict import transforms


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_bucket_is_the_next_power_of_two():
    assert [transforms.bucket(n) for n in range(10)] == [1, 1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert [transforms.bucket(n, 4) for n in (0, 3, 4, 5)] == [4, 4, 4, 8]


def test_an_image_may_be_an_array_or_a_pil_image():
    array = picture(3, 4)
    np.testing.assert_array_equal(transforms.check_image(array), array)
    np.testing.assert_array_equal(transforms.check_image(Image.fromarray(array)), array)
    grey = Image.fromarray(array[..., 0])
    np.testing.assert_array_equal(transforms.check_image(grey), array[..., :1].repeat(3, -1))


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3)])
def test_what_is_not_an_rgb_image_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        transforms.check_image(np.zeros(shape, np.uint8))
    assert str(shape) in str(error.value)
    assert "(height, width, 3)" in str(error.value)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (150, 90), (64, 64)])
def test_an_image_is_resized_with_antialiasing_on_floats_and_normalised(height, width):
    image = picture(height, width)
    resized = jax.image.resize(image / np.float32(255), (64, 64, 3), "bilinear", antialias=True)
    expected = (np.asarray(resized) - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
    answer = transforms.image_to_input(image, 64)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, atol=2e-5)


def test_a_float_image_is_not_divided_by_255():
    image = picture(20, 30)
    scaled = image.astype(np.float32) / 255
    as_float, as_bytes = (transforms.image_to_input(x, 32) for x in (scaled, image))
    np.testing.assert_array_equal(as_float, as_bytes)
    assert np.abs(transforms.image_to_input(image.astype(np.float32), 32)).max() > 100


def test_a_frame_is_resized_as_pillow_does():
    frame = picture(40, 70)
    expected = np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(transforms.frame_to_input(frame, 32), expected)
    square = picture(32, 32)
    np.testing.assert_array_equal(transforms.frame_to_input(square, 32), square)


def test_a_mask_becomes_zeros_and_ones_by_antialiased_halves():
    mask = np.random.default_rng(0).random((50, 40)) > 0.5
    expected = jax.image.resize(mask.astype(np.float32), (32, 32), "bilinear", antialias=True)
    answer = transforms.mask_to_input(mask, 32)
    assert answer.dtype == np.float32
    clear = np.abs(np.asarray(expected) - 0.5) > 1e-4
    np.testing.assert_array_equal(answer[clear], (np.asarray(expected) > 0.5)[clear])
    for same in (255 * mask.astype(np.uint8), mask.astype(np.float32)):
        np.testing.assert_array_equal(transforms.mask_to_input(same, 32), answer)


def test_half_is_inside_of_a_mask():
    halves = np.zeros((32, 64), bool)
    halves[:, ::2] = True
    assert (transforms.mask_to_input(halves[:1, :2], 1) == 1).all()
    assert (transforms.mask_to_input(np.array([[1, 0, 0]]), 1) == 0).all()


def test_a_mask_of_the_right_size_is_kept():
    mask = np.eye(32) * 7
    np.testing.assert_array_equal(transforms.mask_to_input(mask, 32), np.eye(32))


def test_a_box_becomes_two_points_before_the_clicks():
    points, labels = transforms.join_prompts([[5, 6]], [0], [1, 2, 3, 4])
    assert (points.dtype, labels.dtype) == (np.float32, np.int32)
    assert points.tolist() == [[[1, 2], [3, 4], [5, 6]]]
    assert labels.tolist() == [[2, 3, 0]]


@pytest.mark.parametrize(
    ("points", "labels", "box", "shape"),
    [
        (None, None, None, (1, 0, 2)),
        ((3, 2), (3,), None, (1, 3, 2)),
        ((4, 3, 2), (4, 3), None, (4, 3, 2)),
        (None, None, (4,), (1, 2, 2)),
        (None, None, (5, 4), (5, 2, 2)),
        ((5, 1, 2), (5, 1), (5, 4), (5, 3, 2)),
        ((5, 1, 2), (5, 1), (4,), (5, 3, 2)),
        ((1, 2), (1,), (5, 4), (5, 3, 2)),
        ((0, 2), (0,), None, (1, 0, 2)),
    ],
)
def test_prompts_gain_a_leading_axis(points, labels, box, shape):
    make = lambda shape: None if shape is None else np.ones(shape)
    joined, joined_labels = transforms.join_prompts(make(points), make(labels), make(box))
    assert joined.shape == shape
    assert joined_labels.shape == shape[:2]


@pytest.mark.parametrize(
    ("points", "labels", "box", "parts"),
    [
        (np.ones((1, 2)), None, None, ["together", "label"]),
        (None, np.ones(1), None, ["together"]),
        (np.ones((2, 2)), np.ones(3), None, ["(1, 2, 2)", "(1, 3)", "(P, 2)"]),
        (np.ones((2, 3)), np.ones(2), None, ["(1, 2, 3)", "(P, 2)"]),
        (np.ones(2), np.ones(1), None, ["(2,)", "(P, 2)"]),
        (np.ones((1, 2)), [4], None, ["[4]", "1 (object) or 0 (background)"]),
        (None, None, np.ones(3), ["(3,)", "(4,) or (N, 4)"]),
        (None, None, np.ones((1, 1, 4)), ["(1, 1, 4)", "(N, 4)"]),
        (np.ones((3, 1, 2)), np.ones((3, 1)), np.ones((2, 4)), ["2 boxes", "3 sets of points"]),
    ],
)
def test_prompts_that_do_not_fit_are_refused_with_what_was_given(points, labels, box, parts):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        transforms.join_prompts(points, labels, box)
    for part in parts:
        assert part in str(error.value)


def test_points_are_scaled_from_pixels_or_from_one():
    pixels = transforms.scale_points(np.array([[160.0, 60.0]]), 120, 320, 64, True)
    unit = transforms.scale_points(np.array([[0.5, 0.5]]), 120, 320, 64, False)
    assert pixels.dtype == unit.dtype == np.float32
    assert pixels.tolist() == unit.tolist() == [[32, 32]]


@pytest.mark.parametrize(("count", "size"), [(1, 4), (3, 4), (4, 8), (7, 8), (8, 16)])
def test_points_are_followed_by_one_token_and_padding(count, size):
    points = np.random.default_rng(0).random((2, count, 2)).astype(np.float32)
    prompt = transforms.pad_points(points, np.ones((2, count), np.int32))
    assert prompt.points.shape == (2, size, 2)
    np.testing.assert_array_equal(prompt.points[:, :count], points)
    row = [1] * count + [-1] + [-2] * (size - count - 1)
    assert prompt.labels.tolist() == [row, row]
    assert prompt.num_points.tolist() == [count, count]


def test_without_points_there_is_no_token_at_all():
    prompt = transforms.pad_points(np.zeros((1, 0, 2)), np.zeros((1, 0), np.int32))
    assert prompt.labels.tolist() == [[-2, -2, -2, -2]]


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
    answer = np.asarray(transforms.resize_masks(masks, height, width))
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
    answer = transforms.clean_masks(
        masks, holes, specks, threshold=threshold, filled=10.0, removed=-10.0
    )
    np.testing.assert_array_equal(answer, expected)
    np.testing.assert_array_equal(masks, before)


def test_nothing_to_clean_gives_the_masks_themselves():
    masks = np.zeros((1, 4, 4), np.float32)
    assert transforms.clean_masks(masks, 0, 0, filled=1.0) is masks
