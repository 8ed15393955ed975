"""Products give Pillow's bits, whatever the sizes."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from sam2_jax.ops import bicubic
from sam2_jax.ops.bicubic import resize_bicubic


def picture(height, width, seed=0):
    """Noise of black and white, which over- and undershoots most, beside plain noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    image[:, : width // 2] = 255 * (image[:, : width // 2] > 127)
    return image


def pillow(image, height, width):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        ((97, 130), (64, 64)),
        ((40, 30), (128, 128)),
        ((64, 90), (64, 64)),  # one side
        ((90, 64), (64, 64)),
        ((64, 64), (64, 64)),
        ((33, 257), (57, 31)),
        ((1, 7), (5, 1)),
        ((7, 1), (1, 5)),
        ((360, 640), (256, 256)),
        ((640, 360), (512, 512)),  # Pillow 13 begins with the height
        ((1080, 1920), (256, 256)),
        ((9000, 3), (32, 32)),  # more neighbours than float32 sums at once
        ((3, 8320), (32, 32)),
    ],
)
def test_products_are_pillows_bits(size, new_size):
    image = picture(*size)
    answer = resize_bicubic(image, *new_size, implementation="products")
    assert isinstance(answer, jax.Array)
    np.testing.assert_array_equal(answer, pillow(image, *new_size))


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(st.integers(1, 120), st.integers(1, 90))
def test_weights_are_pillows(size, new_size):
    """A picture with one white column shows the weights of that column, to 8 bits."""
    weights = bicubic.pillow_weights(size, new_size)
    image = np.zeros((size, size, 3), np.uint8)
    image[np.arange(size), np.arange(size)] = 255
    expected = np.clip((255 * weights.astype(np.int64) + (1 << 21)) >> 22, 0, 255)
    np.testing.assert_array_equal(pillow(image, size, new_size)[..., 0], expected.T)


def test_many_neighbours_of_white_are_white():
    """The pieces of thousands of small weights sum to more than float32 counts in ones."""
    image = np.full((4, 16384, 3), 255, np.uint8)
    answer = resize_bicubic(image, 4, 32, implementation="products")
    np.testing.assert_array_equal(answer, pillow(image, 4, 32))


def test_the_host_resizes_for_a_cpu():
    image = picture(20, 30)
    answer = resize_bicubic(image, 8, 9)
    assert isinstance(answer, np.ndarray)
    np.testing.assert_array_equal(answer, pillow(image, 8, 9))
    assert resize_bicubic(image, 20, 30) is image
    with pytest.raises(ValueError, match="'cubic'; expected pillow or products"):
        resize_bicubic(image, 8, 9, implementation="cubic")
