"""Pictures, folders of frames, masks and annotations as people have them."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from sam2_jax.data import masks
from sam2_jax.data.annotated import Video
from sam2_jax.data.datasets import Dataset
from sam2_jax.data.listing import list_frames, warn_once
from sam2_jax.data.media import read_image, rgb_picture
from sam2_jax.data.results import PaletteFolder
from sam2_jax.data.videos import FrameList, ImageFolder
from sam2_jax.predict.preprocessing import check_image

RAMP = np.linspace(0, 4095, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32)],
)
def test_grey_of_many_bits_is_scaled_and_not_clipped(tmp_path, name, dtype):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / name)
    expected = np.round(RAMP.astype(dtype) * (255 / 4095))
    for rgb in (
        read_image(tmp_path / name),
        check_image(Image.open(tmp_path / name)),
        FrameList([Image.open(tmp_path / name)])[0],
        ImageFolder(tmp_path)[0],
    ):
        assert rgb.dtype == np.uint8
        assert np.abs(rgb - expected[..., None]).max() <= 1


def test_values_that_are_no_brightness(tmp_path):
    flat = Image.fromarray(np.full((4, 4), 900, np.uint16))
    assert not rgb_picture(flat).any()
    with pytest.raises(ValueError, match="not finite"):
        rgb_picture(Image.fromarray(np.full((4, 4), np.nan, np.float32)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int64, np.float32])
def test_advice_for_arrays_can_be_followed(dtype):
    image = np.stack([RAMP - (1024 if np.dtype(dtype).kind != "u" else 0)] * 3, -1).astype(dtype)
    with pytest.raises(ValueError, match=r"np\.interp\(image, \(image\.min\(\), image\.max\(\)\)"):
        check_image(image)
    check_image(np.interp(image, (image.min(), image.max()), (0, 1)))
    with pytest.raises(ValueError, match=r"astype\(np\.uint8\)|image / 255"):
        check_image(np.full((4, 4, 3), 200, dtype))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_is_read(mode):
    grey = Image.fromarray(np.full((4, 4), 255, np.uint8))
    assert rgb_picture(grey.convert("RGB").convert(mode)).min() >= 250


def test_transparent_parts_are_said(tmp_path, caplog):
    Image.new("RGBA", (4, 4), (9, 8, 7, 0)).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "a.png")[0, 0].tolist() == [9, 8, 7]
    assert "is transparent in parts" in caplog.text


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp"])
def test_several_pictures_in_a_file(tmp_path, name):
    pages = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (0, 128, 255)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="holds 3 pictures"):
        read_image(tmp_path / name)


def turned(path, orientation, size=(60, 40)):
    """A picture, black but for its stored upper left corner, that viewers turn."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:10, :10] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


@pytest.mark.parametrize("size", [(60, 40), (40, 40)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_annotations_of_a_phone_photo_lie_where_they_were_drawn(tmp_path, orientation, size):
    (tmp_path / "ph").mkdir()
    turned(tmp_path / "ph" / "a.png", orientation, size)
    corner = {1: (0, 0), 3: (1, 1), 6: (0, 1), 8: (1, 0)}[orientation]  # row, column; 1 is the last
    height, width = size[::-1] if orientation < 5 else size
    y, x = corner[0] * (height - 10), corner[1] * (width - 10)
    polygon = [x, y, x + 10, y, x + 10, y + 10, x, y + 10]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "segmentation": [polygon]}],
    }
    (tmp_path / "ph.json").write_text(json.dumps(document))
    dataset = Dataset(
        kind="coco", frames=str(tmp_path / "ph"), annotations=str(tmp_path / "ph.json")
    )
    video = dataset.open(0)[0]
    np.testing.assert_array_equal(video.frames[0][..., 0] > 128, video.masks(0)[0])


def test_orientation_that_is_not_applied_is_said(tmp_path, caplog):
    turned(tmp_path / "a.png", 6)
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "a.png").shape == (40, 60, 3)
    assert "orientation in EXIF, which is not applied" in caplog.text


def test_orientation_is_said_by_predictors_and_of_frames(tmp_path, caplog):
    turned(tmp_path / "a.png", 6)
    ways = {
        "the picture": lambda: check_image(Image.open(tmp_path / "a.png")),
        "frame 0": lambda: FrameList([Image.open(tmp_path / "a.png")])[0],
        "a.png": lambda: ImageFolder(tmp_path)[0],
    }
    for name, read in ways.items():
        caplog.clear()
        warn_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            assert read().shape == (40, 60, 3)
        assert f"{name} has an orientation in EXIF, which is not applied" in caplog.text


def make(folder, *names):
    for value, name in enumerate(names):
        Image.new("L", (4, 4), value).save(folder / name)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["10.jpg", "2.jpg", "001.jpg"], ["001", "2", "10"]),
        (["1.5.png", "1.25.png", "1.png", "10.0.png"], ["1", "1.25", "1.5", "10.0"]),
        (["shot 10.jpg", "shot 2.jpg"], ["shot 2", "shot 10"]),
        (["00010.jpg", "00015.jpg"], ["00010", "00015"]),
        (["00000.jpg", "00000.png"], ["00000"]),
        (["frame_0.jpg", "frame_0_mask.png", "frame_1.jpg"], ["frame_0", "frame_1"]),
        (["1.jpg", "10.png", "1.5.png"], ["1", "1.5", "10"]),
        (["a.jpg", "ab.png"], ["a", "ab"]),
        (["0.jpg", "1.png", "2.webp", "3.bmp", "4.tif"], ["0", "1", "2", "3", "4"]),
    ],
)
def test_frames_of_a_folder(tmp_path, files, expected):
    make(tmp_path, *files)
    assert list(list_frames(tmp_path)) == ImageFolder(tmp_path).names == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["f-0.color.png", "f-0.depth.png", "f-1.color.png", "f-1.depth.png"], "two series"),
        (["f_0.jpg", "f_0_mask.jpg", "f_1.jpg"], "two series"),
        (["f_0.png", "f_0.bmp"], "two pictures of one name"),
        (["1.png", "01.png"], "two pictures of frame 1"),
        (["1.0.png", "1.png"], "two pictures of frame 1"),
        (["t1.9.png", "t1.10.png"], "order is unknown"),
        (["0.jpg", "cover.jpg"], "named by numbers and others"),
    ],
)
def test_folders_that_could_be_read_in_two_ways(tmp_path, files, message):
    make(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path)


def test_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.exr").touch()
    with pytest.raises(ValueError, match=r"it holds a\.exr"):
        ImageFolder(tmp_path)


def soft_disk():
    y, x = np.mgrid[:64, :64]
    return np.clip(128 + 20 * (20 - np.hypot(x - 32, y - 32)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["soft.png", "noisy.jpg", "resized.png"])
def test_soft_mask_is_not_a_hundred_objects(tmp_path, name):
    soft = Image.fromarray(soft_disk())
    if name == "resized.png":
        soft = Image.fromarray((soft_disk() > 127).astype(np.uint8) * 255).resize((100, 100))
    soft.save(tmp_path / name)
    with pytest.raises(ValueError, match="soft mask of one object"):
        masks.read_labels(tmp_path / name)
    hard = masks.read_object_mask(tmp_path / name)
    assert hard.mean() == pytest.approx((soft_disk() > 127).mean(), rel=0.05)


def test_ids_are_not_taken_for_a_soft_mask(tmp_path):
    ids = np.kron(np.arange(64).reshape(8, 8) * 4, np.ones((4, 4))).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.png")
    np.testing.assert_array_equal(masks.read_labels(tmp_path / "a.png"), ids)


def test_grey_masks_saved_in_colour(tmp_path):
    ids = np.kron([[0, 255], [0, 0]], np.ones((4, 4))).astype(np.uint8)
    Image.fromarray(ids).convert("RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(masks.read_labels(tmp_path / "a.png"), ids > 0)
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="coloured RGB picture"):
        masks.read_labels(tmp_path / "b.png")
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match="transparent in parts"):
        masks.read_labels(tmp_path / "c.png")


@pytest.mark.parametrize("inside", [True, 1, 255, 1.0, 255.0, 0.99, 0.5, 3.5, np.float16(1)])
def test_masks_of_every_type(inside):
    expected = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(masks.as_mask(np.where(expected, inside, 0)), expected)


def test_logits_and_probabilities():
    expected = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(masks.as_mask(np.where(expected, 7.5, -3.0)), expected)
    np.testing.assert_array_equal(masks.as_mask(np.where(expected, 0.9, 0.1)), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [([[np.nan, 0]], "NaN"), ([[0, 1, 2]], "mask == id"), ([[0.0, 90, 200]], "mask > 127")],
)
def test_masks_that_mean_nothing(values, message):
    with pytest.raises(ValueError, match=message):
        masks.as_mask(np.array(values))


def test_ids_above_255_are_written_and_read(tmp_path):
    stack = np.eye(4, dtype=bool)[:2, None]
    with PaletteFolder(tmp_path) as folder:
        folder.write(0, [1001, 2003], stack)
    ids = masks.read_labels(tmp_path / "00000.png")
    assert (ids.dtype, np.unique(ids).tolist()) == (np.uint16, [0, 1001, 2003])


GOOD = [[5, 5, 20, 5, 20, 20, 5, 20]]


def open_coco(tmp_path, *segmentations, encoding="utf-8", file_name="a.png") -> Video:
    (tmp_path / "images" / "in").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "in" / "a.png")
    annotations = [
        {"id": 7 + n, "image_id": 1, "segmentation": s, "area": 50}
        for n, s in enumerate(segmentations)
    ]
    document = {
        "images": [{"id": 1, "file_name": file_name, "width": 60, "height": 40}],
        "annotations": annotations,
    }
    path = tmp_path / "coco.json"
    path.write_bytes(json.dumps(document).encode(encoding))
    return Dataset(kind="coco", frames=str(tmp_path / "images"), annotations=str(path)).open(0)[0]


@pytest.mark.parametrize(
    "bad",
    [
        [[1, 1, 2, 2]],
        [5, 5, 20, 5, 20, 20],
        [],
        None,
        [[1, 1, 2, 2, 3]],
        [[float("nan")] * 6],
        [[1e12, 0, 5, 5, 9, 0]],
        {"size": [40, 60], "counts": [2399]},
        {"size": [60, 40], "counts": [0, 2400]},
        {"size": [40, 60], "counts": "~~"},
    ],
)
def test_one_bad_annotation_is_left_out_and_named(tmp_path, caplog, bad):
    with caplog.at_level(logging.WARNING):
        video = open_coco(tmp_path, GOOD, bad)
        assert video.object_ids() == [0]
    assert video.masks(0)[0].sum() == 225
    assert "annotation 8 of image" in caplog.text
    assert "a.png" in caplog.text
    assert "coco.json" in caplog.text


def test_stray_polygon_beside_a_good_one(tmp_path):
    assert open_coco(tmp_path, [*GOOD, [1, 1, 2, 2]]).masks(0)[0].sum() == 225


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_coco_file_of_windows(tmp_path, encoding):
    video = open_coco(tmp_path, GOOD, encoding=encoding, file_name="in\\a.png")
    assert (video.name, video.object_ids()) == ("in/a", [0])
    assert video.frames[0].shape == (40, 60, 3)


def test_run_lengths_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    mask = soft_disk() > 127
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    assert isinstance(rle["counts"], bytes)
    np.testing.assert_array_equal(masks.decode_rle(rle), mask)
