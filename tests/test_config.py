import pytest

from sam2_jax.config import (
    MODELS,
    TRAINING_OPTIONS,
    HieraConfig,
    ModelConfig,
    SessionOptions,
    get_config,
    resolve_model_name,
    sort_overrides,
)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("sam2.1_hiera_tiny", "sam2.1_hiera_tiny"),
        ("sam2.1_hiera_t.yaml", "sam2.1_hiera_tiny"),
        ("configs/sam2.1/sam2.1_hiera_b+.yaml", "sam2.1_hiera_base_plus"),
        ("configs/sam2/sam2_hiera_l.yaml", "sam2_hiera_large"),
        ("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus"),
        ("facebook/sam2-hiera-small", "sam2_hiera_small"),
    ],
)
def test_spellings_of_the_original_are_understood(spelling, name):
    assert resolve_model_name(spelling) == name


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'sam3'.*sam2\.1_hiera_tiny"):
        resolve_model_name("sam3")


def test_an_unknown_field_lists_near_names():
    with pytest.raises(ValueError, match=r"num_maskmems.*num_maskmem"):
        get_config("sam2_hiera_tiny", num_maskmems=3)


def test_fields_are_sorted_by_what_they_are_fields_of():
    hiera = {"embed_dim": 16, "drop_path_rate": 0.1}
    given = {"image_size": 64, "hiera": hiera, "fill_hole_area": 3, "remat": "full"}
    found = sort_overrides(given)
    assert found.model == {"image_size": 64, "hiera": {"embed_dim": 16}}
    assert found.session == {"fill_hole_area": 3}
    assert found.training == {"drop_path_rate": 0.1, "remat": "full"}
    assert given["hiera"] is hiera
    assert "drop_path_rate" in hiera
    with pytest.raises(ValueError, match=r"'fill_hole_areas'.*fill_hole_area"):
        sort_overrides({"fill_hole_areas": 3})


def test_options_of_sessions_and_of_training_compile_nothing_anew():
    names = set(vars(ModelConfig()))
    assert not names & {*vars(SessionOptions()), *TRAINING_OPTIONS}
    assert not set(vars(HieraConfig())) & set(TRAINING_OPTIONS)


def test_fields_of_the_trunk_are_changed_one_by_one():
    changed = get_config("sam2_nano", hiera={"window_sizes": [8, 4, 4, 2]}).hiera
    assert changed.window_sizes == (8, 4, 4, 2)
    assert changed.embed_dim == get_config("sam2_nano").hiera.embed_dim
    with pytest.raises(ValueError, match=r"'window_size' in HieraConfig.*window_sizes"):
        get_config("sam2_nano", hiera={"window_size": 8})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 100),
        ("image_size", 0),
        ("hidden_dim", 100),
        ("memory_dim", 48),
        ("num_maskmem", -1),
        ("dtype", "float16"),
        ("memory_dtype", "int8"),
        ("directly_add_no_mem_embed", False),
        ("max_cond_frames_in_attn", 1),
        ("memory_temporal_stride_for_eval", 0),
        ("add_tpos_enc_to_obj_ptrs", False),
    ],
)
def test_impossible_values_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        ModelConfig(**{field: value})


def test_an_unknown_memory_policy_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'newest'.*'recent', 'quality', 'motion', 'distractor'"):
        get_config("sam2.1_hiera_tiny", memory_policy="newest")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_sizes", (8, 4)),
        ("stages", (1, 2, 0, 2)),
        ("num_heads", 5),
        ("global_attention_blocks", (5, 12)),
    ],
)
def test_trunks_that_cannot_be_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        HieraConfig(**{field: value})


@pytest.mark.parametrize("other", [{"memory_temporal_stride_for_eval": 2}, {"num_maskmem": 2}])
def test_a_policy_that_chooses_needs_room_and_no_stride(other):
    with pytest.raises(ValueError, match="memory_policy='quality'.*" + next(iter(other))):
        ModelConfig(memory_policy="quality", **other)


def test_every_released_model_has_the_published_memory():
    assert {config.memory_policy for config in MODELS.values()} == {"recent"}


def test_the_two_releases_differ_by_four_flags():
    old, new = MODELS["sam2_hiera_tiny"], MODELS["sam2.1_hiera_tiny"]
    flags = {name for name in vars(old) if getattr(old, name) != getattr(new, name)}
    assert flags == {
        "no_obj_embed_spatial",
        "add_tpos_enc_to_obj_ptrs",
        "proj_tpos_enc_in_obj_ptrs",
        "use_signed_tpos_enc_to_obj_ptrs",
    }
