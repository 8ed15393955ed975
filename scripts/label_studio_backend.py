"""Lets Label Studio track through videos with `sam2-jax serve`: its ML backend format, as one small server.

    sam2-jax serve --checkpoint tiny/
    python scripts/label_studio_backend.py --videos /data/videos        # http://127.0.0.1:9090

In Label Studio: Settings, Model, Connect Model, that address. A task's video is found by its path or name in
the folder. A box that is drawn on a frame (a VideoRectangle) is tracked to the end; the answer is a box on
every frame on which the object is seen.
"""

import argparse
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fastapi
import httpx2
import uvicorn

from sam2_jax.data.masks import boxes_from_masks, decode_rle


def find_video(tasks: list[dict], folder: Path) -> Path:
    """Finds the video of the first task in the folder, and nowhere else.

    Its address is one of an upload, of local storage ("/data/local-files/?d=clips/a.mp4") or of a cloud. What
    counts is the path below the folder, else its last part, without what Label Studio puts before uploads, too.
    """
    texts = [value for value in tasks[0]["data"].values() if isinstance(value, str)]
    for text in texts:
        address = urlsplit(text)
        local = parse_qs(address.query).get("d", [unquote(address.path)])[0]
        below = PurePosixPath(local.replace("\\", "/").lstrip("/"))
        for name in (below, below.name, below.name.partition("-")[2]):
            path = (folder / name).resolve()
            if path.is_file() and path.is_relative_to(folder.resolve()):
                return path
    raise fastapi.HTTPException(404, f"None of {texts} is in {folder}.")


def to_pixels(keyframe: dict, width: int, height: int) -> list[float]:
    """A box of Label Studio, percent of the picture, as x0, y0, x1, y1 in pixels."""
    x, y = keyframe["x"] * width / 100, keyframe["y"] * height / 100
    return [x, y, x + keyframe["width"] * width / 100, y + keyframe["height"] * height / 100]


def to_keyframe(frame: int, mask: dict, fps: float) -> dict[str, Any] | None:
    """The box around a mask as Label Studio has it; frames count from 1. None for an empty mask."""
    height, width = mask["size"]
    x, y, w, h = (int(side) for side in boxes_from_masks(decode_rle(mask)[None])[0])
    if w == 0:
        return None
    return {
        "frame": frame + 1,
        "time": frame / fps,
        "x": 100 * x / width,
        "y": 100 * y / height,
        "width": 100 * w / width,
        "height": 100 * h / height,
        "rotation": 0,
        "enabled": True,
    }


def close_gaps(sequence: list[dict], last: int) -> list[dict]:
    """Ends the box where the object is not seen on the next frame; else the editor draws it through the gap.

    Args:
        sequence: keyframes of one object, in order.
        last: the last frame, from 1.
    """
    seen = {keyframe["frame"] for keyframe in sequence}
    goes_on = lambda frame: frame == last or frame + 1 in seen
    return [keyframe | {"enabled": goes_on(keyframe["frame"])} for keyframe in sequence]


def frames_per_frame(value: dict, info: dict) -> float:
    """How many frames of the video one of the task is: a project may count at a rate of its own."""
    count, seconds = value.get("framesCount"), value.get("duration")
    if not count or not seconds or count == info["num_frames"]:
        return 1.0
    return info["fps"] * seconds / count


def prompts_of(region: dict, info: dict) -> list[tuple[int, list[float]]]:
    """Frames of the video, from 0, and boxes in pixels, of the keyframes that are switched on."""
    ratio = frames_per_frame(region["value"], info)
    found = []
    for keyframe in region["value"]["sequence"]:
        if not keyframe.get("enabled", True):
            continue
        frame = round((keyframe["frame"] - 1) * ratio)
        if not 0 <= frame < info["num_frames"]:
            raise fastapi.HTTPException(
                422,
                f"Frame {keyframe['frame']} of the task is frame {frame + 1} of the video, which has "
                f"{info['num_frames']}: set the frame rate of the project to {info['fps']:g}.",
            )
        found.append((frame, to_pixels(keyframe, info["width"], info["height"])))
    return found


def sequence_of(found: dict[int, dict], value: dict, info: dict) -> list[dict]:
    """Keyframes of the task from the masks of an object by frame of the video."""
    ratio, sequence = frames_per_frame(value, info), []
    count = round(info["num_frames"] / ratio)
    for number in range(count):
        mask = found.get(round(number * ratio))
        keyframe = mask and to_keyframe(number, mask, info["fps"] / ratio)
        if keyframe:
            sequence.append(keyframe)
    return close_gaps(sequence, count)


def track(client: httpx2.Client, video: Path, drawn: list[dict]) -> list[dict]:
    """Tracks the boxes that were drawn; returns regions of Label Studio."""
    with video.open("rb") as file:
        opened = client.post("/api/sessions", params={"name": video.name}, content=file)
    info = opened.raise_for_status().json()
    at = f"/api/sessions/{info['id']}"
    try:
        prompts = [prompts_of(region, info) for region in drawn]
        if not any(prompts):
            return drawn
        for obj, boxes in enumerate(prompts, start=1):
            for frame, box in boxes:
                body = {"frame": frame, "object": obj, "box": box}
                client.post(f"{at}/prompts", json=body).raise_for_status()
        first = min(frame for boxes in prompts for frame, _ in boxes)
        asked = {"start": first, "direction": "forward"}
        lines = client.post(f"{at}/track", json=asked).raise_for_status().text.splitlines()
    finally:
        client.delete(at)
    *frames, last = map(json.loads, lines)
    if "done" not in last:
        raise fastapi.HTTPException(502, last.get("error", "tracking was cancelled"))
    masks: dict[int, dict[int, dict]] = {obj: {} for obj in range(1, len(drawn) + 1)}
    for found in frames:
        for one in found["objects"]:
            masks[one["object"]][found["frame"]] = one["mask"]
    return [
        region
        if not boxes
        else region
        | {"value": region["value"] | {"sequence": sequence_of(masks[obj], region["value"], info)}}
        for obj, (region, boxes) in enumerate(zip(drawn, prompts, strict=True), start=1)
    ]


def make_backend(client: httpx2.Client, folder: Path) -> fastapi.FastAPI:
    """The three addresses that Label Studio asks of a backend."""
    app = fastapi.FastAPI(title="sam2_jax for Label Studio", docs_url=None, redoc_url=None)

    @app.get("/health")
    def health() -> dict:
        return {"status": "UP", "model_class": "sam2_jax"}

    @app.post("/setup")
    def setup() -> dict:
        return {"model_version": "sam2_jax"}

    @app.post("/predict")
    def predict(asked: dict) -> dict:
        context = (asked.get("params") or {}).get("context") or {}
        given = context.get("result") or []
        drawn = [region for region in given if region.get("type") == "videorectangle"]
        drawn = [region for region in drawn if region["value"].get("sequence")]
        if not drawn:  # asked without a box, as when a task is opened
            return {"results": [{"result": [], "model_version": "sam2_jax"}]}
        regions = track(client, find_video(asked["tasks"], folder), drawn)
        return {"results": [{"result": regions, "model_version": "sam2_jax"}]}

    return app


def main() -> None:
    """Runs the backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder with the videos")
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="sam2-jax serve")
    parser.add_argument("--token", help="its token, if it has one")
    parser.add_argument("--port", type=int, default=9090)
    args = parser.parse_args()
    headers = {"authorization": f"Bearer {args.token}"} if args.token else {}
    if not re.match(r"https?://", args.server):
        parser.error(
            f"--server is {args.server!r}; an address such as http://127.0.0.1:8000 is expected"
        )
    with httpx2.Client(base_url=args.server, headers=headers, timeout=600) as client:
        uvicorn.run(make_backend(client, args.videos), host="127.0.0.1", port=args.port)


if __name__ == "__main__":
    main()
