import importlib.util
from pathlib import Path

import pytest

from sam2_jax.data.masks import boxes_from_masks
from tests.serve.asking import HEIGHT, WIDTH, opened, rle_masks, tracked

SCRIPT = Path(__file__).parents[2] / "scripts" / "label_studio_backend.py"


@pytest.fixture
def backend(client, video, tmp_path):
    from starlette.testclient import TestClient

    spec = importlib.util.spec_from_file_location("label_studio_backend", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
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
