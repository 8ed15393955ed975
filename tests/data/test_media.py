import io
import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from sam2_jax.data import media
from sam2_jax.data.videos import VideoFile

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


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


def test_davis_palette():
    palette = media.davis_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128)}
    known |= {8: (64, 0, 0), 15: (192, 128, 128), 21: (128, 64, 128), 255: (224, 224, 192)}
    for index, color in known.items():
        assert tuple(palette[index]) == color
    assert len(np.unique(palette, axis=0)) == 256


def test_palette_png_keeps_ids_and_mode(tmp_path):
    ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
    media.write_palette_png(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(media.read_mask_png(tmp_path / "a.png"), ids)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == media.davis_palette().ravel().tolist()


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
    ids = media.read_mask_png(tmp_path / "a.png")
    assert ids.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    np.testing.assert_array_equal(ids, array)


def test_mask_errors(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a RGB picture; a palette or grey PNG"):
        media.read_mask_png(tmp_path / "a.png")
    for ids in (np.zeros((4, 4), np.int32), np.zeros((1, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8 is expected"):
            media.write_palette_png(tmp_path / "b.png", ids)


def test_lowest_id_wins():
    stack = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], bool)
    assert media.pack_masks(stack, [7, 200]).tolist() == [[7, 7, 200, 0]]
    assert media.pack_masks(stack, [200, 7]).tolist() == [[200, 7, 7, 0]]
    assert media.pack_masks(np.zeros((0, 2, 3), bool), []).tolist() == [[0, 0, 0]] * 2


def test_pack_errors():
    stack = np.zeros((2, 3, 4), bool)
    for ids in ([0, 1], [1, 256], [1, 1]):
        with pytest.raises(ValueError, match=r"within 1\.\.255"):
            media.pack_masks(stack, ids)
    with pytest.raises(ValueError, match=r"\(1, H, W\) bool is expected"):
        media.pack_masks(stack, [1])
    with pytest.raises(ValueError, match="bool is expected"):
        media.pack_masks(stack.astype(np.float32), [1, 2])


@given(masks)
def test_rle_round_trip(mask):
    rle = json.loads(json.dumps(media.encode_rle(mask)))
    assert rle["size"] == list(mask.shape)
    decoded = media.decode_rle(rle)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


@given(masks)
def test_uncompressed_rle(mask):
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    counts = np.diff([0, *edges, mask.size]).tolist()
    rle = {"size": list(mask.shape), "counts": counts}
    np.testing.assert_array_equal(media.decode_rle(rle), mask)


def test_rle_of_long_runs():
    mask = np.zeros((1200, 900), bool)
    mask[300:900, 200:700] = True
    mask[500, 300] = False
    np.testing.assert_array_equal(media.decode_rle(media.encode_rle(mask)), mask)


@given(st.text(max_size=12))
def test_any_text_decodes_or_is_refused(text):
    """Never another error, nor a mask that pycocotools would write otherwise."""
    try:
        mask = media.decode_rle({"size": [3, 4], "counts": text})
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
        media.decode_rle(rle)


def test_rle_wants_a_mask():
    for mask in (np.zeros((3, 4)), np.zeros((1, 3, 4), bool)):
        with pytest.raises(ValueError, match="bool is expected"):
            media.encode_rle(mask)


def test_overlay_draws_only_where_asked():
    image = np.full((60, 80, 3), 100, np.uint8)
    stack = np.zeros((2, 60, 80), bool)
    stack[0, 10:30, 10:30] = True
    overlay = media.draw_overlay(image, stack, [1, 2])
    assert (image == 100).all()
    changed = (overlay != image).any(-1)
    np.testing.assert_array_equal(changed, stack[0])
    inner, edge = overlay[20, 20], overlay[10, 20]
    color = np.array(media.object_color(1))
    np.testing.assert_allclose(inner, (100 + color) / 2, atol=1)
    assert edge.sum() > inner.sum()


def test_overlay_has_no_contour_along_the_border():
    image = np.full((20, 30, 3), 100, np.uint8)
    overlay = media.draw_overlay(image, np.ones((1, 20, 30), bool), [1])
    assert (overlay == overlay[10, 10]).all()


def test_overlay_prompts():
    image = np.full((100, 120, 3), 100, np.uint8)
    none = np.zeros((0, 100, 120), bool)
    points, labels = [[20, 50], [80, 50], [-500, 3], [119, 99]], [1, 0, 1, 1]
    overlay = media.draw_overlay(image, none, [], points, labels, boxes=[[40, 5, 110, 30]])
    assert (overlay[50, 20] == 255).all()
    assert (overlay[52, 22] == media.POSITIVE).all()
    assert (overlay[52, 82] == media.NEGATIVE).all()
    assert (overlay[5, 40:111] == media.BOX).all()
    assert (overlay[15, 60] == 100).all()
    changed = (overlay != image).any(-1)
    changed[40:60] = changed[:32] = False
    changed[90:, 110:] = False
    assert not changed.any()


def test_overlay_errors():
    image, stack = np.zeros((6, 8, 3), np.uint8), np.zeros((1, 6, 8), bool)
    with pytest.raises(ValueError, match="as large as the masks"):
        media.draw_overlay(image[:5], stack, [1])
    with pytest.raises(ValueError, match="bool is expected"):
        media.draw_overlay(image, stack, [1, 2])


def test_object_colors_are_bright_and_different():
    colors = [media.object_color(i) for i in range(1, 25)]
    assert len(set(colors)) == 24
    assert min(max(color) for color in colors) >= 200
    assert all(0 <= channel <= 255 for i in (0, -5, 10**9) for channel in media.object_color(i))
