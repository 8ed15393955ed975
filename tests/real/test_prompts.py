"""Prompts as detectors and annotators give them."""

import numpy as np
import pytest
from PIL import Image

from sam2_jax.commands.prompts import add_prompts, group_prompts
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.predict.preprocessing import check_points, join_prompts
from sam2_jax.predict.video import SAM2VideoPredictor
from tests import toy
from tests.parity.reference_scene import scene

BOX = [5.0, 6.0, 40.0, 30.0]


@pytest.fixture(scope="module")
def predictor():
    predictor = SAM2ImagePredictor(toy.model())
    predictor.set_image(scene(1, 48, 64)[0])
    return predictor


@pytest.mark.parametrize(
    "box",
    [[BOX[:2], BOX[2:]], [BOX], [[BOX]], [[BOX[:2], BOX[2:]]]],
    ids=["corners", "1x4", "1x1x4", "1x2x2"],
)
def test_a_box_of_any_shape_that_the_original_takes_is_the_same_box(predictor, box):
    expected = predictor.predict(box=np.array(BOX), multimask_output=False)
    for one, other in zip(
        expected, predictor.predict(box=box, multimask_output=False), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(0, 4), (0,), (0, 1, 4), (0, 2, 2), (1, 0)])
def test_no_box_gives_no_masks(predictor, shape):
    masks, ious, low_res = predictor.predict(box=np.zeros(shape), multimask_output=False)
    assert (masks.shape, ious.shape) == ((0, 1, 48, 64), (0, 1))
    assert low_res.shape == (0, 1, 16, 16)
    assert predictor.predict(box=[], multimask_output=True)[0].shape == (0, 3, 48, 64)


def test_a_box_of_another_shape_is_refused():
    for shape in ((3,), (2, 2, 4), (5,), (2, 3)):
        with pytest.raises(ValueError, match="The box has shape"):
            join_prompts(None, None, np.ones(shape))


@pytest.mark.parametrize(
    ("num_boxes", "points"), [(2, (86, 2)), (2, (3, 4, 2)), (1, (2, 1, 2)), (0, (1, 2))]
)
def test_points_are_not_spread_over_boxes(predictor, num_boxes, points):
    boxes = np.tile(np.float32(BOX), (num_boxes, 1))
    with pytest.raises(ValueError, match=r"boxes do not go with .* sets of points"):
        predictor.predict(np.full(points, 20.0), np.ones(points[:-1]), box=boxes)


def test_a_set_of_points_for_each_box_is_fine(predictor):
    points, labels = np.full((2, 3, 2), 20.0), np.ones((2, 3))
    masks, *_ = predictor.predict(
        points, labels, np.tile(np.float32(BOX), (2, 1)), multimask_output=False
    )
    assert masks.shape == (2, 1, 48, 64)
    with pytest.raises(ValueError, match=r"Points have shape \(86, 2\) and labels \(86, 1\)"):
        predictor.predict(np.full((86, 2), 20.0), np.ones((86, 1)), box=BOX)


def test_two_boxes_for_one_object_of_a_video_are_refused():
    video = SAM2VideoPredictor(toy.model())
    state = video.init_state(list(scene(2)))
    with pytest.raises(ValueError, match=r"2 prompts were given for object 1; .* another obj_id"):
        video.add_new_points_or_box(state, 0, 1, box=[[5, 5, 20, 20], [30, 30, 50, 50]])


@pytest.mark.parametrize(
    "box", [[10, 10, 10, 40], [0, 0, 0, 47], [63, 47, 63, 47], [-0.4, 0, 64.4, 48]]
)
def test_boxes_of_thin_things_and_boxes_that_stick_out_are_taken(predictor, box):
    masks, *_ = predictor.predict(box=box, multimask_output=False)
    assert masks.shape == (1, 48, 64)
    assert parsed("--box=" + ",".join(map(str, box))).keys() == {(1, 0)}


def test_a_box_beside_the_picture_is_refused():
    for box in ([-9, 0, -1, 9], [64, 0, 70, 9], [0, 48, 9, 50]):
        with pytest.raises(ValueError, match="is outside of the picture, 64 x 48"):
            check_points(*join_prompts(None, None, box), 48, 64, is_pixels=True)


def parsed(*arguments):
    import argparse

    parser = argparse.ArgumentParser()
    add_prompts(parser)
    return group_prompts(parser.parse_args(arguments).prompts, 48, 64)


def test_the_command_line_takes_numbers_as_people_write_them():
    group = parsed("--point", "2: 1e1, 20.", "--point=2:.5,7,0@0")[2, 0]
    assert group["point"] == [[10, 20, 1], [0.5, 7, 0]]


def test_a_soft_mask_with_an_object_is_what_is_brighter_than_half(tmp_path):
    y, x = np.mgrid[:48, :64]
    soft = np.clip(128 + 20 * (12 - np.hypot(x - 32, y - 24)), 0, 255).astype(np.uint8)
    path = tmp_path / "soft.png"
    Image.fromarray(soft).save(path)
    (mask,) = parsed(f"--mask=3:{path}")[3, 0]["mask"]
    np.testing.assert_array_equal(mask, soft > 127)
    with pytest.raises(ValueError, match="soft mask of one object"):
        parsed(f"--mask={path}")
