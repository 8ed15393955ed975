import itertools
import json

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from sam2_jax import SAM2AutomaticMaskGenerator, SAM2ImagePredictor, build_sam2
from sam2_jax.data.masks import decode_rle
from sam2_jax.predict import image, mask_generator, postprocessing, preprocessing
from tests import toy
from tests.parity.reference_scene import scene

HEIGHT, WIDTH = 120, 160
PICTURE = scene(1, HEIGHT, WIDTH)[0]
# What makes the toy model find several masks, and every filter drop some.
OPTIONS = {
    "points_per_side": 4,
    "points_per_batch": 6,
    "pred_iou_thresh": 0.5,
    "stability_score_thresh": 0.7,
    "stability_score_offset": 0.05,
    "mask_threshold": 0.8,
    "box_nms_thresh": 0.97,
    "crop_nms_thresh": 0.97,
}


@pytest.fixture(scope="module")
def model():
    return toy.model(dynamic_multimask_via_stability=True)


@pytest.fixture(scope="module")
def nano():
    return build_sam2("sam2_nano")


@pytest.fixture(scope="module", autouse=True)
def traces():
    own = [(mask_generator, "_measure", ()), (mask_generator, "_binarise", ())]
    with toy.counted_programs(toy.IMAGE_PROGRAMS + own) as counts:
        yield counts


def test_a_grid_has_the_middles_of_its_cells_and_x_runs_first():
    assert mask_generator.point_grid(1).tolist() == [[0.5, 0.5]]
    expected = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert mask_generator.point_grid(2).tolist() == expected


def test_crops_of_a_layer_overlap():
    crops = mask_generator.crop_boxes(100, 200, 1, 512 / 1500)
    assert crops == [
        (0, (0, 0, 200, 100)),
        (1, (0, 0, 117, 67)),
        (1, (0, 33, 117, 100)),
        (1, (83, 0, 200, 67)),
        (1, (83, 33, 200, 100)),
    ]
    # The second layer overlaps half as much: 17 pixels, of crops that are ceil((3 * 17 + side) / 4).
    second = [
        box for layer, box in mask_generator.crop_boxes(100, 200, 2, 512 / 1500) if layer == 2
    ]
    assert len(second) == 16
    assert second[:2] == [(0, 0, 63, 38), (0, 21, 63, 59)]
    assert second[-1] == (138, 63, 200, 100)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (3, 2), (641, 480)])
def test_crops_cover_every_picture_and_none_is_empty(height, width):
    for layer, boxes in itertools.groupby(
        mask_generator.crop_boxes(height, width, 3, 0.3), key=lambda crop: crop[0]
    ):
        covered = np.zeros((height, width), bool)
        for _, (x0, y0, x1, y1) in boxes:
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            covered[y0:y1, x0:x1] = True
        assert covered.all(), layer


def test_a_mask_is_cut_at_the_edge_of_a_crop_but_not_of_the_picture():
    crop = (
        0,
        100,
        300,
        400,
    )  # of a picture of 600 x 400 pixels: left and bottom are its edges, too
    boxes = np.array(
        [
            [0, 150, 100, 399],  # at the left and the bottom of the picture
            [0, 121, 279, 300],  # 21 from the top of the crop and from its right
            [0, 120, 100, 300],  # 20 from its top
            [50, 150, 280, 300],  # 20 from its right
            [50, 150, 310, 300],
        ]
    )
    answer = mask_generator.is_cut(boxes, crop, 400, 600)
    assert answer.tolist() == [False, False, True, True, True]


def suppress_slowly(boxes, scores, threshold):
    def iou(a, b):
        area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
        both = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
        both = both if (np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all() else 0
        return both / (area(a) + area(b) - both) if both else 0

    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 3)), max_size=12),
    st.sampled_from([0.0, 0.25, 0.5, 0.7]),
)
def test_suppression_is_that_of_every_pair(drawn, threshold):
    numbers = np.array(drawn, int).reshape(-1, 5)
    boxes = np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], 1)
    answer = mask_generator.suppress(boxes, numbers[:, 4], threshold)
    assert answer.tolist() == suppress_slowly(boxes, numbers[:, 4], threshold)


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_are_those_of_coco(seed):
    mask = np.random.default_rng(seed).random((7, 5)) > 0.3
    mask[0, 0] = seed > 0  # the first run is one of zeros, if need be of none
    rle = mask_generator.run_lengths(mask)
    assert rle["size"] == [7, 5]
    assert (rle["counts"][0] == 0) == (seed > 0)
    assert sum(rle["counts"]) == 35
    packed = coco.encode(np.asfortranarray(mask, np.uint8))
    assert coco.frPyObjects(rle, 7, 5)["counts"] == packed["counts"]
    np.testing.assert_array_equal(decode_rle(json.loads(json.dumps(rle))), mask)


@pytest.mark.parametrize("value", [False, True])
def test_run_lengths_of_one_colour(value):
    assert mask_generator.run_lengths(np.full((2, 3), value))["counts"] == (
        [0, 6] if value else [6]
    )


def box_of(mask):
    if not mask.any():
        return [0, 0, 0, 0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(v) for v in (columns[0], rows[0], columns[-1], rows[-1])]


@pytest.mark.parametrize(("height", "width"), [(40, 23), (256, 300), (1, 1)])
def test_masks_are_measured_at_the_size_of_the_crop(height, width):
    rng = np.random.default_rng(0)
    masks = rng.standard_normal((19, 16, 16)).astype(np.float32)
    masks[1] = -5  # empty, also at the lower threshold
    masks[2] = 0.25  # empty at the threshold alone
    masks[3] = 5
    masks[4, :, :5] = -5
    weights = (postprocessing.resize_weights(16, side) for side in (height, width))
    full = np.asarray(postprocessing.resize_masks(masks, *weights))
    crop = mask_generator._Crop(height, width, 16)
    stability, boxes = jax.device_get(crop.measure(masks, np.ones(19, bool), 0.3, 0.2))
    inner, outer = ((full > level).sum((1, 2)) for level in (0.5, 0.1))
    np.testing.assert_allclose(stability, inner / np.maximum(outer, 1), atol=1e-5)
    assert stability[[1, 2, 3]].tolist() == [0, 0, 1]
    assert boxes.tolist() == [box_of(mask > 0.3) for mask in full]
    assert boxes[3].tolist() == [0, 0, width - 1, height - 1]
    packed = np.stack([crop.binarise(mask, 0.3) for mask in masks])
    binary = np.unpackbits(packed, axis=-1, count=width).astype(bool)
    clear = np.abs(full - 0.3) > 1e-5
    np.testing.assert_array_equal(binary[clear], (full > 0.3)[clear])
    assert clear.mean() > 0.99


def generate_slowly(model, options):
    """The masks of a picture, click by click with the image predictor."""
    use = OPTIONS | {"crop_n_layers": 0, "use_m2m": False, "multimask_output": True} | options
    area = use.get("min_mask_region_area", 0)
    predictor = SAM2ImagePredictor(
        model, max_hole_area=area, max_sprinkle_area=area, keep_clicked=False
    )
    threshold, offset = use["mask_threshold"], use["stability_score_offset"]
    found = []
    for _, crop in mask_generator.crop_boxes(HEIGHT, WIDTH, use["crop_n_layers"], 512 / 1500):
        x0, y0, x1, y1 = crop
        predictor.set_image(PICTURE[y0:y1, x0:x1])
        here = []
        side = use["points_per_side"]
        for row, column in itertools.product(range(side), range(side)):
            click = [(column + 0.5) / side * (x1 - x0), (row + 0.5) / side * (y1 - y0)]
            ask = lambda mask=None, multi=False, click=click: predictor.predict(
                [click], [1], mask_input=mask, multimask_output=multi, return_logits=True
            )
            answers = zip(*ask(multi=use["multimask_output"]), strict=True)
            if use["use_m2m"]:
                answers = [[x[0] for x in ask(low_res[None])] for *_, low_res in answers]
            for logits, iou, _ in answers:
                inner, outer = (
                    (logits > t).sum() for t in (threshold + offset, threshold - offset)
                )
                if use["pred_iou_thresh"] > 0 and iou <= use["pred_iou_thresh"]:
                    continue
                stability = inner / outer if outer else 0
                if use["stability_score_thresh"] > 0 and stability < use["stability_score_thresh"]:
                    continue
                mask = np.zeros((HEIGHT, WIDTH), bool)
                mask[y0:y1, x0:x1] = logits > threshold
                box = box_of(mask) if mask.any() else [x0, y0, x0, y0]
                if any(
                    abs(edge - inside) <= 20 and abs(edge - outside) > 20
                    for edge, inside, outside in zip(box, crop, (0, 0, WIDTH, HEIGHT), strict=True)
                ):
                    continue
                here.append((mask, box, iou, stability, [click[0] + x0, click[1] + y0], crop))
        kept = suppress_slowly(
            np.array([h[1] for h in here]), [h[2] for h in here], use["box_nms_thresh"]
        )
        found += [here[i] for i in kept]
    if use["crop_n_layers"]:
        scores = [1 / ((c[2] - c[0]) * (c[3] - c[1])) for *_, c in found]
        boxes = np.array([f[1] for f in found])
        found = [found[i] for i in suppress_slowly(boxes, scores, use["crop_nms_thresh"])]
    return found


def corner_and_size(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


MODES = {
    "default": {},
    "one mask a click": {"multimask_output": False, "pred_iou_thresh": 0.3},
    "refined": {"use_m2m": True, "pred_iou_thresh": 0.3, "mask_threshold": 2.0},
    "crops": {"crop_n_layers": 1, "points_per_side": 3, "mask_threshold": 2.0},
    "refined crops": {"crop_n_layers": 1, "points_per_side": 2, "mask_threshold": 2.0}
    | {"use_m2m": True, "pred_iou_thresh": 0.3},
    "cleaned": {"min_mask_region_area": 6, "mask_threshold": 2.0},
    "no filter": {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "mask_threshold": 4.0},
}


@pytest.mark.parametrize("mode", MODES)
def test_masks_are_those_of_the_predictor_click_by_click(model, mode):
    # Chosen by stability, all refined masks would be those of the whole picture.
    model = toy.model() if mode == "refined crops" else model
    found = SAM2AutomaticMaskGenerator(model, **(OPTIONS | MODES[mode])).generate(PICTURE)
    check(found, generate_slowly(model, MODES[mode]))
    num_crops = len({tuple(annotation["crop_box"]) for annotation in found})
    assert (num_crops > 1) == ("crop_n_layers" in MODES[mode])


@pytest.mark.parametrize("area", [0, 6, 40])
def test_masks_of_trained_weights_are_those_of_the_predictor(nano, area):
    options = {"points_per_side": 6, "points_per_batch": 16, "min_mask_region_area": area}
    options |= {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.5, "mask_threshold": 0.0}
    options |= {"stability_score_offset": 1.0, "box_nms_thresh": 0.7}
    found = SAM2AutomaticMaskGenerator(nano, **options).generate(PICTURE)
    check(found, generate_slowly(nano, options))


def check(found, expected):
    assert len(found) == len(expected) > 1
    for ours, (mask, box, iou, stability, point, crop) in zip(found, expected, strict=True):
        assert ours["predicted_iou"] == pytest.approx(iou, abs=1e-4)
        assert ours["stability_score"] == pytest.approx(stability, abs=1e-2)
        assert ours["bbox"] == corner_and_size(box)
        assert ours["crop_box"] == corner_and_size(crop)
        np.testing.assert_allclose(ours["point_coords"], [point], atol=1e-9)
        assert (ours["segmentation"] != mask).mean() < 1e-3
        assert ours["area"] == ours["segmentation"].sum()


def test_one_program_decodes_all_batches_of_all_crops_and_pictures(model, traces):
    def added(options, *pictures):
        before = traces.copy()
        for picture in pictures:
            SAM2AutomaticMaskGenerator(model, **options).generate(picture)
        return dict(traces - before)

    other = scene(1, HEIGHT + 30, WIDTH - 20, seed=2)[0]
    # 25 and 4 clicks in batches of 7: the last ones are not full.
    options = OPTIONS | {"points_per_side": 5, "points_per_batch": 7, "crop_n_layers": 1}
    options |= {"crop_n_points_downscale_factor": 2, "pred_iou_thresh": 0, "use_m2m": True}
    first = added(options, PICTURE)
    assert first.pop("decode_prompts") == 2  # without and with a mask
    assert added(options | {"min_mask_region_area": 3}, other, PICTURE) == {}
    assert added(options | {"use_m2m": False, "crop_n_layers": 0}, other) == {}
    assert traces["_measure"] >= 1
    assert traces["_binarise"] >= 1
    larger = np.pad(PICTURE, ((0, 200), (0, 0), (0, 0)))  # 512 x 256 is another bucket
    large = added(OPTIONS | {"points_per_side": 5, "points_per_batch": 7}, larger)
    assert large == {"_measure": 1, "_binarise": 1}


class NumpyOfHostArrays:
    """numpy, whose functions refuse what is on the device."""

    def __getattr__(self, name):
        function = getattr(np, name)

        def checked(*args, **kwargs):
            for leaf in jax.tree.leaves((args, kwargs)):
                assert not isinstance(leaf, jax.Array), f"np.{name} of {leaf.shape}"
            return function(*args, **kwargs)

        return checked if callable(function) and not isinstance(function, type) else function


@pytest.mark.parametrize("mode", ["refined crops", "cleaned", "no filter"])
def test_no_logits_come_to_the_host(model, mode, monkeypatch):
    fetched = []

    def device_get(x):
        fetched.extend(jax.tree.leaves(x))
        return get(x)

    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", device_get)
    for module in (
        mask_generator,
        preprocessing,
        postprocessing,
        image,
    ):  # on CPUs jax's own guard does not notice
        monkeypatch.setattr(module, "np", NumpyOfHostArrays())
    generator = SAM2AutomaticMaskGenerator(model, **(OPTIONS | MODES[mode]))
    with jax.transfer_guard_device_to_host("disallow"):
        found = generator.generate(PICTURE)
    assert len(found) > 1
    assert any(x.dtype == np.uint8 for x in fetched)
    for x in fetched:
        # Numbers of the candidates of a batch, or the bits of one mask, rounded up to 256 pixels.
        assert x.nbytes <= (256 * 256 // 8 if x.dtype == np.uint8 else 6 * 3 * 4 * 4), x.shape


def test_maps_are_kept_of_survivors_only(model, monkeypatch):
    taken = []
    take = mask_generator._take
    monkeypatch.setattr(
        mask_generator, "_take", lambda masks, index: taken.append(take(masks, index)) or taken[-1]
    )
    assert SAM2AutomaticMaskGenerator(model, **OPTIONS).generate(PICTURE)
    shapes = {x.shape for x in taken}
    assert shapes == {(mask_generator._PAGE, toy.SIZE // 4, toy.SIZE // 4)}
    taken.clear()
    options = OPTIONS | {"stability_score_thresh": 1.0}
    SAM2AutomaticMaskGenerator(model, **options).generate(PICTURE)
    assert not taken


def test_masks_come_in_three_forms(model):
    by_mode = [
        SAM2AutomaticMaskGenerator(model, **OPTIONS, output_mode=mode).generate(PICTURE)
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    ]
    assert len(by_mode[0]) > 1
    for binary, runs, text in zip(*by_mode, strict=True):
        mask = binary["segmentation"]
        assert (mask.dtype, mask.shape) == (bool, (HEIGHT, WIDTH))
        assert isinstance(runs["segmentation"]["counts"], list)
        assert isinstance(text["segmentation"]["counts"], str)
        for other in (runs, text):
            json.dumps(other)
            np.testing.assert_array_equal(decode_rle(other.pop("segmentation")), mask)
            assert other == {name: binary[name] for name in other}


def test_no_mask_may_be_good_enough(model):
    generator = SAM2AutomaticMaskGenerator(
        model, **(OPTIONS | {"pred_iou_thresh": 1.0, "crop_n_layers": 1})
    )
    assert generator.generate(PICTURE) == []


def test_pictures_of_any_kind_are_segmented(model):
    generator = SAM2AutomaticMaskGenerator(model, **OPTIONS)
    expected = generator.generate(PICTURE)
    for same in (Image.fromarray(PICTURE), PICTURE / np.float32(255)):
        found = generator.generate(same)
        assert [a["bbox"] for a in found] == [a["bbox"] for a in expected]
    with pytest.raises(ValueError, match=r"expected \(height, width, 3\)"):
        generator.generate(PICTURE[..., 0])


def test_a_picture_of_one_pixel_has_crops_as_well(model):
    options = OPTIONS | {"crop_n_layers": 1, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    found = SAM2AutomaticMaskGenerator(model, **options).generate(PICTURE[:1, :1])
    assert found
    for annotation in found:
        assert annotation["segmentation"].shape == (1, 1)
        assert annotation["crop_box"] == [0, 0, 1, 1]


def test_progress_counts_the_clicks(model):
    options = OPTIONS | {"points_per_side": None, "points_per_batch": 4, "crop_n_layers": 1}
    grids = [mask_generator.point_grid(3), np.array([[0.5, 0.5]])]
    counts = []
    generator = SAM2AutomaticMaskGenerator(model, **options, point_grids=grids)
    generator.generate(PICTURE, progress=counts.append)
    assert counts == [4, 4, 1] + 4 * [1]


def test_from_pretrained_takes_options_of_model_and_generator(model, monkeypatch):
    asked = []
    load = lambda *args, **kwargs: asked.append((args[0], kwargs)) or model
    monkeypatch.setattr(mask_generator, "load_pretrained", load)
    generator = SAM2AutomaticMaskGenerator.from_pretrained(
        "facebook/sam2.1-hiera-tiny", image_size=512, points_per_side=8, use_m2m=True
    )
    assert asked == [("facebook/sam2.1-hiera-tiny", {"image_size": 512})]
    assert generator.model is model
    assert (generator.points_per_side, generator.use_m2m) == (8, True)
    assert len(generator.point_grids[0]) == 64


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"points_per_side": None}, ["either points_per_side or point_grids"]),
        ({"point_grids": [np.ones((1, 2))]}, ["either points_per_side or point_grids"]),
        ({"points_per_side": 0}, ["[0] points a side", "at least 1"]),
        ({"crop_n_layers": 1, "crop_n_points_downscale_factor": 40}, ["[32, 0] points a side"]),
        ({"points_per_batch": 0}, ["points_per_batch is 0", "at least 1"]),
        ({"crop_n_layers": -1}, ["crop_n_layers is -1"]),
        ({"min_mask_region_area": -1}, ["min_mask_region_area is -1"]),
        ({"stability_score_offset": float("nan")}, ["stability_score_offset is nan"]),
        ({"crop_overlap_ratio": 1}, ["crop_overlap_ratio is 1"]),
        ({"output_mode": "rle"}, ["'rle'", "binary_mask, uncompressed_rle, coco_rle"]),
        (
            {"points_per_side": None, "point_grids": [np.ones((3, 2))], "crop_n_layers": 1},
            ["[(3, 2)]", "expected 2"],
        ),
        ({"points_per_side": None, "point_grids": [np.full((3, 2), 1.5)]}, ["0...1"]),
        ({"points_per_side": None, "point_grids": [np.ones((3, 3))]}, ["[(3, 3)]"]),
        ({"points_per_side": None, "point_grids": [np.ones((0, 2))]}, ["[(0, 2)]"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, options, parts):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        SAM2AutomaticMaskGenerator(model, **options)
    for part in parts:
        assert part in str(error.value)
