import contextlib
import io
import json
import os
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.masks import encode_rle, read_labels
from sam2_jax.data.media import read_image, write_video
from sam2_jax.data.videos import VideoFile
from sam2_jax.serve import unpack as unpack_module
from sam2_jax.serve.downloads import write_overlay, write_png_zip, write_rle_json
from sam2_jax.serve.limits import Limits, Refused
from sam2_jax.serve.sessions import Upload
from sam2_jax.serve.unpack import unpack
from tests.parity.reference_scene import scene
from tests.real.generate import encode


@pytest.fixture
def try_bytes(tmp_path):
    (tmp_path / "frames").mkdir()

    def run(data: bytes, **limits) -> dict:
        (tmp_path / "upload").write_bytes(data)
        return unpack(str(tmp_path / "upload"), str(tmp_path / "frames"), Limits(**limits))

    run.folder = tmp_path / "frames"
    return run


def encoded(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def test_frames_are_those_of_the_video(try_bytes, video):
    about = try_bytes(video)
    assert about.pop("times") == pytest.approx([t / 12 for t in range(6)], abs=1e-5)
    assert about == {
        "height": 48,
        "width": 64,
        "num_frames": 6,
        "fps": 12,
        "notice": None,
        "pixel_aspect": [1, 1],
    }
    names = sorted(os.listdir(try_bytes.folder))
    assert names == [f"{t:05d}.jpg" for t in range(6)]
    first = read_image(try_bytes.folder / names[0]).astype(int)
    assert abs(first - scene(1, 48, 64)[0]).mean() < 8


def test_a_picture_is_turned_upright(try_bytes):
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    data = encoded(Image.new("RGB", (40, 20)), format="JPEG", exif=exif)
    about = try_bytes(data)
    assert (about["height"], about["width"], about["num_frames"]) == (40, 20, 1)


def test_a_moving_gif_is_a_video(try_bytes):
    frames = [Image.fromarray(frame) for frame in scene(3, 48, 64)]
    data = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:], duration=100)
    assert try_bytes(data)["num_frames"] == 3


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\x00" * 5000,
        b"GIF89a" + b"\xff" * 100,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"plain text\n" * 100,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"PK\x03\x04" + b"\x00" * 100,
        b"\x89PNG\r\n\x1a\n" + b"\x00" * 50,
    ],
)
def test_what_is_no_media_is_refused(try_bytes, data):
    with pytest.raises(Refused) as caught:
        try_bytes(data)
    assert caught.value.status in (415, 422)
    assert "upload" not in caught.value.message
    assert not os.listdir(try_bytes.folder)


def test_damage_anywhere_is_an_answer(try_bytes, video):
    rng = np.random.default_rng(0)
    for _ in range(12):
        data = bytearray(video[: rng.integers(100, len(video))])
        for place in rng.integers(0, len(data), 30):
            data[place] = rng.integers(256)
        with contextlib.suppress(Refused):  # and nothing else
            assert try_bytes(bytes(data))["num_frames"] <= 6


def test_a_small_file_of_a_huge_picture_is_refused(try_bytes):
    data = encoded(Image.new("1", (15000, 15000)), format="PNG")
    assert len(data) < 50_000
    with pytest.raises(Refused, match="15000x15000"):
        try_bytes(data, pixels=10**9 // 8)


def test_frames_do_not_fill_the_disk(try_bytes, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 320, 400, 3), np.uint8)
    write_video(tmp_path / "noise.mp4", noise, 12)
    with pytest.raises(Refused, match="1 MiB of disk"):
        try_bytes((tmp_path / "noise.mp4").read_bytes(), unpacked_mb=1)


def crash(*_):
    os.abort()


def hang(*_):
    import time

    time.sleep(60)


def test_a_crash_or_a_hang_of_the_decoder_is_an_answer(try_bytes, video, monkeypatch):
    child = unpack_module._context.Process

    def instead(function):
        return lambda target, args, daemon: child(target=function, args=args, daemon=daemon)

    monkeypatch.setattr(unpack_module._context, "Process", instead(crash))
    with pytest.raises(Refused, match="decoder crashed"):
        try_bytes(video)
    monkeypatch.setattr(unpack_module._context, "Process", instead(hang))
    with pytest.raises(Refused, match="more than 0 s"):
        try_bytes(video, unpack_seconds=0.3)


def test_times_and_pixels_of_a_video_are_kept(try_bytes, tmp_path):
    milliseconds = [0, 100, 150, 500]
    path = encode(
        tmp_path / "a.mkv",
        scene(4, 48, 64),
        pts=milliseconds,
        time_base=Fraction(1, 1000),
        bf=0,
        sample_aspect_ratio=Fraction(4, 3),
    )
    frames = Upload(str(try_bytes.folder), try_bytes(path.read_bytes()))
    assert frames.pixel_aspect == Fraction(4, 3)
    seconds = pytest.approx([0, 0.1, 0.15, 0.5])
    assert [frames.time(t) for t in range(4)] == seconds
    mask = encode_rle(np.ones((48, 64), bool))
    found = {1: {1001: {"mask": mask, "score": 1.0, "iou": 1.0}}}
    write_overlay(str(tmp_path / "o.mp4"), frames, found)
    with VideoFile(tmp_path / "o.mp4") as overlay:
        assert overlay.pixel_aspect == Fraction(4, 3)
        assert [overlay.time(t) for t in range(4)] == seconds
    write_rle_json(str(tmp_path / "m.json"), "a", frames, {1001: "dog"}, found)
    assert json.loads((tmp_path / "m.json").read_text())["times"] == seconds
    write_png_zip(str(tmp_path / "m.zip"), found)
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert np.unique(read_labels(archive.read("00001.png"))).tolist() == [1001]
