import json
from pathlib import Path

import numpy as np
import pytest

from sam2_jax.checkpoint import Checkpoint, folder
from sam2_jax.config import get_config

PARAMS = {
    "image_encoder": {"blocks_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "no_mem_embed": np.float32([[[1, np.nan, np.inf, -0.0]]]),
}


def weights(params=PARAMS, name="sam2_hiera_tiny", **overrides):
    return Checkpoint(name, get_config(name, **overrides), params)


OTHER = weights({"a": np.zeros(2, np.float32)}, "sam2_hiera_small")


@pytest.fixture
def saved(tmp_path):
    folder.save(tmp_path / "deep" / "weights", weights())
    return tmp_path / "deep" / "weights"


def assert_equal(loaded):
    np.testing.assert_array_equal(
        loaded.params["image_encoder"]["blocks_0"]["kernel"],
        PARAMS["image_encoder"]["blocks_0"]["kernel"],
    )
    assert loaded.params["no_mem_embed"].tobytes() == PARAMS["no_mem_embed"].tobytes()
    assert type(loaded.params["no_mem_embed"]) is np.ndarray


def test_round_trip(saved):
    assert folder.is_folder(saved)
    loaded = folder.load(saved)
    assert (loaded.name, loaded.config) == ("sam2_hiera_tiny", get_config("sam2_hiera_tiny"))
    assert_equal(loaded)
    assert loaded.digest == weights().digest
    assert [path.name for path in saved.parent.iterdir()] == ["weights"]


def test_what_was_changed_in_the_configuration_is_remembered(saved):
    assert "overrides" not in json.loads((saved / "model.json").read_text())
    overrides = {"image_size": 64, "hiera": {"window_sizes": (8, 4, 4, 2)}}
    changed = weights(**overrides)
    assert changed.overrides == overrides
    folder.save(saved, changed)
    assert folder.load(saved).config == changed.config
    # The compute type is chosen where the model is run.
    folder.save(saved, weights(dtype="bfloat16"))
    assert folder.load(saved).config.dtype == "float32"


def test_relative_paths(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert_equal(folder.load("weights"))


def test_replaces_its_own_folder_and_empty_ones(saved, tmp_path):
    folder.save(saved, OTHER)
    loaded = folder.load(saved)
    assert loaded.name == "sam2_hiera_small"
    assert list(loaded.params) == ["a"]
    (tmp_path / "empty").mkdir()
    folder.save(tmp_path / "empty", weights())
    assert_equal(folder.load(tmp_path / "empty"))


def test_leaves_other_folders_and_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="something else"):
            folder.save(path, weights())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_save_keeps_the_old_folder(saved, monkeypatch):
    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        folder.save(saved, OTHER)
    assert_equal(folder.load(saved))
    assert [path.name for path in saved.parent.iterdir()] == ["weights"]


def test_foreign_folders(tmp_path):
    assert not folder.is_folder(tmp_path)
    with pytest.raises(ValueError, match=r"model\.json"):
        folder.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}'])
def test_damaged_description(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json"):
        folder.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "this release reads version 1"),
        ({"model": 3}, "this release reads version 1"),
        ({"overrides": [1]}, "this release reads version 1"),
        ({"model": "sam3"}, r"model\.json: .*Known models"),
        ({"overrides": {"image_sizes": 64}}, r"model\.json: .*image_size"),
        ({"overrides": {"image_size": "64"}}, r"model\.json: "),
    ],
)
def test_description_of_another_release(saved, change, message):
    description = saved / "model.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        folder.load(saved)


@pytest.mark.parametrize("pattern", ["_METADATA", "manifest.ocdbt", "d/*"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_parameters(tmp_path, pattern, damage):
    # One parameter: when several fail at once, TensorStore answers after Orbax has stopped
    # listening, and Python reports that as an unraisable exception.
    folder.save(tmp_path / "weights", weights({"a": np.arange(9, dtype=np.float32)}))
    for file in (tmp_path / "weights" / "params").glob(pattern):
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-20])
        else:
            file.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        folder.load(tmp_path / "weights")
