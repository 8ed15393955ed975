"""Prompts as programs give them, and what they do with the insides; see test_programs.py."""

import numpy as np
import pytest

from tests.drop_in.conftest import HEIGHT, NUM_FRAMES, SMALL, WIDTH
from tests.drop_in.test_programs import BOX, HAS_TORCH, POINT, needs_torch


@needs_torch
@pytest.mark.parametrize("kind", ["bfloat16", "gradient"])
def test_tensors_of_every_kind_are_prompts(
    image_model, video_predictor, video_folder, frames, masks, kind
):
    import torch
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    def tensor(x):
        x = torch.tensor(np.asarray(x, np.float32))
        return x.bfloat16() if kind == "bfloat16" else x.requires_grad_()

    predictor = SAM2ImagePredictor(image_model)
    predictor.set_image(frames[0])
    *_, low = predictor.predict(np.array([POINT]), np.array([1]), multimask_output=False)
    low = low.round()  # which bfloat16 holds
    given = predictor.predict(tensor([POINT]), tensor([1]), tensor(BOX), tensor(low), False)
    expected = predictor.predict(np.array([POINT]), np.array([1]), np.array(BOX), low, False)
    for a, b in zip(given, expected, strict=True):
        np.testing.assert_array_equal(a, b)

    state = video_predictor.init_state(video_folder)
    answers = []
    for make in (tensor, np.asarray):
        video_predictor.reset_state(state)
        video_predictor.add_new_points_or_box(state, 0, 1, make([POINT]), make([1]), box=make(BOX))
        answers.append(video_predictor.add_new_mask(state, 0, 2, make(masks[1]))[2])
    assert torch.equal(*answers)


def test_a_click_after_a_mask_corrects_it_and_a_mask_replaces_clicks(
    video_predictor, video_folder, masks
):
    state = video_predictor.init_state(video_folder)
    click = {"frame_idx": 0, "obj_id": 1, "points": [POINT], "labels": [1]}
    *_, alone = video_predictor.add_new_points_or_box(state, **click)
    *_, given = video_predictor.add_new_mask(state, 0, 1, masks[0])
    assert state["point_inputs_per_obj"][0] == {}
    *_, corrected = video_predictor.add_new_points_or_box(state, **click)
    assert state["mask_inputs_per_obj"][0] == {}
    assert list(state["point_inputs_per_obj"][0]) == [0]
    differs = lambda a, b: not np.array_equal(np.asarray(a), np.asarray(b))
    assert differs(corrected, alone)
    assert differs(corrected, given)


def test_an_empty_mask_starts_an_object_that_is_absent(video_predictor, video_folder, masks):
    """As the original takes it, and as its tool for SA-V gives it; by default it is an error here."""
    state = video_predictor.init_state(video_folder)
    video_predictor.add_new_mask(state, 0, 1, masks[0] * 0)
    video_predictor.add_new_mask(state, 2, 1, masks[0])
    seen = {
        t: bool((logits > 0).any()) for t, _, logits in video_predictor.propagate_in_video(state)
    }
    assert list(seen) == list(range(NUM_FRAMES))
    assert not seen[0]
    assert seen[2]


def test_programs_that_never_end_forget_answers(video_predictor, video_folder):
    state = video_predictor.init_state(video_folder)
    video_predictor.add_new_points_or_box(state, 0, 7, [POINT], [1])
    for t, *_ in video_predictor.propagate_in_video(state):
        answers = state["output_dict_per_obj"][video_predictor._obj_id_to_idx(state, 7)]
        for old in list(answers["non_cond_frame_outputs"]):
            if old < t - 1:
                answers["non_cond_frame_outputs"].pop(old)
    assert list(state["output_dict_per_obj"][0]["non_cond_frame_outputs"]) == [3, 4]
    with pytest.raises(TypeError, match="the session keeps it"):
        answers["non_cond_frame_outputs"][1] = {}
    assert video_predictor._get_obj_num(state) == 1
    assert video_predictor._obj_idx_to_id(state, 0) == 7
    with pytest.raises(AttributeError, match=r"original's PyTorch module.*docs/training\.md"):
        video_predictor._run_single_frame_inference()


def test_the_image_predictor_is_asked_in_pixels_of_the_input(image_model, frames):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(image_model)
    predictor.set_image(frames[0])
    mask, points, labels, boxes = predictor._prep_prompts([POINT], [1], BOX, None, True)
    assert mask is None
    np.testing.assert_allclose(points, np.multiply([[POINT]], [64 / WIDTH, 64 / HEIGHT]), rtol=1e-6)
    masks, ious, low = predictor._predict(points, labels, boxes, multimask_output=False)
    assert (masks.dtype, ious.shape, low.shape) == (bool, (1, 1), (1, 1, 16, 16))
    expected, *_ = predictor.predict([POINT], [1], BOX, multimask_output=False)
    np.testing.assert_array_equal(masks[0], expected > 0)


def test_small_regions_and_a_second_look(image_model, frames):
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.utils.amg import MaskData, mask_to_rle_pytorch, rle_to_mask

    blocks = np.zeros((3, 20, 20), bool)
    blocks[0, 2:12, 2:12] = True
    blocks[1] = blocks[0]
    blocks[1, 5, 5] = False  # a hole
    blocks[1, 18, 18] = True  # and a speck, which widens the box
    blocks[2, 3:6, 14:18] = True
    boxes = np.array([[2, 2, 11, 11], [2, 2, 18, 18], [14, 3, 17, 5]])
    data = MaskData(rles=mask_to_rle_pytorch(blocks), boxes=boxes, ious=np.arange(3.0))
    data = SAM2AutomaticMaskGenerator.postprocess_small_regions(data, 5, 0.7)
    # What was cleaned is what was there already, and that one is preferred.
    assert data["ious"].tolist() == [0, 2]
    np.testing.assert_array_equal([rle_to_mask(r) for r in data["rles"]], blocks[[0, 2]])
    data = MaskData(rles=mask_to_rle_pytorch(blocks[1:]), boxes=boxes[1:])
    data = SAM2AutomaticMaskGenerator.postprocess_small_regions(data, 5, 0.7)
    assert data["boxes"].tolist() == [[14, 3, 17, 5], [2, 2, 11, 11]]
    np.testing.assert_array_equal(rle_to_mask(data["rles"][1]), blocks[0])

    generator = SAM2AutomaticMaskGenerator(image_model, points_per_side=2)
    generator.predictor.set_image(frames[0])
    points = np.float32([[14, 18], [40, 15], [25, 33]]) * [64 / WIDTH, 64 / HEIGHT]
    *_, low = generator.predictor._predict(points[:, None], np.ones((3, 1)), multimask_output=False)
    logits, ious = generator.refine_with_m2m(points, np.ones(3), low[:, 0], 2)
    assert (logits.shape, ious.shape) == ((3, 1, HEIGHT, WIDTH), (3, 1))
    expected, *_ = generator.predictor.predict(
        points[1:2] / 64,
        np.ones(1),
        mask_input=low[1],
        multimask_output=False,
        return_logits=True,
        normalize_coords=False,
    )
    np.testing.assert_allclose(logits[1], expected, atol=1e-4)


def test_names_on_the_hub_are_files_in_its_cache(tmp_path, monkeypatch):
    from sam2_jax import build_sam

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(build_sam, "build_sam2", lambda *args, **options: (*args, options))
    monkeypatch.setattr(build_sam, "build_sam2_video_predictor", build_sam.build_sam2)
    assert len(build_sam.HF_MODEL_ID_TO_FILENAMES) == 8
    for model_id, (config, file) in build_sam.HF_MODEL_ID_TO_FILENAMES.items():
        folder = tmp_path / f"models--{model_id.replace('/', '--')}" / "snapshots" / "1a2b"
        folder.mkdir(parents=True)
        (folder / file).touch()
        for build in (build_sam.build_sam2_hf, build_sam.build_sam2_video_predictor_hf):
            name, found, options = build(model_id, device="cpu", apply_postprocessing=False)
            assert name == build_sam.resolve_model_name(config)
            assert found == folder / file
            assert options == {"device": "cpu", "apply_postprocessing": False}


def test_from_pretrained_hands_out_what_the_builders_do(tmp_path):
    from sam2.build_sam import build_sam2
    from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS

    from sam2_jax import checkpoint

    built = build_sam2("sam2_nano", **SMALL)
    checkpoint.save(tmp_path / "m", checkpoint.Checkpoint(built.name, built.config, built.params))
    predictor = SAM2VideoPredictor.from_pretrained(str(tmp_path / "m"))
    assert isinstance(predictor, SAM2VideoPredictorVOS)
    assert predictor.model.outputs == ("torch" if HAS_TORCH else "numpy")
