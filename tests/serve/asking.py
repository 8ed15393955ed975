"""What tests ask a server."""

import json

import numpy as np

from sam2_jax.data.masks import decode_rle

HEIGHT, WIDTH = 48, 64  # of the video of the tests


def click(client, session: str, frame: int = 0, obj: int = 1, x=20, y=20, label=1, **more):
    """Clicks once and returns the answer."""
    body = {"frame": frame, "object": obj, "points": [[x, y]], "labels": [label], **more}
    return client.post(f"/api/sessions/{session}/prompts", json=body)


def opened(client, media: bytes, name: str = "scene.mp4") -> str:
    """Opens a session and returns its id."""
    answer = client.post("/api/sessions", params={"name": name}, content=media)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def tracked(client, session: str, **asked) -> list[dict]:
    """Tracks and returns the lines."""
    answer = client.post(f"/api/sessions/{session}/track", json=asked)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def rle_masks(lines: list[dict]) -> np.ndarray:
    """(T, N, H, W) bool."""
    return np.array([[decode_rle(o["mask"]) for o in line["objects"]] for line in lines])
