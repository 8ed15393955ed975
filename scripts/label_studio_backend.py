"""Lets Label Studio track through videos with `sam2-jax serve`: its ML backend format, as one small server.

    sam2-jax serve --checkpoint tiny/
    python scripts/label_studio_backend.py --videos /data/videos        # http://127.0.0.1:9090

In Label Studio: Settings, Model, Connect Model, that address. A task's video is found by its last name in
the folder. A box that is drawn on a frame (a VideoRectangle) is tracked to the end; the answer is a box on
every frame on which the object is seen.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastapi
import httpx2
import uvicorn

from sam2_jax.data.masks import boxes_from_masks, decode_rle


def find_video(tasks: list[dict], folder: Path) -> Path:
    """Finds the video of the first task: the last part of its address, in the folder, and nowhere else."""
    names = [urlsplit(value).path for value in tasks[0]["data"].values() if isinstance(value, str)]
    for name in names:
        path = folder / Path(name).name
        if Path(name).name and path.is_file():
            return path
    raise fastapi.HTTPException(404, f"None of {names} is in {folder}.")


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


def track(client: httpx2.Client, video: Path, drawn: list[dict]) -> list[dict]:
    """Tracks the boxes that were drawn; returns regions of Label Studio."""
    with video.open("rb") as file:
        opened = client.post("/api/sessions", params={"name": video.name}, content=file)
    info = opened.raise_for_status().json()
    at = f"/api/sessions/{info['id']}"
    try:
        first = min(region["value"]["sequence"][0]["frame"] for region in drawn) - 1
        for obj, region in enumerate(drawn, start=1):
            for keyframe in region["value"]["sequence"]:
                box = to_pixels(keyframe, info["width"], info["height"])
                body = {"frame": keyframe["frame"] - 1, "object": obj, "box": box}
                client.post(f"{at}/prompts", json=body).raise_for_status()
        asked = {"start": first, "direction": "forward"}
        lines = client.post(f"{at}/track", json=asked).raise_for_status().text.splitlines()
    finally:
        client.delete(at)
    *frames, last = map(json.loads, lines)
    if "done" not in last:
        raise fastapi.HTTPException(502, last.get("error", "tracking was cancelled"))
    sequences: dict[int, list] = {obj: [] for obj in range(1, len(drawn) + 1)}
    for found in frames:
        for one in found["objects"]:
            keyframe = to_keyframe(found["frame"], one["mask"], info["fps"])
            if keyframe:
                sequences[one["object"]].append(keyframe)
    return [
        region | {"value": region["value"] | {"sequence": sequences[obj]}}
        for obj, region in enumerate(drawn, start=1)
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
