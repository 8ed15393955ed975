import importlib.util
from pathlib import Path

import pytest

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


def test_a_drawn_box_comes_back_tracked(backend):
    assert backend.get("/health").json()["status"] == "UP"
    assert backend.post("/setup", json={}).json()["model_version"]
    answer = backend.post("/predict", json=request("scene.mp4", [region()]))
    (tracked,) = answer.json()["results"][0]["result"]
    assert tracked["value"]["labels"] == ["Dog"]
    assert (tracked["id"], tracked["from_name"]) == ("a", "box")
    sequence = tracked["value"]["sequence"]
    assert [keyframe["frame"] for keyframe in sequence] == [2, 3, 4, 5, 6]
    assert all(k["x"] >= 0 and k["x"] + k["width"] <= 100 for k in sequence)


def test_without_a_box_there_is_nothing(backend):
    answer = backend.post("/predict", json=request("scene.mp4", []))
    assert answer.json()["results"][0]["result"] == []


def test_only_videos_of_the_folder_are_opened(backend):
    assert (
        backend.post("/predict", json=request("../../etc/hostname", [region()])).status_code == 404
    )
