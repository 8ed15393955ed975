import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert.convert import main
from sam2_jax.checkpoint import load, names, save
from sam2_jax.checkpoint.torch_file import read_torch_file, write_torch_file
from sam2_jax.config import RELEASED
from sam2_jax.model import sam2
from tests.parity.reference_weights import NAMES, read_shapes, reference_weights


@pytest.fixture(scope="module")
def tiny():
    """The reference weights of sam2.1_hiera_tiny."""
    return reference_weights(NAMES / "sam2.1_hiera_tiny.tsv")


@pytest.fixture(scope="module")
def official(tiny, tmp_path_factory):
    """The path of an official file."""
    path = tmp_path_factory.mktemp("official") / "sam2.1_hiera_tiny.pt"
    write_torch_file(path, dict(sorted(tiny.items())))
    return path


def convert(*argv):
    assert main([str(arg) for arg in argv]) == 0


def refused(capsys, *argv):
    assert main([str(arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m checkpoints_convert: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("model", RELEASED)
def test_model_has_the_official_tensors(model):
    expected = read_shapes(NAMES / f"{model}.tsv")
    assert names.official_shapes(sam2.param_shapes(RELEASED[model])) == expected


def test_torch_to_folder_to_torch_is_bit_identical(official, tmp_path, capsys):
    convert("--input", official, "--output", tmp_path / "tiny")
    assert "sam2.1_hiera_tiny: 471 tensors, 155.9 MB" in capsys.readouterr().out
    convert("--input", tmp_path / "tiny", "--output", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == official.read_bytes()


def test_safetensors_to_folder_to_safetensors_is_bit_identical(tiny, tmp_path):
    save_file(tiny, tmp_path / "model.safetensors", metadata={"format": "pt"})
    convert("--input", tmp_path / "model.safetensors", "--output", tmp_path / "tiny")
    convert("--input", tmp_path / "tiny", "--output", tmp_path / "back.safetensors")
    before, after = (tmp_path / "model.safetensors"), (tmp_path / "back.safetensors")
    assert before.read_bytes() == after.read_bytes()


def test_hugging_face_folder(tiny, tmp_path):
    save_file(names.to_hugging_face(tiny), tmp_path / "model.safetensors")
    convert("--input", tmp_path, "--output", tmp_path / "official.safetensors")
    back = load_file(tmp_path / "official.safetensors")
    assert back.keys() == tiny.keys()
    assert all(np.array_equal(back[name], tiny[name]) for name in tiny)


def test_image_only_hugging_face_file_names_what_is_missing(tiny, tmp_path):
    renamed = {
        name: array
        for name, array in names.to_hugging_face(tiny).items()
        if name.startswith(("vision_encoder.", "prompt_encoder.", "mask_decoder.", "no_memory_emb"))
    }
    save_file(renamed, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: .*memory_attention\.layers\.0.*no_obj_ptr"):
        load(tmp_path, "facebook/sam2.1-hiera-tiny")


def test_load_and_save(official, tiny, tmp_path):
    loaded = load(official)
    assert loaded.name == "sam2.1_hiera_tiny"
    assert all(array.dtype == np.float32 for array in jax.tree.leaves(loaded.params))
    kernel = loaded.params["memory_encoder"]["fuser_0"]["pwconv1"]["kernel"]
    np.testing.assert_array_equal(kernel, tiny["memory_encoder.fuser.layers.0.pwconv1.weight"].T)
    on_device = jax.tree.map(jax.numpy.asarray, loaded.params)
    save(tmp_path / "a.pt", dataclasses.replace(loaded, params=on_device))
    assert (tmp_path / "a.pt").read_bytes() == official.read_bytes()


def test_wrong_model_is_named(official, tmp_path, capsys):
    convert_as = ("--input", official, "--output", tmp_path / "x", "--model")
    for model in ("sam2_hiera_tiny", "sam2.1_hiera_small"):
        message = refused(capsys, *convert_as, model)
        assert f"these are weights of sam2.1_hiera_tiny, not of {model}" in message
    assert not (tmp_path / "x").exists()


def test_errors_are_one_line(official, tmp_path, capsys):
    missing = tmp_path / "nothing.pt"
    assert "nothing.pt" in refused(capsys, "--input", missing, "--output", tmp_path / "x")
    assert "needs --output" in refused(capsys, "--input", official)
    assert "--help" in refused(capsys)
    assert "Known models" in refused(capsys, "--download", "sam3_hiera_tiny")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    junk = tmp_path / "junk.safetensors"
    assert "safetensors" in refused(capsys, "--input", junk, "--output", tmp_path / "x")
    assert "model.json" in refused(capsys, "--input", tmp_path, "--output", tmp_path / "x")
    write_torch_file(tmp_path / "part.pt", {"no_mem_embed": np.zeros((1, 1, 256), np.float32)})
    part = tmp_path / "part.pt"
    assert "known models" in refused(capsys, "--input", part, "--output", tmp_path / "x")
    # A folder that holds something else is left alone.
    assert "something else" in refused(capsys, "--input", official, "--output", tmp_path)
    assert not (tmp_path / "x").exists()


def test_folder_of_another_model(official, tmp_path, capsys):
    convert("--input", official, "--output", tmp_path / "tiny")
    capsys.readouterr()
    message = refused(
        capsys,
        "--input",
        tmp_path / "tiny",
        "--output",
        tmp_path / "a.pt",
        "--model",
        "sam2_hiera_l",
    )
    assert "sam2.1_hiera_tiny" in message
    description = tmp_path / "tiny" / "model.json"
    changed = json.loads(description.read_text()) | {"model": "sam2_hiera_tiny"}
    description.write_text(json.dumps(changed))
    message = refused(capsys, "--input", tmp_path / "tiny", "--output", tmp_path / "a.pt")
    assert "3 unexpected" in message


def test_download_reuses_and_checks_a_file(official, tmp_path, capsys):
    there = tmp_path / "sam2.1_hiera_tiny.pt"
    there.write_bytes(official.read_bytes())
    digest = hashlib.sha256(there.read_bytes()).hexdigest()
    convert("--download", "sam2.1_hiera_t.yaml", "--output", tmp_path / "out", "--sha256", digest)
    assert digest in capsys.readouterr().out
    assert (tmp_path / "out" / "model.json").exists()
    message = refused(capsys, "--download", "sam2.1_hiera_t", "--output", there, "--sha256", "00")
    assert digest in message
    assert len(read_torch_file(there)) == 471
