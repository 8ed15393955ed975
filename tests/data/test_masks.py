import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from sam2_jax.data import masks

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
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a RGB picture; a palette or grey PNG"):
        masks.read_mask_png(tmp_path / "a.png")
    for ids in (np.zeros((4, 4), np.int32), np.zeros((1, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8 is expected"):
            masks.write_palette_png(tmp_path / "b.png", ids)


def test_lowest_id_wins():
    stack = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], bool)
    assert masks.pack_masks(stack, [7, 200]).tolist() == [[7, 7, 200, 0]]
    assert masks.pack_masks(stack, [200, 7]).tolist() == [[200, 7, 7, 0]]
    assert masks.pack_masks(np.zeros((0, 2, 3), bool), []).tolist() == [[0, 0, 0]] * 2


def test_pack_errors():
    stack = np.zeros((2, 3, 4), bool)
    for ids in ([0, 1], [1, 256], [1, 1]):
        with pytest.raises(ValueError, match=r"within 1\.\.255"):
            masks.pack_masks(stack, ids)
    with pytest.raises(ValueError, match=r"\(1, H, W\) bool is expected"):
        masks.pack_masks(stack, [1])
    with pytest.raises(ValueError, match="bool is expected"):
        masks.pack_masks(stack.astype(np.float32), [1, 2])


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
