import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from sam2_jax import SAM2AutomaticMaskGenerator
from sam2_jax.cli import main
from sam2_jax.commands.everything import GENERATOR_OPTIONS
from sam2_jax.config import PictureOptions
from sam2_jax.data.masks import (
    boxes_from_masks,
    decode_rle,
    read_boxes,
    write_palette_png,
)
from sam2_jax.data.media import write_video
from sam2_jax.data.readers import object_masks
from sam2_jax.data.results import read_rle_file
from sam2_jax.data.videos import VideoFile
from tests.parity.reference_scene import scene, scene_masks

NUM_FRAMES, HEIGHT, WIDTH = 4, 32, 48
ROOT = Path(__file__).parents[1]
SMALL = ["--image-size", "64"]
FRAMES = scene(NUM_FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of inputs: good ones, and all kinds of bad ones."""
    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "good.mp4", FRAMES, 12)
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 4])
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        samples = np.zeros((1, 4096), np.float32)
        sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    Image.fromarray(FRAMES[0]).save(folder / "good.png")
    disc, box = scene_masks(1, HEIGHT, WIDTH)[0]
    ids = np.where(disc, 3, np.where(box, 5, 0)).astype(np.uint8)
    write_palette_png(folder / "ids.png", ids)
    write_palette_png(folder / "none.png", np.zeros_like(ids))
    write_palette_png(folder / "small.png", ids[:16])
    return folder


@pytest.fixture(scope="module")
def tracked(files, tmp_path_factory):
    """What one run wrote, and what it said."""
    out = tmp_path_factory.mktemp("out")
    prompts = ["--point", "12,14", "--box", "2:24,6,40,20@1", "--point", "2:30,12,0@1"]
    names = {"out": "a.mp4", "masks": "m", "object-masks": "o", "boxes": "b", "rle": "r.json"}
    outputs = [part for key, name in names.items() for part in (f"--{key}", str(out / name))]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the one about random weights is printed
        assert main(["track", str(files / "good.mp4"), *prompts, *outputs, *SMALL]) == 0
    return out


def read_ids(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_an_overlay_has_the_frames_of_the_video(tracked):
    with VideoFile(tracked / "a.mp4") as overlay:
        assert len(overlay) == NUM_FRAMES
        assert (overlay.height, overlay.width) == (HEIGHT, WIDTH)
        assert overlay.fps == pytest.approx(12)
        assert np.abs(overlay[0].astype(int) - FRAMES[0]).max() > 50  # something was drawn


def test_masks_are_palette_pictures_of_ids(tracked):
    names = sorted(path.name for path in (tracked / "m").iterdir())
    assert names == [f"{t:05d}.png" for t in range(NUM_FRAMES)]
    for name in names:
        ids = read_ids(tracked / "m" / name)
        assert ids.shape == (HEIGHT, WIDTH)
        assert set(np.unique(ids)) <= {0, 1, 2}


def test_run_lengths_agree_with_the_pictures(tracked):
    document = json.loads((tracked / "r.json").read_text())
    frames = document.pop("frames")
    expected = {"video": "good.mp4", "height": HEIGHT, "width": WIDTH, "fps": 12, "objects": [1, 2]}
    assert document.pop("times") == pytest.approx([t / 12 for t in range(NUM_FRAMES)], abs=1e-5)
    assert document == expected
    assert list(frames) == [str(t) for t in range(NUM_FRAMES)]
    for t, by_object in frames.items():
        assert list(by_object) == ["1", "2"]
        one, two = (decode_rle(by_object[n]) for n in ("1", "2"))
        ids = read_ids(tracked / "m" / f"{int(t):05d}.png")
        np.testing.assert_array_equal(ids, np.where(one, 1, 2 * two))  # the lowest id wins


def test_folders_of_objects_and_boxes_agree_with_the_run_lengths(tracked):
    frames = read_rle_file(tracked / "r.json")["frames"]
    boxes = {n: read_boxes(tracked / "b" / f"{n:03d}.txt") for n in (1, 2)}
    video = object_masks("o", str(tracked / "o"))
    for t, by_object in frames.items():
        masks = video.masks(t)
        assert list(masks) == [1, 2]
        for n, mask in masks.items():
            np.testing.assert_array_equal(mask, decode_rle(by_object[n]))
        found = [boxes[n][t] for n in masks]
        np.testing.assert_array_equal(found, boxes_from_masks(np.stack(list(masks.values()))))


@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_a_stream_on_standard_input_is_tracked(tmp_path, monkeypatch, capsys):
    """Prompts on later frames come when those do; a prompt after the end is told."""
    data = b"".join(frame.tobytes() for frame in FRAMES)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data + b"cut off")))
    prompts = ["--point", "12,14", "--box", "2:24,6,40,20@2", "--point", "30,12,0@9"]
    outputs = ["--rle", str(tmp_path / "r.json"), "--out", str(tmp_path / "a.mp4")]
    raw = ["--raw", f"{WIDTH}x{HEIGHT}", "--memory-policy", "quality"]
    assert main(["track", "-", *raw, *prompts, *outputs, *SMALL]) == 0
    document = read_rle_file(tmp_path / "r.json")
    assert (document["video"], document["objects"]) == ("stream", [1, 2])
    assert [list(ids) for ids in document["frames"].values()] == [[1], [1], [1, 2], [1, 2]]
    with VideoFile(tmp_path / "a.mp4") as overlay:
        assert len(overlay) == NUM_FRAMES
    said = capsys.readouterr()
    assert f"overlay: {tmp_path / 'a.mp4'}" in said.out
    assert "ended after 4 frames, before the prompts on [9]" in said.err


def test_a_film_comes_through_a_pipe(files, tmp_path):
    """As a user types it, with a container that needs no seeking."""
    with av.open(str(tmp_path / "film.ts"), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=12)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    track = f"{sys.executable} -m sam2_jax track - --point 12,14 --masks m --image-size 64"
    answer = subprocess.run(
        ["bash", "-c", f"cat film.ts | {track}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    assert len(list((tmp_path / "m").iterdir())) == NUM_FRAMES
    assert "masks: m" in answer.stdout


@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_frames_before_a_damaged_one_are_kept(files, tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{t:05d}.png")
    (folder / "00002.png").write_text("no picture")
    outputs = ["--masks", str(tmp_path / "m"), "--out", str(tmp_path / "a.mp4")]
    assert main(["track", str(folder), *POINT, *outputs, *SMALL]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "00002.png is not a picture" in error
    assert "The 2 frames before it are kept" in error
    assert len(list((tmp_path / "m").iterdir())) == 2
    with VideoFile(tmp_path / "a.mp4") as overlay:
        assert len(overlay) == 2


@pytest.mark.filterwarnings("default:No checkpoint")
def test_ids_of_a_mask_are_tracked_as_they_are(tracked, files, tmp_path):
    """Also: the first frames alone."""
    outputs = ["--rle", str(tmp_path / "r.json"), "--masks", str(tmp_path / "m")]
    prompts = ["--mask", str(files / "ids.png"), "--num-frames", "1"]
    assert main(["track", str(files / "good.mp4"), *prompts, *outputs, *SMALL]) == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["objects"] == [3, 5]
    assert list(document["frames"]) == ["0"]
    given, answer = (read_ids(path) for path in (files / "ids.png", tmp_path / "m" / "00000.png"))
    for n in (3, 5):
        assert ((given == n) & (answer == n)).sum() / ((given == n) | (answer == n)).sum() > 0.8
    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_a_picture_is_segmented(files, tmp_path, capsys):
    out, masks = tmp_path / "overlay.png", tmp_path / "masks.png"
    prompts = [
        "--point",
        "12,14",
        "--box",
        "7:24,6,40,20",
        "--out",
        str(out),
        "--masks",
        str(masks),
    ]
    assert main(["image", str(files / "good.png"), *prompts, *SMALL]) == 0
    with Image.open(out) as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (WIDTH, HEIGHT))
    assert set(np.unique(read_ids(masks))) <= {0, 1, 7}
    said = capsys.readouterr().out
    for part in ("object 1: predicted IoU 0.", "object 7:", str(out), str(masks)):
        assert part in said


EVERYTHING = ["--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_everything_in_a_picture_is_written(files, tmp_path, capsys):
    out = tmp_path / "new"
    # Random weights answer every click alike: only masks with the very same box are dropped.
    options = ["--out", str(out), *EVERYTHING, "--box-nms-thresh", "0.999", "--use-m2m"]
    assert main(["everything", str(files / "good.png"), *options, *SMALL]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["masks.csv", "masks.json", "overlay.png"]
    with Image.open(out / "overlay.png") as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (WIDTH, HEIGHT))
        assert np.abs(np.asarray(overlay).astype(int) - FRAMES[0]).max() > 50
    document = json.loads((out / "masks.json").read_text())
    annotations = document.pop("annotations")
    assert document == {"image": "good.png", "height": HEIGHT, "width": WIDTH}
    with open(out / "masks.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(annotations) > 0
    for i, (row, annotation) in enumerate(zip(rows, annotations, strict=True)):
        assert int(row["id"]) == annotation["id"] == i + 1
        mask = decode_rle(annotation["segmentation"])
        assert mask.shape == (HEIGHT, WIDTH)
        assert int(row["area"]) == annotation["area"] == mask.sum()
        assert [int(row[name]) for name in ("x", "y", "width", "height")] == annotation["bbox"]
        assert float(row["predicted_iou"]) == pytest.approx(annotation["predicted_iou"], abs=1e-4)
        point = [float(row["point_x"]), float(row["point_y"])]
        assert point == pytest.approx(annotation["point_coords"][0], abs=0.01)
        assert annotation["crop_box"] == [0, 0, WIDTH, HEIGHT]
    said = capsys.readouterr()
    assert f"masks: {len(annotations)}, covering" in said.out
    assert "segment everything" in said.err
    assert "9/9" in said.err


@pytest.mark.filterwarnings("ignore:No checkpoint")
def test_finding_nothing_is_no_error(files, tmp_path, capsys):
    options = ["--out", str(tmp_path), *EVERYTHING, "--pred-iou-thresh", "1"]
    assert main(["everything", str(files / "good.png"), *options, *SMALL]) == 0
    assert json.loads((tmp_path / "masks.json").read_text())["annotations"] == []
    assert (tmp_path / "masks.csv").read_text().count("\n") == 1
    with Image.open(tmp_path / "overlay.png") as overlay:
        np.testing.assert_array_equal(overlay, FRAMES[0])
    assert "0 masks were found: lower --pred-iou-thresh" in capsys.readouterr().out


def test_options_of_everything_are_those_of_the_generator():
    fields = {field.name: field for field in dataclasses.fields(SAM2AutomaticMaskGenerator)}
    for name, kind, help in GENERATOR_OPTIONS:
        default = getattr(PictureOptions(), name, fields[name].default)
        assert kind is type(default)
        assert f"default {default:.3g}" in help


POINT = ["--point", "12,14"]
BAD = {
    "missing file": (["track", "missing.mp4", *POINT], "missing.mp4"),
    "text": (["track", "text.mp4", *POINT], "text.mp4"),
    "sound": (["track", "sound.mp4", *POINT], "sound.mp4 has no video stream"),
    "cut": (["track", "cut.mp4", *POINT], "cut.mp4"),
    "a picture that is none": (["image", "text.mp4", *POINT], "text.mp4 is not a picture"),
    "missing picture": (["image", "missing.png", *POINT], "missing.png"),
    "point outside": (
        ["track", "good.mp4", "--point", "49,2"],
        "The point (49, 2) is outside of the picture, 48 x 32 pixels",
    ),
    "box outside": (["image", "good.png", "--box", "1,32,30,33"], "box (1, 32, 30, 33) is outside"),
    "mask syntax": (["image", "good.png", "--mask", ""], "'' is not of the form [OBJECT:]FILE"),
    "point syntax": (["track", "good.mp4", "--point", "12;14"], "'12;14' is not of the form"),
    "one number": (["image", "good.png", "--point", "12"], "[OBJECT:]X,Y[,LABEL][@FRAME]"),
    "label": (["track", "good.mp4", "--point", "1,2,3"], "1 object or 0 background"),
    "no prompt": (["track", "good.mp4"], "no prompt was given: add --point"),
    "no prompt for a picture": (["image", "good.png"], "no prompt was given"),
    "two boxes": (
        ["track", "good.mp4", "--box", "1,2,3,4", "--box", "5,6,7,8"],
        "object 1 has several boxes",
    ),
    "frame outside": (
        ["track", "good.mp4", "--point", "1,2@4"],
        "there is no frame 4: the video has 4 frames",
    ),
    "frame left out": (
        ["track", "good.mp4", "--point", "1,2@2", "--num-frames", "2"],
        "there is no frame 2: the video has 2 frames",
    ),
    "frame of a picture": (["image", "good.png", "--point", "1,2@3"], "leave out @3"),
    "neither video nor camera": (["track", *POINT], "one of the arguments video --camera"),
    "missing camera": (["track", "--camera", "97", *POINT], "video97"),
    "raw size": (["track", "-", "--raw", "48,32", *POINT], "'48,32' is not of the form WIDTHxH"),
    "raw file": (["track", "good.mp4", "--raw", "48x32", *POINT], "--raw describes standard"),
    "memory policy": (
        ["track", "good.mp4", *POINT, "--memory-policy", "best"],
        "'recent', 'quality', 'motion', 'distractor'",
    ),
    "no frames": (["track", "good.mp4", *POINT, "--num-frames", "0"], "--num-frames is 0"),
    "empty mask": (["track", "good.mp4", "--mask", "none.png"], "none.png has no object"),
    "size of a mask": (["track", "good.mp4", "--mask", "small.png"], "48 x 16 pixels"),
    "mask for a picture": (
        ["image", "good.png", "--mask", "ids.png"],
        "a mask can only prompt a video",
    ),
    "unknown model": (
        ["track", "good.mp4", *POINT, "--model", "sam3", "--masks", "masks"],
        "Unknown model 'sam3'",
    ),
    "model without weights": (
        ["image", "good.png", *POINT, "--model", "sam2.1_hiera_tiny"],
        "sam2-jax convert --download sam2.1_hiera_tiny",
    ),
    "missing checkpoint": (["image", "good.png", *POINT, "--checkpoint", "x.pt"], "x.pt"),
    "image size": (["track", "good.mp4", *POINT, "--image-size", "100"], "multiple of 32"),
    "dtype": (["track", "good.mp4", *POINT, "--dtype", "int8"], "invalid choice: 'int8'"),
    "folder of --out": (["track", "good.mp4", *POINT, "--out", "no/a.mp4"], "no such folder: no"),
    "folder of --rle": (["track", "good.mp4", *POINT, "--rle", "no/a.json"], "no such folder: no"),
    "folder of a picture": (["image", "good.png", *POINT, "--out", "no/a.png"], "no such folder"),
    "folder of its masks": (["image", "good.png", *POINT, "--masks", "no/a.png"], "no such folder"),
    "picture of everything": (["everything", "missing.png"], "no such file: missing.png"),
    "everything in text": (["everything", "text.mp4"], "text.mp4 is not a picture"),
    "file for a folder": (["everything", "good.png", "--out", "ids.png"], "ids.png is a file"),
    "clicks of everything": (
        ["everything", "good.png", "--points-per-side", "many"],
        "invalid int value: 'many'",
    ),
    "object 0": (["track", "good.mp4", "--point", "0:1,2", "--masks", "m"], "[0], but the pixels"),
    "object 65535": (
        ["image", "good.png", "--point", "65535:1,2", "--masks", "m.png"],
        "hold 1 to 65534",
    ),
    "unknown argument": (["track", "good.mp4", "--colour", "red"], "unrecognized arguments"),
    "unknown command": (["tracks"], "invalid choice: 'tracks'"),
    "no command": ([], "required: command"),
}


def assert_one_line(error, message):
    assert error.startswith("sam2-jax")
    assert ": error: " in error
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert message in error


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_one_line_and_leaves_nothing_behind(case, files, monkeypatch, capsys):
    arguments, message = BAD[case]
    monkeypatch.chdir(files)
    before = sorted(os.listdir())
    try:
        status = main(arguments)
    except SystemExit as stop:  # as argparse does
        status = stop.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert_one_line(said.err, message)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("case", ["point outside", "point syntax"])
def test_the_module_is_the_command(case, files):
    arguments, message = BAD[case]
    answer = subprocess.run(
        [sys.executable, "-m", "sam2_jax", *arguments],
        cwd=files,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert_one_line(answer.stderr, message)


@pytest.mark.parametrize("command", ["track", "image", "everything", "evaluate", "bench", "serve"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"  sam2-jax {command} " in capsys.readouterr().out
