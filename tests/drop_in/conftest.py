"""Programs for the original see this package as `sam2`, a clip, and the small model at 64 pixels."""

import numpy as np
import pytest
from PIL import Image

import sam2_jax.as_sam2  # noqa: F401  (registers the name sam2)
from tests.parity.reference_scene import scene, scene_masks

NUM_FRAMES, HEIGHT, WIDTH = 5, 40, 56
SMALL = {"image_size": 64}


@pytest.fixture(scope="session")
def frames():
    return scene(NUM_FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="session")
def video_folder(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg")
    return str(folder)


@pytest.fixture(scope="session")
def masks():
    """(2, H, W) uint8, what is drawn on the first frame."""
    drawn = scene_masks(1, HEIGHT, WIDTH)[0]
    return np.asarray(drawn[:2], np.uint8)


@pytest.fixture(scope="session")
def video_predictor():
    from sam2.build_sam import build_sam2_video_predictor

    return build_sam2_video_predictor("sam2_nano", None, "cpu", **SMALL)


@pytest.fixture(scope="session")
def image_model():
    from sam2.build_sam import build_sam2

    return build_sam2("sam2_nano", None, "cpu", **SMALL)
