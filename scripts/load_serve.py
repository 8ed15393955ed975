"""Loads `sam2-jax serve` on this machine, and checks that no session gets what belongs to another.

    python scripts/load_serve.py --sessions 50

starts a server of its own with the small model of the package (unless `--checkpoint` is given), then
opens sessions, clicks and tracks: each alone, then all at once. The masks have to be equal. Last it times
clicks, alone and while another session is being tracked.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np

from sam2_jax.data.media import write_video
from sam2_jax.data.procedural import drawn_videos

_SIDE, _NUM_CLICKS = 160, 30


@contextlib.contextmanager
def server(options: list[str]) -> Iterator[str]:
    """Runs a server; gives its address."""
    command = [sys.executable, "-m", "sam2_jax", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1].rstrip("/")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def drawn_video(num_frames: int) -> bytes:
    """A drawn clip as mp4."""
    frames = list(drawn_videos(1, num_frames, _SIDE)[0].frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames, 12)
        return path.read_bytes()


def opened(client: httpx2.Client, video: bytes) -> str:
    """Opens a session; returns where it is."""
    answer = client.post("/api/sessions", params={"name": "clip.mp4"}, content=video)
    return f"/api/sessions/{answer.raise_for_status().json()['id']}"


def clicked(client: httpx2.Client, at: str, x: float, y: float) -> dict:
    """Clicks; returns the masks."""
    body = {"frame": 0, "object": 1, "points": [[x, y]], "labels": [1]}
    return client.post(f"{at}/prompts", json=body).raise_for_status().json()


def work(client: httpx2.Client, video: bytes, place: tuple[float, float]) -> list[dict]:
    """A whole session: all that it was sent."""
    at = opened(client, video)
    first = clicked(client, at, *place)
    answer = client.post(f"{at}/track", json={}).raise_for_status()
    client.delete(at)
    return [first, *map(json.loads, answer.text.splitlines())]


def click_times(client: httpx2.Client, at: str) -> np.ndarray:
    """Milliseconds of clicks at different places."""
    times = []
    for x, y in np.random.default_rng(0).uniform(10, _SIDE - 10, (_NUM_CLICKS, 2)):
        start = time.perf_counter()
        clicked(client, at, x, y)
        times.append(1000 * (time.perf_counter() - start))
    return np.array(times)


def report(name: str, times: np.ndarray) -> None:
    """Prints the usual percentiles."""
    p50, p95 = np.percentile(times, [50, 95])
    print(f"click, {name}: p50 {p50:.0f} ms, p95 {p95:.0f} ms ({len(times)} clicks)")


def main() -> int:
    """Runs the load; returns 1 if anything was lost or mixed up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--model", default="sam2_nano")
    parser.add_argument("--image-size", default="128")
    parser.add_argument("--checkpoint")
    args = parser.parse_args()
    options = ["--model", args.model, "--image-size", args.image_size]
    options += ["--sessions", str(args.sessions + 2)]
    options += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    video, long_video = drawn_video(args.frames), drawn_video(200)
    rng = np.random.default_rng(1)
    places = [tuple(place) for place in rng.uniform(10, _SIDE - 10, (args.sessions, 2))]

    with server(options) as address:
        limits = httpx2.Limits(max_connections=args.sessions + 2)
        with httpx2.Client(base_url=address, timeout=600, limits=limits) as client:
            work(client, video, places[0])  # compiles
            start = time.perf_counter()
            alone = [work(client, video, place) for place in places]
            between = time.perf_counter()
            with ThreadPoolExecutor(args.sessions) as pool:
                together = list(pool.map(lambda place: work(client, video, place), places))
            end = time.perf_counter()
            wrong = sum(a != b for a, b in zip(alone, together, strict=True))
            print(f"{args.sessions} sessions of {args.frames} frames: {wrong} differ from alone")
            print(f"one after the other {between - start:.1f} s, all at once {end - between:.1f} s")

            at, busy = opened(client, video), opened(client, long_video)
            clicked(client, at, *places[0])
            report("alone", click_times(client, at))
            clicked(client, busy, *places[0])
            track = lambda: client.post(f"{busy}/track", json={})
            tracking = threading.Thread(target=track)
            tracking.start()
            report("while another session is tracked", click_times(client, at))
            still = client.get(busy).json()["is_tracking"]
            print(f"tracking was {'still running' if still else 'over'} after the last click")
            client.post(f"{busy}/cancel")
            tracking.join()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
