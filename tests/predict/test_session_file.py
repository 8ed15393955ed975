"""A session on disk: goes on with the same numbers, and never trusts the file."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sam2_jax import SAM2VideoPredictor
from sam2_jax.predict import session_file
from tests import toy
from tests.parity.reference_scene import scene, scene_masks

FRAMES = scene(6, 40, 56)
CLICK = np.array([[14.0, 18.0]])


@pytest.fixture(scope="module")
def model():
    return toy.model()


@pytest.fixture(scope="module")
def predictor(model):
    return SAM2VideoPredictor(model, 2)


@pytest.fixture(scope="module")
def session(predictor):
    """Points, a mask, a box, a correction and a pending prompt, forwards and backwards."""
    state = predictor.init_state(FRAMES, keep_frames=5)
    predictor.add_new_points_or_box(state, 1, 3, CLICK, [1])
    predictor.add_new_mask(state, 2, "cup", scene_masks(3, 40, 56)[2, 1])
    for reverse in (False, True):
        list(predictor.propagate_in_video(state, 2, reverse=reverse))
    predictor.add_new_points_or_box(state, 4, 3, CLICK, [0], clear_old_points=False)
    predictor.add_new_points_or_box(state, 0, 8, box=[5, 5, 20, 30])
    return state


@pytest.fixture
def path(predictor, session, tmp_path):
    predictor.save_state(session, tmp_path / "session.zip")
    assert [file.name for file in tmp_path.iterdir()] == ["session.zip"]
    return tmp_path / "session.zip"


CONTINUE = """
import sys, warnings
import numpy as np
from sam2_jax import SAM2VideoPredictor
from tests import toy
from tests.predict.test_session_file import FRAMES, go_on
predictor = SAM2VideoPredictor(toy.model(), 2)
np.savez(sys.argv[2], *go_on(predictor, predictor.load_state(sys.argv[1], FRAMES)))
"""


def go_on(predictor, state):
    predictor.add_new_points_or_box(state, 3, 3, CLICK, [1])
    predictor.clear_all_prompts_in_frame(state, 2, "cup")
    predictor.add_new_points_or_box(state, 5, "cup", CLICK, [1])
    forwards = [masks for _, _, masks in predictor.propagate_in_video(state)]
    return forwards + [m for _, _, m in predictor.propagate_in_video(state, 5, reverse=True)]


def test_it_goes_on_in_another_process_as_if_nothing_had_happened(predictor, path, tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CONTINUE, str(path), str(tmp_path / "other.npz")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    here = go_on(predictor, predictor.load_state(path, FRAMES))
    with np.load(tmp_path / "other.npz") as other:
        there = [other[name] for name in other.files]
    assert len(here) == len(there) == 12
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


def test_everything_is_in_it(predictor, session, path, tmp_path):
    loaded = predictor.load_state(path, FRAMES, memory_limit=0, spill_folder=tmp_path)
    assert loaded.obj_ids == session.obj_ids == [3, "cup", 8]
    assert loaded.keep_frames == 5
    assert any(tmp_path.rglob("*.npy"))
    predictor.save_state(loaded, tmp_path / "again.zip")
    with zipfile.ZipFile(path) as first, zipfile.ZipFile(tmp_path / "again.zip") as second:
        assert first.namelist() == second.namelist()
        for name in first.namelist():
            assert first.read(name) == second.read(name)


def test_a_video_file_is_found_again(predictor, tmp_path):
    from sam2_jax.data.media import write_video

    video, path = tmp_path / "clip.mp4", tmp_path / "session.zip"
    write_video(video, FRAMES, 24)
    state = predictor.init_state(video)
    predictor.add_new_points_or_box(state, 0, 1, CLICK, [1])
    predictor.save_state(state, path)
    assert predictor.load_state(path).num_frames == 6
    write_video(video, FRAMES[:4], 24)
    with pytest.raises(ValueError, match=r"\(56, 40, 6\); this one has \(56, 40, 4\)"):
        predictor.load_state(path)
    video.unlink()
    with pytest.raises(FileNotFoundError, match=r"clip.mp4"):
        predictor.load_state(path)


def test_frames_in_memory_are_asked_for(predictor, path):
    with pytest.raises(ValueError, match="pass them as video_path"):
        predictor.load_state(path)


@pytest.mark.parametrize("other", [{"num_maskmem": 5}, {"image_size": 96}, {}])
def test_another_model_is_refused(model, path, other):
    import dataclasses

    import jax

    # Matrices alone are enough.
    tuned = jax.tree.map(lambda x: x if x.ndim == 1 else x + 1, model.params)
    params = model.params if other else tuned
    changed = dataclasses.replace(model, config=model.config.replace(**other), params=params)
    with pytest.raises(
        ValueError, match=r"toy at 64 px; the predictor has toy at .* other weights"
    ):
        SAM2VideoPredictor(changed).load_state(path, FRAMES)


def rewritten(path, change):
    """The file with its members changed by `change(name, bytes) -> bytes or None`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)


def array(value, **kwargs):
    file = io.BytesIO()
    np.lib.format.write_array(file, value, **kwargs)
    return file.getvalue()


def edited(**fields):
    return lambda name, data: (
        json.dumps(json.loads(data) | fields) if name == "session.json" else data
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda name, data: None if name == "session.json" else data,
        lambda name, data: None if name == "3.npy" else data,
        lambda name, data: data[:-1] if name == "3.npy" else data,
        lambda name, data: array(np.zeros((1 << 12,))) if name == "3.npy" else data,
        lambda name, data: array(np.array([print]), allow_pickle=True) if name == "0.npy" else data,
        edited(version=1),
        edited(objects=3),
        edited(objects=[{}]),
        edited(video={}),
        lambda name, data: b"{" if name == "session.json" else data,
    ],
)
def test_damage_is_one_clear_error(predictor, path, change):
    rewritten(path, change)
    with pytest.raises(ValueError, match="is not a session that this version can read, or is dam"):
        predictor.load_state(path, FRAMES)


def test_other_files_are_refused(predictor, path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        predictor.load_state(tmp_path / "missing.zip", FRAMES)
    data = path.read_bytes()
    for content in (b"", b"hello", data[: len(data) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a session"):
            predictor.load_state(path, FRAMES)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("session.json", "0" * 1000)
    with pytest.raises(ValueError, match="compressed members"):
        predictor.load_state(path, FRAMES)


def test_a_full_disk_leaves_the_older_file(predictor, session, path, monkeypatch):
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session_file.np.lib.format, "write_array", full)
    with pytest.raises(OSError, match=r"No space left on device: .*session.zip"):
        predictor.save_state(session, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["session.zip"]
