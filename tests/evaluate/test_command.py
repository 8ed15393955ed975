import argparse
import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from sam2_jax import SAM2VideoPredictor
from sam2_jax.cli import main
from sam2_jax.commands import evaluate
from sam2_jax.evaluate import vos
from tests import toy
from tests.evaluate import drawn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    with toy.counted_programs(toy.VIDEO_PROGRAMS + toy.IMAGE_PROGRAMS):
        yield


@pytest.fixture
def folders(tmp_path):
    root = drawn.davis(tmp_path / "davis")
    return str(root), str(drawn.copy_of_masks(root, tmp_path / "out"))


@pytest.fixture
def toy_models(monkeypatch):
    """Builders give the toy; the options that reached them are kept."""
    given = []

    def video(*args, apply_postprocessing, non_overlap_masks=False, **kwargs):
        given.append({"postprocessing": apply_postprocessing, "non_overlap": non_overlap_masks})
        return SAM2VideoPredictor(toy.model())

    monkeypatch.setattr("sam2_jax.build_sam2_video_predictor", video)
    monkeypatch.setattr("sam2_jax.build_sam2", lambda *args, **kwargs: toy.model())
    return given


def run(*arguments):
    assert main(["evaluate", *map(str, arguments)]) == 0


def test_scores_are_printed_and_written(folders, capsys):
    truth, out = folders
    run("score", "--truth", truth, "--predictions", out, "--convention", "davis")
    said = capsys.readouterr().out
    assert "DAVIS 2017: masks of 2 videos" in said
    assert "Global score       100.0" in said
    assert "frames/s" in said
    assert sorted(p.name for p in Path(out).iterdir() if p.is_file()) == [
        "results.csv",
        "results.html",
        "results.json",
        "results_davis.csv",
    ]
    document = json.loads((Path(out) / "results.json").read_text())
    assert document["total"]["J&F"] == 100
    assert [(o["sequence"], o["obj"]) for o in document["objects"]][:2] == [
        ("bear", 1),
        ("bear", 2),
    ]


def test_videos_without_predictions_are_left_out_or_an_error(folders, tmp_path, capsys):
    truth, out = folders
    (Path(out) / "camel").rename(tmp_path / "camel")
    results = tmp_path / "results"
    run("score", "--truth", truth, "--predictions", out, "--out", results)
    assert "1 of 2 videos have no predictions: camel; they are left out" in capsys.readouterr().out
    assert (results / "results.csv").read_text().count("\n") == 4
    assert main(["evaluate", "score", "--truth", truth, "--predictions", out, "--strict"]) == 2
    assert "1 of 2 videos have no predictions: camel" in capsys.readouterr().err


def test_youtube_vos_tells_seen_from_unseen(folders, tmp_path, capsys):
    truth, out = folders
    root = tmp_path / "youtube" / "valid"
    root.mkdir(parents=True)
    (Path(truth) / "Annotations" / "480p").rename(root / "Annotations")
    objects = {"1": {"category": "bear"}, "2": {"category": "yak"}}
    of = lambda objects: json.dumps({"videos": {"bear": {"objects": objects}}})
    (root / "meta.json").write_text(of(objects))
    run("score", "--truth", root, "--predictions", out)
    assert "seen and unseen categories are not told apart" in capsys.readouterr().out
    (root.parent / "train").mkdir()
    (root.parent / "train" / "meta.json").write_text(of({"1": objects["1"]}))
    run("score", "--truth", root, "--predictions", out)
    said = capsys.readouterr().out
    assert "J unseen" in said
    assert json.loads((Path(out) / "results.json").read_text())["total"]["G"] == 100


def test_vos_writes_masks_and_goes_on(folders, tmp_path, toy_models, capsys):
    davis, _ = folders
    out = tmp_path / "masks"
    options = ["--videos", davis, "--masks", davis, "--num-frames", 3, "--out", out]
    names = tmp_path / "names.txt"
    names.write_text("camel\n")
    run("vos", *options, "--video-list", names)
    assert "1 videos, 3 frames" in capsys.readouterr().out
    run("vos", *options)
    said = capsys.readouterr()
    assert "1 of 2 videos are in" in said.out
    assert "val.txt (--video-list takes one)" in said.out
    assert "propagate in video" in said.err
    assert toy_models[0] == {"postprocessing": False, "non_overlap": True}
    for name in ("bear", "camel"):
        with Image.open(out / name / "00002.png") as image:
            assert image.mode == "P"
            assert set(np.unique(np.asarray(image))) <= {0, 1, 2}
    assert main(["evaluate", "vos", *map(str, options), "--prompt", "box"]) == 2
    assert "made with prompt 'mask', now 'box'" in capsys.readouterr().err
    # What scores it is printed, and scores the frames that are there.
    scoring = ["score", "--target", davis, "--predictions", str(out)]
    assert f"next:   sam2-jax evaluate {' '.join(scoring)} --num-frames 3" in said.out
    run(*scoring, "--num-frames", 3)
    assert (
        "2 frames in" in capsys.readouterr().out
    )  # one a video: the first and the last do not count
    assert main(["evaluate", *scoring]) == 2
    assert "not in the predictions" in capsys.readouterr().err


def test_vos_knows_the_names_of_the_original(folders, tmp_path, toy_models):
    davis, _ = folders
    drawn.write_objects(tmp_path / "objects" / "bear", first=(0, 2))
    out = tmp_path / "masks"
    run(
        *["vos", "--sam2_cfg", "configs/sam2.1/sam2.1_hiera_t.yaml", "--sam2_checkpoint", "toy.pt"],
        *["--base_video_dir", davis],
        *["--input_mask_dir", tmp_path / "objects", "--output_mask_dir", out, "--num-frames", 3],
        *["--per_obj_png_file", "--track_object_appearing_later_in_video", "--score_thresh", "0.1"],
        *["--apply_postprocessing", "--use_vos_optimized_video_predictor"],
    )
    assert toy_models == [{"postprocessing": True, "non_overlap": False}]
    assert sorted(path.name for path in (out / "bear").iterdir()) == ["001", "002"]
    assert len(list((out / "bear" / "002").iterdir())) == 3


def test_interactive_draws_curves(folders, tmp_path, toy_models, capsys):
    davis, _ = folders
    names = tmp_path / "names.txt"
    names.write_text("camel\n")
    out = tmp_path / "clicks"
    options = ["--num-frames", 2, "--rounds", 2, "--clicks", 1, "--video-list", names]
    run("interactive", "--videos", davis, "--masks", davis, "--out", out, *options)
    assert "frames clicked on" in capsys.readouterr().out
    with open(out / "interactive.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["protocol"] for row in rows].count("offline") == 2
    assert "<polyline" in (out / "curve.svg").read_text()
    assert (out / "interactive.html").read_text().startswith("<!doctype html>")
    games = json.loads((out / "interactive.json").read_text())["objects"]["online"]
    assert [game["object_id"] for game in games] == [1, 2]


def test_images_are_scored(tmp_path, toy_models, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "ab":
        Image.fromarray(drawn.frame(0)).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(drawn.labels(0)).save(tmp_path / "labels" / f"{name}.png")
    out = tmp_path / "out"
    places = ["--images", tmp_path / "images", "--annotations", tmp_path / "labels"]
    run("images", *places, "--out", out, "--num-images", 1)
    assert "5 clicks" in capsys.readouterr().out
    document = json.loads((out / "images.json").read_text())
    assert list(document["IoU of images"]) == ["a"]
    assert len(document["IoU of images"]["a"]["1 click"]) == 2
    assert sorted(p.name for p in out.iterdir()) == [
        "curve.svg",
        "images.csv",
        "images.html",
        "images.json",
    ]


BAD = {
    "no kind": ([], "required: kind"),
    "missing target": (["score", "--truth", "none", "--predictions", "none"], "no such folder"),
    "no masks": (["score", "--truth", ".", "--predictions", "."], "holds no masks of videos but"),
    "convention": (
        ["score", "--truth", ".", "--predictions", ".", "--convention", "coco"],
        "invalid choice: 'coco'",
    ),
    "frames": (
        ["vos", "--videos", ".", "--masks", ".", "--out", "o", "--num-frames", "0"],
        "--num-frames is 0; at least 1",
    ),
    "images": (["images", "--images", "none", "--out", "o"], "no such folder, which should hold i"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_one_line(case, tmp_path, monkeypatch, capsys):
    arguments, message = BAD[case]
    (tmp_path / "notes.md").touch()
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["evaluate", *arguments])
    except SystemExit as stop:  # as argparse does
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.startswith("sam2-jax evaluate")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_predictions_of_other_matrices_do_not_go_into_the_same_folder(tmp_path):
    model = toy.model()
    zeroed = jax.tree.map(lambda x: x if x.ndim == 1 else 0 * x, model.params)
    other = dataclasses.replace(model, params=zeroed)
    vos.missing(str(tmp_path), ["a"], evaluate._settings(argparse.Namespace(), model))
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"made with weights '.*', now '.*'; name another folder"):
        vos.missing(str(tmp_path), ["a"], evaluate._settings(argparse.Namespace(), other))


def test_the_script_is_the_command():
    script = str(ROOT / "scripts" / "evaluate.py")
    answer = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    for kind in ("score", "vos", "interactive", "images"):
        assert f"  sam2-jax evaluate {kind} " in answer.stdout


@pytest.mark.parametrize("kind", ["score", "vos", "interactive", "images"])
def test_help_of_every_kind(kind, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", kind, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "--out" in said
    assert f"  sam2-jax evaluate {kind} --" in said
