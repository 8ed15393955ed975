import json

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.masks import encode_rle
from sam2_jax.evaluate import images
from sam2_jax.evaluate.images import open_images, read_image_masks, score_image, summarise
from sam2_jax.predict.image import SAM2ImagePredictor
from tests import toy
from tests.evaluate import drawn

PROMPTS = ["1 click", "2 clicks", "3 clicks", "4 clicks", "5 clicks", "box"]


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    with toy.counted_programs(toy.IMAGE_PROGRAMS):
        yield


def masks():
    return np.stack([drawn.labels(0) == 1, drawn.labels(0) == 2])


def write_images(folder):
    folder.mkdir()
    for name in "ab":
        Image.fromarray(drawn.frame(0)).save(folder / f"{name}.png")
    return str(folder)


def write_labels(folder):
    folder.mkdir()
    for name in "ab":
        Image.fromarray(drawn.labels(0)).save(folder / f"{name}.png")
    return str(folder)


def write_sa1b(folder):
    folder.mkdir(exist_ok=True)
    annotations = [{"segmentation": encode_rle(mask), "area": int(mask.sum())} for mask in masks()]
    size = {"height": drawn.HEIGHT, "width": drawn.WIDTH}
    for name in "ab":
        document = {"image": size, "annotations": annotations}
        (folder / f"{name}.json").write_text(json.dumps(document))
    return str(folder)


def write_coco(path):
    sizes = {"height": drawn.HEIGHT, "width": drawn.WIDTH}
    listed = [{"id": i, "file_name": f"{name}.png", **sizes} for i, name in enumerate("ab")]
    annotations = [
        {"image_id": i, "segmentation": encode_rle(mask)} for i in range(2) for mask in masks()
    ]
    path.write_text(json.dumps({"images": listed, "annotations": annotations}))
    return str(path)


@pytest.mark.parametrize("layout", ["labels", "coco", "sa1b", "sa1b beside"])
def test_layouts(tmp_path, layout):
    folder = write_images(tmp_path / "images")
    annotations = {
        "labels": lambda: write_labels(tmp_path / "labels"),
        "coco": lambda: write_coco(tmp_path / "instances.json"),
        "sa1b": lambda: write_sa1b(tmp_path / "annotations"),
        "sa1b beside": lambda: write_sa1b(tmp_path / "images") and None,
    }[layout]()
    found = open_images(folder, annotations)
    assert [found[i].name for i in range(len(found))] == ["a", "b"]
    image, true = read_image_masks(found[0])
    np.testing.assert_array_equal(image, drawn.frame(0))
    np.testing.assert_array_equal(true, masks())
    assert len(open_images(folder, annotations, 1)) == 1


def test_what_is_missing_is_told(tmp_path):
    folder = write_images(tmp_path / "images")
    with pytest.raises(ValueError, match="holds no annotations; expected are a JSON of SA-1B"):
        open_images(folder)
    with pytest.raises(FileNotFoundError, match="which should hold annotations"):
        open_images(folder, str(tmp_path / "none"))
    labels = write_labels(tmp_path / "labels")
    Image.fromarray(drawn.labels(0)[:20]).save(tmp_path / "labels" / "a.png")
    with pytest.raises(
        ValueError, match="the masks of frame a of a are 56x20, but the frames are 56x40"
    ):
        read_image_masks(open_images(folder, labels)[0])


class Oracle:
    """Answers in place of a model: first with one square too many, then right; and keeps the prompts."""

    def __init__(self):
        self.asked = []

    def set_image(self, image):
        pass

    def answer(self, predictor, size, points, labels, low_res, is_multimask):
        self.asked.append((points, labels, low_res, is_multimask))
        is_right = points.shape[1] > 1
        return masks() if is_right else np.stack([masks().any(0)] * 2), f"mask {len(self.asked)}"


def test_clicks_correct_what_is_wrong(monkeypatch):
    oracle = Oracle()
    monkeypatch.setattr(images, "answer", oracle.answer)
    scores = score_image(oracle, drawn.frame(0), masks())
    assert list(scores) == PROMPTS
    assert scores["1 click"].tolist() == [0.5, 0.5]
    assert all(scores[name].tolist() == [1, 1] for name in PROMPTS[1:])
    points, labels, low_res, is_multimask = oracle.asked[0]
    assert (points[0].tolist(), labels.tolist()) == ([[10, 8]], [[1], [1]])
    assert (low_res, is_multimask) == (None, True)
    points, labels, low_res, is_multimask = oracle.asked[1]
    assert labels.tolist() == [[1, 0], [1, 0]]  # the other square is too much
    x, y = points[0, 1].astype(int)
    assert masks()[1][y, x]
    assert (low_res, is_multimask) == ("mask 1", False)
    points, labels, low_res, is_multimask = oracle.asked[-1]
    assert points.tolist() == [[[4, 2], [20, 16]], [[4, 22], [20, 36]]]
    assert labels.tolist() == [[2, 3], [2, 3]]
    assert (low_res, is_multimask) == (None, False)


def test_answers_are_those_of_the_predictor():
    predictor = SAM2ImagePredictor(toy.model())
    predictor.set_image(drawn.frame(0))
    points, labels = np.array([[[10, 8]], [[30, 30]]]), np.array([[1], [1]])
    size = drawn.HEIGHT, drawn.WIDTH
    found, low_res = images.answer(predictor, size, points, labels, None, True)
    all_masks, ious, all_low_res = predictor.predict(points, labels, return_logits=True)
    for n, best in enumerate(ious.argmax(1)):
        logits = all_masks[n, best]
        clear = np.abs(logits) > 1e-3  # rounding decides nothing there
        np.testing.assert_array_equal(found[n][clear], (logits > 0)[clear])
        np.testing.assert_allclose(low_res[n], all_low_res[n, best], atol=1e-5)
    again, _ = images.answer(predictor, size, points, labels, low_res, False)
    expected = predictor.predict(
        points, labels, mask_input=low_res[:, None], multimask_output=False
    )[0][:, 0]
    assert (again == expected).mean() > 0.999


def test_a_model_of_one_mask_a_click_answers_with_that():
    predictor = SAM2ImagePredictor(toy.model(multimask_output_in_sam=False))
    predictor.set_image(drawn.frame(0))
    prompt = predictor, (drawn.HEIGHT, drawn.WIDTH), np.array([[[10, 8]]]), np.array([[1]]), None
    for found, expected in zip(
        images.answer(*prompt, True), images.answer(*prompt, False), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_model_is_scored():
    """With one object, which predictors answer without an axis of its own."""
    predictor = SAM2ImagePredictor(toy.model())
    scores = score_image(predictor, drawn.frame(0), masks()[:1])
    assert list(scores) == PROMPTS
    assert all(ious.shape == (1,) for ious in scores.values())
    assert all(0 <= ious.min() <= ious.max() <= 1 for ious in scores.values())


def test_every_mask_counts_once():
    scores = [{"box": np.array([1.0, 0.4])}, {"box": np.array([0.1])}]
    assert summarise(scores) == [{"prompt": "box", "mIoU": pytest.approx(50)}]
