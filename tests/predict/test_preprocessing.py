import jax
import numpy as np
import pytest
from PIL import Image

from sam2_jax.model.sam2 import IMAGE_MEAN, IMAGE_STD
from sam2_jax.predict import preprocessing


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_bucket_is_the_next_power_of_two():
    assert [preprocessing.bucket(n) for n in range(10)] == [1, 1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert [preprocessing.bucket(n, 4) for n in (0, 3, 4, 5)] == [4, 4, 4, 8]


def test_an_image_may_be_an_array_or_a_pil_image():
    array = picture(3, 4)
    np.testing.assert_array_equal(preprocessing.check_image(array), array)
    np.testing.assert_array_equal(preprocessing.check_image(Image.fromarray(array)), array)
    grey = Image.fromarray(array[..., 0])
    np.testing.assert_array_equal(preprocessing.check_image(grey), array[..., :1].repeat(3, -1))


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3)])
def test_what_is_not_an_rgb_image_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        preprocessing.check_image(np.zeros(shape, np.uint8))
    assert str(shape) in str(error.value)
    assert "(height, width, 3)" in str(error.value)


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        (np.zeros((4, 5), np.uint8), ["np.stack([image] * 3, -1)"]),
        (np.zeros((4, 5, 4), np.uint8), ["image[..., :3]"]),
        (np.zeros((3, 4, 5), np.uint8), ["image.transpose(1, 2, 0)"]),
        (np.zeros((4, 5, 3), np.int64), ["int64", "image.astype(np.uint8)"]),
        (np.zeros((4, 5, 3), bool), ["bool", "uint8"]),
        (np.full((4, 5, 3), 7.5), ["from 7.5 to 7.5", "0...1", "255"]),
        (np.full((4, 5, 3), -0.25), ["from -0.25", "0...1"]),
        (np.full((4, 5, 3), np.nan), ["nan", "finite"]),
        (np.full((4, 5, 3), np.inf), ["inf", "finite"]),
    ],
)
def test_what_is_wrong_with_an_image_is_said(image, parts):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        preprocessing.check_image(image)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_pil_images_of_any_mode_are_converted(mode):
    image = Image.fromarray(picture(3, 4)).convert("L" if mode == "I;16" else mode)
    answer = preprocessing.check_image(image.convert(mode))
    assert (answer.shape, answer.dtype) == ((3, 4, 3), np.uint8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_taken_as_they_are(dtype):
    image = np.linspace(0, 1, 36).reshape(3, 4, 3).astype(dtype)
    np.testing.assert_array_equal(preprocessing.check_image(image), image)


def check_points(points, labels, is_pixels=True):
    """On a picture 30 pixels high and 50 wide."""
    points, labels = preprocessing.join_prompts(points, labels, None)
    preprocessing.check_points(points, labels, 30, 50, is_pixels)


def check_box(box, is_pixels=True):
    points, labels = preprocessing.join_prompts(None, None, box)
    preprocessing.check_points(points, labels, 30, 50, is_pixels)


def test_the_border_belongs_to_the_picture():
    check_points([[0, 0], [50, 30], [50, 0], [12.5, 29.9]], [1, 1, 0, 0])
    check_points([[0, 0], [1, 1]], [1, 0], is_pixels=False)
    check_points(np.zeros((2, 0, 2)), np.zeros((2, 0)))
    check_points([[-7, 99]], [-1])  # no point at all


@pytest.mark.parametrize("point", [(50.1, 3), (3, 30.1), (-0.1, 3), (3, -0.1)])
@pytest.mark.parametrize("label", [0, 1])
def test_a_point_outside_is_named(point, label):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_points([[[1, 1], [2, 2]], [[3, 3], point]], [[1, 1], [1, label]])
    assert f"({point[0]:g}, {point[1]:g}) is outside" in str(error.value)
    assert "50 x 30 pixels" in str(error.value)


@pytest.mark.parametrize("point", [(np.nan, 3), (3, np.inf), (-np.inf, np.nan)])
def test_coordinates_are_finite(point):
    for is_pixels in (True, False):
        with pytest.raises(ValueError, match="is not finite"):
            check_points([point], [1], is_pixels)
    with pytest.raises(ValueError, match="is not finite"):
        check_box([*point, 60, 60])


def test_a_box_may_stick_out():
    check_box([-10, -20, 60, 70])
    check_box([[49, 29, 70, 70], [-5, -5, 1, 1], [0, 0, 50, 30]])
    check_box([-0.5, 0, 1.5, 1], is_pixels=False)
    check_box(np.zeros((0, 4)))


@pytest.mark.parametrize(
    "box", [[50, 5, 60, 9], [5, 30, 9, 40], [-9, 5, -1, 9], [5, -9, 9, -1], [60, 5, 50, 9]]
)
def test_a_box_without_any_of_the_picture_is_named(box):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_box([[1, 1, 9, 9], box])
    assert f"The box ({', '.join(map(str, box))}) is outside" in str(error.value)


def test_parts_of_the_picture_are_checked_as_such():
    with pytest.raises(ValueError, match="normalize_coords=False"):
        check_points([[12, 0.5]], [1], is_pixels=False)
    with pytest.raises(ValueError, match="normalize_coords=False"):
        check_box([1.5, 0, 2, 1], is_pixels=False)


@pytest.mark.parametrize("labels", [[0.5], [np.nan], [7], [-2]])
def test_labels_are_never_rounded(labels):
    with pytest.raises(ValueError, match="expected 1 \\(object\\) or 0 \\(background\\)"):
        preprocessing.join_prompts([[1, 2]], labels, None)


def test_mask_prompts_gain_a_leading_axis():
    assert preprocessing.check_mask_logits(None, 4).shape == (0, 4, 4)
    assert preprocessing.check_mask_logits(np.ones((1, 4, 4)), 4).shape == (1, 4, 4)
    assert preprocessing.check_mask_logits(np.ones((3, 1, 4, 4), int), 4).dtype == np.float32
    for bad in (np.ones((4, 4)), np.ones((3, 4, 4)), np.ones((1, 5, 4)), np.ones((1, 2, 1, 4, 4))):
        with pytest.raises(ValueError, match=r"expected \(1, 4, 4\) logits"):
            preprocessing.check_mask_logits(bad, 4)
    with pytest.raises(ValueError, match="not finite"):
        preprocessing.check_mask_logits(np.full((1, 4, 4), -np.inf), 4)


def test_prompts_of_several_pictures_are_joined():
    one = preprocessing.pad_points(np.ones((2, 1, 2)), np.ones((2, 1), np.int32))
    many = preprocessing.pad_points(np.full((1, 5, 2), 2.0), np.ones((1, 5), np.int32))
    nothing = preprocessing.pad_points(np.zeros((0, 2, 2)), np.zeros((0, 2), np.int32))
    joined = preprocessing.join_padded([one, nothing, many])
    assert joined.points.shape == (4, 8, 2)
    assert joined.labels.tolist() == [
        [1, -1] + [-2] * 6,
        [1, -1] + [-2] * 6,
        [1] * 5 + [-1, -2, -2],
        [-2] * 8,
    ]
    assert joined.points[:, 0].tolist() == [[1, 1], [1, 1], [2, 2], [0, 0]]
    assert joined.mask_logits is None
    masks = np.full((1, 4, 4), 5, np.float32)
    joined = preprocessing.join_padded([one, many.replace(mask_logits=masks)])
    assert joined.has_mask_logits.tolist() == [False, False, True, False]
    assert joined.mask_logits[:, 0, 0].tolist() == [0, 0, 5, 0]
    assert preprocessing.join_padded([nothing]).labels.tolist() == [[-2] * 4]


@pytest.mark.parametrize(("height", "width"), [(20, 30), (150, 90), (64, 64)])
def test_an_image_is_resized_with_antialiasing_on_floats_and_normalised(height, width):
    image = picture(height, width)
    resized = jax.image.resize(image / np.float32(255), (64, 64, 3), "bilinear", antialias=True)
    expected = (np.asarray(resized) - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
    answer = preprocessing.image_to_input(image, 64)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, atol=2e-5)


def test_a_float_image_is_not_divided_by_255():
    image = picture(20, 30)
    scaled = image.astype(np.float32) / 255
    as_float, as_bytes = (preprocessing.image_to_input(x, 32) for x in (scaled, image))
    np.testing.assert_array_equal(as_float, as_bytes)
    assert np.abs(preprocessing.image_to_input(image.astype(np.float32), 32)).max() > 100


def test_a_frame_is_resized_as_pillow_does():
    frame = picture(40, 70)
    expected = np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(preprocessing.frame_to_input(frame, 32), expected)
    square = picture(32, 32)
    np.testing.assert_array_equal(preprocessing.frame_to_input(square, 32), square)


def test_a_mask_becomes_zeros_and_ones_by_antialiased_halves():
    mask = np.random.default_rng(0).random((50, 40)) > 0.5
    expected = jax.image.resize(mask.astype(np.float32), (32, 32), "bilinear", antialias=True)
    answer = preprocessing.mask_to_input(mask, 32)
    assert answer.dtype == np.float32
    clear = np.abs(np.asarray(expected) - 0.5) > 1e-4
    np.testing.assert_array_equal(answer[clear], (np.asarray(expected) > 0.5)[clear])
    for same in (255 * mask.astype(np.uint8), mask.astype(np.float32)):
        np.testing.assert_array_equal(preprocessing.mask_to_input(same, 32), answer)


def test_half_is_inside_of_a_mask():
    halves = np.zeros((32, 64), bool)
    halves[:, ::2] = True
    assert (preprocessing.mask_to_input(halves[:1, :2], 1) == 1).all()
    assert (preprocessing.mask_to_input(np.array([[1, 0, 0]]), 1) == 0).all()


def test_a_mask_of_the_right_size_is_kept():
    mask = np.eye(32) * 7
    np.testing.assert_array_equal(preprocessing.mask_to_input(mask, 32), np.eye(32))


def test_a_box_becomes_two_points_before_the_clicks():
    points, labels = preprocessing.join_prompts([[5, 6]], [0], [1, 2, 3, 4])
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
        (None, None, (5, 1, 4), (5, 2, 2)),
        (None, None, (0,), (0, 2, 2)),
        ((0, 2), (0,), None, (1, 0, 2)),
    ],
)
def test_prompts_gain_a_leading_axis(points, labels, box, shape):
    make = lambda shape: None if shape is None else np.ones(shape)
    joined, joined_labels = preprocessing.join_prompts(make(points), make(labels), make(box))
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
        (None, None, np.ones((4, 1)), ["(4, 1)", "(N, 4)"]),
        (None, None, np.ones((1, 2, 4)), ["(1, 2, 4)", "(N, 4)"]),
        (np.ones((3, 1, 2)), np.ones((3, 1)), np.ones((2, 4)), ["2 boxes", "3 sets of points"]),
        (np.ones((3, 1, 2)), np.ones((3, 1)), np.ones(4), ["1 boxes", "3 sets of points"]),
        (
            np.ones((9, 2)),
            np.ones(9),
            np.ones((2, 4)),
            ["2 boxes", "1 sets of points", "(2, P, 2)"],
        ),
    ],
)
def test_prompts_that_do_not_fit_are_refused_with_what_was_given(points, labels, box, parts):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        preprocessing.join_prompts(points, labels, box)
    for part in parts:
        assert part in str(error.value)


def test_points_are_scaled_from_pixels_or_from_one():
    pixels = preprocessing.scale_points(np.array([[160.0, 60.0]]), 120, 320, 64, True)
    unit = preprocessing.scale_points(np.array([[0.5, 0.5]]), 120, 320, 64, False)
    assert pixels.dtype == unit.dtype == np.float32
    assert pixels.tolist() == unit.tolist() == [[32, 32]]


@pytest.mark.parametrize(("count", "size"), [(1, 4), (3, 4), (4, 8), (7, 8), (8, 16)])
def test_points_are_followed_by_one_token_and_padding(count, size):
    points = np.random.default_rng(0).random((2, count, 2)).astype(np.float32)
    prompt = preprocessing.pad_points(points, np.ones((2, count), np.int32))
    assert prompt.points.shape == (2, size, 2)
    np.testing.assert_array_equal(prompt.points[:, :count], points)
    row = [1] * count + [-1] + [-2] * (size - count - 1)
    assert prompt.labels.tolist() == [row, row]
    assert prompt.num_points.tolist() == [count, count]


def test_without_points_there_is_no_token_at_all():
    prompt = preprocessing.pad_points(np.zeros((1, 0, 2)), np.zeros((1, 0), np.int32))
    assert prompt.labels.tolist() == [[-2, -2, -2, -2]]
