import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from sam2_jax.evaluate import report
from sam2_jax.evaluate.charts import line_chart
from sam2_jax.evaluate.layouts import open_masks, open_videos
from sam2_jax.evaluate.score import ObjectScores, score, summarise
from tests.evaluate import drawn


def made(video, object_id, j):
    return ObjectScores(
        video, object_id, [f"{t:05d}" for t in range(len(j))], np.array(j), np.array(j)
    )


def test_results_csv_is_that_of_the_official_tool():
    scores = [made("bear", 1, [0.9, 1.0]), made("a-long-sequence", 12, [0.0, 0.1])]
    assert report.results_csv(scores, summarise(scores, "sav")) == (
        "sequence       ,obj,  J&F,    J,    F\n"
        "Global score   ,   , 50.0, 50.0, 50.0\n"
        "bear           ,001, 95.0, 95.0, 95.0\n"
        "a-long-sequence,012,  5.0,  5.0,  5.0\n"
    )


def test_tables_are_aligned():
    rows = [{"name": "a", "n": 1, "J": 99.96}, {"name": "long", "n": 10, "J": 3.0}]
    assert report.table(rows) == "name   n      J\na      1  100.0\nlong  10    3.0"


def test_the_worst_frames_are_drawn(tmp_path):
    root = drawn.davis(tmp_path / "davis")
    out = tmp_path / "out"
    for name in ("bear", "camel"):
        shift = lambda ids, t, name=name: np.roll(ids, 8, 1) if name == "camel" and t == 3 else ids
        drawn.write_masks(out / name, shift)
    target, predictions = open_masks(str(root)), open_masks(str(out))
    scores = score(target, predictions, target.keys)
    pictures = report.worst_frames(scores, target, predictions, open_videos(str(root)))
    assert len(pictures) == 4  # one an object
    caption, picture = pictures[0]
    assert caption.startswith("camel, object 1, frame 00003: J&F ")
    assert picture.shape == (drawn.HEIGHT, 2 * drawn.WIDTH, 3)
    left, right = np.split(picture.astype(int), 2, 1)
    frame = drawn.frame(3).astype(int)
    for side, moved in ((left, 0), (right, 8)):
        changed = np.abs(side - frame).max(-1) > 30
        mask = np.roll(drawn.labels(3) == 1, moved, 1)
        assert changed[mask].mean() > 0.9
        assert changed[~mask].mean() < 0.1  # edges of a JPEG
    grey = report.worst_frames(scores, target, predictions, None)[0][1]
    assert (grey[-1, -1] == 128).all()


def test_a_page_is_whole_and_needs_no_other_file():
    scores = [made("<bear>", 1, [0.9, 1.0]), made("camel", 2, [0.5, 0.1])]
    total = summarise(scores, "davis")
    picture = np.zeros((10, 20, 3), np.uint8)
    files = report.score_files(scores, total, "davis", {"target": "here"}, [("worst", picture)])
    assert set(files) == {"results.csv", "results.json", "results.html", "results_davis.csv"}
    page = files["results.html"]
    assert "&lt;bear&gt;" in page
    assert "<bear>" not in page
    assert page.index("<td>camel") < page.index("<td>&lt;bear")  # the worst comes first
    assert page.count("<svg") == 2
    assert "color-scheme: light dark" in page
    assert 'name="viewport"' in page
    assert re.findall(r'(?:src|href)="(.{15})', page) == ["data:image/jpeg"]
    assert "<script" not in page
    assert '"J of frames": [\n    0.5,\n    0.1\n   ]' in files["results.json"]
    assert files["results_davis.csv"].splitlines()[0].startswith("sequence,obj,J&F,J,F,J recall")


def test_charts_show_the_first_objects_over_the_frames_of_the_video():
    many = [made("bear", n, [0.5, 1.0]) for n in range(1, 11)]
    (caption,) = charts = report.score_charts([*many, made("bear", 11, [1.0])])
    assert caption == "bear (without 3 more objects)"
    assert "object 8" in charts[caption]
    assert "object 9" not in charts[caption]
    late = ObjectScores("cow", 1, ["00040", "00044"], np.array([0.5, 1]), np.array([0.5, 1]))
    assert ">40</text>" in report.score_charts([late])["cow"]
    unnumbered = ObjectScores("cow", 1, ["a", "b"], np.array([0.5, 1]), np.array([0.5, 1]))
    assert ">1</text>" in report.score_charts([unnumbered])["cow"]


def test_charts_are_pictures():
    chart = line_chart({"a & b": ([0, 1, 2], [0, 50, 100]), "c": ([1], [120])}, "frame", "J&F")
    root = ElementTree.fromstring(chart)
    lines = [e.get("points").split() for e in root.iter("{http://www.w3.org/2000/svg}polyline")]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in lines[0])
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2))
    assert x2 > x0
    assert y2 < y0  # up is better
    assert float(lines[1][0].split(",")[1]) == y2  # values beyond the scale stay on it
    assert "a &amp; b" in chart
    assert ElementTree.fromstring(line_chart({}, "x", "y")) is not None
