import errno
import gc
import json
import os
import tracemalloc

import numpy as np
import pytest

from sam2_jax.data import results as results_module
from sam2_jax.data.masks import (
    decode_rle,
    pack_masks,
    read_boxes,
    read_mask_png,
    read_palette_png,
)
from sam2_jax.data.readers import object_masks
from sam2_jax.data.results import (
    BoxFiles,
    ObjectFolders,
    PaletteFolder,
    RleFile,
    RleResults,
    read_rle_file,
)

HEIGHT, WIDTH = 24, 32
IDS = [3, 5]


def masks_of(frame, count=2):
    """Discs that drift, overlap, and are gone now and then."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    stack = [np.hypot(y - 10 - n, x - 6 - 3 * n - frame) < 6 for n in range(count)]
    stack[0] &= frame % 4 != 3
    return np.stack(stack)


def rle_file(path):
    return RleFile(path, "clip.mp4", HEIGHT, WIDTH, 12.5)


SINKS = {
    "memory": lambda path: RleResults(),
    "palette": lambda path: PaletteFolder(path / "out"),
    "objects": lambda path: ObjectFolders(path / "out"),
    "boxes": lambda path: BoxFiles(path / "out"),
    "document": lambda path: rle_file(path / "out.json"),
}


@pytest.mark.parametrize("name", SINKS)
def test_masks_that_do_not_fit_are_refused(tmp_path, name):
    with SINKS[name](tmp_path) as results:
        for masks in (masks_of(0)[0], masks_of(0) * 0.5, masks_of(0, count=3)):
            with pytest.raises(ValueError, match=r"\(2, H, W\) bool is expected"):
                results.write(0, IDS, masks)


@pytest.mark.parametrize("name", SINKS)
def test_frame_without_objects_and_closing_twice(tmp_path, name):
    with SINKS[name](tmp_path) as results:
        results.write(0, [], np.zeros((0, HEIGHT, WIDTH), bool))
        results.close()
        results.close()


def test_run_lengths_in_memory():
    with RleResults() as results:
        for frame in (2, 3, 1):
            results.write(frame, IDS, masks_of(frame))
        results.write(9, [], np.zeros((0, HEIGHT, WIDTH), bool))
    assert list(results) == [2, 3, 1, 9]
    assert len(results) == 4
    assert list(results[2]) == IDS
    np.testing.assert_array_equal(decode_rle(results[3][5]), masks_of(3)[1])
    ids, masks = results.masks(1)
    assert ids == IDS
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, masks_of(1))
    assert results.masks(9)[1].shape == (0, HEIGHT, WIDTH)
    with pytest.raises(KeyError):
        results[7]


def test_run_lengths_of_any_id():
    results = RleResults()
    results.write(0, ["cat", np.int64(7)], masks_of(0))
    assert set(results[0]) == {"cat", 7}


def test_palette_folder(tmp_path):
    colors = np.full((4, 3), 77, np.uint8)
    with PaletteFolder(tmp_path / "a" / "b", palette=colors) as results:
        for frame in (4, 3, 123456):
            results.write(frame, IDS, masks_of(frame))
    names = ["00003.png", "00004.png", "123456.png"]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == names
    ids, palette = read_palette_png(tmp_path / "a" / "b" / "00004.png")
    np.testing.assert_array_equal(ids, pack_masks(masks_of(4), IDS))
    np.testing.assert_array_equal(palette[:4], colors)


@pytest.mark.parametrize("ids", [[0, 1], [1, 65535], ["a", 1], [1, 1]])
def test_palette_folder_checks_ids_at_once(tmp_path, ids):
    with (
        PaletteFolder(tmp_path) as results,
        pytest.raises(ValueError, match=r"ids are .*within 1\.\.65534"),
    ):
        results.write(0, ids, masks_of(0))
    assert os.listdir(tmp_path) == []


def test_object_folders(tmp_path):
    with ObjectFolders(tmp_path / "out") as results:
        for frame in range(3):
            results.write(frame, [0, 5], masks_of(frame))
        results.write(3, [7], masks_of(3)[1:])
    written = object_masks("out", str(tmp_path / "out"))
    for frame in range(3):
        assert list(written.masks(frame)) == [0, 5]
        np.testing.assert_array_equal(list(written.masks(frame).values()), masks_of(frame))
    assert list(written.masks(3)) == [7]


def test_pictures_are_named_as_the_frames_and_coloured_as_asked(tmp_path):
    colors, names = np.full((4, 3), 77, np.uint8), ["a7", "b"]
    for sink, place in ((PaletteFolder, "b.png"), (ObjectFolders, "001/b.png")):
        with sink(tmp_path / sink.__name__, colors, names) as results:
            results.write(1, [1], masks_of(0, count=1))
        values, palette = read_palette_png(tmp_path / sink.__name__ / place)
        np.testing.assert_array_equal(values, masks_of(0, count=1)[0])
        np.testing.assert_array_equal(palette[:4], colors)


def test_box_files(tmp_path):
    with BoxFiles(tmp_path / "out") as results:
        for frame in (4, 5, 3, 2):
            results.write(frame, IDS, masks_of(frame))
        results.write(7, [12], masks_of(7)[:1])
    assert sorted(os.listdir(tmp_path / "out")) == ["003.txt", "005.txt", "012.txt"]
    boxes = read_boxes(tmp_path / "out" / "003.txt")
    assert boxes.shape == (8, 4)
    assert (boxes[[0, 1, 3, 6, 7]] == 0).all()
    assert boxes[2].tolist() == [3, 5, 11, 11]
    assert boxes[4].tolist() == [5, 5, 11, 11]


def test_document(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("an older file")
    with rle_file(path) as results:
        for frame in (2, 3):
            results.write(frame, np.array(IDS), masks_of(frame))
        results.write(1, [1, 5], masks_of(1))
        assert path.read_text() == "an older file"
    assert os.listdir(tmp_path) == ["a.json"]
    document = json.loads(path.read_text())
    assert {name: document[name] for name in ("video", "height", "width", "fps", "objects")} == {
        "video": "clip.mp4",
        "height": HEIGHT,
        "width": WIDTH,
        "fps": 12.5,
        "objects": [1, 3, 5],
    }
    assert set(document["frames"]) == {"1", "2", "3"}
    np.testing.assert_array_equal(decode_rle(document["frames"]["3"]["5"]), masks_of(3)[1])
    read = read_rle_file(path)
    assert list(read["frames"]) == [1, 2, 3]
    assert list(read["frames"][1]) == [1, 5]
    assert read["frames"][2][3] == document["frames"]["2"]["3"]
    with pytest.raises(ValueError, match="is closed"):
        results.write(9, IDS, masks_of(9))


def test_document_without_frames(tmp_path):
    with rle_file(tmp_path / "a.json"):
        pass
    assert read_rle_file(tmp_path / "a.json")["frames"] == {}


def test_document_of_ids_that_are_no_numbers(tmp_path):
    with rle_file(tmp_path / "a.json") as results:
        results.write(0, ['the "cat"', 7], masks_of(0))
    read = read_rle_file(tmp_path / "a.json")
    assert read["objects"] == [7, 'the "cat"']
    assert set(read["frames"][0]) == {7, 'the "cat"'}


def test_later_masks_of_a_frame_count(tmp_path):
    with rle_file(tmp_path / "a.json") as results:
        results.write(0, IDS, masks_of(1))
        results.write(0, IDS, masks_of(2))
    rle = read_rle_file(tmp_path / "a.json")["frames"][0][5]
    np.testing.assert_array_equal(decode_rle(rle), masks_of(2)[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_document_of_an_interrupted_run(tmp_path, error):
    def interrupted():
        with rle_file(tmp_path / "a.json") as results:
            for frame in range(5):
                results.write(frame, IDS, masks_of(frame))
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(tmp_path) == ["a.json"]
    assert len(read_rle_file(tmp_path / "a.json")["frames"]) == 5


def test_document_on_a_full_disk(tmp_path, disk_of):
    """The frames that fitted make a whole document."""
    path = tmp_path / "a.json"
    num_written = 0

    def write_many():
        nonlocal num_written
        for frame in range(100):
            results.write(frame, IDS, masks_of(frame))
            num_written += 1

    with disk_of(1500), rle_file(path) as results:
        with pytest.raises(OSError, match=r"too large: '.*/a\.json'"):
            write_many()
        results.close()
    read = read_rle_file(path)
    assert list(read["frames"]) == list(range(num_written))
    assert 3 < num_written < 50
    assert os.listdir(tmp_path) == ["a.json"]


def test_document_that_cannot_be_finished(tmp_path, disk_of):
    path = tmp_path / "a.json"
    path.write_text("an older file")
    with disk_of(10), pytest.raises(OSError, match=r"too large: '.*/a\.json'"):
        rle_file(path)
    results = rle_file(path)
    results.write(0, IDS, masks_of(0))
    with disk_of(10), pytest.raises(OSError, match=r"too large: '.*/a\.json'"):
        results.close()
    results.close()
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.read_text() == "an older file"


def test_memory_does_not_grow_with_the_document(tmp_path):
    masks = masks_of(0)
    with rle_file(tmp_path / "a.json") as results:
        results.write(0, IDS, masks)
        tracemalloc.start(16)
        try:
            for frame in range(1, 400):
                results.write(frame, IDS, masks)
            gc.collect()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    # Of what was made under the writer: other threads of the process have memory of their own.
    from_here = tracemalloc.Filter(True, results_module.__file__, all_frames=True)
    assert sum(trace.size for trace in snapshot.filter_traces([from_here]).traces) < 20_000
    assert os.path.getsize(tmp_path / "a.json") > 40_000


def test_document_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        rle_file(tmp_path / "gone" / "a.json")
    with (
        rle_file(tmp_path / "a.json") as results,
        pytest.raises(ValueError, match=r"masks of frame 4 are \(24, 31\), not \(24, 32\)"),
    ):
        results.write(4, IDS, masks_of(0)[..., 1:])
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_rle_file(tmp_path / "gone.json")
    whole = json.loads((tmp_path / "a.json").read_text())
    wrong_size = {"0": {"1": {"size": [3, 4], "counts": ""}}}
    for document, message in (
        ("{", "is not a document of masks"),
        ("[]", "is not a document of masks"),
        (json.dumps(whole | {"frames": {"x": {}}}), "is not a document of masks"),
        (json.dumps(whole | {"frames": {"0": {"1": {}}}}), "is not a document of masks"),
        (json.dumps(whole | {"frames": wrong_size, "objects": [1]}), "frame 0 are not of size 24"),
    ):
        (tmp_path / "b.json").write_text(document)
        with pytest.raises(ValueError, match=message):
            read_rle_file(tmp_path / "b.json")


@pytest.mark.parametrize("sink", [PaletteFolder, ObjectFolders])
def test_pictures_on_a_full_disk(tmp_path, monkeypatch, sink):
    """The disk is full from the third frame on: what was written before stays, whole."""
    results = sink(tmp_path / "out")
    for frame in range(2):
        results.write(frame, IDS, masks_of(frame))
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"No space.*00002\.png"):
            results.write(2, IDS, masks_of(2))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert all(read_mask_png(path).any() for path in before)
    results.write(2, IDS, masks_of(2))  # room again
