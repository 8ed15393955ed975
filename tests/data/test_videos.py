import io
import itertools
import threading

import av
import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.media import write_video
from sam2_jax.data.videos import (
    KEPT_FRAMES,
    FirstFrames,
    FrameIterator,
    FrameList,
    ImageFolder,
    VideoFile,
    open_frames,
)

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


def test_frames_around_the_damage_can_be_read(tmp_path):
    """Several keyframes, closed groups: only the group that is hit is lost, and each loss is named."""
    path = encode(tmp_path / "keys.mp4", x264_params="keyint=5:min-keyint=5:scenecut=0:bframes=0")
    data = bytearray(path.read_bytes())
    start = place_in_pictures(data, 0.51)
    data[start : start + 2000] = bytes(2000)
    path.write_bytes(data)
    lost, read, message = [], {}, ""
    with VideoFile(path) as video:
        assert len(video) == NUM_FRAMES
        for index in range(NUM_FRAMES):
            try:
                read[index] = read_number(video[index])
            except ValueError as error:
                lost.append(index)
                message = str(error)
    assert f"frame {lost[-1]} of {path} cannot be decoded" in message
    assert all(index == number for index, number in read.items())
    assert 1 <= len(lost) <= 5
    assert lost == list(range(lost[0], lost[0] + len(lost)))
    assert lost[0] // 5 == lost[-1] // 5


def test_video_of_several_sizes_names_the_frame(tmp_path):
    """Two recordings one after the other in one stream, as cameras that restart write them."""
    path = tmp_path / "two.ts"
    with path.open("wb") as file:
        for size in ((64, 48), (32, 32)):
            part = io.BytesIO()
            with av.open(part, "w", format="h264") as container:
                stream = container.add_stream("libx264", rate=24)
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
                for _ in range(4):
                    picture = np.zeros((size[1], size[0], 3), np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
                container.mux(stream.encode())
            file.write(part.getvalue())
    with VideoFile(path) as video:
        assert video[3].shape == (48, 64, 3)
        with pytest.raises(ValueError, match=r"frame 4 of .*two\.ts is 32x32, but .* 64x48"):
            list(video)
        assert video[1].shape == (48, 64, 3)


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
    assert ImageFolder(tmp_path).names == ["a2", "b1", "c"]


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


def test_foreign_files_in_a_folder(tmp_path):
    for number in (0, 1, 2, 4):
        save(tmp_path / f"{number:05d}.jpg", 10 * number)
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "00003.jpg").write_text("text, whatever its name says")
    with ImageFolder(tmp_path) as frames:
        assert len(frames) == 5
        with pytest.raises(ValueError, match=r"00003\.jpg is not a picture"):
            frames[3]
        assert frames[4][0, 0, 0] == 40
    (tmp_path / "00003.jpg").unlink()
    (tmp_path / "00003.jpg").symlink_to("gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*00003\.jpg"):
        ImageFolder(tmp_path)[3]


def test_gaps_between_the_numbers(tmp_path):
    for number in (2, 7, 30, 100):
        save(tmp_path / f"{number:04d}.png", number)
    frames = ImageFolder(tmp_path)
    assert [int(frame[0, 0, 0]) for frame in frames] == [2, 7, 30, 100]
    assert frames.exists(3)
    assert not frames.exists(4)


def test_names_of_both_kinds(tmp_path):
    for name in ("00000.jpg", "00001.jpg", "cover.jpg"):
        save(tmp_path / name, 0)
    with pytest.raises(ValueError, match=r"named by numbers and others, such as cover\.jpg"):
        ImageFolder(tmp_path)


def test_numbers_within_names_count_as_numbers(tmp_path):
    order = ["shot 2", "shot 10", "shot 10-1", "title"]
    for name in order:
        save(tmp_path / f"{name}.png", 0)
    assert ImageFolder(tmp_path).names == order


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


def gray(level, height=4, width=6):
    return np.full((height, width, 3), level, np.uint8)


def test_generator_is_pulled_only_as_far_as_asked():
    pulled = []

    def frames():
        for level in range(5):
            pulled.append(level)
            yield gray(level)

    source = open_frames(frames())
    assert isinstance(source, FrameIterator)
    assert (source.height, source.width, source.fps) == (4, 6, 24.0)
    assert pulled == [0]
    assert source[2][0, 0, 0] == 2
    assert source[0][0, 0, 0] == 0
    assert pulled == [0, 1, 2]
    assert source.exists(4)
    assert not source.exists(-1)
    with pytest.raises(TypeError, match="unknown before its end"):
        len(source)
    with pytest.raises(TypeError, match="unknown before its end"):
        source[-1]
    assert not source.exists(5)
    assert len(source) == 5
    assert source[-1][0, 0, 0] == 4
    with pytest.raises(IndexError, match="no frame 7: there are 5 frames"):
        source[7]
    assert [int(frame[0, 0, 0]) for frame in source] == list(range(5))


def test_endless_generator_keeps_a_few_frames():
    frames = open_frames(gray(index % 256) for index in itertools.count())
    for index in range(1000):
        assert frames.exists(index)
        assert frames[index][0, 0, 0] == index % 256
    assert len(frames._kept) == KEPT_FRAMES
    assert frames[1000 - KEPT_FRAMES][0, 0, 0] == (1000 - KEPT_FRAMES) % 256
    with pytest.raises(ValueError, match=r"frame 967 is gone: .* last 32 .* a file or a list"):
        frames[1000 - KEPT_FRAMES - 1]
    first = FirstFrames(frames, 1002)
    assert first.exists(1001)
    assert not first.exists(1002)


def test_first_frames_of_a_short_iterator():
    first = FirstFrames(open_frames(gray(i) for i in range(3)), 10)
    assert [int(frame[0, 0, 0]) for frame in first] == [0, 1, 2]
    assert len(first) == 3
    assert len(FirstFrames(open_frames([gray(0)] * 3), 2)) == 2


def test_one_array_filled_again_and_again():
    def frames():
        buffer = gray(0)
        for level in range(3):
            buffer[:] = level
            yield buffer

    source = open_frames(frames())
    assert source.exists(2)
    assert [int(source[i][0, 0, 0]) for i in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        source[0][:] = 0


def test_iterator_that_fails():
    def frames():
        yield gray(0)
        yield gray(1)
        raise RuntimeError("the cable is out")

    source = open_frames(frames())
    for _ in range(2):  # the second time as well
        with pytest.raises(
            ValueError, match="frame 2 could not be read: the cable is out"
        ) as error:
            source.exists(5)
        assert isinstance(error.value.__cause__, RuntimeError)
    assert source[1][0, 0, 0] == 1
    with pytest.raises(TypeError, match="unknown before"):
        len(source)


def test_iterator_errors():
    with pytest.raises(ValueError, match="the iterator has no frames"):
        open_frames(iter([]))
    with pytest.raises(ValueError, match=r"frame 0 is .4, 6, 3. float64"):
        open_frames(iter([gray(0) / 255]))
    frames = open_frames(iter([gray(0), gray(1), gray(2, 5, 7), gray(3)]))
    with pytest.raises(ValueError, match="frame 2 is 7x5, but the first frame is 6x4"):
        list(frames)
    assert frames[1][0, 0, 0] == 1
    frames = open_frames(iter([gray(0), None]))
    with pytest.raises(ValueError, match="frame 1 is"):
        frames.exists(1)
    for source in ({0: gray(0)}, {1, 2}):
        with pytest.raises(ValueError, match=r"cannot read frames from .* an iterator is expected"):
            open_frames(source)


def test_pictures_from_an_iterator():
    frames = open_frames(Image.fromarray(gray(level)) for level in (5, 6))
    assert [int(frame[0, 0, 0]) for frame in frames] == [5, 6]


def test_closed_iterator():
    ended = []

    def endless():
        try:
            while True:
                yield gray(0)
        finally:
            ended.append(True)

    with open_frames(endless()) as frames:
        assert frames.exists(3)
    assert ended == [True]
    for read in (frames.__getitem__, frames.exists):
        with pytest.raises(ValueError, match="is closed"):
            read(2 if read == frames.__getitem__ else 9)


def test_threads_may_share_an_iterator():
    frames = open_frames(gray(level) for level in range(20))
    wrong = []

    def read():
        wrong.extend(i for i in range(20) if frames[i][0, 0, 0] != i)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not frames.exists(20)


def test_sizes_are_known_of_every_source(clip):
    with VideoFile(clip) as video:
        assert video.exists(NUM_FRAMES - 1)
        assert not video.exists(NUM_FRAMES)
        assert not video.exists(-1)


def test_real_videos(real_data):
    with open_frames(real_data / "davis2017" / "dogs-jump.mp4") as video:
        assert (len(video), video.height, video.width) == (66, 240, 432)
        assert video[65].std() > 10
    folder = real_data / "davis2016" / "JPEGImages" / "480p" / "blackswan"
    with open_frames(folder) as frames:
        assert frames[0].shape == (frames.height, frames.width, 3)
        assert not frames.exists(len(list(folder.glob("*.jpg"))))
