import dataclasses
import functools
import json
import re

import chex
import jax
import numpy as np
import pytest

from checkpoints_convert.convert import main
from sam2_jax import SessionOptions, build_sam2, build_sam2_video_predictor, get_config
from sam2_jax.checkpoint import Checkpoint, load, save
from sam2_jax.checkpoint.torch_file import write_torch_file
from sam2_jax.config import PICTURE_OPTIONS, POSTPROCESSING_VIDEO, RELEASED, PictureOptions
from sam2_jax.model.sam2 import init_params
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.predict.mask_generator import SAM2AutomaticMaskGenerator
from sam2_jax.predict.video import SAM2VideoPredictor
from tests import toy
from tests.parity.reference_weights import NAMES, reference_weights

TINY = "sam2.1_hiera_tiny"


def test_what_a_run_changed_comes_back_with_its_weights(tmp_path):
    """Sizes too; what the caller says goes first."""
    changed = {"image_size": 64, "hidden_dim": 64, "hiera": {"embed_dim": 16}}
    config = get_config("sam2_nano", **changed)
    params = init_params(config, jax.random.key(0))
    save(tmp_path / "a", Checkpoint("sam2_nano", config, params))
    assert build_sam2(checkpoint=tmp_path / "a", apply_postprocessing=False).config == config
    assert build_sam2(checkpoint=tmp_path / "a", image_size=96).config.image_size == 96
    assert main(["--input", str(tmp_path / "a"), "--output", str(tmp_path / "b")]) == 0
    assert build_sam2(checkpoint=tmp_path / "b", apply_postprocessing=False).config == config


@pytest.fixture(scope="module")
def tensors():
    """Weights of the tiny model by their official names."""
    return reference_weights(NAMES / f"{TINY}.tsv")


@pytest.fixture(scope="module")
def official(tensors, tmp_path_factory):
    """A file as it is released."""
    path = tmp_path_factory.mktemp("official") / "sam2.1_hiera_tiny.pt"
    write_torch_file(path, tensors)
    return path


@pytest.fixture(scope="module")
def from_official(official):
    return build_sam2(TINY, official, image_size=64)


def test_official_weights_arrive_where_they_belong(from_official, tensors):
    assert from_official.name == TINY
    kernel = from_official.params["image_encoder"]["neck"]["convs_3"]["kernel"]
    expected = tensors["image_encoder.neck.convs.3.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    np.testing.assert_array_equal(from_official.params["no_obj_ptr"], tensors["no_obj_ptr"])
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(from_official.params))


def test_official_file_and_converted_folder_build_the_same(from_official, tmp_path):
    save(tmp_path / "tiny", Checkpoint(TINY, get_config(TINY), from_official.params))
    converted = build_sam2(checkpoint=tmp_path / "tiny", image_size=64)
    assert (converted.name, converted.config) == (from_official.name, from_official.config)
    jax.tree.map(np.testing.assert_array_equal, converted.params, from_official.params)
    for kind in (SAM2ImagePredictor, SAM2VideoPredictor):
        loaded = kind.from_pretrained(str(tmp_path / "tiny"), image_size=32)
        assert loaded.model.name == TINY
        assert loaded.model.config.image_size == 32
        assert loaded.model.config.dynamic_multimask_via_stability
    with pytest.raises(ValueError, match=r"holds sam2\.1_hiera_tiny, not sam2\.1_hiera_large"):
        build_sam2("sam2.1_hiera_large", tmp_path / "tiny")


def test_a_loaded_checkpoint_builds_the_same(official, from_official):
    loaded = load(official)
    built = build_sam2(TINY, loaded, image_size=64)
    assert (built.name, built.config) == (from_official.name, from_official.config)
    assert built.digest == from_official.digest == loaded.digest
    with pytest.raises(ValueError, match=r"holds sam2\.1_hiera_tiny, not sam2_hiera_tiny"):
        build_sam2("sam2_hiera_t", loaded)
    with pytest.raises(ValueError, match=r"the checkpoint: the tensors do not fit"):
        build_sam2(checkpoint=loaded, hidden_dim=64)


def test_the_digest_sees_matrices():
    """A checksum of vectors alone did not."""
    model = toy.model()
    zeroed = jax.tree.map(lambda x: x if x.ndim == 1 else 0 * x, model.params)
    assert dataclasses.replace(model, params=zeroed).digest != model.digest


def test_the_model_is_recognised_by_the_original_arguments(official, from_official):
    model = build_sam2(
        config_file="configs/sam2.1/sam2.1_hiera_t.yaml",
        ckpt_path=str(official),
        device="cuda",
        mode="eval",
        vos_optimized=True,
        image_size=64,
    )
    assert (model.name, model.config) == (TINY, from_official.config)


def test_a_checkpoint_of_another_model_is_refused_by_name(official):
    message = f"{official}: these are weights of {TINY}, not of sam2.1_hiera_small"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_sam2("sam2.1_hiera_small", official)
    with pytest.raises(ValueError, match=f"weights of {TINY}, not of sam2_hiera_tiny"):
        build_sam2("sam2_hiera_t.yaml", official)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        build_sam2(TINY, tmp_path / "missing.pt")


@pytest.fixture
def no_weights(monkeypatch):
    """Building without drawing random numbers."""
    monkeypatch.setattr("sam2_jax.build.init_params", lambda config, key: {})


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *((name, name) for name in RELEASED),
        ("sam2.1_hiera_b+.yaml", "sam2.1_hiera_base_plus"),
        ("configs/sam2/sam2_hiera_l.yaml", "sam2_hiera_large"),
        ("facebook/sam2-hiera-small", "sam2_hiera_small"),
    ],
)
def test_a_model_has_the_config_of_its_name(spelling, name):
    with pytest.warns(UserWarning, match="RANDOM weights"):
        model = build_sam2(spelling, apply_postprocessing=False)
    assert (model.name, model.config) == (name, get_config(name))
    assert model.config.image_size == 1024


def test_random_weights_are_announced_and_real():
    with pytest.warns(UserWarning, match=r"sam2\.1_hiera_tiny gets RANDOM weights.*checkpoint="):
        model = build_sam2(TINY)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(model.params))
    assert np.asarray(model.params["mask_decoder"]["iou_token"]).std() > 0.5


@pytest.mark.usefixtures("no_weights")
@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_post_processing_is_on_by_default():
    image, video = build_sam2(TINY).config, build_sam2_video_predictor(TINY).model.config
    assert image == get_config(TINY, dynamic_multimask_via_stability=True)
    assert video == get_config(TINY, **POSTPROCESSING_VIDEO)
    assert build_sam2_video_predictor(TINY).model.session == SessionOptions(fill_hole_area=8)
    bare = build_sam2_video_predictor(TINY, apply_postprocessing=False).model
    assert (bare.config, bare.session) == (get_config(TINY), SessionOptions())


@pytest.mark.usefixtures("no_weights")
@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_overrides_of_the_original_are_read():
    extra = [
        "++model.fill_hole_area=3",
        "++model.non_overlap_masks=true",
        "+model.sigmoid_scale_for_mem_enc=1.5e1",
        "model.memory_dtype= float32",
        "++model.image_size=512",
    ]
    model = build_sam2_video_predictor(TINY, hydra_overrides_extra=extra).model
    changed = {"sigmoid_scale_for_mem_enc": 15.0, "memory_dtype": "float32", "image_size": 512}
    assert model.config == get_config(TINY, **(POSTPROCESSING_VIDEO | changed))
    assert model.session == SessionOptions(fill_hole_area=3, non_overlap_masks=True)
    assert isinstance(model.session.fill_hole_area, int)
    field = build_sam2(TINY, add_all_frames_to_correct_as_cond=False).session
    assert not field.add_all_frames_to_correct_as_cond


@pytest.mark.usefixtures("no_weights")
@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_options_of_training_are_said_to_mean_nothing():
    with pytest.warns(UserWarning, match="remat: options of training"):
        assert build_sam2(TINY, remat="full", apply_postprocessing=False).config == get_config(TINY)


def test_folders_of_earlier_versions_hold_fields_that_moved(tmp_path):
    config = get_config("sam2_nano", image_size=64, hiera={"embed_dim": 16})
    save(tmp_path, Checkpoint("sam2_nano", config, init_params(config, jax.random.key(0))))
    description = json.loads((tmp_path / "model.json").read_text())
    overrides = description["overrides"]
    overrides |= {"remat": "full", "memory_attention_dropout": 0.1, "fill_hole_area": 5}
    overrides["hiera"]["drop_path_rate"] = 0.1
    (tmp_path / "model.json").write_text(json.dumps(description))
    assert load(tmp_path).config == config


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "sam3"}, r"'sam3'.*sam2\.1_hiera_tiny"),
        ({"fill_hole_areas": 8}, "'fill_hole_areas'.*fill_hole_area"),
        ({"num_maskmems": 8}, "'num_maskmems'.*num_maskmem"),
        ({"image_size": 100}, "100.*multiple of 32.*96"),
        ({"dtype": "float16"}, "'float16'.*'bfloat16'"),
        ({"hydra_overrides_extra": ["++model.image_size"]}, r"\+\+model\.field=value"),
        ({"hydra_overrides_extra": ["++model.sizes=3"]}, "'sizes'"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_sam2(**arguments)


def test_the_functional_core_is_at_hand():
    """Each function takes the parameters first, and goes through `jax.jit`."""
    model, clip = toy.model(), toy.clip(3)
    prompt, bank = toy.clicks(2), model.empty_bank(2, num_prompted=2, num_frames=3)
    frame = jax.tree.map(lambda x: x[0], clip)
    size = (2, toy.SIZE // 4, toy.SIZE // 4)
    for function, arguments, shape in (
        (model.begin, (bank, frame, prompt), size),
        (model.step, (bank, frame), size),
        (model.step, (bank, frame, prompt), size),
        (model.propagate, (bank, clip), (3, *size)),
        (functools.partial(model.track, num_prompted=2), (clip, prompt), (3, *size)),
    ):
        new_bank, answer = jax.eval_shape(jax.jit(function), model.params, *arguments)
        assert answer.masks.shape == shape
        chex.assert_trees_all_equal_shapes_and_dtypes(new_bank, bank)
    run = jax.jit(model.begin)
    new_bank, answer = run(model.params, bank, frame, prompt)
    assert new_bank.prompted_frames.tolist() == [[0, -1], [0, -1]]
    chex.assert_tree_all_finite(answer)


def test_the_bundled_model_has_its_own_options_for_pictures():
    plain, own = (
        toy.model(),
        dataclasses.replace(toy.model(), pictures=PICTURE_OPTIONS["sam2_nano"]),
    )
    for model, (iou, stability, area, is_kept) in (
        (plain, (0.8, 0.95, 0, False)),
        (own, (0.4, 0.6, 8, True)),
    ):
        generator, predictor = SAM2AutomaticMaskGenerator(model), SAM2ImagePredictor(model)
        found = generator.pred_iou_thresh, generator.stability_score_thresh
        assert found == (iou, stability)
        assert generator.min_mask_region_area == predictor._max_sprinkle_area == area
        assert predictor._max_hole_area == area
        assert predictor._keep_clicked == is_kept
    assert SAM2AutomaticMaskGenerator(own, pred_iou_thresh=0.9).pred_iou_thresh == 0.9
    assert not SAM2ImagePredictor(own, keep_clicked=False)._keep_clicked
    assert build_sam2().pictures == PICTURE_OPTIONS["sam2_nano"]
    assert build_sam2(apply_postprocessing=False).pictures == PictureOptions()
