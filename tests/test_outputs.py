import copy
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax import SAM2ImagePredictor, SAM2VideoPredictor
from sam2_jax.hydra import field_overrides, find_config
from sam2_jax.outputs import HostArray, hand_out
from sam2_jax.utils import amg
from tests import toy
from tests.parity.reference_scene import scene

FRAMES = scene(3, 40, 56)


@pytest.fixture(scope="module")
def video():
    return SAM2VideoPredictor(toy.model(), 1)


@pytest.fixture
def state(video):
    state = video.init_state(FRAMES)
    video.add_new_points_or_box(state, 0, 7, [[14, 18]], [1])
    return state


def test_arrays_answer_pytorchs_words_and_stay_numpy():
    x = hand_out(jnp.arange(6.0).reshape(2, 3), "numpy")
    assert x.flags.writeable
    x[x > 3] = -1
    kept = (x > 0).cpu().detach().numpy()
    assert type(kept) is np.ndarray
    assert kept.dtype == bool
    assert type(x[0] * 2) is HostArray
    assert type(x.sum()) is np.float32
    assert x.float() is not None
    assert x.bool().dtype == bool
    assert x.to("cuda", np.float16).dtype == np.float16
    assert x.to(device="cpu") is x
    assert x.permute(1, 0).shape == (3, 2)
    assert x.unsqueeze(0).shape == (1, 2, 3)


def test_device_arrays_are_handed_out_as_they_are():
    x = jnp.ones(3)
    assert hand_out(x, "jax") is x


def test_the_state_answers_the_originals_keys(state):
    assert (state["video_height"], state["video_width"], state["num_frames"]) == (40, 56, 3)
    assert state["obj_ids"] == [7]
    assert state["obj_id_to_idx"] == {7: 0}
    assert "images" in state
    assert state.get("nothing", 5) == 5
    assert tuple(state["images"].shape) == (3, 3, toy.SIZE, toy.SIZE)
    known = state["temp_output_dict_per_obj"][0]["cond_frame_outputs"][0]
    assert known["pred_masks"].shape == (1, 1, toy.SIZE // 4, toy.SIZE // 4)
    assert known["object_score_logits"].item() == pytest.approx(float(state.scores(0)[0][0]))
    with pytest.raises(TypeError, match="cannot be set"):
        state["obj_ids"] = [3]


def test_a_copy_of_the_state_goes_its_own_way_and_pickle_names_save_state(video, state):
    other = copy.deepcopy(state)
    video.reset_state(state)
    assert other["obj_ids"] == [7]
    assert state["obj_ids"] == []
    with pytest.raises(TypeError, match="save_state"):
        pickle.dumps(state)


def test_options_that_are_set_take_effect_and_sizes_are_refused():
    predictor = SAM2VideoPredictor(toy.model(), 1)
    predictor.fill_hole_area = 5
    assert predictor.model.session.fill_hole_area == 5
    predictor.binarize_mask_from_pts_for_mem_enc = True
    assert predictor.model.module.config.binarize_mask_from_pts_for_mem_enc
    with pytest.raises(AttributeError, match="build it with image_size=512"):
        predictor.image_size = 512
    assert not hasattr(predictor, "no_such_thing")


def test_unknown_keywords_are_dropped_with_a_warning():
    with pytest.warns(UserWarning, match="SAM2ImagePredictor does not know max_holes"):
        SAM2ImagePredictor(toy.model(), max_holes=3)
    with pytest.raises(TypeError, match="The model is int"):
        SAM2ImagePredictor(3)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("configs\\sam2.1\\sam2.1_hiera_b+.yaml", "sam2.1_hiera_base_plus"),
        ("sam2_1_hiera_l.yaml", "sam2.1_hiera_large"),
        ("configs/sam2/sam2_hiera_t.yaml", "sam2_hiera_tiny"),
    ],
)
def test_the_originals_spellings(name, model):
    assert find_config(name) == (model, {})


def test_a_config_of_another_project_is_not_taken_without_a_word():
    with pytest.warns(UserWarning, match="SAMURAI"):
        assert find_config("configs/samurai/sam2.1_hiera_t.yaml")[1] == {"memory_policy": "motion"}
    with pytest.warns(UserWarning, match="is not read"):
        find_config("configs/mine/sam2.1_hiera_t.yaml")


def test_overrides_are_taken_or_refused():
    assert field_overrides(
        [
            "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictorVOS",
            "++model.compile_image_encoder=True",
            "++model.fill_hole_area=8",
            "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.1",
            "++model.image_encoder.trunk.stages=[1,2,7,2]",
            "++model.memory_attention.num_layers=2",
        ]
    ) == {
        "fill_hole_area": 8,
        "dynamic_multimask_stability_delta": 0.1,
        "hiera": {"stages": (1, 2, 7, 2)},
        "memory_attention_layers": 2,
    }
    for refused in ("++model._target_=my.Model", "++model.image_encoder.neck.d_model=3"):
        with pytest.raises(ValueError, match="The override"):
            field_overrides([refused])


def test_run_lengths_and_boxes_of_masks():
    mask = np.zeros((2, 5, 7), bool)
    mask[0, 1:4, 2:6] = True
    rle = amg.mask_to_rle_pytorch(mask)[0]
    np.testing.assert_array_equal(amg.rle_to_mask(rle), mask[0])
    assert amg.area_from_rle(rle) == 12
    np.testing.assert_array_equal(amg.batched_mask_to_box(mask), [[2, 1, 5, 3], [0, 0, 0, 0]])
    mask[0, 2, 3] = False
    filled, is_changed = amg.remove_small_regions(mask[0], 2, "holes")
    assert is_changed
    assert filled.sum() == 12
