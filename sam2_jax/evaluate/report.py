"""Reports of scores: a table for the terminal, results.csv, JSON, and a page for the browser.

scores of objects  ->  table, results_csv, results_json
rows, worst frames, charts  ->  page: HTML
"""

import base64
import csv
import dataclasses
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sam2_jax.data.annotated import VideoList
from sam2_jax.data.masks import check_masks
from sam2_jax.data.overlay import draw_overlay
from sam2_jax.evaluate.charts import line_chart
from sam2_jax.evaluate.interactive import Game
from sam2_jax.evaluate.score import ObjectScores

WORST_FRAMES = 12
_LINES = 8  # of a chart
_PICTURE_SIDE = 480  # pixels, of the pictures of worst frames

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Aligns rows for the terminal; numbers have one decimal."""
    columns = list(rows[0])
    cells = [columns.copy(), *[[_cell(row[name]) for name in columns] for row in rows]]
    widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
    for line in cells:
        for n, name in enumerate(columns):
            is_text = isinstance(rows[-1][name], str)
            line[n] = line[n].ljust(widths[n]) if is_text else line[n].rjust(widths[n])
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def score_rows(scores: Sequence[ObjectScores], total: Row, convention: str) -> list[dict[str, Any]]:
    """Returns a row for all, and one for every object."""
    rows: list[dict[str, Any]] = [{"sequence": "Global score", "obj": "", **total}]
    for scored in scores:
        names = {"sequence": scored.video, "obj": f"{scored.object_id:03d}"}
        rows.append(names | scored.row(convention))
    return rows


def results_csv(scores: Sequence[ObjectScores], total: Row) -> str:
    """Returns results.csv, character for character as the SA-V evaluator writes it."""
    width = max(len("Global score"), *[len(scored.video) for scored in scores])
    line = lambda name, obj, numbers: f"{name:<{width}},{obj:>3}, {', '.join(numbers)}\n"
    text = line("sequence", "obj", [f"{kind:>4}" for kind in ("J&F", "J", "F")])
    numbers = lambda row: [f"{row[kind]:>4.1f}" for kind in ("J&F", "J", "F")]
    text += line("Global score", "", numbers(total))
    for scored in scores:
        text += line(scored.video, f"{scored.object_id:03d}", numbers(scored.row("sav")))
    return text


def score_files(
    scores: Sequence[ObjectScores],
    total: Row,
    convention: str,
    facts: Row,
    pictures: Sequence[tuple[str, np.ndarray]],
) -> dict[str, str]:
    """Makes the files of `sam2-jax evaluate score`.

    Args:
        scores: of objects.
        total: means of all, in percent.
        convention: "sav" or "davis".
        facts: what was scored and how, by name.
        pictures: from `worst_frames`.

    Returns:
        The texts of the files by name. In the JSON, scores of frames are within 0..1.
    """
    objects = [
        {
            "sequence": scored.video,
            "obj": scored.object_id,
            **scored.row(convention),
            "frames": scored.frame_names,
            "J of frames": scored.j.round(4).tolist(),
            "F of frames": scored.f.round(4).tolist(),
        }
        for scored in scores
    ]
    rows = score_rows(scores, total, convention)
    worst_first = [rows[0], *sorted(rows[1:], key=lambda row: row["J&F"])]
    files = {
        "results.csv": results_csv(scores, total),
        "results.json": _json({**facts, "total": total, "objects": objects}),
        "results.html": page(
            f"J&F {total['J&F']:.1f}", facts, worst_first, score_charts(scores), pictures
        ),
    }
    return files | ({"results_davis.csv": _csv(rows)} if convention == "davis" else {})


def game_files(
    games: Mapping[str, Sequence[Game]], rows: Sequence[Row], facts: Row
) -> dict[str, str]:
    """Makes the files of `sam2-jax evaluate interactive`: texts by name.

    Args:
        games: of each protocol.
        rows: from `interactive.curves`.
        facts: what was played and how, by name.
    """
    of = lambda protocol, key: [row[key] for row in rows if row["protocol"] == protocol]
    lines = {protocol: (of(protocol, "round"), of(protocol, "J&F")) for protocol in games}
    chart = line_chart(lines, "frames clicked on", "J&F")
    plain = {protocol: list(map(dataclasses.asdict, played)) for protocol, played in games.items()}
    return {
        "interactive.csv": _csv(rows),
        "interactive.json": _json({**facts, "rounds": rows, "objects": plain}),
        "interactive.html": page("Interactive segmentation", facts, rows, {"J&F": chart}),
        "curve.svg": chart,
    }


def image_files(
    scores: Mapping[str, Mapping[str, np.ndarray]], rows: Sequence[Row], facts: Row
) -> dict[str, str]:
    """Makes the files of `sam2-jax evaluate images`: texts by name.

    Args:
        scores: IoU (N,) of every prompt, by image.
        rows: from `images.summarise`.
        facts: what was segmented and how, by name.
    """
    clicks = [row["mIoU"] for row in rows if "click" in row["prompt"]]
    chart = line_chart({"mIoU": (range(1, len(clicks) + 1), clicks)}, "clicks", "mIoU")
    of_images = {
        name: {prompt: ious.round(4).tolist() for prompt, ious in of_image.items()}
        for name, of_image in scores.items()
    }
    return {
        "images.csv": _csv(rows),
        "images.json": _json({**facts, "mIoU": rows, "IoU of images": of_images}),
        "images.html": page("Segmentation of images", facts, rows, {"mIoU": chart}),
        "curve.svg": chart,
    }


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(document: Row) -> str:
    return json.dumps(document, indent=1) + "\n"


def score_charts(scores: Sequence[ObjectScores]) -> dict[str, str]:
    """Draws J&F over time: a chart per video, a line per object; of many objects, only the first ones."""
    by_video: dict[str, dict[str, tuple]] = {}
    for scored in scores:
        names = scored.frame_names
        is_numbered = all(name.isdecimal() for name in names)
        frames = list(map(int, names)) if is_numbered else range(len(names))
        line = frames, 50 * (scored.j + scored.f)
        by_video.setdefault(scored.video, {})[f"object {scored.object_id}"] = line
    charts = {}
    for video, lines in by_video.items():
        left_out = len(lines) - _LINES
        caption = f"{video} (without {left_out} more objects)" if left_out > 0 else video
        charts[caption] = line_chart(dict(list(lines.items())[:_LINES]), "frame", "J&F")
    return charts


def worst_frames(
    scores: Sequence[ObjectScores],
    target: VideoList,
    predictions: VideoList,
    videos: VideoList | None,
) -> list[tuple[str, np.ndarray]]:
    """Draws the frames of the lowest J&F, at most one per object.

    Args:
        scores: of objects.
        target: true masks.
        predictions: predicted ones.
        videos: the frames to draw on; without them, masks are drawn on grey.

    Returns:
        A caption, and a picture (H, 2 W, 3) uint8: the target on the left, the prediction on the right.
    """
    quality = [scored.j + scored.f for scored in scores]
    order = sorted(range(len(scores)), key=lambda n: quality[n].min())[:WORST_FRAMES]
    drawn = []
    for scored, t in [(scores[n], int(quality[n].argmin())) for n in order]:
        frame, object_id = scored.frame_names[t], scored.object_id
        sides = []
        for side in (target, predictions):
            video = side.open(scored.video)
            masks = video.masks(video.frame_names.index(frame))
            mask = masks.get(object_id, np.zeros(masks.size, bool))[None]
            picture = _frame(videos, scored.video, frame, masks.size)
            sides.append(draw_overlay(picture, check_masks(mask, [object_id]), [object_id]))
        value = 50 * (scored.j[t] + scored.f[t])
        caption = f"{scored.video}, object {object_id}, frame {frame}: J&F {value:.1f}"
        drawn.append((caption, np.concatenate(sides, 1)))
    return drawn


def _frame(videos: VideoList | None, name: str, frame: str, size: tuple[int, int]) -> np.ndarray:
    if videos is not None and name in videos.keys:
        with videos.open(name) as video:
            if frame in video.frame_names and video.size == size:
                return video.frames[video.frame_names.index(frame)]
    return np.full((*size, 3), 128, np.uint8)


def page(
    title: str,
    facts: Row,
    rows: Sequence[Row],
    charts: Mapping[str, str],
    pictures: Sequence[tuple[str, np.ndarray]] = (),
) -> str:
    """Makes a page that needs no other file, for light and dark, narrow and wide screens.

    Args:
        title: of the page.
        facts: what was scored and how, by name.
        rows: of the table.
        charts: SVG by caption.
        pictures: captions and pictures (H, W, 3) uint8.
    """
    escape = lambda text: html.escape(str(text))
    head = "".join(f"<th>{escape(column)}</th>" for column in rows[0])
    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(_cell(value))}</td>' for value in row.values())}</tr>"
        for row in rows
    )
    said = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()
    )
    figure = lambda caption, inner: (
        f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>"
    )
    parts = [f"<h1>{escape(title)}</h1><dl>{said}</dl>"]
    parts.append(f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>')
    if pictures:
        parts.append("<h2>Worst frames: target on the left, prediction on the right</h2>")
        drawn = [
            figure(caption, f'<img alt="{escape(caption)}" src="{_data_url(picture)}">')
            for caption, picture in pictures
        ]
        parts.append(f'<div class="grid">{"".join(drawn)}</div>')
    if charts:
        parts.append("<h2>Charts</h2>")
        drawn = [figure(caption, chart) for caption, chart in charts.items()]
        parts.append(f'<div class="grid">{"".join(drawn)}</div>')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem }
dt { opacity: .65 } dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884 }
td:first-child, th:first-child { text-align: left }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
figure { margin: 0 } img, svg { width: 100%; height: auto; display: block }
figcaption { font-size: .85rem; opacity: .75 }
"""


def _data_url(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((2 * _PICTURE_SIDE, _PICTURE_SIDE))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
