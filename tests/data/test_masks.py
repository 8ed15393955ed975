import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from sam2_jax.data import masks
from sam2_jax.data.readers import object_masks

pictures = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def test_davis_palette():
    palette = masks.davis_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128)}
    known |= {8: (64, 0, 0), 15: (192, 128, 128), 21: (128, 64, 128), 255: (224, 224, 192)}
    for index, color in known.items():
        assert tuple(palette[index]) == color
    assert len(np.unique(palette, axis=0)) == 256


def test_palette_png_keeps_ids_and_mode(tmp_path):
    ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
    masks.write_palette_png(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(masks.read_mask_png(tmp_path / "a.png"), ids)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == masks.davis_palette().ravel().tolist()


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (np.array([[0, 3], [255, 1]], np.uint8), "L"),
        (np.array([[False, True], [True, False]]), "1"),
        (np.array([[0, 300], [65535, 1]], np.uint16), "I;16"),
    ],
)
def test_grey_masks(tmp_path, array, mode):
    image = Image.fromarray(array)
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    ids = masks.read_mask_png(tmp_path / "a.png")
    assert ids.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    np.testing.assert_array_equal(ids, array)


def test_mask_errors(tmp_path):
    Image.new("RGB", (4, 4), (9, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"is a coloured RGB picture.*; a palette or grey PNG"):
        masks.read_mask_png(tmp_path / "a.png")
    for ids in (np.zeros((4, 4), np.int32), np.zeros((1, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8 or uint16 is expected"):
            masks.write_palette_png(tmp_path / "b.png", ids)


def test_lowest_id_wins():
    stack = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], bool)
    assert masks.pack_masks(stack, [7, 200]).tolist() == [[7, 7, 200, 0]]
    assert masks.pack_masks(stack, [200, 7]).tolist() == [[200, 7, 7, 0]]
    assert masks.pack_masks(np.zeros((0, 2, 3), bool), []).tolist() == [[0, 0, 0]] * 2


def test_pack_errors():
    stack = np.zeros((2, 3, 4), bool)
    for ids in ([0, 1], [1, 65535], [1, 1]):
        with pytest.raises(ValueError, match=r"within 1\.\.65534"):
            masks.pack_masks(stack, ids)
    with pytest.raises(ValueError, match=r"\(1, H, W\) bool is expected"):
        masks.pack_masks(stack, [1])
    with pytest.raises(ValueError, match="bool is expected"):
        masks.pack_masks(stack + np.float32(0.5), [1, 2])
    ones = np.ones((1, 3, 4), np.float32)  # as predictors hand masks out
    np.testing.assert_array_equal(masks.pack_masks(ones, [7]), np.full((3, 4), 7))


@given(pictures)
def test_rle_round_trip(mask):
    rle = json.loads(json.dumps(masks.encode_rle(mask)))
    assert rle["size"] == list(mask.shape)
    decoded = masks.decode_rle(rle)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


@given(pictures)
def test_uncompressed_rle(mask):
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    counts = np.diff([0, *edges, mask.size]).tolist()
    rle = {"size": list(mask.shape), "counts": counts}
    np.testing.assert_array_equal(masks.decode_rle(rle), mask)


def test_rle_of_long_runs():
    mask = np.zeros((1200, 900), bool)
    mask[300:900, 200:700] = True
    mask[500, 300] = False
    np.testing.assert_array_equal(masks.decode_rle(masks.encode_rle(mask)), mask)


@given(st.text(max_size=12))
def test_any_text_decodes_or_is_refused(text):
    """Never another error, nor a mask that pycocotools would write otherwise."""
    try:
        mask = masks.decode_rle({"size": [3, 4], "counts": text})
    except ValueError:
        return
    assert mask.shape == (3, 4)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [4, 4]},
        {"size": [4], "counts": [16]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": 16},
        {"size": [4, 4], "counts": [3, 4]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [-4, -4], "counts": [16]},
        {"size": [4.5, 4], "counts": [18]},
        {"size": ["4", 4], "counts": [16]},
        {"size": [100_000, 100_000], "counts": [10_000_000_000]},
    ],
)
def test_malformed_rle(rle):
    with pytest.raises(ValueError, match="run lengths"):
        masks.decode_rle(rle)


def test_rle_wants_a_mask():
    for mask in (np.zeros((3, 4)), np.zeros((1, 3, 4), bool)):
        with pytest.raises(ValueError, match="bool is expected"):
            masks.encode_rle(mask)


@pytest.mark.parametrize("has_palette", [True, False])
def test_one_rule_for_void(tmp_path, has_palette):
    """255 is no object, unless it is the only one; the file and its bytes are read alike."""

    def labels_of(values, dtype=np.uint8):
        if has_palette and dtype == np.uint8:
            masks.write_palette_png(tmp_path / "a.png", np.array([values], dtype))
        else:
            Image.fromarray(np.array([values], dtype)).save(tmp_path / "a.png")
        found = masks.read_labels(tmp_path / "a.png")
        np.testing.assert_array_equal(masks.read_labels((tmp_path / "a.png").read_bytes()), found)
        return found[0].tolist()

    assert labels_of([0, 1, 255, 2]) == [0, 1, 0, 2]
    assert labels_of([0, 254, 255]) == [0, 254, 0]
    assert labels_of([0, 255, 0]) == [0, 1, 0]
    assert labels_of([255, 255]) == [1, 1]
    assert labels_of([0, 3]) == [0, 3]
    assert labels_of([0, 1, 255, 300], np.uint16) == [0, 1, 255, 300]
    assert labels_of([0, 255], np.uint16) == [0, 255]


def test_polygons_that_are_none():
    for polygons in ([[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], "text"):
        with pytest.raises(ValueError, match="at least three points"):
            masks.decode_polygons(polygons, 4, 5)
    assert not masks.decode_polygons([], 4, 5).any()


def test_palette_of_a_mask_is_kept(tmp_path):
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colors = np.random.default_rng(0).integers(0, 256, (9, 3), dtype=np.uint8)
    masks.write_palette_png(tmp_path / "a.png", ids, colors)
    again, palette = masks.read_palette_png(tmp_path / "a.png")
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_array_equal(palette[:9], colors)
    np.testing.assert_array_equal(palette[9:], masks.davis_palette()[9:])
    masks.write_palette_png(tmp_path / "b.png", again, palette)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_palette_with_two_ids_of_one_color(tmp_path):
    """Read as colours, the ids would be lost."""
    ids = np.array([[0, 1], [2, 1]], np.uint8)
    masks.write_palette_png(tmp_path / "a.png", ids, np.zeros((256, 3), np.uint8))
    np.testing.assert_array_equal(masks.read_mask_png(tmp_path / "a.png"), ids)


def test_grey_mask_has_no_palette(tmp_path):
    Image.fromarray(np.eye(3, dtype=np.uint8)).save(tmp_path / "a.png")
    assert masks.read_palette_png(tmp_path / "a.png")[1] is None


@pytest.mark.parametrize("palette", [np.zeros((4, 4), np.uint8), np.zeros((4, 3))])
def test_palette_errors(tmp_path, palette):
    with pytest.raises(ValueError, match=r"\(K, 3\) uint8 is expected"):
        masks.write_palette_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8), palette)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("color_type", [0, 3])
def test_masks_of_few_bits_a_pixel(tmp_path, bits, color_type):
    """Grey (0) and palette (3) PNGs, of which Pillow spreads the grey values over 0..255."""
    ids = np.arange(8, dtype=np.uint8) % 2**bits
    row = np.packbits(np.unpackbits(ids[:, None], axis=1)[:, -bits:].ravel()).tobytes()

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 8, 1, bits, color_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3 * 2**bits)) if color_type == 3 else b""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette
    data += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    assert masks.read_mask_png(tmp_path / "a.png").tolist() == [ids.tolist()]


def test_full_disk_leaves_no_half_a_mask(tmp_path, disk_of):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    with disk_of(2000), pytest.raises(OSError, match=r"too large: '.*/a\.png'"):
        masks.write_palette_png(tmp_path / "a.png", noise)
    assert os.listdir(tmp_path) == []


def test_real_palette_masks(real_data, tmp_path):
    """DAVIS 2017: palette PNGs are written back with the same pixels, palette and mode."""
    for name in ("00000.png", "00040.png"):
        path = real_data / "davis2017" / "dogs-jump" / name
        ids, palette = masks.read_palette_png(path)
        assert set(np.unique(ids)) == {0, 1, 2, 3}
        masks.write_palette_png(tmp_path / name, ids, palette)
        with Image.open(path) as before, Image.open(tmp_path / name) as after:
            assert (after.mode, after.size) == ("P", before.size)
            assert after.getpalette()[:12] == before.getpalette()[:12]
            assert after.tobytes() == before.tobytes()


def test_real_grey_and_16_bit_masks(real_data):
    davis = masks.read_mask_png(
        real_data / "davis2016" / "Annotations" / "480p" / "blackswan" / "00000.png"
    )
    assert set(np.unique(davis)) == {0, 255}
    labels = sorted((real_data / "nuclei" / "labels").glob("*.png"))
    ids = masks.read_mask_png(labels[0])
    assert ids.dtype == np.uint16
    with Image.open(labels[0]) as image:
        np.testing.assert_array_equal(ids, np.array(image))
    assert ids.max() >= len(np.unique(ids)) - 1 > 0


def stack_of(seed, count=3, shape=(20, 30)):
    return np.random.default_rng(seed).random((count, *shape)) > 0.6


def read_objects(folder, frame):
    video = object_masks("video", str(folder))
    return dict(video.masks(video.frame_names.index(frame)))


def test_object_folders_round_trip(tmp_path):
    stacks = {0: stack_of(0), 4: stack_of(1)}
    for frame, stack in stacks.items():
        masks.write_object_masks(tmp_path, frame, [0, 12, 1234], stack)
    assert (tmp_path / "012" / "00004.png").is_file()
    assert (tmp_path / "1234" / "00000.png").is_file()
    for frame, stack in stacks.items():
        again = read_objects(tmp_path, f"{frame:05d}")
        assert list(again) == [0, 12, 1234]
        assert again[0].dtype == bool
        np.testing.assert_array_equal(list(again.values()), stack)
    with Image.open(tmp_path / "000" / "00000.png") as image:
        assert image.mode == "L"
        assert set(image.tobytes()) == {0, 255}


def test_object_folders_of_others(tmp_path, caplog):
    """Black-and-white, grey and palette pictures; an object without this frame; foreign files."""
    mask = stack_of(2)[0]
    for number, picture in enumerate(
        (
            Image.fromarray(mask),
            Image.fromarray(mask * np.uint8(7)),
            Image.fromarray(mask * np.uint8(1)),
        )
    ):
        (tmp_path / str(number)).mkdir()
        if number == 2:
            picture.putpalette([0, 0, 0, 128, 0, 0])
        picture.save(tmp_path / str(number) / "00003.png")
    (tmp_path / "010").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "5").touch()
    assert list(masks.object_folders(tmp_path)) == [0, 1, 2, 10]
    assert "1 of the 5 folders" in caplog.text
    assert "the first is notes" in caplog.text
    again = read_objects(tmp_path, "00003")
    assert list(again) == [0, 1, 2]
    np.testing.assert_array_equal(list(again.values()), [mask] * 3)


def test_object_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*gone"):
        object_masks("gone", str(tmp_path / "gone"))
    for ids in ([1, 1, 2], [-1, 0, 1], ["a", 1, 2]):
        with pytest.raises(ValueError, match="different integers from 0"):
            masks.write_object_masks(tmp_path, 0, ids, stack_of(0))
    assert os.listdir(tmp_path) == []
    masks.write_object_masks(tmp_path, 0, [1], stack_of(0, 1))
    masks.write_object_masks(tmp_path, 0, [2], stack_of(0, 1, (5, 6)))
    with pytest.raises(ValueError, match="object 2 is 6x5, but the others of its frame are 30x20"):
        read_objects(tmp_path, "00000")
    masks.write_palette_png(tmp_path / "001" / "00001.png", np.array([[0, 1, 2]], np.uint8))
    with pytest.raises(ValueError, match=r"holds the values \[1, 2\]; the mask of one object"):
        read_objects(tmp_path, "00001")
    (tmp_path / "1").mkdir()
    with pytest.raises(ValueError, match="two folders of object 1: 001, 1"):
        masks.object_folders(tmp_path)


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9)))
def test_boxes_hold_the_masks(stack):
    for mask, (x, y, width, height) in zip(stack, masks.boxes_from_masks(stack), strict=True):
        inside = mask[y : y + height, x : x + width]
        assert inside.sum() == mask.sum()
        if mask.any():
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
        else:
            assert (x, y, width, height) == (0, 0, 0, 0)


def test_boxes_of_nothing():
    assert masks.boxes_from_masks(np.zeros((0, 4, 5), bool)).shape == (0, 4)


def test_box_files(tmp_path):
    boxes = np.array([[3, 4, 10, 20], [0, 0, 0, 0], [1.5, 0.1, 1 / 3, 1e-3], [1, 2, np.nan, 4]])
    masks.write_boxes(tmp_path / "a.txt", boxes)
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines[:2] == ["3,4,10,20", "0,0,0,0"]
    assert lines[3] == "0,0,0,0"
    again = masks.read_boxes(tmp_path / "a.txt")
    np.testing.assert_array_equal(again[:3], boxes[:3])
    np.testing.assert_array_equal(again[3], 0)


def test_box_files_of_others(tmp_path):
    """Commas, spaces, tabs and mixtures, absent objects in every spelling, Windows' line ends."""
    text = "\ufeff1,2,3,4\r\n1 2\t3  4\r\n 1, 2, 3, 4 \r\nnan,nan,nan,nan\r\nNaN NaN NaN NaN\r\n5,5,0,9\r\n\r\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    expected = [[1, 2, 3, 4]] * 3 + [[0, 0, 0, 0]] * 3
    np.testing.assert_array_equal(masks.read_boxes(tmp_path / "a.txt"), expected)
    (tmp_path / "b.txt").write_text("")
    assert masks.read_boxes(tmp_path / "b.txt").shape == (0, 4)


def test_box_errors(tmp_path):
    for text in ("1,2,3,4\n1,2,3\n", "1,2,3,4\nx,2,3,4", "1,2,3,4\n\n1,2,3,4", "1,2,3,4\n1,,2,3,4"):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(ValueError, match=r"line 2 of .*a\.txt is .*four numbers"):
            masks.read_boxes(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        masks.read_boxes(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match=r"boxes are \(4,\)"):
        masks.write_boxes(tmp_path / "b.txt", [1, 2, 3, 4])
