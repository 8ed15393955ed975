import itertools
import threading

import av
import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.media import write_video
from sam2_jax.data.videos import FrameList, ImageFolder, VideoFile, open_frames

NUM_FRAMES = 40
HEIGHT, WIDTH = 64, 96


def numbered_frame(number: int) -> np.ndarray:
    """A frame that carries its number as six black or white blocks."""
    frame = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for bit in range(6):
        frame[:32, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
    return frame


def read_number(frame: np.ndarray) -> int:
    return sum(int(frame[16, 16 * bit + 8].mean() > 128) << bit for bit in range(6))


def encode(path, codec="libx264", rotation=None, movflags="", **options):
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {name.replace("_", "-"): value for name, value in options.items()}
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four groups of pictures, open ones, with reordered frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    params = "keyint=10:open-gop=1:bframes=3"
    return encode(path, x264_params=params, movflags="+faststart")


@pytest.fixture
def small_cache(monkeypatch):
    monkeypatch.setattr("sam2_jax.data.videos.MAX_CACHED_FRAMES", 5)


def place_in_pictures(data: bytes, fraction: float) -> int:
    """A position within the part of an mp4 that holds the pictures."""
    start = data.index(b"mdat")
    return start + int(fraction * (len(data) - start))


def count_decoded(monkeypatch) -> itertools.count:
    """Counts the frames that come out of the decoder from here on."""
    counter = itertools.count()
    original = VideoFile._indexed_frames

    def counted(self, key):
        for item in original(self, key):
            next(counter)
            yield item

    monkeypatch.setattr(VideoFile, "_indexed_frames", counted)
    return counter


def test_video_says_what_it_holds(clip):
    with VideoFile(clip) as video:
        assert (len(video), video.height, video.width, video.fps) == (40, HEIGHT, WIDTH, 24.0)
        assert video[0].shape == (HEIGHT, WIDTH, 3)
        assert video[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "libx264", {}),
        ("open.mp4", "libx264", {"x264_params": "keyint=10:open-gop=1:bframes=3"}),
        ("short.mp4", "libx264", {"x264_params": "keyint=2:min-keyint=1:bframes=3"}),
        ("open.mkv", "libx264", {"x264_params": "keyint=10:open-gop=1:bframes=3"}),
        ("open.ts", "libx264", {"x264_params": "keyint=10:open-gop=1:bframes=3"}),
        ("fragments.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov", "g": "10"}),
        ("reordered.avi", "libx264", {"x264_params": "keyint=10"}),
        ("plain.avi", "mpeg4", {"g": "10"}),
        ("raw.h264", "libx264", {"x264_params": "keyint=10"}),
    ],
)
def test_every_order_of_access_gives_the_same_frames(tmp_path, small_cache, name, codec, options):
    order = np.random.default_rng(0).permutation(NUM_FRAMES)
    with VideoFile(encode(tmp_path / name, codec, **options)) as video:
        assert [read_number(frame) for frame in video] == list(range(NUM_FRAMES))
        assert [read_number(frame) for frame in reversed(video)] == list(range(NUM_FRAMES))[::-1]
        assert [read_number(video[i]) for i in order] == order.tolist()


def test_decoding_is_not_repeated(tmp_path, monkeypatch):
    path = encode(tmp_path / "one_key.mp4", x264_params="keyint=100")
    decoded = count_decoded(monkeypatch)
    with VideoFile(path) as video:
        list(video)
        assert next(decoded) == NUM_FRAMES
        list(reversed(video))
        assert next(decoded) == NUM_FRAMES + 1  # all still kept


def test_going_back_costs_one_decode_a_chunk(tmp_path, monkeypatch, small_cache):
    path = encode(tmp_path / "keys.mp4", x264_params="keyint=10:scenecut=0")
    with VideoFile(path) as video:
        decoded = count_decoded(monkeypatch)
        list(reversed(video))
        assert next(decoded) <= 2 * NUM_FRAMES


def test_cached_frames_are_bounded(clip, small_cache):
    with VideoFile(clip) as video:
        for index in [*range(NUM_FRAMES), *reversed(range(NUM_FRAMES)), 7, 31]:
            video[index]
            assert len(video._cache) <= 5


def test_large_frames_are_cached_by_the_byte(clip, monkeypatch):
    monkeypatch.setattr("sam2_jax.data.videos.CACHE_BYTES", 6 * HEIGHT * WIDTH * 3)
    with VideoFile(clip) as video:
        list(video)
        assert len(video._cache) == 6


def test_frames_are_read_only(clip):
    with VideoFile(clip) as video, pytest.raises(ValueError, match="read-only"):
        video[0][:] = 0


def test_threads_may_share_a_video(clip, small_cache):
    wrong = []

    def read(order):
        wrong.extend(i for i in order if read_number(video[i]) != i)

    with VideoFile(clip) as video:
        orders = (range(NUM_FRAMES), range(NUM_FRAMES - 1, -1, -1), range(0, NUM_FRAMES, 7))
        threads = [threading.Thread(target=read, args=(order,)) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_rotation_is_applied(tmp_path):
    with VideoFile(encode(tmp_path / "turned.mp4", rotation=90)) as video:
        assert (video.height, video.width) == (WIDTH, HEIGHT)
        assert read_number(np.rot90(video[5], -1)) == 5


def test_indices(clip):
    with VideoFile(clip) as video:
        assert read_number(video[-1]) == NUM_FRAMES - 1
        assert read_number(video[np.int64(3)]) == 3
        for index in (NUM_FRAMES, -NUM_FRAMES - 1):
            with pytest.raises(IndexError, match="there are 40 frames"):
                video[index]
        with pytest.raises(TypeError):
            video[1:3]


def test_closed_video(clip):
    video = VideoFile(clip)
    video.close()
    with pytest.raises(ValueError, match="is closed"):
        video[0]


def test_shortened_video_has_the_frames_that_are_there(clip, tmp_path):
    """The header still promises 40 frames."""
    data = clip.read_bytes()
    path = tmp_path / "short.mp4"
    path.write_bytes(data[: place_in_pictures(data, 0.7)])
    with VideoFile(path) as video:
        assert 10 < len(video) < NUM_FRAMES
        numbers = [read_number(frame) for frame in video]
    # The frames that are there may lack one which would have been shown before the last ones.
    assert numbers == sorted(numbers)
    assert numbers[:-3] == list(range(len(numbers) - 3))


def test_damaged_video_names_the_frame(clip, tmp_path):
    """Frames before the damage, and from the next intact keyframe on, can be read."""
    data = bytearray(clip.read_bytes())
    start, end = place_in_pictures(data, 0.5), place_in_pictures(data, 0.6)
    data[start:end] = bytes(end - start)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with VideoFile(path) as video:
        assert read_number(video[5]) == 5
        assert read_number(video[35]) == 35
        with pytest.raises(ValueError, match=r"frame \d+ of .* after \d+ of its 40 frames"):
            list(video)
        assert read_number(video[5]) == 5


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.mp4", b"", "not a video"),
        ("text.mp4", b"hello\n" * 50, "not a video"),
        ("notes.txt", b"\x1b[31mhello\x1b[0m world\r\n" * 100, "no video stream"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n", "not a video|no video"),
    ],
)
def test_files_that_are_no_videos(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        VideoFile(path)


def test_video_without_its_end(tmp_path):
    path = encode(tmp_path / "plain.mp4")
    path.write_bytes(path.read_bytes().partition(b"moov")[0])
    with pytest.raises(ValueError, match="not a video that can be read"):
        VideoFile(path)


def test_sound_is_no_video(tmp_path):
    path = tmp_path / "tone.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        tone.sample_rate = 8000
        container.mux(stream.encode(tone))
    with pytest.raises(ValueError, match="no video stream"):
        VideoFile(path)


def test_absurd_size(clip, monkeypatch):
    monkeypatch.setattr("sam2_jax.data.videos.MAX_SIDE", 80)
    with pytest.raises(ValueError, match="96x64; at most 80 pixels"):
        VideoFile(clip)


def test_nothing_there(tmp_path):
    for reader in (VideoFile, ImageFolder, open_frames):
        with pytest.raises(FileNotFoundError, match="nothing_here"):
            reader(tmp_path / "nothing_here")
    with pytest.raises(ValueError, match="is a folder"):
        VideoFile(tmp_path)


def save(path, value, size=(12, 8)):
    Image.new("RGB", size, (value, value, value)).save(path)


def test_folder_is_in_the_order_of_numbers(tmp_path):
    for number in (10, 9, 100):
        save(tmp_path / f"{number}.png", number)
    (tmp_path / "._9.png").write_bytes(b"not a picture")
    (tmp_path / "readme.txt").write_text("not a picture")
    with ImageFolder(tmp_path) as frames:
        assert [int(frame[0, 0, 0]) for frame in frames] == [9, 10, 100]
        assert (frames.height, frames.width) == (8, 12)


def test_other_names_are_in_the_order_of_text(tmp_path):
    for value, name in enumerate(["a2.JPG", "b1.png", "c.jpeg"]):
        save(tmp_path / name, 100 * value)
    assert ImageFolder(tmp_path).names == ["a2.JPG", "b1.png", "c.jpeg"]


def test_folder_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        ImageFolder(tmp_path)
    save(tmp_path / "0.png", 0)
    save(tmp_path / "1.png", 0, size=(10, 8))
    (tmp_path / "2.png").write_bytes(b"not a picture")
    frames = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match=r"1\.png is 10x8, but the first frame is 12x8"):
        frames[1]
    with pytest.raises(ValueError, match=r"2\.png is not a picture"):
        frames[2]
    save(tmp_path / "00.jpg", 0)
    with pytest.raises(ValueError, match=r"two pictures of frame 0: 0\.png, 00\.jpg|00\.jpg, 0"):
        ImageFolder(tmp_path)


def test_frame_list():
    array = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    for source in (array, list(array), [Image.fromarray(frame) for frame in array]):
        frames = open_frames(source)
        assert isinstance(frames, FrameList)
        assert (len(frames), frames.height, frames.width) == (2, 4, 5)
        np.testing.assert_array_equal(np.stack(list(frames)), array)


def test_frame_list_errors():
    frame = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="empty"):
        FrameList([])
    with pytest.raises(ValueError, match="uint8 RGB is expected"):
        FrameList([frame / 255])
    with pytest.raises(ValueError, match="frame 1 is 5x3"):
        FrameList([frame, frame[:3]])[1]


def test_open_frames_chooses(clip, tmp_path):
    save(tmp_path / "0.png", 0)
    with open_frames(str(clip)) as video, open_frames(tmp_path) as folder:
        assert isinstance(video, VideoFile)
        assert isinstance(folder, ImageFolder)
        assert open_frames(video) is video
    with pytest.raises(ValueError, match="cannot read frames from int"):
        open_frames(3)


def test_written_video_is_read_back(tmp_path):
    path = tmp_path / "written.mp4"
    write_video(path, (numbered_frame(i) for i in range(10)), 30000 / 1001)
    with VideoFile(path) as video:
        assert [read_number(frame) for frame in video] == list(range(10))
        assert video.fps == pytest.approx(29.97, abs=1e-3)
        assert np.abs(video[9][:32].astype(int) - numbered_frame(9)[:32]).mean() < 4
