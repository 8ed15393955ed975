"""Commands never destroy what they read, and refuse before the work what could not be written after it."""

import argparse
import io
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sam2_jax
from checkpoints_convert import convert
from sam2_jax.checkpoint import bundled, folder, load
from sam2_jax.cli import main
from sam2_jax.commands import common, outputs, track, train
from sam2_jax.commands.outputs import File, Folder, check_outputs
from sam2_jax.config import MODELS
from sam2_jax.data.masks import write_palette_png
from sam2_jax.data.media import write_video
from tests.parity.reference_scene import scene

HEIGHT, WIDTH = 32, 48
POINT = ["--point", "12,14"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a clip, its frames, a mask and a benchmark, to work in."""
    frames = scene(2, HEIGHT, WIDTH)
    write_video(tmp_path / "clip.mp4", frames, 12)
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[8:20, 8:20] = 1
    for folder_name in ("frames", "V/v"):
        (tmp_path / folder_name).mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / folder_name / f"{t:05d}.png")
    (tmp_path / "A/v").mkdir(parents=True)
    for path in ("A/v/00000.png", "00000.png", "m.png"):
        write_palette_png(tmp_path / path, ids)
    Image.fromarray(frames[0]).save(tmp_path / "in.jpg")
    shutil.copy(tmp_path / "in.jpg", tmp_path / "overlay.png")
    os.symlink("clip.mp4", tmp_path / "link.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


REFUSED = {
    "video": (
        ["track", "clip.mp4", *POINT, "--out", "clip.mp4"],
        "--out is clip.mp4, which is read",
    ),
    "link": (["track", "clip.mp4", *POINT, "--out", "link.mp4"], "which is read as well"),
    "other spelling": (
        ["track", "clip.mp4", *POINT, "--out", "frames/../clip.mp4"],
        "which is read",
    ),
    "picture": (["image", "in.jpg", *POINT, "--out", "in.jpg"], "which is read"),
    "frames": (
        ["track", "frames", *POINT, "--masks", "frames"],
        "--masks is frames, which is read",
    ),
    "folder of frames": (["track", "frames", *POINT, "--object-masks", "."], "could be lost"),
    "prompt": (["track", "clip.mp4", "--mask", "00000.png", "--masks", "."], "could be lost"),
    "a frame": (
        ["track", "frames", *POINT, "--out", "frames/00000.mp4", "--masks", "frames"],
        "read",
    ),
    "everything": (["everything", "overlay.png", "--out", "."], "could be lost"),
    "true masks": (["evaluate", "vos", "--videos", "V", "--masks", "A", "--out", "A"], "is read"),
    "videos": (["evaluate", "vos", "--videos", "V", "--masks", "A", "--out", "V"], "is read"),
    "webm": (["track", "clip.mp4", *POINT, "--out", "o.webm"], "ends in .mp4"),
    "gif": (["track", "clip.mp4", *POINT, "--out", "o.gif"], "ends in .mp4"),
    "text": (["track", "clip.mp4", *POINT, "--rle", "o.txt"], "ends in .json"),
    "no suffix": (["image", "in.jpg", *POINT, "--out", "o"], "ends in .png or .jpg"),
    "jpg of ids": (["image", "in.jpg", *POINT, "--masks", "o.jpg"], "ends in .png"),
    "file for a folder": (["track", "clip.mp4", *POINT, "--masks", "m.png"], "m.png is a file"),
    "folder for a file": (
        ["track", "clip.mp4", *POINT, "--rle", "d.json"],
        "a folder; name a file",
    ),
    "twice": (["track", "clip.mp4", *POINT, "--masks", "o", "--boxes", "o/"], "are both o/"),
    "address": (["track", "https://host/a.mp4", *POINT], "is an address; download it"),
    "output as prompt": (["track", "clip.mp4", "--mask", "o"], "(--masks is for output)"),
    "no weights": (
        [
            "evaluate",
            "vos",
            "--videos",
            "V",
            "--masks",
            "A",
            "--out",
            "o",
            "--model",
            "sam2_hiera_large",
        ],
        "convert --download sam2_hiera_large",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_work_and_nothing_is_lost(case, place, capsys):
    (place / "d.json").mkdir()
    arguments, message = REFUSED[case]
    before = contents(place)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert contents(place) == before


def test_a_full_or_read_only_disk_is_noticed_before_the_work(place, monkeypatch):
    file = File("--out", "o.mp4", (".mp4",))
    check_outputs([file], ["clip.mp4"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="the disk is full, 1000 bytes are free"):
        check_outputs([file], [])

    def read_only(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match="nothing can be written: Read-only file system"):
        check_outputs([Folder("--masks", "new/folder", ("*.png",))], [])
    assert not (place / "new").exists()


def test_outputs_beside_what_is_read_are_fine(place, capsys):
    check_outputs(
        [File("--out", "frames_overlay.mp4", (".mp4",)), Folder("--masks", "o", ("*.png",))],
        ["frames"],
    )
    check_outputs([Folder("--masks", ".", ("*.png",))], ["clip.mp4"])
    assert "note: . is not empty; files of the same names are replaced" in capsys.readouterr().err


def test_a_converted_folder_is_replaced_but_not_what_lies_beside_it(place, capsys):
    toy = load(bundled.WEIGHTS)
    folder.save("toy", toy)
    folder.save("toy", toy)
    shutil.copy(bundled.WEIGHTS, "toy/x.safetensors")
    before = contents(place)
    arguments = ["convert", "--input", "toy/x.safetensors", "--out", "toy"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("sam2-jax convert: error: ")
    assert "toy/x.safetensors could be lost" in said
    with pytest.raises(FileExistsError, match="holds something else"):
        folder.save("toy", toy)
    assert contents(place) == before


def test_the_bundled_model_is_downloaded_from_the_package(place):
    assert convert.main(["--download", "sam2_nano", "--output", "nano.safetensors"]) == 0
    assert load("nano.safetensors").digest == bundled.load_bundled().digest


def test_help_names_the_models_and_the_version(capsys):
    for arguments, words in (
        (["--version"], [f"sam2-jax {sam2_jax.__version__}"]),
        (["image", "--help"], MODELS),
        (["convert", "--help"], ["sam2-jax convert --input"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        said = " ".join(capsys.readouterr().out.split())
        assert all(word in said for word in words)


def test_only_the_bundled_model_goes_without_a_checkpoint():
    args = argparse.Namespace(model="sam2_nano", checkpoint=None, image_size=64, dtype=None)
    builder = lambda model, checkpoint, **_: (model, checkpoint)
    assert common.build(args, builder) == ("sam2_nano", None)
    args.model = "configs/sam2.1/sam2.1_hiera_t.yaml"
    with pytest.raises(ValueError, match=r"--checkpoint sam2\.1_hiera_tiny\.pt"):
        common.build(args, builder)
    args.checkpoint = "x.pt"
    assert common.build(args, builder) == (args.model, "x.pt")


@pytest.mark.parametrize("size", [(64, 96), (96, 128)])
def test_raw_pixels_of_another_width_are_refused(size):
    frame = scene(1, *size)[0]
    track._check_row_length(frame)
    track._check_row_length(np.zeros_like(frame))
    wrong = frame.ravel()[: 50 * 70 * 3].reshape(50, 70, 3)
    with pytest.raises(
        ValueError, match=rf"--raw is 70x50, but the data looks like rows of {size[1]} pixels"
    ):
        track._check_row_length(wrong)


def test_a_raw_stream_of_the_wrong_width_is_refused(monkeypatch, capsys, tmp_path):
    data = scene(1, 64, 96)[0].tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    monkeypatch.chdir(tmp_path)
    assert main(["track", "-", "--raw", "70x50", *POINT, "--image-size", "64"]) == 2
    assert "rows of 96 pixels" in capsys.readouterr().err
    assert not os.listdir()


@pytest.mark.filterwarnings("ignore:the load_module")
def test_training_does_not_freeze_random_weights(place, capsys):
    config = os.path.join(os.path.dirname(sam2_jax.__file__), "..", "configs", "smoke.py")
    start = [f"--config={config}", "--workdir=run", "--config.dry_run"]
    assert train.main([*start, "--config.trainable=decoder"]) == 2
    assert "would be random" in capsys.readouterr().err
    assert train.main([*start, "--config.init_from=missing.pt"]) == 2
    assert "missing.pt" in capsys.readouterr().err
    for path, message in (("configs/nope.py", "is not there"), (str(place), "is a folder")):
        assert train.main([f"--config={path}"]) == 2
        assert f"--config={path} {message}" in capsys.readouterr().err
    assert not (place / "run").exists()


def test_a_number_in_a_name_is_no_frame(place, capsys):
    for t in (0, 1):
        os.rename(place / f"frames/{t:05d}.png", place / f"frames/{10 + 5 * t:05d}.png")
    assert main(["track", "frames", "--point", "12,14@10"]) == 2
    said = capsys.readouterr().err
    assert "there is no frame 10: the video has 2 frames" in said
    assert "00010 is frame 0: @ counts frames" in said
