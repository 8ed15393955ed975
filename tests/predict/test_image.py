import functools

import numpy as np
import pytest
from PIL import Image

from sam2_jax import SAM2ImagePredictor
from sam2_jax.predict import image as image_module
from sam2_jax.predict import transforms
from tests import toy
from tests.parity.reference_scene import scene

HEIGHT, WIDTH = 48, 80
SIZE = toy.SIZE // 4  # of a low-resolution mask
POINTS = np.array([[[30.0, 20.0]], [[60.0, 33.0]], [[11.0, 40.0]]])
LABELS = np.ones((3, 1), int)
PICTURE = scene(1, HEIGHT, WIDTH)[0]


@pytest.fixture(scope="module")
def model():
    return toy.model(dynamic_multimask_via_stability=True)


@pytest.fixture(scope="module", autouse=True)
def traces():
    """How often each compiled function of the predictor was traced."""
    functions = [
        (image_module, "encode_images", 0),
        (image_module, "decode_prompts", (0, 5)),
        (transforms, "resize_masks", (1, 2)),
    ]
    with toy.counted_programs(functions) as counts:
        yield counts


@pytest.fixture(scope="module")
def predictor(model):
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(PICTURE)
    return predictor


def close(answer, expected, tolerance=1e-5):
    for x, y in zip(answer, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max()))


@pytest.mark.parametrize(("multimask", "count"), [(True, 3), (False, 1)])
def test_one_prompt_has_no_axis_of_its_own(predictor, multimask, count):
    masks, ious, low_res = predictor.predict(POINTS[0], LABELS[0], multimask_output=multimask)
    assert masks.shape == (count, HEIGHT, WIDTH)
    assert masks.dtype == bool
    assert ious.shape == (count,)
    assert low_res.shape == (count, SIZE, SIZE)
    assert ious.dtype == low_res.dtype == np.float32
    batched = predictor.predict(POINTS[:1], LABELS[:1], multimask_output=multimask)
    for x, y in zip(batched, (masks, ious, low_res), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("multimask", "count"), [(True, 3), (False, 1)])
def test_several_prompts_have_a_leading_axis(predictor, multimask, count):
    masks, ious, low_res = predictor.predict(POINTS, LABELS, multimask_output=multimask)
    assert masks.shape == (3, count, HEIGHT, WIDTH)
    assert ious.shape == (3, count)
    assert low_res.shape == (3, count, SIZE, SIZE)


@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_together_equal_single_ones_despite_padding(predictor, multimask):
    ask = functools.partial(predictor.predict, multimask_output=multimask, return_logits=True)
    together = ask(POINTS, LABELS)
    for n in range(3):
        close(ask(POINTS[n], LABELS[n]), [x[n] for x in together])
    assert np.abs(together[2][0] - together[2][1]).max() > 1e-2  # prompts matter


def test_boxes_are_a_batch_and_equal_single_ones(predictor):
    boxes = np.array([[10, 5, 40, 30], [20, 10, 70, 44], [0, 0, 80, 48]])
    ask = functools.partial(predictor.predict, multimask_output=False, return_logits=True)
    together = ask(box=boxes)
    assert together[0].shape == (3, 1, HEIGHT, WIDTH)
    for n in range(3):
        close(ask(box=boxes[n]), [x[n] for x in together])
    with_click = ask(POINTS, LABELS, boxes)
    assert np.abs(with_click[2] - together[2]).max() > 1e-2


def test_masks_are_logits_above_the_threshold(predictor, model):
    logits, ious, low_res = predictor.predict(POINTS[0], LABELS[0], return_logits=True)
    masks, same_ious, same_low_res = predictor.predict(POINTS[0], LABELS[0])
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(masks, logits > 0)
    np.testing.assert_array_equal(ious, same_ious)
    np.testing.assert_array_equal(low_res, same_low_res)
    assert np.abs(low_res).max() <= 32
    threshold = float(np.median(logits))
    other = SAM2ImagePredictor(model, mask_threshold=threshold)
    other.set_image(PICTURE)
    np.testing.assert_array_equal(other.predict(POINTS[0], LABELS[0])[0], logits > threshold)


def test_coordinates_may_be_parts_of_one(predictor):
    size = np.array([WIDTH, HEIGHT])
    pixels = predictor.predict(POINTS, LABELS, return_logits=True)
    unit = predictor.predict(POINTS / size, LABELS, return_logits=True, normalize_coords=False)
    close(unit, pixels)


def test_an_earlier_mask_refines_the_answer(predictor):
    ask = functools.partial(predictor.predict, multimask_output=False, return_logits=True)
    first = ask(POINTS[0], LABELS[0])
    again = ask(POINTS[0], LABELS[0], mask_input=first[2])
    assert again[0].shape == (1, HEIGHT, WIDTH)
    assert np.abs(again[2] - first[2]).max() > 1e-2
    for n in (1, 3):
        masks = np.repeat(first[2][None], n, 0)
        batched = ask(POINTS[:n], LABELS[:n], mask_input=masks)
        close([x[0] for x in batched] if n > 1 else batched, again)


def test_a_mask_alone_is_a_prompt(predictor):
    mask = np.where(np.mgrid[:SIZE, :SIZE][0] < 8, 20, -20)[None]
    answers = [
        predictor.predict(mask_input=sign * mask, multimask_output=False, return_logits=True)
        for sign in (1, -1)
    ]
    assert answers[0][0].shape == (1, HEIGHT, WIDTH)
    assert np.isfinite(answers[0][0]).all()
    assert np.abs(answers[0][2] - answers[1][2]).max() > 1e-2


def test_small_holes_and_specks_are_cleaned_before_resizing(model, predictor):
    raw, _, low_res = predictor.predict(POINTS[0], LABELS[0], return_logits=True)
    cleaner = SAM2ImagePredictor(model, max_hole_area=SIZE * SIZE, max_sprinkle_area=0)
    cleaner.set_image(PICTURE)
    filled, _, same_low_res = cleaner.predict(POINTS[0], LABELS[0], return_logits=True)
    # Every background component is a hole here, so that nothing but the object and 10 is left.
    expected = np.where(low_res > 0, low_res, 10.0)
    expected = transforms.resize_masks(expected, HEIGHT, WIDTH)
    np.testing.assert_allclose(filled, expected, atol=1e-4)
    assert (raw < 0).any()
    np.testing.assert_array_equal(same_low_res, low_res)


def test_the_embedding_has_the_layout_of_the_original(predictor):
    embedding = predictor.get_image_embedding()
    assert embedding.shape == (1, 32, toy.SIZE // 16, toy.SIZE // 16)
    assert embedding.dtype == np.float32


def test_a_pil_image_equals_its_array(predictor, model):
    other = SAM2ImagePredictor(model)
    other.set_image(Image.fromarray(PICTURE))
    np.testing.assert_array_equal(other.get_image_embedding(), predictor.get_image_embedding())


def test_nothing_is_compiled_again_inside_a_bucket(predictor, traces):
    predictor.predict(POINTS, LABELS)
    before = dict(traces)
    four = np.concatenate([POINTS, POINTS[:1] + 3])
    predictor.predict(four, np.ones((4, 1)))
    predictor.predict(POINTS.repeat(3, 1), LABELS.repeat(3, 1))
    predictor.predict(POINTS, LABELS, box=np.array([1, 2, 30, 40]))
    predictor.set_image(scene(1, HEIGHT, WIDTH, seed=1)[0])
    predictor.predict(POINTS, LABELS)
    predictor.set_image(PICTURE)
    assert dict(traces) == before
    assert set(before) == {"encode_images", "decode_prompts", "resize_masks"}


def test_nothing_can_be_asked_before_an_image_is_set(model):
    predictor = SAM2ImagePredictor(model)
    for ask in (lambda: predictor.predict(POINTS[0], LABELS[0]), predictor.get_image_embedding):
        with pytest.raises(RuntimeError, match="set_image"):
            ask()
    predictor.set_image(PICTURE)
    predictor.reset_predictor()
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict(POINTS[0], LABELS[0])


@pytest.mark.parametrize("shape", [(48, 80), (3, 48, 80), (48, 80, 4), (0, 80, 3)])
def test_what_is_not_an_image_is_refused_and_the_last_one_stays(predictor, shape):
    with pytest.raises(ValueError, match=r"expected \(height, width, 3\)"):
        predictor.set_image(np.zeros(shape, np.uint8))
    assert predictor.get_image_embedding().any()


@pytest.mark.parametrize("shape", [(16, 16), (1, 32, 32), (1, 48, 80), (2, 3, 16, 16), (3, 16, 16)])
def test_a_mask_of_a_wrong_size_is_refused_with_the_right_one(predictor, shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        predictor.predict(POINTS[0], LABELS[0], mask_input=np.zeros(shape))
    assert str(shape) in str(error.value)
    assert "(1, 16, 16)" in str(error.value)


def test_numbers_of_masks_and_prompts_must_agree(predictor):
    with pytest.raises(ValueError, match="2 mask inputs do not go with 3 prompts"):
        predictor.predict(POINTS, LABELS, mask_input=np.zeros((2, 1, SIZE, SIZE)))


def unstable(model, masks):
    answer = model.module.apply({"params": model.params}, masks, method="is_unstable")
    return np.asarray(answer).tolist()


def test_a_mask_is_stable_if_its_area_does_not_depend_on_the_threshold(model):
    masks = np.full((5, SIZE, SIZE), -5.0, np.float32)
    masks[1].flat[:100] = 5.0  # all inside of both thresholds
    masks[2].flat[:100] = 5.0
    masks[2].flat[100:103] = 0.0  # 100 / 103 < 0.98
    masks[3].flat[:100] = 5.0
    masks[3].flat[100:102] = 0.0  # 100 / 102 > 0.98
    masks[4].flat[:3] = 0.0  # 0 / 3
    # The first has nothing inside of either: 0 / 0 counts as stable.
    assert unstable(model, masks) == [False, False, True, False, True]


def test_stability_is_asked_only_where_it_is_switched_on():
    masks = np.zeros((2, SIZE, SIZE), np.float32)
    assert unstable(toy.model(), masks) == [False, False]
    assert unstable(toy.model(dynamic_multimask_via_stability=True), masks) == [True, True]


def test_an_unstable_single_mask_gives_way_to_the_best_of_three(predictor, model):
    """A threshold that no mask can reach makes every single mask unstable."""
    strict = toy.model(dynamic_multimask_via_stability=True, dynamic_multimask_stability_thresh=1.1)
    other = SAM2ImagePredictor(strict)
    other.set_image(PICTURE)
    three = predictor.predict(POINTS[0], LABELS[0], return_logits=True)
    best = int(three[1].argmax())
    answer = other.predict(POINTS[0], LABELS[0], multimask_output=False, return_logits=True)
    close(answer, [x[best : best + 1] for x in three])
