"""Time and geometry of real videos: what FFmpeg shows is what is tracked, and what is written says so."""

import json
import logging
from fractions import Fraction

import av
import numpy as np
import pytest

from sam2_jax.cli import main
from sam2_jax.data.media import VideoWriter
from sam2_jax.data.results import read_rle_file
from sam2_jax.data.streams import read_stream
from sam2_jax.data.videos import DEFAULT_FPS, FirstFrames, VideoFile
from tests.real.generate import NUM_FRAMES, RATE, decode, encode, frames, trim

# Codec, pixels, and the containers that PyAV writes it to and reads it back from.
CODECS = {
    "libx264": ("yuv420p", "mp4 mov mkv avi ts flv wmv mpg nut mxf 3gp h264 m4v"),
    "libx265": ("yuv420p", "mp4 mov mkv ts flv nut hevc"),
    "libvpx": ("yuv420p", "mkv webm avi nut ivf ogg"),
    "libvpx-vp9": ("yuv420p", "mp4 mkv webm nut ivf"),
    "libsvtav1": ("yuv420p", "mp4 mkv webm ivf obu"),
    "mpeg4": ("yuv420p", "mp4 mov mkv avi ts wmv mpg vob nut 3gp"),
    "mpeg2video": ("yuv420p", "mp4 mov mkv avi ts wmv mpg vob nut mxf"),
    "mpeg1video": ("yuv420p", "mp4 mkv avi ts wmv mpg"),
    "mjpeg": ("yuvj420p", "mp4 mov mkv avi wmv nut"),
    "prores_ks": ("yuv422p10le", "mov mkv mxf"),
    "ffv1": ("yuv444p", "mp4 mkv avi nut mxf"),
    "huffyuv": ("rgb24", "avi nut"),
    "png": ("rgb24", "mp4 mov avi nut"),
    "gif": ("rgb8", "gif mov"),
    "apng": ("rgb24", "apng"),
    "flv": ("yuv420p", "flv avi"),
    "wmv2": ("yuv420p", "wmv avi"),
    "msmpeg4": ("yuv420p", "avi mkv wmv"),
    "qtrle": ("rgb24", "mov"),
    "cinepak": ("rgb24", "mov avi"),
    "rawvideo": ("yuv420p", "mkv avi nut y4m"),
}
FILES = [(codec, suffix) for codec, (_, all_) in CODECS.items() for suffix in all_.split()]


@pytest.mark.parametrize(("codec", "suffix"), FILES)
def test_every_codec_and_container_reads_as_ffmpeg_shows_it(tmp_path, codec, suffix):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = encode(tmp_path / f"a.{suffix}", frames(), codec, CODECS[codec][0], g=8)
    shown = decode(path)
    assert len(shown) >= NUM_FRAMES - 1  # some encoders leave one out
    with VideoFile(path) as video:
        video._capacity = 3
        # Times of ASF are those of decoding where frames are reordered.
        assert (len(video), video.fps) == (len(shown), pytest.approx(RATE, rel=0.03))
        for index in np.random.default_rng(0).permutation(len(shown)):
            np.testing.assert_array_equal(video[index], shown[index], err_msg=f"frame {index}")
        assert video.time(len(video) - 1) == pytest.approx((len(video) - 1) / video.fps, abs=2e-3)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("options", [{"g": 48, "bf": 0}, {"g": 12, "bf": 0}, {"g": 12, "bf": 3}])
def test_trimmed_file_begins_with_the_first_frame_that_is_shown(tmp_path, suffix, options):
    full = encode(tmp_path / f"full.{suffix}", frames(48), sc_threshold=0, **options)
    cut = trim(full, tmp_path / f"cut.{suffix}", 20)
    shown = decode(cut)
    assert len(shown) == 28
    with VideoFile(cut) as video:
        video._capacity = 3
        assert (len(video), video.fps) == (28, RATE)
        for index in [*range(28), *reversed(range(28))]:
            np.testing.assert_array_equal(video[index], shown[index], err_msg=f"frame {index}")
    with open(cut, "rb") as file:
        for frame, expected in zip(read_stream(file), shown, strict=True):
            np.testing.assert_array_equal(frame, expected)


def two_streams(path, sizes, lengths):
    """A video file with two streams, each of its own size and length."""
    with av.open(str(path), "w") as container:
        streams = []
        for (height, width), codec in zip(sizes, ("mjpeg", "libx264"), strict=True):
            stream = container.add_stream(codec, rate=RATE)
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            streams.append(stream)
        for stream, length in zip(streams, lengths, strict=True):
            for array in frames(length, stream.height, stream.width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, "rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("sizes", "lengths", "main"),
    [
        ([(32, 32), (64, 64)], [1, 24], 1),  # a thumbnail
        ([(32, 32), (64, 64)], [24, 24], 1),  # a preview
        ([(64, 64), (32, 32)], [24, 24], 0),
    ],
)
def test_video_beside_a_thumbnail_or_preview(tmp_path, caplog, suffix, sizes, lengths, main):
    path = two_streams(tmp_path / f"drone.{suffix}", sizes, lengths)
    with caplog.at_level(logging.WARNING), VideoFile(path) as video:
        assert (len(video), video.height, video.width) == (lengths[main], *sizes[main])
    assert f"2 video streams (32x32, 64x64): number {main + 1}" in caplog.text or main == 0
    with open(path, "rb") as file:
        stream = read_stream(file)
        assert (stream.height, stream.width) == sizes[main]


def test_large_still_picture_is_no_video(tmp_path):
    path = two_streams(tmp_path / "drone.mp4", [(128, 128), (64, 64)], [1, 24])
    with VideoFile(path) as video:
        assert (len(video), video.height) == (24, 64)


def test_audio_with_cover_art_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.height = cover.width = 32
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(ValueError, match="only cover art"):
        VideoFile(path)


def test_browser_recording_has_the_rate_of_its_times(tmp_path):
    milliseconds = [33 * i for i in range(20)]
    path = encode(
        tmp_path / "rec.webm",
        frames(20),
        "libvpx",
        rate=1000,
        pts=milliseconds,
        time_base=Fraction(1, 1000),
        deadline="realtime",
    )
    with VideoFile(path) as video:
        assert (len(video), video.fps) == (20, pytest.approx(1000 / 33, rel=0.01))


def test_rate_that_nothing_bears_out_is_not_taken(tmp_path):
    path = encode(tmp_path / "broken.mp4", frames(), "mjpeg", "yuvj420p", rate=90000)
    with VideoFile(path) as video:
        assert (video.fps, video.time(12)) == (DEFAULT_FPS, 12 / DEFAULT_FPS)


VARYING = [0, 100, 150, 500, 600, 601]  # milliseconds


def test_overlay_and_results_keep_varying_times(tmp_path):
    path = encode(tmp_path / "a.mkv", frames(6), pts=VARYING, time_base=Fraction(1, 1000), bf=0)
    expected = [t / 1000 for t in VARYING]
    with VideoFile(path) as video:
        assert [video.time(i) for i in range(6)] == pytest.approx(expected)
        assert [FirstFrames(video, 3).time(i) for i in range(3)] == pytest.approx(expected[:3])
    with open(path, "rb") as file, read_stream(file) as stream:
        assert [stream.time for _ in stream] == pytest.approx(expected)
    out, rle = tmp_path / "overlay.mp4", tmp_path / "m.json"
    arguments = ["track", str(path), "--point", "30,30", "--image-size", "128"]
    assert main([*arguments, "--out", str(out), "--rle", str(rle)]) in (0, None)
    with VideoFile(out) as video:
        assert [video.time(i) for i in range(6)] == pytest.approx(expected, abs=1e-4)
    assert read_rle_file(rle)["times"] == pytest.approx(expected)


def test_clock_of_a_camera_that_is_set_back_goes_on(tmp_path):
    path = encode(
        tmp_path / "a.nut",
        frames(6),
        "mjpeg",
        "yuvj420p",
        pts=[100, 110, 120, 130, 140, 150],
        time_base=Fraction(1, 100),
    )
    with open(path, "rb") as file, read_stream(file) as stream:
        times = [stream.time for _ in stream]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_times_have_to_ascend(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 24) as video:
        for time in (0, 0.5):
            video.write(np.zeros((16, 16, 3), np.uint8), time)
        with pytest.raises(ValueError, match=r"is shown at 0\.5 s, but the one before at 0\.5 s"):
            video.write(np.zeros((16, 16, 3), np.uint8), 0.5)
        video.write(np.zeros((16, 16, 3), np.uint8), 2)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.duration / av.time_base) == pytest.approx(2 + 1 / 24, abs=0.01)


@pytest.mark.parametrize("rate", [1 / 3600, 0.5, 30000 / 1001, 240, 900])
def test_every_rate_can_be_written(tmp_path, rate):
    with VideoWriter(tmp_path / "a.mp4", rate) as video:
        for frame in frames(3):
            video.write(frame)
    with VideoFile(tmp_path / "a.mp4") as video:
        assert (len(video), video.fps) == (3, pytest.approx(rate, rel=0.01))


MATRICES = {
    "hflip": ((-1, 0), (0, 1)),
    "vflip": ((1, 0), (0, -1)),
    "half": ((-1, 0), (0, -1)),
    "clockwise": ((0, 1), (-1, 0)),
    "counter-clockwise": ((0, -1), (1, 0)),
    "transposed": ((0, 1), (1, 0)),
    "anti-transposed": ((0, -1), (-1, 0)),
}
TURNED = {
    "hflip": lambda x: x[:, ::-1],
    "vflip": lambda x: x[::-1],
    "half": lambda x: x[::-1, ::-1],
    "clockwise": lambda x: np.rot90(x, -1),
    "counter-clockwise": lambda x: np.rot90(x),
    "transposed": lambda x: x.swapaxes(0, 1),
    "anti-transposed": lambda x: x[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_turned_and_mirrored_files_are_read_as_they_are_shown(tmp_path, name):
    stored = encode(tmp_path / "a.mp4", frames(4, 64, 96), sample_aspect_ratio=Fraction(4, 3))
    shown = [TURNED[name](frame) for frame in decode(stored)]
    data, (row, column) = bytearray(stored.read_bytes()), MATRICES[name]
    start = data.index(b"tkhd") + 4 + 40
    entries = np.frombuffer(bytes(data[start : start + 36]), ">i4").reshape(3, 3).copy()
    entries[0, :2], entries[1, :2] = np.multiply(row, 1 << 16), np.multiply(column, 1 << 16)
    data[start : start + 36] = entries.tobytes()
    stored.write_bytes(data)
    with VideoFile(stored) as video:
        is_turned = row[0] == 0
        assert video.pixel_aspect == (Fraction(3, 4) if is_turned else Fraction(4, 3))
        for frame, expected in zip(video, shown, strict=True):
            np.testing.assert_array_equal(frame, expected)


def test_overlay_has_pixels_of_the_same_shape(tmp_path):
    path = encode(tmp_path / "dvd.mp4", frames(2), sample_aspect_ratio=Fraction(16, 15))
    with VideoFile(path) as video:
        assert (video.width, video.pixel_aspect) == (64, Fraction(16, 15))
        with VideoWriter(tmp_path / "o.mp4", video.fps, video.pixel_aspect) as out:
            out.write(video[0])
    with VideoFile(tmp_path / "o.mp4") as video:
        assert video.pixel_aspect == Fraction(16, 15)


@pytest.mark.parametrize(("lines", "luma", "matrix"), [(720, 63, 1), (64, 81, 6)])
def test_colours_of_what_is_written_are_tagged(tmp_path, lines, luma, matrix):
    red = np.zeros((lines, 64, 3), np.uint8)
    red[..., 0] = 255
    with VideoWriter(tmp_path / "red.mp4", 24) as video:
        video.write(red)
    with av.open(str(tmp_path / "red.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (matrix, 1)
    assert (frame.color_primaries, frame.color_trc) == (1, 1)
    assert frame.to_ndarray()[0, 0] == luma
    with VideoFile(tmp_path / "red.mp4") as video:
        assert np.abs(video[0].astype(int) - red).max() <= 3


def test_hdr_is_read_as_it_is_and_said(tmp_path, caplog):
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    path = encode(tmp_path / "hdr.mp4", [ramp], "libx264", "yuv420p10le", color_trc=16)
    with caplog.at_level(logging.WARNING), VideoFile(path) as video:
        assert np.ptp(video[0].astype(int), axis=-1).max() <= 3
        assert all(np.diff(video[0].mean((0, 2))) > 0)
    assert "HDR (PQ)" in caplog.text


def test_equal_times_do_not_merge_frames(tmp_path):
    path, doubled = encode(tmp_path / "a.mkv", frames(12), "mjpeg", "yuvj420p"), tmp_path / "b.mkv"
    with av.open(str(path)) as source, av.open(str(doubled), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None:
                packet.pts = packet.dts = number // 2 * 100
                packet.stream = copy
                target.mux(packet)
    shown = decode(path)
    with VideoFile(doubled) as video:
        assert len(video) == 12
        for index in (5, 0, 4, 11):
            np.testing.assert_array_equal(video[index], shown[index])


def test_vp8_with_hidden_reference_frames(tmp_path):
    options = {"auto-alt-ref": 1, "lag-in-frames": 16, "g": 100}
    path = encode(tmp_path / "a.webm", frames(48), "libvpx", **options)
    shown = decode(path)
    with VideoFile(path) as video:
        assert len(video) == len(shown)
        np.testing.assert_array_equal(video[len(shown) - 1], shown[-1])


def test_names_and_times_of_an_rle_file(tmp_path):
    from sam2_jax.data.results import RleFile

    with RleFile(tmp_path / "m.json", "v", 4, 4, 24, ["a", "b"], [0, 0.5]) as file:
        file.write(0, [1], np.ones((1, 4, 4), bool))
    document = json.loads((tmp_path / "m.json").read_text())
    assert (document["names"], document["times"]) == (["a", "b"], [0, 0.5])
