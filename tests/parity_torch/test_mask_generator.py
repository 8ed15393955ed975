"""The mask generator against transformers' model and the functions of its mask generation.

transformers' own pipeline for SAM 2 needs torchvision, which stays out of the environment; the same functions
come with SAM.
"""

import numpy as np
import pytest
import torch
from transformers.models.sam import image_processing_pil_sam as sam

from sam2_jax import SAM2AutomaticMaskGenerator
from sam2_jax.predict import mask_generator, preprocessing
from tests.parity_torch.test_transformers import FRAMES, HEIGHT, SIZE, WIDTH, both_image_models

POINTS_PER_SIDE = 4
OVERLAP = 512 / 1500
LEVEL, OFFSET = 40.0, 0.5  # around which the masks of these weights differ from click to click
THRESHOLDS = {"pred_iou_thresh": 0.25, "stability_score_thresh": 0.7}
NMS = 0.95
IMAGE = FRAMES[0]


@pytest.fixture(scope="module")
def models():
    ours, theirs, _ = both_image_models(SIZE)
    return ours.model, theirs


def suppress(boxes, scores):
    """What torchvision's function does, box by box."""
    kept = []
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        low = torch.maximum(boxes[i, :2], boxes[kept, :2])
        high = torch.minimum(boxes[i, 2:], boxes[kept, 2:])
        both = (high - low).clamp(min=0).prod(1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if not (both > NMS * (area[i] + area[kept] - both)).any():
            kept.append(i)
    return kept


def search(theirs, crop):
    """Masks (K, H, W), IoUs, stability, and boxes in the picture of transformers in one crop."""
    x0, y0, x1, y1 = crop
    inputs = preprocessing.image_to_input(IMAGE[y0:y1, x0:x1], SIZE)
    points = torch.tensor(sam._build_point_grid(POINTS_PER_SIDE) * SIZE, dtype=torch.float32)
    answer = theirs(
        torch.tensor(np.moveaxis(inputs, -1, 0))[None],
        input_points=points[None, :, None],
        input_labels=torch.ones(1, len(points), 1, dtype=torch.int32),
    )
    logits = torch.nn.functional.interpolate(
        answer.pred_masks[0], (y1 - y0, x1 - x0), mode="bilinear"
    )
    logits, ious = logits.flatten(0, 1), answer.iou_scores.flatten()
    stability = sam._compute_stability_score(logits, LEVEL, OFFSET)
    boxes = sam._batched_mask_to_box(logits > LEVEL)
    is_kept = (ious > THRESHOLDS["pred_iou_thresh"]) & (
        stability >= THRESHOLDS["stability_score_thresh"]
    )
    is_kept &= ~sam._is_box_near_crop_edge(boxes, crop, [0, 0, WIDTH, HEIGHT])
    masks = sam._pad_masks(logits > LEVEL, crop, HEIGHT, WIDTH)
    boxes = boxes + torch.tensor([x0, y0, x0, y0])
    found = [x[is_kept] for x in (masks, ious, stability, boxes)]
    kept = suppress(found[3], found[1])
    return [x[kept] for x in found]


@pytest.mark.parametrize("num_layers", [0, 1])
def test_generated_masks(models, num_layers):
    ours, theirs = models
    generator = SAM2AutomaticMaskGenerator(
        ours,
        points_per_side=POINTS_PER_SIDE,
        points_per_batch=5,
        mask_threshold=LEVEL,
        stability_score_offset=OFFSET,
        box_nms_thresh=NMS,
        crop_nms_thresh=NMS,
        crop_n_layers=num_layers,
        output_mode="uncompressed_rle",
        **THRESHOLDS,
    )
    found = generator.generate(IMAGE)

    crops, _ = sam._generate_per_layer_crops(num_layers, OVERLAP, (HEIGHT, WIDTH))
    with torch.inference_mode():
        parts = [search(theirs, crop) for crop in crops]
    masks, ious, stability, boxes = (torch.cat(x) for x in zip(*parts, strict=True))
    if num_layers:
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in crops]
        scores = [1 / a for a, part in zip(areas, parts, strict=True) for _ in part[1]]
        kept = suppress(boxes, torch.tensor(scores))
        masks, ious, stability, boxes = (x[kept] for x in (masks, ious, stability, boxes))
    assert len(found) == len(masks) > 2
    is_from_crop = [annotation["crop_box"] != [0, 0, WIDTH, HEIGHT] for annotation in found]
    assert any(is_from_crop) == (num_layers > 0)
    rles = sam._mask_to_rle(masks)
    for i, annotation in enumerate(found):
        assert annotation["predicted_iou"] == pytest.approx(float(ious[i]), abs=1e-4)
        assert annotation["stability_score"] == pytest.approx(float(stability[i]), abs=1e-3)
        x0, y0, x1, y1 = boxes[i].tolist()
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        rle = annotation["segmentation"]
        assert rle["size"] == rles[i]["size"]
        different = sam._rle_to_mask(rle) != masks[i].numpy()
        assert different.mean() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(240, 320), (97, 61)])
def test_grids_and_crops(height, width):
    np.testing.assert_allclose(mask_generator.point_grid(7), sam._build_point_grid(7), atol=1e-12)
    boxes, layers = sam._generate_per_layer_crops(2, OVERLAP, (height, width))
    ours = mask_generator.crop_boxes(height, width, 2, OVERLAP)
    assert ours == [(n, tuple(box)) for n, box in zip(layers, boxes, strict=True)]


def test_run_lengths():
    masks = np.random.default_rng(0).random((4, 9, 13)) > 0.6
    theirs = sam._mask_to_rle(torch.tensor(masks))
    assert [mask_generator.run_lengths(mask) for mask in masks] == theirs
