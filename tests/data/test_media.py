import io
import os
import stat

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data import media
from sam2_jax.data.videos import VideoFile


def test_read_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.png"), pixels)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert media.read_image(tmp_path / "grey.png").shape == (6, 9, 3)


def test_exif_orientation_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert media.read_image(tmp_path / "turned.jpg").shape == (6, 9, 3)


def test_pictures_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone\.png"):
        media.read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        media.read_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match="is not a picture"):
        media.read_image(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, format="JPEG" if name == "cut.jpg" else "PNG")
        (tmp_path / name).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        with pytest.raises(ValueError, match="damaged or cut short"):
            media.read_image(tmp_path / name)
    Image.new("RGB", (40, 2)).save(tmp_path / "wide.png")
    monkeypatch.setattr(media, "MAX_SIDE", 32)
    with pytest.raises(ValueError, match="is 40x2; at most 32"):
        media.read_image(tmp_path / "wide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="too large to be read"):
        media.read_image(tmp_path / "wide.png")


@pytest.mark.parametrize("shape", [(32, 48), (33, 47), (1, 1)])
def test_video_of_any_size(tmp_path, shape):
    frame = np.full((*shape, 3), (200, 100, 50), np.uint8)
    media.write_video(tmp_path / "a.mp4", [frame] * 3, 24)
    with VideoFile(tmp_path / "a.mp4") as video:
        assert len(video) == 3
        assert (video.height, video.width) == tuple(side + side % 2 for side in shape)
        # The added row and column repeat their neighbours: no black edge.
        assert np.abs(video[1].astype(int) - frame[0, 0]).max() < 12


def test_video_can_start_before_it_is_loaded(tmp_path):
    media.write_video(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3, 24)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    # Readable by whoever may read other files here: no leftover of a private temporary file.
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a.mp4", "other")]
    assert modes[0] == modes[1]


def test_interrupted_video_leaves_nothing(tmp_path):
    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    path = tmp_path / "a.mp4"
    path.write_text("an older file")
    with pytest.raises(KeyboardInterrupt):
        media.write_video(path, frames(), 24)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_text() == "an older file"


def test_video_errors(tmp_path):
    frame = np.zeros((16, 16, 3), np.uint8)
    for frames, message in (
        ([], "no frames"),
        ([frame / 255], "uint8 is expected"),
        ([frame[..., 0]], "uint8 is expected"),
        ([frame, frame[:8]], "frame 1 is .8, 16, 3., but the first is .16, 16, 3."),
    ):
        with pytest.raises(ValueError, match=message):
            media.write_video(tmp_path / "a.mp4", frames, 24)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps is"):
            media.write_video(tmp_path / "a.mp4", [frame], fps)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        media.write_video(tmp_path / "gone" / "a.mp4", [frame], 24)
    assert os.listdir(tmp_path) == []


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)


def test_video_frame_by_frame(tmp_path):
    path = tmp_path / "a.mp4"
    with media.VideoWriter(path, 24) as writer:
        for level in range(10):
            writer.write(np.full((16, 32, 3), 20 * level, np.uint8))
        assert not path.exists()
        assert writer.num_frames == 10
    assert os.listdir(tmp_path) == ["a.mp4"]
    with VideoFile(path) as video:
        levels = [frame.mean() for frame in video]
    np.testing.assert_allclose(levels, 20 * np.arange(10), atol=4)
    writer.close()  # the second time
    with pytest.raises(ValueError, match="is closed"):
        writer.write(np.zeros((16, 32, 3), np.uint8))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_an_interrupted_stream_wrote_is_kept(tmp_path, error):
    path = tmp_path / "a.mp4"
    path.write_text("an older file")
    frame = np.full((16, 32, 3), 90, np.uint8)

    def interrupted():
        with media.VideoWriter(path, 24) as writer:
            for _ in range(7):
                writer.write(frame)
            assert path.read_text() == "an older file"
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(tmp_path) == ["a.mp4"]
    with VideoFile(path) as video:
        assert len(video) == 7
        assert np.abs(video[6].astype(int) - frame).max() < 6


def test_frame_that_does_not_fit_is_left_out(tmp_path):
    with media.VideoWriter(tmp_path / "a.mp4", 24) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
        with pytest.raises(ValueError, match=r"frame 1 is .8, 16, 3., but the first"):
            writer.write(np.zeros((8, 16, 3), np.uint8))
        writer.write(np.zeros((16, 16, 3), np.uint8))
    with VideoFile(tmp_path / "a.mp4") as video:
        assert len(video) == 2


def test_video_without_frames_and_video_dropped(tmp_path):
    with media.VideoWriter(tmp_path / "a.mp4", 24):
        pass
    writer = media.VideoWriter(tmp_path / "b.mp4", 24)
    writer.write(np.zeros((16, 16, 3), np.uint8))
    writer.discard()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="is closed"):
        writer.write(np.zeros((16, 16, 3), np.uint8))


def test_video_on_a_full_disk(tmp_path, disk_of):
    path = tmp_path / "a.mp4"
    path.write_text("an older file")
    num_written = []

    def write_frames():
        with media.VideoWriter(path, 24) as writer:
            for seed in range(90):
                num_written.append(writer.num_frames)
                writer.write(noise(seed))

    def write_at_once():
        media.write_video(path, (noise(seed) for seed in range(8)), 24)

    for write in (write_frames, write_at_once):
        with disk_of(20_000), pytest.raises(OSError, match=r"File too large: '.*/a\.mp4'"):
            write()
    assert num_written[-1] < 89  # the error came at a frame, not at the end
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_text() == "an older file"
