import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.masks import decode_rle
from sam2_jax.data.videos import VideoFile
from tests.serve.asking import HEIGHT, WIDTH, click, opened, rle_masks, tracked


def test_a_session_from_upload_to_download(client, video, tmp_path):
    answer = client.post("/api/sessions", params={"name": "../../dogs.mp4"}, content=video)
    info = answer.json()
    assert (info["name"], info["num_frames"], info["height"], info["width"], info["fps"]) == (
        "dogs.mp4",
        6,
        HEIGHT,
        WIDTH,
        12,
    )
    session, at = info["id"], f"/api/sessions/{info['id']}"
    picture = client.get(f"{at}/frames/5.jpg")
    assert Image.open(io.BytesIO(picture.content)).size == (WIDTH, HEIGHT)

    said = click(client, session).json()
    assert said["frame"] == 0
    assert [o["object"] for o in said["objects"]] == [1]
    assert decode_rle(said["objects"][0]["mask"]).shape == (HEIGHT, WIDTH)
    box = {"frame": 2, "object": 7, "box": [30, 10, 60, 40]}
    assert len(client.post(f"{at}/prompts", json=box).json()["objects"]) == 1
    client.patch(f"{at}/objects/7", json={"name": "the box"})

    *lines, last = tracked(client, session)
    assert last == {"done": True, "num_frames": 6}
    assert sorted(line["frame"] for line in lines) == list(range(6))
    assert client.get(f"{at}/masks/3").json() == lines[3]

    info = client.get(at).json()
    assert [o["name"] for o in info["objects"]] == ["Object 1", "the box"]
    assert info["frames_with_masks"] == list(range(6))
    assert [(p["frame"], p["object"]) for p in info["prompts"]] == [(0, 1), (2, 7)]

    document = client.get(f"{at}/masks.json").json()
    assert document["frames"]["3"]["7"] == lines[3]["objects"][1]["mask"]
    assert document["names"] == {"1": "Object 1", "7": "the box"}
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"{at}/masks.zip").content))
    assert archive.namelist() == [f"{t:05d}.png" for t in range(6)]
    pixels = np.asarray(Image.open(io.BytesIO(archive.read("00003.png"))))
    first, second = rle_masks(lines)[3]
    np.testing.assert_array_equal(pixels, np.where(first, 1, np.where(second, 7, 0)))
    overlay = client.get(f"{at}/overlay.mp4")
    assert "dogs_overlay.mp4" in overlay.headers["content-disposition"]
    (tmp_path / "overlay.mp4").write_bytes(overlay.content)
    with VideoFile(tmp_path / "overlay.mp4") as frames:
        assert len(frames) == 6

    assert client.delete(at).status_code == 204
    assert "restarted" in client.get(at).json()["detail"]
    assert not list(tmp_path.glob("sam2_jax_serve_*/*/"))


def test_a_picture_has_one_frame(client, picture):
    session = opened(client, picture, "photo.png")
    assert len(click(client, session).json()["objects"]) == 1
    assert client.get(f"/api/sessions/{session}").json()["num_frames"] == 1
    assert [line["frame"] for line in tracked(client, session)[:-1]] == [0]


def test_the_sample_clip_is_there(client):
    info = client.post("/api/sessions/sample").json()
    assert info["num_frames"] > 20
    assert click(client, info["id"]).status_code == 200


def test_undo_takes_back_one_thing_after_the_other(client, video):
    session = opened(client, video)
    at = f"/api/sessions/{session}"
    first = click(client, session).json()
    before_tracking = client.get(at).json()
    lines = tracked(client, session)
    after_tracking = client.get(at).json()
    click(client, session, frame=4, x=40, label=0)
    client.delete(f"{at}/objects/1")
    assert client.get(at).json()["objects"] == []

    client.post(f"{at}/undo")
    assert len(client.get(at).json()["prompts"]) == 2
    assert client.post(f"{at}/undo").json() == after_tracking
    assert [client.get(f"{at}/masks/{t}").json() for t in range(6)] == lines[:-1]
    assert client.post(f"{at}/undo").json() == before_tracking
    assert client.get(f"{at}/masks/0").json() == first
    assert tracked(client, session) == lines  # bit for bit, so nothing of it was left behind
    client.post(f"{at}/undo")
    assert client.post(f"{at}/undo").json()["objects"] == []
    assert "nothing to undo" in client.post(f"{at}/undo").json()["detail"]


def test_points_add_up_and_clear(client, video):
    session = opened(client, video)
    at = f"/api/sessions/{session}"
    first = click(client, session).json()
    second = click(client, session, x=40, label=0, add=True).json()
    assert second != first
    assert client.get(at).json()["prompts"][0]["labels"] == [1, 0]
    click(client, session, obj=2)
    left = client.delete(f"{at}/prompts", params={"frame": 0, "object": 1}).json()
    assert [o["object"] for o in left["objects"]] == [2]


def test_a_mask_is_a_prompt(client, video):
    session = opened(client, video)
    mask = click(client, session).json()["objects"][0]["mask"]
    body = {"frame": 3, "object": 2, "mask": mask}
    said = client.post(f"/api/sessions/{session}/prompts", json=body)
    assert [o["object"] for o in said.json()["objects"]] == [2]
    body["mask"] = {"size": [9999, 9999], "counts": "1"}
    wrong = client.post(f"/api/sessions/{session}/prompts", json=body)
    assert wrong.status_code == 422
    assert f"[{HEIGHT}, {WIDTH}]" in wrong.json()["detail"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"frame": 0, "object": 1}, "no prompt was given"),
        ({"frame": 99, "object": 1, "points": [[1, 1]], "labels": [1]}, "frames 0 to 5"),
        ({"frame": 0, "object": 1, "points": [[1, 1]], "labels": []}, "one label a point"),
        ({"frame": 0, "object": 1, "points": [[1, 1e9]], "labels": [1]}, "points.0.1"),
        ({"frame": 0, "object": 1, "points": [[999, 1]], "labels": [1]}, "999"),
        ({"frame": 0, "object": 0, "points": [[1, 1]], "labels": [1]}, "object"),
        ({"frame": 0, "object": 1, "pionts": [[1, 1]]}, "pionts"),
        ({"frame": 0, "object": 1, "mask": {"size": [48, 64], "counts": "~~"}}, "run lengths"),
    ],
)
def test_wrong_prompts_are_named(client, video, body, said):
    session = opened(client, video)
    answer = client.post(f"/api/sessions/{session}/prompts", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert client.get(f"/api/sessions/{session}").json()["can_undo"] is False


def test_tracking_without_a_prompt_says_what_to_do(client, video):
    session = opened(client, video)
    answer = client.post(f"/api/sessions/{session}/track", json={})
    assert answer.status_code == 409
    assert "click" in answer.json()["detail"]
    assert client.get(f"/api/sessions/{session}/masks.zip").status_code == 409


def test_every_limit_has_a_message(make_client, video):
    client = make_client(frames=5)
    answer = client.post("/api/sessions", content=video)
    assert answer.status_code == 413
    assert "6 frames" in answer.json()["detail"]
    assert "at most 5" in answer.json()["detail"]

    client = make_client(seconds=0.2)
    assert "0.5 s" in client.post("/api/sessions", content=video).json()["detail"]
    client = make_client(pixels=1000)
    assert "64x48" in client.post("/api/sessions", content=video).json()["detail"]

    client = make_client(upload_mb=1)
    answer = client.post("/api/sessions", content=iter([b"x" * (1 << 20)] * 3))
    assert answer.status_code == 413
    assert "1 MiB" in answer.json()["detail"]

    client = make_client(objects=1, sessions=1)
    session = opened(client, video)
    click(client, session)
    answer = click(client, session, obj=2)
    assert answer.status_code == 409
    assert "remove one" in answer.json()["detail"]
    answer = client.post("/api/sessions", content=video)
    assert answer.status_code == 503
    assert "close one" in answer.json()["detail"]

    client = make_client(free_mb=1 << 40)
    answer = client.post("/api/sessions", content=video)
    assert answer.status_code == 507
    assert "free" in answer.json()["detail"]


def test_the_interface_is_documented_with_examples(client):
    document = client.get("/api/openapi.json").json()
    assert "/api/sessions/{session}/track" in document["paths"]
    assert document["components"]["schemas"]["PromptRequest"]["examples"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path} has no description"


def test_the_page_and_its_parts_come_from_here(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    for name in ("page.css", "page.js"):
        assert client.get(f"/page/{name}").status_code == 200
    info = client.get("/api/info").json()
    assert info["model"] == "toy"
    assert json.dumps(info["limits"])
