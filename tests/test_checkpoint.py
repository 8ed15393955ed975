import json
from pathlib import Path

import numpy as np
import pytest

from sam2_jax.checkpoint import is_params_folder, load_params, save_params, saved_overrides

PARAMS = {
    "image_encoder": {"blocks_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "no_mem_embed": np.float32([[[1, np.nan, np.inf, -0.0]]]),
}


@pytest.fixture
def folder(tmp_path):
    save_params(tmp_path / "deep" / "weights", "sam2_hiera_tiny", PARAMS)
    return tmp_path / "deep" / "weights"


def assert_equal(params):
    np.testing.assert_array_equal(
        params["image_encoder"]["blocks_0"]["kernel"], PARAMS["image_encoder"]["blocks_0"]["kernel"]
    )
    assert params["no_mem_embed"].tobytes() == PARAMS["no_mem_embed"].tobytes()
    assert type(params["no_mem_embed"]) is np.ndarray


def test_round_trip(folder):
    assert is_params_folder(folder)
    model, params = load_params(folder)
    assert model == "sam2_hiera_tiny"
    assert_equal(params)
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]


def test_overrides_are_remembered(folder, tmp_path):
    assert saved_overrides(folder) == {}
    assert saved_overrides(tmp_path) == {}
    overrides = {"image_size": 64, "hiera": {"window_sizes": [8, 4, 4, 2]}}
    save_params(folder, "sam2_hiera_tiny", PARAMS, overrides)
    assert saved_overrides(folder) == overrides
    assert load_params(folder)[0] == "sam2_hiera_tiny"


def test_relative_paths(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert_equal(load_params("weights")[1])


def test_replaces_its_own_folder_and_empty_ones(folder, tmp_path):
    save_params(folder, "sam2_hiera_small", {"a": np.zeros(2, np.float32)})
    model, params = load_params(folder)
    assert model == "sam2_hiera_small"
    assert list(params) == ["a"]
    (tmp_path / "empty").mkdir()
    save_params(tmp_path / "empty", "sam2_hiera_tiny", PARAMS)
    assert_equal(load_params(tmp_path / "empty")[1])


def test_leaves_other_folders_and_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="something else"):
            save_params(path, "sam2_hiera_tiny", PARAMS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_save_keeps_the_old_folder(folder, monkeypatch):
    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_params(folder, "sam2_hiera_small", {"a": np.zeros(2, np.float32)})
    assert_equal(load_params(folder)[1])
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]


def test_missing_and_foreign_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_params(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"model\.json"):
        load_params(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}'])
def test_damaged_description(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json"):
        load_params(folder)


@pytest.mark.parametrize("change", [{"version": 2}, {"model": 3}])
def test_description_of_another_release(folder, change):
    description = folder / "model.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    with pytest.raises(ValueError, match="this release reads version 1"):
        load_params(folder)


@pytest.mark.parametrize("pattern", ["_METADATA", "manifest.ocdbt", "d/*"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_parameters(tmp_path, pattern, damage):
    # One parameter: when several fail at once, TensorStore answers after Orbax has stopped
    # listening, and Python reports that as an unraisable exception.
    save_params(tmp_path / "weights", "sam2_hiera_tiny", {"a": np.arange(9, dtype=np.float32)})
    for file in (tmp_path / "weights" / "params").glob(pattern):
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-20])
        else:
            file.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        load_params(tmp_path / "weights")
