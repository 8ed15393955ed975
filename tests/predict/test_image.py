import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from sam2_jax import SAM2ImagePredictor
from sam2_jax.predict import image as image_module
from sam2_jax.predict import postprocessing
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
    with toy.counted_programs(toy.IMAGE_PROGRAMS) as counts:
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
    assert masks.dtype == np.float32
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
    weights = (postprocessing.resize_weights(SIZE, side) for side in (HEIGHT, WIDTH))
    expected = postprocessing.resize_masks(expected, *weights)
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


OTHER = scene(1, 36, 30, seed=3)[0]
THIRD = scene(1, 64, 64, seed=4)[0]
# A different number of prompts, and of points, for each image; one mask, one box, clicks.
BATCH = [
    {"point_coords": POINTS.repeat(3, 1), "point_labels": LABELS.repeat(3, 1)},
    {"box": np.array([2.0, 3, 20, 30]), "mask_input": np.full((1, SIZE, SIZE), 3.0)},
    {"point_coords": np.array([[9.0, 60.0]]), "point_labels": np.array([1])},
]


def columns(prompts):
    """Arguments of `predict_batch` from those of `predict` for each image."""
    names = ("point_coords", "point_labels", "box", "mask_input")
    return {f"{name}_batch": [prompt.get(name) for prompt in prompts] for name in names}


@pytest.fixture(scope="module")
def batch_predictor(model):
    predictor = SAM2ImagePredictor(model)
    predictor.set_image_batch([PICTURE, OTHER, Image.fromarray(THIRD)])
    return predictor


@pytest.mark.parametrize("multimask", [True, False])
def test_a_batch_of_images_equals_one_after_the_other(batch_predictor, predictor, model, multimask):
    options = {"multimask_output": multimask, "return_logits": True}
    together = batch_predictor.predict_batch(**columns(BATCH), **options)
    assert [type(x) for x in together] == [list] * 3
    for i, image in enumerate([PICTURE, OTHER, THIRD]):
        alone = SAM2ImagePredictor(model)
        alone.set_image(image)
        answer = [x[i] for x in together]
        expected = alone.predict(**BATCH[i], **options)
        assert answer[0].shape[-2:] == image.shape[:2]
        assert [x.shape for x in answer] == [x.shape for x in expected]
        close(answer, expected)
    assert len(together[0][0]) == 3  # as in `predict`, one prompt alone has no axis


def test_a_batch_is_encoded_and_decoded_by_one_call(batch_predictor, model, monkeypatch):
    calls = []
    for name in ("encode_images", "decode_prompts"):
        original = getattr(image_module, name)
        call = lambda *args, name=name, original=original: calls.append(name) or original(*args)
        monkeypatch.setattr(image_module, name, call)
    predictor = SAM2ImagePredictor(model)
    predictor.set_image_batch([PICTURE, OTHER, THIRD])
    predictor.predict_batch(**columns(BATCH))
    assert calls == ["encode_images", "decode_prompts"]


def test_images_without_prompts_have_no_masks(batch_predictor):
    boxes = [np.array([[3, 3, 30, 30], [5, 5, 9, 9]]), np.zeros((0, 4)), np.zeros((0, 4))]
    masks, ious, low_res = batch_predictor.predict_batch(box_batch=boxes, multimask_output=False)
    assert [x.shape for x in masks] == [(2, 1, HEIGHT, WIDTH), (0, 1, 36, 30), (0, 1, 64, 64)]
    assert [x.shape for x in ious] == [(2, 1), (0, 1), (0, 1)]
    assert low_res[2].shape == (0, 1, SIZE, SIZE)


def test_what_is_done_to_the_masks_of_one_image_is_done_to_those_of_a_batch(model):
    predictor = SAM2ImagePredictor(model, max_hole_area=SIZE * SIZE)
    predictor.set_image_batch([PICTURE, OTHER])
    masks, _, low_res = predictor.predict_batch(
        point_coords_batch=[POINTS[0], POINTS[0] / 4],
        point_labels_batch=[LABELS[0]] * 2,
        return_logits=True,
    )
    for mask, low in zip(masks, low_res, strict=True):
        assert (low < 0).any()
        assert (mask > 0).all()


def test_a_batch_of_one_and_one_image_are_the_same(model, predictor):
    other = SAM2ImagePredictor(model)
    other.set_image_batch([PICTURE])
    expected = predictor.predict(POINTS, LABELS)
    batched = predictor.predict_batch([POINTS], [LABELS])
    for answer in (other.predict(POINTS, LABELS), [x[0] for x in batched]):
        for x, y in zip(answer, expected, strict=True):
            np.testing.assert_array_equal(x, y)


def test_embeddings_of_a_batch_are_those_of_the_images(batch_predictor, predictor):
    embeddings = batch_predictor.get_image_embedding()
    assert embeddings.shape == (3, 32, toy.SIZE // 16, toy.SIZE // 16)
    close([embeddings[:1]], [predictor.get_image_embedding()])


def test_of_a_batch_predict_asks_about_the_last_image(batch_predictor):
    last = batch_predictor._orig_hw[-1]
    one = batch_predictor.predict(POINTS[0] / 4, LABELS[0])
    batch = [POINTS[0] / 4] * 3, [LABELS[0]] * 3
    assert one[0].shape[-2:] == last
    close(one, [x[-1] for x in batch_predictor.predict_batch(*batch)], 1e-4)


def test_errors_of_a_batch_name_the_image_and_the_last_batch_stays(batch_predictor):
    ask = batch_predictor.predict_batch
    before = batch_predictor.get_image_embedding()
    with pytest.raises(ValueError, match=r"Image 1: The point \(50, 3\) is outside"):
        ask([POINTS[0], np.array([[50.0, 3.0]]), None], [LABELS[0], [1], None])
    with pytest.raises(ValueError, match="point_coords_batch has 2 entries for 3 images"):
        ask([POINTS[0]] * 2, [LABELS[0]] * 3)
    with pytest.raises(ValueError, match="box_batch has 4 entries for 3 images"):
        ask(box_batch=[None] * 4)
    with pytest.raises(ValueError, match=r"Image 2: The image has shape \(4, 4\)"):
        batch_predictor.set_image_batch([OTHER, OTHER, np.zeros((4, 4))])
    with pytest.raises(ValueError, match="No image was given"):
        batch_predictor.set_image_batch([])
    np.testing.assert_array_equal(batch_predictor.get_image_embedding(), before)


def test_a_batch_is_not_compiled_again_inside_a_bucket(batch_predictor, model, traces):
    batch_predictor.predict_batch(**columns(BATCH))  # 5 prompts, 3 images
    before = dict(traces)
    predictor = SAM2ImagePredictor(model)
    predictor.set_image_batch([OTHER, PICTURE, THIRD, THIRD])
    prompts = [BATCH[1], BATCH[0], BATCH[2], BATCH[2] | BATCH[1]]
    predictor.predict_batch(**columns(prompts))
    added = {name: traces[name] - before[name] for name in before}
    assert added == {"encode_images": 0, "decode_prompts": 0, "finish_masks": 0}


@pytest.mark.parametrize("images", [[PICTURE], [PICTURE, OTHER, THIRD]], ids=["one", "three"])
@pytest.mark.parametrize("overrides", [{}, {"use_high_res_features_in_sam": False}])
def test_saved_embeddings_answer_like_the_images(images, overrides, tmp_path):
    model = toy.model(**overrides)
    first, second = SAM2ImagePredictor(model), SAM2ImagePredictor(toy.model(**overrides))
    first.set_image_batch(images)
    first.save_embedding(tmp_path / "e.safetensors")
    first.save_embedding(tmp_path / "e.safetensors")  # over the old one
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]
    second.load_embedding(str(tmp_path / "e.safetensors"))
    np.testing.assert_array_equal(first.get_image_embedding(), second.get_image_embedding())
    prompts = columns(BATCH[: len(images)])
    answers, expected = (x.predict_batch(**prompts) for x in (second, first))
    for i in range(len(images)):
        for x, y in zip(answers, expected, strict=True):
            np.testing.assert_array_equal(x[i], y[i])


def test_embeddings_of_lower_precision_are_saved_as_they_are(tmp_path):
    model = toy.model(dtype="bfloat16")
    first, second = SAM2ImagePredictor(model), SAM2ImagePredictor(model)
    first.set_image_batch([PICTURE, OTHER, THIRD])
    first.save_embedding(tmp_path / "e")
    second.load_embedding(tmp_path / "e")
    assert second._encoded.embedding.dtype == first._encoded.embedding.dtype
    np.testing.assert_array_equal(first.get_image_embedding(), second.get_image_embedding())


@pytest.mark.parametrize(
    ("overrides", "part"),
    [({"image_size": 128}, '"image_size": 128'), ({"dtype": "bfloat16"}, '"bfloat16"')],
)
def test_embeddings_of_another_configuration_are_refused(predictor, tmp_path, overrides, part):
    predictor.save_embedding(tmp_path / "e")
    with pytest.raises(ValueError, match="does not fit the model: config is") as error:
        SAM2ImagePredictor(toy.model(**overrides)).load_embedding(tmp_path / "e")
    assert part in str(error.value)
    # What does not change the embedding may differ.
    SAM2ImagePredictor(toy.model(fill_hole_area=3)).load_embedding(tmp_path / "e")


def test_embeddings_of_other_models_and_weights_are_refused(predictor, model, tmp_path):
    predictor.save_embedding(tmp_path / "e")
    other = dataclasses.replace(model, name="other")
    with pytest.raises(ValueError, match="model is toy in the file and other here"):
        SAM2ImagePredictor(other).load_embedding(tmp_path / "e")
    # Matrices alone are enough.
    tuned = jax.tree.map(lambda x: x if x.ndim == 1 else 1.01 * x, model.params)
    with pytest.raises(ValueError, match=r"weights is .* in the file"):
        SAM2ImagePredictor(dataclasses.replace(model, params=tuned)).load_embedding(tmp_path / "e")


def test_damaged_embeddings_are_refused_and_the_image_stays(predictor, tmp_path):
    before = predictor.get_image_embedding()
    path, cut, text, foreign, thin = (tmp_path / name for name in "abcde")
    predictor.save_embedding(path)
    cut.write_bytes(path.read_bytes()[:-100])
    text.write_text("no embedding")
    save_file({"x": np.zeros(3)}, foreign)
    with safe_open(path, framework="numpy") as file:
        save_file({"embedding": file.get_tensor("embedding")}, thin, file.metadata())
    for bad, message in (
        (cut, "damaged or no file of save_embedding"),
        (text, "damaged or no file of save_embedding"),
        (foreign, "was not written by save_embedding"),
        (thin, "is damaged: it holds"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.load_embedding(bad)
    with pytest.raises(FileNotFoundError, match="no file"):
        predictor.load_embedding(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        predictor.save_embedding(tmp_path / "missing" / "e")
    np.testing.assert_array_equal(predictor.get_image_embedding(), before)


def test_a_failed_save_leaves_the_old_file(predictor, tmp_path, monkeypatch):
    predictor.save_embedding(tmp_path / "e")
    before = (tmp_path / "e").read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.flax.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        predictor.save_embedding(tmp_path / "e")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert (tmp_path / "e").read_bytes() == before


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (4320, 7680)])
def test_pictures_of_extreme_sizes_are_segmented(model, shape):
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(np.full((*shape, 3), 100, np.uint8))
    masks, _, _ = predictor.predict(
        [[shape[1], shape[0]]], [1], multimask_output=False, box=[-5, -5, shape[1], shape[0]]
    )
    assert masks.shape == (1, *shape)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"point_coords": [[81, 3]]}, r"\(81, 3\) is outside of the picture, 80 x 48 pixels"),
        ({"point_coords": [[3, -0.5]]}, r"\(3, -0.5\) is outside"),
        ({"point_coords": [[np.nan, 3]]}, r"\(nan, 3\) is not finite"),
        ({"point_coords": [[3, 3]], "point_labels": [1.5]}, r"Labels are \[1.5\]"),
        ({"box": [30, 5, np.inf, 9]}, "is not finite"),
        ({"box": [90, 5, 95, 9]}, r"\(90, 5, 95, 9\) is outside of the picture"),
        ({"point_coords": [[30, 3]], "normalize_coords": False}, "parts of it, 0 to 1"),
        ({"mask_input": np.full((1, SIZE, SIZE), np.nan)}, "not finite; expected logits"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(predictor, prompt, message):
    if "point_coords" in prompt:
        prompt = {"point_labels": [1]} | prompt
    with pytest.raises(ValueError, match=message):
        predictor.predict(**prompt)
    assert predictor.predict(POINTS[0], LABELS[0])[0].shape == (3, HEIGHT, WIDTH)


def test_nothing_is_compiled_again_inside_a_bucket(predictor, traces):
    predictor.predict(POINTS, LABELS)
    before = dict(traces)
    four = np.concatenate([POINTS, POINTS[:1] + 3])
    predictor.predict(four, np.ones((4, 1)))
    predictor.predict(POINTS.repeat(3, 1), LABELS.repeat(3, 1))
    predictor.predict(POINTS, LABELS, box=np.array([[1, 2, 30, 40]] * len(POINTS)))
    predictor.set_image(scene(1, HEIGHT, WIDTH, seed=1)[0])
    predictor.predict(POINTS, LABELS)
    predictor.set_image(PICTURE)
    assert dict(traces) == before
    assert set(before) == {"encode_images", "decode_prompts", "finish_masks"}


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


def test_the_originals_name_of_the_features(model):
    """Its notebook prints their shapes."""
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    features = predictor._features
    np.testing.assert_array_equal(features["image_embed"], predictor.get_image_embedding())
    shapes = [x.shape for x in features["high_res_feats"]]
    assert shapes == [(1, 4, 16, 16), (1, 8, 8, 8)]
