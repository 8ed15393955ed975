import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sam2_jax.data.masks import boxes_from_masks, encode_rle
from tests.serve.asking import HEIGHT, WIDTH, opened, rle_masks, tracked

SCRIPT = Path(__file__).parents[2] / "scripts" / "label_studio_backend.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("label_studio_backend", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def backend(script, client, video, tmp_path):
    from starlette.testclient import TestClient

    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "scene.mp4").write_bytes(video)
    return TestClient(script.make_backend(client, tmp_path / "videos"))


def request(name: str, regions: list) -> dict:
    return {
        "tasks": [{"id": 1, "data": {"video": f"/data/upload/1/{name}"}}],
        "label_config": "<View/>",
        "params": {"context": {"result": regions}},
    }


def region() -> dict:
    keyframe = {"frame": 2, "x": 25.0, "y": 25.0, "width": 50.0, "height": 50.0, "enabled": True}
    value = {"framesCount": 6, "labels": ["Dog"], "sequence": [keyframe]}
    return {"id": "a", "type": "videorectangle", "from_name": "box", "to_name": "v", "value": value}


def test_a_drawn_box_comes_back_tracked(backend, client, video):
    assert backend.get("/health").json()["status"] == "UP"
    assert backend.post("/setup", json={}).json()["model_version"]
    answer = backend.post("/predict", json=request("scene.mp4", [region()]))
    (tracked_region,) = answer.json()["results"][0]["result"]
    assert tracked_region["value"]["labels"] == ["Dog"]
    assert (tracked_region["id"], tracked_region["from_name"]) == ("a", "box")
    # A random model may lose the object on a frame; so the server is asked for the same box.
    session = opened(client, video)
    box = [0.25 * WIDTH, 0.25 * HEIGHT, 0.75 * WIDTH, 0.75 * HEIGHT]
    client.post(f"/api/sessions/{session}/prompts", json={"frame": 1, "object": 1, "box": box})
    masks = rle_masks(tracked(client, session, start=1, direction="forward")[:-1])[:, 0]
    seen = {2 + i: box for i, box in enumerate(boxes_from_masks(masks)) if box.any()}
    assert len(masks) == 5
    assert len(seen) > 1
    sequence = tracked_region["value"]["sequence"]
    assert [keyframe["frame"] for keyframe in sequence] == list(seen)
    assert all(k["x"] >= 0 and k["x"] + k["width"] <= 100 for k in sequence)
    for keyframe, (x, y, width, height) in zip(sequence, seen.values(), strict=True):
        assert keyframe["x"] == pytest.approx(100 * x / WIDTH)
        assert keyframe["y"] == pytest.approx(100 * y / HEIGHT)
        assert keyframe["width"] == pytest.approx(100 * width / WIDTH)
        assert keyframe["height"] == pytest.approx(100 * height / HEIGHT)


def test_without_a_box_there_is_nothing(backend):
    answer = backend.post("/predict", json=request("scene.mp4", []))
    assert answer.json()["results"][0]["result"] == []


def test_only_videos_of_the_folder_are_opened(backend):
    assert (
        backend.post("/predict", json=request("../../etc/hostname", [region()])).status_code == 404
    )


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/local-files/?d=clips/my%20clip.mp4", "clips/my clip.mp4"),
        ("/data/local-files/?d=other%5Cb.mp4", "b.mp4"),
        ("/data/upload/1/ab12cd34-b.mp4", "b.mp4"),
        ("/data/upload/1/ab-my%20clip.mp4", "ab-my clip.mp4"),
        ("/data/upload/1/%E9%B8%9F.mp4", "鸟.mp4"),
        ("s3://bucket/clips/b.mp4?versionId=3", "b.mp4"),
    ],
)
def test_videos_are_found_by_every_kind_of_address(script, tmp_path, address, name):
    (tmp_path / "clips").mkdir()
    for file in ("clips/my clip.mp4", "b.mp4", "ab-my clip.mp4", "鸟.mp4"):
        (tmp_path / file).touch()
    tasks = [{"data": {"note": "..", "video": address}}]
    assert script.find_video(tasks, tmp_path) == (tmp_path / name).resolve()


def test_videos_outside_of_the_folder_are_not_found(script, tmp_path):
    import fastapi

    (tmp_path / "in").mkdir()
    (tmp_path / "secret.mp4").touch()
    for address in (
        "/data/local-files/?d=../secret.mp4",
        f"/data/local-files/?d={tmp_path}/secret.mp4",
    ):
        with pytest.raises(fastapi.HTTPException, match="404"):
            script.find_video([{"data": {"video": address}}], tmp_path / "in")


INFO = {"num_frames": 10, "fps": 25.0, "width": 8, "height": 4}


def seen(*frames: int) -> dict:
    mask = encode_rle(np.ones((4, 8), bool))
    return dict.fromkeys(frames, mask)


def test_a_gap_ends_the_box_before_it(script):
    sequence = script.sequence_of(seen(0, 1, 2, 3, 8, 9), {}, INFO)
    enabled = {keyframe["frame"]: keyframe["enabled"] for keyframe in sequence}
    assert enabled == {1: True, 2: True, 3: True, 4: False, 9: True, 10: True}
    assert not script.sequence_of(seen(0), {}, INFO)[0]["enabled"]


def test_frames_of_a_project_with_a_rate_of_its_own(script):
    import fastapi

    value = {"framesCount": 5, "duration": 0.4}  # 12.5 frames a second
    assert [k["frame"] for k in script.sequence_of(seen(*range(10)), value, INFO)] == [
        1,
        2,
        3,
        4,
        5,
    ]
    keyframe = {"frame": 3, "x": 0, "y": 0, "width": 50, "height": 50}
    off = keyframe | {"frame": 4, "enabled": False}
    region = {"value": value | {"sequence": [keyframe, off]}}
    assert script.prompts_of(region, INFO) == [(4, [0, 0, 4, 2])]
    beyond = {"value": {"sequence": [keyframe | {"frame": 11}]}}
    with pytest.raises(fastapi.HTTPException, match="which has 10"):
        script.prompts_of(beyond, INFO)
