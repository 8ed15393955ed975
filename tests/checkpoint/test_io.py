"""Every kind of checkpoint, with a small model: `tests/checkpoints_convert` has the released sizes."""

import dataclasses
import functools
import json

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sam2_jax.checkpoint import Checkpoint, digest, load, load_start, names, save
from sam2_jax.checkpoint.torch_file import write_torch_file
from sam2_jax.config import get_config
from sam2_jax.model.sam2 import init_params, param_shapes

NANO = "sam2_nano"
CHANGED = {
    "image_size": 64,
    "multimask_output_in_sam": False,
    "hiera": {"window_sizes": (8, 4, 4, 2)},
}


@pytest.fixture(scope="module")
def nano():
    config = get_config(NANO)
    return Checkpoint(NANO, config, jax.device_get(init_params(config, jax.random.key(0))))


@pytest.fixture(scope="module")
def tensors(nano):
    return names.to_state_dict(nano.params, nano.params)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
def test_what_is_saved_is_loaded_from_every_format(nano, tmp_path, name):
    save(tmp_path / "deep" / name, nano)
    loaded = load(tmp_path / "deep" / name)
    assert (loaded.name, loaded.config) == (NANO, get_config(NANO))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, nano.params)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(loaded.params))
    assert loaded.digest == nano.digest


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_files_are_for_whoever_may_read_others_here(nano, tmp_path, name):
    save(tmp_path / name, nano)
    (tmp_path / "other").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_digest_sees_every_value_shape_type_and_name():
    params = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.zeros(3)}
    changed = [
        {"a": {"kernel": 0 * params["a"]["kernel"]}, "b": params["b"]},
        {"a": {"kernel": params["a"]["kernel"].reshape(3, 2)}, "b": params["b"]},
        {"a": {"kernel": params["a"]["kernel"].view(np.int32)}, "b": params["b"]},
        {"a": {"weight": params["a"]["kernel"]}, "b": params["b"]},
        {"a": params["a"], "b": -params["b"]},
    ]
    assert len({digest(tree) for tree in [params, *changed]}) == 6
    turned = {"b": jax.numpy.asarray(params["b"], np.float32), "a": params["a"]}
    assert digest(turned) == digest(params | {"b": np.zeros(3, np.float32)})
    fortran = {"a": {"kernel": np.asfortranarray(params["a"]["kernel"])}, "b": params["b"]}
    assert digest(fortran) == digest(params)


def test_changes_of_the_configuration_stay_in_a_folder_and_are_told_for_a_file(nano, tmp_path):
    changed = dataclasses.replace(nano, config=nano.config.replace(**CHANGED))
    save(tmp_path / "a", changed)
    assert load(tmp_path / "a").config == changed.config
    assert load(tmp_path / "a", image_size=96).config.image_size == 96
    for name in ("a.pt", "a.safetensors"):
        with pytest.warns(
            UserWarning, match=rf"{name} holds weights only.*{NANO} with .*image_size=64"
        ):
            save(tmp_path / name, changed)
        assert load(tmp_path / name, **CHANGED).config == changed.config


def test_weights_must_fit_the_configuration(nano, tmp_path):
    narrow = get_config(NANO, hidden_dim=64)
    with pytest.raises(ValueError, match="do not fit"):
        save(tmp_path / "a", dataclasses.replace(nano, config=narrow))
    assert not list(tmp_path.iterdir())
    save(tmp_path / "a", nano)
    save(tmp_path / "a.pt", nano)
    for name in ("a", "a.pt"):
        path = tmp_path / name
        with pytest.raises(ValueError, match=rf"{path}: the tensors do not fit.*wrong shape"):
            load(path, NANO, hidden_dim=64)
        with pytest.raises(ValueError, match=rf"{path}: the tensors do not fit.*wrong shape"):
            load_start(path, NANO, narrow, dict)


def test_training_begins_with_any_checkpoint_in_the_configuration_of_the_experiment(nano, tmp_path):
    save(tmp_path / "a", nano)
    config = get_config(NANO, image_size=64)
    start = load_start(tmp_path / "a", NANO, config, dict)
    assert (start.config, start.digest) == (config, nano.digest)


def test_parts_of_the_start_are_drawn_anew_where_that_is_asked(nano, tmp_path):
    save(tmp_path / "a", nano)
    save(tmp_path / "a.pt", nano)
    longer = get_config(NANO, num_maskmem=5)  # another shape of maskmem_tpos_enc
    draw = functools.partial(init_params, longer, jax.random.key(7))
    for path in (tmp_path / "a", tmp_path / "a.pt"):
        with pytest.raises(ValueError, match="maskmem_tpos_enc"):
            load_start(path, NANO, longer, draw)
        start = load_start(path, NANO, longer, draw, r"^maskmem_tpos|^mask_decoder/iou_token$")
        for name, theirs in (("maskmem_tpos_enc", draw()), ("no_mem_embed", nano.params)):
            np.testing.assert_array_equal(start.params[name], theirs[name])
        ours, theirs = (params["mask_decoder"] for params in (start.params, nano.params))
        assert not np.array_equal(ours["iou_token"], theirs["iou_token"])
        np.testing.assert_array_equal(ours["mask_tokens"], theirs["mask_tokens"])


def test_training_begins_with_a_whole_trunk_or_none(nano, tensors, tmp_path):
    trunk = {name: x for name, x in tensors.items() if "trunk." in name}
    write_torch_file(tmp_path / "a.pt", trunk)
    zeros = jax.tree.map(np.zeros_like, nano.params)
    start = load_start(tmp_path / "a.pt", NANO, nano.config, lambda: zeros).params
    chex.assert_trees_all_equal(
        start.pop("image_encoder"),
        nano.params["image_encoder"] | {"neck": zeros["image_encoder"]["neck"]},
    )
    assert not any(np.any(x) for x in jax.tree.leaves(start))
    trunk.popitem()
    write_torch_file(tmp_path / "b.pt", trunk)
    with pytest.raises(ValueError, match=r"1 missing: image_encoder\.trunk"):
        load_start(tmp_path / "b.pt", NANO, nano.config, lambda: zeros)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "sam2_model.module.", "a.b."]
)
def test_names_of_wrapped_modules(nano, tensors, tmp_path, prefix):
    write_torch_file(tmp_path / "a.pt", {prefix + name: x for name, x in tensors.items()})
    assert load(tmp_path / "a.pt").digest == nano.digest
    inside = {name.replace("trunk.", "trunk._orig_mod.", 1): x for name, x in tensors.items()}
    write_torch_file(tmp_path / "b.pt", inside)
    assert load(tmp_path / "b.pt").digest == nano.digest


def test_one_tensor_under_two_names_is_refused(tensors, tmp_path):
    twice = tensors | {"module.no_mem_embed": tensors["no_mem_embed"]}
    write_torch_file(tmp_path / "a.pt", twice)
    with pytest.raises(ValueError, match=r"both with and without 'module\.'"):
        load(tmp_path / "a.pt")


def test_an_averaged_model(nano, tensors, tmp_path):
    averaged = {"n_averaged": np.int64(3)} | {"module." + name: x for name, x in tensors.items()}
    write_torch_file(tmp_path / "a.pt", averaged)
    assert load(tmp_path / "a.pt").digest == nano.digest


def test_a_prefix_that_not_all_names_have_is_refused(tensors, tmp_path):
    mixed = {"model." + name: x for name, x in tensors.items()} | {"loss.weight": np.zeros(3)}
    write_torch_file(tmp_path / "a.pt", mixed)
    with pytest.raises(
        ValueError, match=r"a\.pt: \d+ names begin with 'model\.' and 1 do not.*loss"
    ):
        load(tmp_path / "a.pt")


def test_weights_of_another_model_are_called_by_its_name(tensors, tmp_path):
    write_torch_file(tmp_path / "a.pt", tensors)
    with pytest.raises(ValueError, match=f"weights of {NANO}, not of sam2_hiera_large"):
        load(tmp_path / "a.pt", "sam2_hiera_l.yaml")
    tiny = get_config("sam2.1_hiera_tiny")
    with pytest.raises(ValueError, match=f"weights of {NANO}, not of sam2.1_hiera_tiny"):
        load_start(tmp_path / "a.pt", "sam2.1_hiera_tiny", tiny, dict)


def test_weights_for_images_alone_are_refused(tensors, tmp_path):
    memory = ("memory_", "maskmem", "mask_downsample", "no_", "obj_ptr")
    part = {name: x for name, x in tensors.items() if not name.startswith(memory)}
    save_file({n: np.ascontiguousarray(x) for n, x in part.items()}, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"part for videos is not in it.*missing: .*memory_encoder"
    ):
        load(tmp_path / "a.safetensors", NANO)


def test_nothing_is_left_over_silently(tensors, tmp_path):
    write_torch_file(tmp_path / "a.pt", tensors | {"head.weight": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"1 unexpected: head\.weight"):
        load(tmp_path / "a.pt")


@pytest.fixture
def shards(tensors, tmp_path):
    """A folder with the weights in two files and an index; and a function that writes another index."""
    half = len(tensors) // 2
    place = {
        name: f"model-0000{1 + (i >= half)}-of-00002.safetensors" for i, name in enumerate(tensors)
    }
    for file in set(place.values()):
        save_file(
            {n: np.ascontiguousarray(tensors[n]) for n in place if place[n] == file},
            tmp_path / file,
        )

    def index(**changes):
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": place | changes}))
        return path

    index()
    return tmp_path, index


def test_a_sharded_folder_and_its_index(nano, shards):
    folder, index = shards
    assert load(folder).digest == nano.digest
    assert load(index()).digest == nano.digest


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"no_mem_embed": "../model.safetensors"}, ValueError, "only files beside it"),
        ({"no_mem_embed": "/etc/passwd"}, ValueError, "only files beside it"),
        ({"no_mem_embed": "gone.safetensors"}, FileNotFoundError, "which is not there"),
        ({"more": "model-00001-of-00002.safetensors"}, ValueError, "does not hold what"),
        ({"no_mem_embed": 3}, ValueError, "is not an index"),
        ({"no_mem_embed": ["a"]}, ValueError, "is not an index"),
    ],
)
def test_wrong_indices_are_refused(shards, changes, error, message):
    folder, index = shards
    index(**changes)
    with pytest.raises(error, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\xff"])
def test_damaged_indices_are_refused(shards, text):
    folder, index = shards
    index().write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="is not an index"):
        load(folder)


def test_half_precision_is_widened(nano, tensors, tmp_path):
    save_file(
        {n: np.ascontiguousarray(x, np.float16) for n, x in tensors.items()},
        tmp_path / "a.safetensors",
    )
    assert {x.dtype for x in jax.tree.leaves(load(tmp_path / "a.safetensors").params)} == {
        np.dtype(np.float32)
    }


def test_what_is_not_there_is_named(tmp_path):
    for name in ("a.pt", "a.safetensors", "a", "runs/a@best"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint .*{name}"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"neither a model\.safetensors"):
        load(tmp_path)


def test_shapes_do_not_depend_on_the_size_of_images():
    small, large = (param_shapes(get_config(NANO, image_size=s)) for s in (64, 1024))
    assert jax.tree.map(lambda x: x.shape, small) == jax.tree.map(lambda x: x.shape, large)
