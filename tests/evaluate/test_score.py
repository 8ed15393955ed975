import importlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.masks import read_mask_png, write_palette_png
from sam2_jax.evaluate.layouts import open_masks
from sam2_jax.evaluate.metrics import boundary_accuracy, iou
from sam2_jax.evaluate.score import (
    ObjectScores,
    read_categories,
    score,
    summarise,
    summarise_seen_and_unseen,
)
from tests.evaluate import drawn

DAVIS = Path(__file__).resolve().parents[3] / "shared" / "data" / "davis2016"


@pytest.fixture
def folders(tmp_path):
    """The target, and predictions that equal it."""
    target = drawn.davis(tmp_path / "davis")
    return target, drawn.copy_of_masks(target, tmp_path / "out")


def scores_of(target, predictions, **options):
    target, predictions = open_masks(str(target)), open_masks(str(predictions))
    return score(target, predictions, target.keys, **options)


def change(folder, t, edit):
    path = folder / f"{t:05d}.png"
    write_palette_png(path, edit(read_mask_png(path)))


@pytest.mark.parametrize("convention", ["sav", "davis"])
def test_the_truth_is_perfect(folders, convention):
    found = scores_of(*folders, convention=convention)
    assert [(s.video, s.object_id) for s in found] == [
        (name, object_id) for name in ("bear", "camel") for object_id in (1, 2)
    ]
    assert {tuple(s.frame_names) for s in found} == {("00001", "00002", "00003")}
    total = summarise(found, convention)
    assert total["J&F"] == total["J"] == total["F"] == 100
    if convention == "davis":
        assert (total["J recall"], total["J decay"]) == (100, 0)


def test_scores_are_those_of_the_metrics(folders):
    target, predictions = folders
    change(predictions / "bear", 2, lambda ids: np.roll(ids, 5, 1))
    found = scores_of(target, predictions)[0]
    moved, at = np.roll(drawn.labels(2), 5, 1) == 1, drawn.labels(2) == 1
    np.testing.assert_allclose(found.j, [1, iou(moved, at), 1])
    np.testing.assert_allclose(found.f, [1, boundary_accuracy(moved, at), 1])
    assert found.row("sav")["J"] == pytest.approx(100 * (2 + iou(moved, at)) / 3)


def test_the_first_and_the_last_frame_count_if_asked_for(folders):
    target, predictions = folders
    for t in (0, 4):
        change(predictions / "bear", t, np.zeros_like)
    assert scores_of(target, predictions)[0].j.mean() == 1
    found = scores_of(target, predictions, skip_first_and_last=False)[0]
    assert found.j.tolist() == [0, 1, 1, 1, 0]


def test_conventions_differ_for_objects_that_appear_later(tmp_path):
    target = drawn.davis(tmp_path / "davis", first=(0, 2))
    predictions = drawn.copy_of_masks(target, tmp_path / "out")
    by_convention = {c: scores_of(target, predictions, convention=c)[:2] for c in ("sav", "davis")}
    assert [s.object_id for s in by_convention["sav"]] == [1, 2]
    assert by_convention["sav"][1].frame_names == ["00002", "00003"]  # from where it appears
    assert {s.object_id for s in by_convention["davis"]} == {1}  # of the first frame only


@pytest.mark.parametrize("convention", ["sav", "davis"])
def test_void_is_no_object(folders, convention):
    """255 beside other ids counts as background, in the target and in the prediction."""
    target, predictions = folders
    void = lambda ids: np.where(ids, ids, 255).astype(np.uint8)
    for t in range(drawn.NUM_FRAMES):
        change(target / "Annotations" / "480p" / "bear", t, void)
        change(predictions / "camel", t, void)
    found = scores_of(target, predictions, convention=convention)
    assert {s.object_id for s in found} == {1, 2}
    assert summarise(found, convention)["J&F"] == 100


def test_an_object_that_is_absent_where_it_would_be_scored_does_not_count(tmp_path):
    """The evaluator of SA-V stops with an error there."""
    drawn.write_objects(tmp_path / "target" / "a", first=(0, 4))
    drawn.write_objects(tmp_path / "out" / "a", first=(0, 4))
    assert [s.object_id for s in scores_of(tmp_path / "target", tmp_path / "out")] == [1]


def test_folders_of_objects_are_scored_on_their_own_frames(tmp_path):
    drawn.write_objects(tmp_path / "target" / "a", range(0, 5, 2))
    (tmp_path / "target" / "a" / "002" / "00000.png").unlink()
    drawn.write_objects(tmp_path / "out" / "a")
    found = scores_of(tmp_path / "target", tmp_path / "out", skip_first_and_last=False)
    assert [s.frame_names for s in found] == [["00000", "00002", "00004"], ["00002", "00004"]]
    assert summarise(found, "sav")["J&F"] == 100


def test_a_missing_frame_is_an_error(folders):
    target, predictions = folders
    (predictions / "camel" / "00000.png").unlink()  # is not scored
    scores_of(target, predictions)
    (predictions / "camel" / "00002.png").unlink()
    with pytest.raises(ValueError, match=r"camel: 1 of the masks to score .*: frame 00002"):
        scores_of(target, predictions)


def test_a_missing_object_folder_is_an_error(tmp_path):
    for place in ("target", "out"):
        drawn.write_objects(tmp_path / place / "a")
    for path in (tmp_path / "out" / "a" / "002").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"3 of the masks to score .* frame 00001 of object 2"):
        scores_of(tmp_path / "target", tmp_path / "out")


def test_another_size_is_an_error(folders):
    target, predictions = folders
    change(predictions / "camel", 2, lambda ids: ids[:30])
    with pytest.raises(
        ValueError, match="camel: the prediction of frame 00002 is 56x30, but the t"
    ):
        scores_of(target, predictions)


def test_ids_of_which_none_fits_are_an_error(folders, caplog):
    target, predictions = folders
    shift = lambda ids: np.where(ids, ids + 4, 0).astype(np.uint8)
    for t in range(drawn.NUM_FRAMES):
        change(predictions / "bear", t, shift)
    with caplog.at_level(logging.WARNING, "sam2_jax"):
        found = scores_of(target, predictions)
    assert [s.j.mean() for s in found] == [0, 0, 1, 1]
    assert "1 videos have predicted objects that are not in the target" in caplog.text
    for t in range(drawn.NUM_FRAMES):
        change(predictions / "camel", t, shift)
    with pytest.raises(ValueError, match=r"\[5, 6\] in the predictions and \[1, 2\] in the target"):
        scores_of(target, predictions)


def test_colours_are_no_ids(folders):
    target, predictions = folders
    path = predictions / "bear" / "00002.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"00002.png is a coloured RGB picture"):
        scores_of(target, predictions)


def test_too_few_frames_are_an_error(tmp_path):
    for place in ("target", "out"):
        drawn.write_masks(tmp_path / place / "a")
        for t in range(2, 5):
            (tmp_path / place / "a" / f"{t:05d}.png").unlink()
    with pytest.raises(ValueError, match="a has 2 annotated frames, of which none is left"):
        scores_of(tmp_path / "target", tmp_path / "out")


def test_seen_and_unseen_categories(tmp_path):
    meta = tmp_path / "meta.json"
    objects = {"1": {"category": "bear"}, "2": {"category": "yak"}}
    meta.write_text(json.dumps({"videos": {"a": {"objects": objects}}}))
    categories = read_categories(str(meta))
    assert categories == {("a", 1): "bear", ("a", 2): "yak"}
    made = lambda object_id, j, f: ObjectScores("a", object_id, ["0"], np.array([j]), np.array([f]))
    found = [made(1, 0.5, 0.7), made(2, 0.1, 0.3)]
    assert summarise_seen_and_unseen(found, categories, {"bear"}) == pytest.approx(
        {"G": 40, "J seen": 50, "F seen": 70, "J unseen": 10, "F unseen": 30}
    )
    meta.write_text('{"videos": []}')
    with pytest.raises(ValueError, match=r"meta.json is not a meta.json of YouTube-VOS"):
        read_categories(str(meta))


@pytest.mark.skipif(not DAVIS.is_dir(), reason=f"no real data in {DAVIS}")
def test_published_predictions_get_the_scores_of_the_original_evaluator():
    target = open_masks(str(DAVIS))
    found = score(target, open_masks(str(DAVIS / "predictions_osvos")), target.keys)
    rows = {s.video: [s.row("sav")[name] for name in ("J&F", "J", "F")] for s in found}
    expected = {
        "blackswan": [95.9, 94.3, 97.4],
        "car-shadow": [92.3, 92.8, 91.7],
        "drift-straight": [68.6, 66.5, 70.7],
        "horsejump-high": [82.3, 77.4, 87.2],
    }
    assert rows.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, atol=0.1)


def test_the_official_algorithm_agrees(folders):
    """The one that `scripts/benchmark_scores.py` times, with OpenCV."""
    pytest.importorskip("cv2")
    script = importlib.import_module("scripts.benchmark_scores")
    target, predictions = folders
    for t in (1, 2):
        change(predictions / "bear", t, lambda ids, t=t: np.roll(ids, 3 * t, 1))
    found = scores_of(target, predictions)
    for name in ("bear", "camel"):
        expected = script.score_video(str(target / "Annotations" / "480p"), str(predictions), name)
        rows = [s.row("sav") for s in found if s.video == name]
        np.testing.assert_allclose([(row["J"], row["F"]) for row in rows], expected)
