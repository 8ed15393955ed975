"""Datasets of every kind, over small generated folders."""

import dataclasses
import json
import os
import pickle

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.clips import read_clip, sample_clip
from sam2_jax.data.datasets import (
    KINDS,
    Coco,
    Dataset,
    Labels,
    Objects,
    Palette,
    Procedural,
    Sa1b,
    Sav,
    Unlabelled,
)
from sam2_jax.data.masks import encode_rle, write_object_masks, write_palette_png
from sam2_jax.data.media import write_video
from sam2_jax.data.sav import sav_document, write_sav_json

HEIGHT, WIDTH = 32, 48


def picture(value):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def write_picture(path, value):
    os.makedirs(path.parent, exist_ok=True)
    Image.fromarray(picture(value)).save(path, quality=100)


def labels(*columns):
    """Ids (H, W): object i fills the columns of the i-th range."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for object_id, (start, stop) in enumerate(columns, start=1):
        ids[:, start:stop] = object_id
    return ids


def palette_folder(root, names=("a", "b", "c"), num_frames=6, annotated=range(0, 6, 2)):
    for name in names:
        for t in range(num_frames):
            write_picture(root / "frames" / name / f"{t:05d}.jpg", 10 * t)
        (root / "masks" / name).mkdir(parents=True)
        for t in annotated:
            write_palette_png(root / "masks" / name / f"{t:05d}.png", labels((0, 5 + t), (20, 30)))
    return Palette(frames=str(root / "frames"), annotations=str(root / "masks"), num_frames=2)


def names_of(source):
    return [source[i].name for i in range(len(source))]


def opened(dataset):
    """Opens a dataset as a worker process gets it."""
    return cloudpickle.loads(cloudpickle.dumps(dataset.open(64)))


def test_palette(tmp_path):
    source = opened(palette_folder(tmp_path))
    assert names_of(source) == ["a", "b", "c"]
    video = source[1]
    assert video.frame_names == ["00000", "00002", "00004"]  # frames without a mask are not listed
    assert list(video.annotated) == [0, 1, 2]
    assert [video.frames[t][0, 0, 0] for t in (2, 0)] == [40, 0]
    assert [sorted(video.masks(t)) for t in (2, 0)] == [[1, 2], [1, 2]]
    np.testing.assert_array_equal(video.masks(2)[1], labels((0, 9)) == 1)
    np.testing.assert_array_equal(video.masks(0)[2], labels((0, 0), (20, 30)) == 2)
    assert video.object_ids(0) == video.object_ids() == [1, 2]
    assert video.size == (HEIGHT, WIDTH)
    path = tmp_path / "frames" / "b" / "00002.jpg"
    assert video.frames.encoded(1) == path.read_bytes()


def test_frames_are_in_order_of_their_numbers(tmp_path):
    dataset = palette_folder(tmp_path, ["a"], annotated=())
    for t in (20, 30, 100):
        write_picture(tmp_path / "frames" / "a" / f"{t}.jpg", t)
        write_palette_png(tmp_path / "masks" / "a" / f"{t}.png", labels((0, 9)))
    assert [frame[0, 0, 0] for frame in opened(dataset)[0].frames] == [20, 30, 100]


def test_black_and_white_masks_are_object_one_and_void_is_none(tmp_path):
    """By the rule of `masks.read_labels`, which evaluation reads by as well."""
    dataset = palette_folder(tmp_path, ["a"], annotated=())
    with_void = labels((0, 9), (20, 30))
    with_void[:, 30:] = 255
    for t, ids in enumerate((labels((0, 9)) * 255, labels(), with_void)):
        write_palette_png(tmp_path / "masks" / "a" / f"{t:05d}.png", ids)
    video = opened(dataset)[0]
    assert [video.object_ids(t) for t in range(3)] == [[1], [], [1, 2]]
    np.testing.assert_array_equal(video.masks(0)[1], labels((0, 9)) == 1)


@pytest.mark.parametrize("kind", ["palette", "masks"])
def test_ignored_pixels_are_known_by_their_label(tmp_path, kind):
    dataset = palette_folder(tmp_path, ["a"], num_frames=2, annotated=())
    ids = labels((0, 9), (20, 30))
    ids[:, 30:], ids[:4] = 255, 7
    write_palette_png(tmp_path / "masks" / "a" / "00000.png", ids)
    write_palette_png(tmp_path / "masks" / "a" / "00001.png", np.full_like(ids, 255))
    if kind == "masks":
        folders = (str(tmp_path / folder / "a") for folder in ("frames", "masks"))
        dataset = Labels(**dict(zip(("frames", "annotations"), folders, strict=True)))
    read = lambda label: opened(dataclasses.replace(dataset, ignore_label=label))[0].masks(0)
    assert read(-1).ignored is None
    assert list(read(-1)) == [1, 2, 7]
    for label, left in ((255, [1, 2, 7]), (7, [1, 2]), (2, [1, 7]), (300, [1, 2, 7])):
        np.testing.assert_array_equal(read(label).ignored, ids == label)
        assert list(read(label)) == read(label).visible() == left
        assert not any((mask & read(label).ignored).any() for mask in read(label).values())
    source = opened(dataclasses.replace(dataset, ignore_label=255))
    if kind == "masks":
        assert source[1].masks(0).ignored.all()
        assert not source[1].object_ids()
    else:
        clip = read_clip(source[0], [1, 0], [1])
        assert clip.ignored[0].all()
        np.testing.assert_array_equal(clip.ignored[1], ids == 255)
        assert read_clip(opened(dataset)[0], [0], [1]).ignored is None


def test_selection(tmp_path):
    dataset = palette_folder(tmp_path, [f"v{i}" for i in range(6)])
    choose = lambda **fields: names_of(opened(dataclasses.replace(dataset, **fields)))
    assert choose(first=1, count=2) == ["v1", "v2"]
    assert choose(first=4) == ["v4", "v5"]
    (tmp_path / "some.txt").write_text("v5\nv1.mp4\n\n v3 \n")
    (tmp_path / "bad.txt").write_text("v3\nnot there\n")
    assert choose(file_list=str(tmp_path / "some.txt")) == ["v1", "v3", "v5"]
    both = {"file_list": str(tmp_path / "some.txt"), "excluded_list": str(tmp_path / "bad.txt")}
    assert choose(**both, first=1) == ["v5"]
    with pytest.raises(ValueError, match=r"there are 6 videos .* none is left by first=9"):
        choose(first=9)
    with pytest.raises(FileNotFoundError, match=r"no such list of names: .*none\.txt"):
        choose(file_list=str(tmp_path / "none.txt"))


def test_names_that_are_not_there_are_told(tmp_path, caplog):
    dataset = palette_folder(tmp_path)
    (tmp_path / "masks" / "d").mkdir()
    (tmp_path / "list.txt").write_text("a\nx\ny\n")
    used = opened(dataclasses.replace(dataset, file_list=str(tmp_path / "list.txt")))
    assert names_of(used) == ["a"]
    assert "1 of the 4 videos in" in caplog.text
    assert "2 of the 3 names in" in caplog.text


@pytest.mark.parametrize("kind", ["palette", "objects", "sav", "sa1b", "masks"])
def test_folders_that_do_not_serve(tmp_path, kind):
    with pytest.raises(ValueError, match="is not given"):
        Dataset(kind=kind).open(64)
    with pytest.raises(FileNotFoundError, match=r"no such folder, which should hold .*: /nowhere"):
        Dataset(kind=kind, frames="/nowhere", annotations="/nowhere").open(64)
    with pytest.raises(ValueError, match=rf"nothing to use: there are 0 .*{tmp_path}"):
        Dataset(kind=kind, frames=str(tmp_path), annotations=str(tmp_path)).open(64)


def test_missing_and_damaged_files(tmp_path):
    source = opened(palette_folder(tmp_path))
    (tmp_path / "frames" / "a" / "00002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*00002\.jpg"):
        source[0].frames[1]
    path = tmp_path / "frames" / "b" / "00002.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"00002\.jpg is damaged"):
        source[1].frames[1]
    for mask in (tmp_path / "masks" / "c").iterdir():
        mask.unlink()
    with pytest.raises(ValueError, match="c holds no PNG of masks"):
        source[2]


def test_object_folders(tmp_path):
    masks = np.stack([labels((0, 9)) > 0, labels((5, 20)) > 0])  # they overlap
    for t in (0, 4, 8):
        write_picture(tmp_path / "frames" / "v" / f"{t:05d}.jpg", t)
        here = masks & (t < 8)
        write_object_masks(tmp_path / "masks" / "v", t, [3, 7], here)
    os.remove(tmp_path / "masks" / "v" / "003" / "00004.png")
    video = opened(Objects(frames=str(tmp_path / "frames"), annotations=str(tmp_path / "masks")))[0]
    assert video.frame_names == ["00000", "00004", "00008"]
    assert video.is_by_object
    assert [video.object_ids(t) for t in range(3)] == [[3, 7], [7], []]
    clip = read_clip(video, [0, 1, 2], [3, 7])
    np.testing.assert_array_equal(clip.masks[0], masks)
    assert clip.masks.any((2, 3)).tolist() == [[True, True], [False, True], [False, False]]
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 4, 8]


def test_every_object_counts_as_a_video(tmp_path):
    """The original's single_object_mode: frames of the video that lack a mask of the object are empty."""
    for name, ids in (("a", (3, 7)), ("b", (1,))):
        masks = np.stack([labels((0, 10 * i)) == 1 for i in range(1, len(ids) + 1)])
        for t in range(2):
            write_picture(tmp_path / "frames" / name / f"{t:05d}.jpg", t)
        write_object_masks(tmp_path / "masks" / name, 0, ids, masks)
        write_object_masks(tmp_path / "masks" / name, 1, ids[-1:], masks[-1:])
    dataset = Objects(frames=str(tmp_path / "frames"), annotations=str(tmp_path / "masks"))
    source = opened(dataclasses.replace(dataset, single_object_mode=True))
    assert names_of(source) == ["a/3", "a/7", "b/1"]
    assert [video.object_ids() for video in source] == [[3], [7], [1]]
    assert [source[0].object_ids(t) for t in range(2)] == [[3], []]
    clip = sample_clip(source[1], 2, 3, np.random.default_rng(0))
    assert clip.name == "a/7: frames 00000-00001"
    np.testing.assert_array_equal(clip.masks, np.tile(labels((0, 20)) == 1, (2, 1, 1, 1)))
    second = dataclasses.replace(dataset, single_object_mode=True, first=1)  # of the videos
    assert names_of(opened(second)) == ["b/1"]


def test_long_videos_come_more_often(tmp_path):
    for name, num_frames in (("a", 1), ("b", 4)):
        dataset = palette_folder(tmp_path, [name], num_frames, annotated=range(1))
    source = opened(dataclasses.replace(dataset, frames_sampling_mult=True))
    assert names_of(source) == ["a", "b", "b", "b", "b"]
    assert names_of(opened(dataset)) == ["a", "b"]


def test_strides_that_end_before_they_begin():
    with pytest.raises(ValueError, match=r"max_stride is 2; at least stride, 4, or 0"):
        Procedural(stride=4, max_stride=2)


def sav_masks(num_annotated):
    masks = np.zeros((num_annotated, 2, HEIGHT, WIDTH), bool)
    masks[:, 0, 4:12, 4:20] = True
    masks[1:, 1, 20:, :] = True
    return masks


def write_annotation(path, masks, num_frames, kind="manual"):
    masklet = [[encode_rle(mask) for mask in frame] for frame in masks]
    document = sav_document(path.stem, masklet, [5, 6], num_frames, kind=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sav_json(path, document)


@pytest.mark.parametrize("layout", ["mp4", "jpeg"])
def test_sav(tmp_path, layout):
    """Of four annotated frames the video has the first three."""
    folder = tmp_path / "sav_000"
    masks = sav_masks(4)
    write_annotation(folder / "sav_000001_manual.json", masks, num_frames=11)
    write_annotation(folder / "sav_000002_auto.json", masks, num_frames=11, kind="auto")
    if layout == "mp4":
        write_video(folder / "sav_000001.mp4", [picture(20 * t) for t in range(11)], 24)
    else:
        for t in range(0, 11, 4):
            write_picture(folder / "sav_000001" / f"{t:05d}.jpg", 20 * t)
    source = opened(Sav(frames=str(tmp_path)))
    assert names_of(source) == ["sav_000001"]
    with source[0] as video:
        first, second, third = video.annotated
        assert [video.frame_names[t] for t in video.annotated] == ["00000", "00004", "00008"]
        assert [video.object_ids(t) for t in video.annotated] == [[5], [5, 6], [5, 6]]
        clip = read_clip(video, [third, first], [6, 5])
        np.testing.assert_array_equal(clip.masks, masks[[2, 0]][:, ::-1])
        np.testing.assert_allclose(clip.frames[:, 8, 8, 0], [160, 0], atol=6)
        assert (video.frames.encoded(second) is None) == (layout == "mp4")


def test_sav_in_separate_folders_and_without_manual_masks(tmp_path, caplog):
    for name in ("x", "y"):
        write_annotation(tmp_path / "json" / f"{name}_auto.json", sav_masks(2), 2, kind="auto")
    for t in range(2):
        write_picture(tmp_path / "jpeg" / "y" / f"{t:05d}.jpg", t)
    dataset = Sav(
        frames=str(tmp_path / "jpeg"), annotations=str(tmp_path / "json"), annotated_every=1
    )
    source = opened(dataset)
    assert names_of(source) == ["y"]
    assert list(source[0].annotated) == [0, 1]
    assert "1 of the 2 annotations" in caplog.text


def test_sav_real_annotations(real_data, tmp_path):
    for t in range(0, 40, 4):
        path = tmp_path / "sav_000001" / f"{t:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (480, 848), (t, t, t)).save(path)
    video = opened(Sav(frames=str(tmp_path), annotations=str(real_data / "sav")))[0]
    assert len(video.annotated) == 10
    clip = sample_clip(video, 8, 3, np.random.default_rng(0))
    assert clip.masks.shape == (8, 3, 848, 480)
    assert 0.001 < clip.masks[0].mean() < 0.5


def annotations_of(masks):
    return [{"segmentation": encode_rle(mask), "area": int(mask.sum())} for mask in masks]


def test_sa1b(tmp_path, caplog):
    masks = np.stack([labels((a, b)) > 0 for a, b in ((0, 9), (5, 20), (0, WIDTH), (0, 0))])
    write_picture(tmp_path / "sa_000" / "sa_1.jpg", 7)
    write_picture(tmp_path / "sa_000" / "sa_2.jpg", 8)  # has no JSON
    document = {
        "image": {"height": HEIGHT, "width": WIDTH},
        "annotations": annotations_of(masks),
    }
    (tmp_path / "sa_000" / "sa_1.json").write_text(json.dumps(document))
    source = opened(Sa1b(frames=str(tmp_path)))
    assert names_of(source) == ["sa_000/sa_1"]
    assert "1 of the 2 images" in caplog.text
    assert "no JSON" in caplog.text
    assert "the first is sa_000/sa_2" in caplog.text
    image = source[0]
    assert image.object_ids(0) == [0, 1]  # one covers too much, one nothing
    clip = sample_clip(image, 1, 64, np.random.default_rng(0))
    assert clip.name == "sa_000/sa_1"
    assert sorted(clip.masks.sum((0, 2, 3))) == sorted(masks[:2].sum((1, 2)))
    larger = opened(Sa1b(frames=str(tmp_path), max_area=1.0))
    assert larger[0].object_ids(0) == [0, 1, 2]
    (tmp_path / "sa_000" / "sa_1.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=r"sa_1\.json is not an annotation of SA-1B"):
        source[0]
    (tmp_path / "sa_000" / "sa_1.json").write_text("{")
    with pytest.raises(ValueError, match=r"sa_1\.json is not JSON"):
        source[0]


def coco_document():
    square = [4, 2, 12, 2, 12, 10, 4, 10]
    rle = encode_rle(labels((20, 30)) > 0)
    objects = [
        {"image_id": 8, "segmentation": [square], "area": 64},
        {"image_id": 8, "segmentation": rle},
        {"image_id": 8, "segmentation": rle, "area": 9, "iscrowd": 1},
        {"image_id": 8, "segmentation": [[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]]},
        {"image_id": 9, "segmentation": [square, [20.5, 20.5, 30, 20.5, 30, 30]], "area": 100},
        {"image_id": 10, "segmentation": [square], "area": 64},
    ]
    images = [
        {"id": i, "file_name": f"train/{i}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in (8, 9, 10, 11)
    ]
    return {"images": images, "annotations": objects}


def test_coco(tmp_path, caplog):
    for i in (8, 9, 11):
        write_picture(tmp_path / "train" / f"{i}.jpg", i)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco_document()))
    dataset = Coco(frames=str(tmp_path), annotations=str(path))
    source = opened(dataset)
    assert names_of(source) == ["train/8", "train/9"]
    assert "1 of the 3 images in" in caplog.text  # the fourth has no objects
    assert "have no objects" in caplog.text
    assert "the first is train/11" in caplog.text
    first, second = source[0], source[1]
    assert first.object_ids(0) == [0, 1]  # no group, nothing that covers all
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[2:10, 4:12] = True
    np.testing.assert_array_equal(first.masks(0)[0], square)
    np.testing.assert_array_equal(first.masks(0)[1], labels((20, 30)) > 0)
    parts = second.masks(0)[0]
    assert parts[4, 6]
    assert parts[22, 28]
    assert not parts[15, 15]
    assert first.frames[0][0, 0, 0] == 8


def test_coco_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of annotations of COCO"):
        Coco(frames=str(tmp_path), annotations=str(tmp_path / "none.json")).open(64)
    path = tmp_path / "instances.json"
    document = coco_document()
    for annotation in document["annotations"]:
        annotation["image_id"] = 99
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"is not an instance file of COCO: .*99"):
        Coco(frames=str(tmp_path), annotations=str(path)).open(64)


def test_label_images(tmp_path):
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[:4], ids[10:12], ids[20:, :5] = 300, 7, 65535
    full = np.full_like(ids, 2)
    for name, values in (("x/one", ids), ("two", full)):
        write_picture(tmp_path / "images" / f"{name}.png", 9)
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / "labels" / f"{name}.png")
    dataset = Labels(frames=str(tmp_path / "images"), annotations=str(tmp_path / "labels"))
    source = opened(dataset)
    assert names_of(source) == ["two", "x/one"]
    assert source[0].object_ids(0) == []
    assert source[1].object_ids(0) == [7, 300, 65535]
    np.testing.assert_array_equal(source[1].masks(0)[300], ids == 300)


def test_procedural():
    source = opened(Procedural(seed=3, first=2, count=4, num_frames=3, stride=2))
    assert len(source) == 4
    clip = sample_clip(source[0], 3, 3, np.random.default_rng(0), stride=2)
    assert clip.frames.shape == (3, 64, 64, 3)
    whole = opened(Procedural(seed=3, num_frames=6))
    assert len(whole) == 1_000_000
    np.testing.assert_array_equal(whole[2].frames[4], clip.frames[2])
    assert len(opened(Procedural(num_frames=3, stride=2, max_stride=5))[0].frames) == 15


def test_real_videos_and_images(real_data):
    davis = opened(
        Palette(
            frames=str(real_data / "davis2016" / "JPEGImages" / "480p"),
            annotations=str(real_data / "davis2016" / "Annotations" / "480p"),
        )
    )
    assert names_of(davis) == ["blackswan", "car-shadow", "drift-straight", "horsejump-high"]
    clip = sample_clip(davis[0], 4, 3, np.random.default_rng(0))
    assert clip.masks.shape == (4, 1, 480, 854)
    assert 0.05 < clip.masks.mean() < 0.2
    folder = real_data / "nuclei"
    nuclei = opened(Labels(frames=str(folder / "images"), annotations=str(folder / "labels")))
    assert len(nuclei) == 100
    assert len(nuclei[0].object_ids(0)) > 5


def test_pictures_of_drawn_videos(tmp_path):
    dataset = Procedural(num_frames=1, count=8, pictures=str(tmp_path))
    with pytest.raises(ValueError, match="holds no picture"):
        dataset.open(32)
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    with_red = [video.frames[0] for video in dataset.open(32)]
    without = dataclasses.replace(dataset, pictures="").open(32)
    assert any((a != video.frames[0]).any() for a, video in zip(with_red, without, strict=True))
    with pytest.raises(FileNotFoundError, match="pictures for textures and objects"):
        dataclasses.replace(dataset, pictures=str(tmp_path / "none")).open(32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_names_its_class(kind):
    dataset = Dataset(kind=kind, weight=2.0)
    assert type(dataset) is KINDS[kind]
    assert dataset.kind == kind
    assert pickle.loads(pickle.dumps(dataset)) == dataset
    assert dataclasses.replace(dataset, weight=1.0) == KINDS[kind]()
    other = "coco" if kind != "coco" else "sav"
    with pytest.raises(ValueError, match=f"kind is '{other}', which is not that of"):
        dataclasses.replace(dataset, kind=other)


def test_datasets_that_make_no_sense():
    with pytest.raises(ValueError, match="kind is 'imagenet'; it must be one of procedural, pal"):
        Dataset(kind="imagenet")
    with pytest.raises(ValueError, match="num_frames is 8, but kind 'coco' has images"):
        Dataset(kind="coco", num_frames=8)
    with pytest.raises(TypeError, match="max_area"):
        Dataset(kind="palette", max_area=0.5)


def test_pictures_alone_are_their_own_objects(tmp_path):
    for name in ("a.jpg", "below/b.png"):
        write_picture(tmp_path / name, 40)
    (tmp_path / "notes.txt").write_text("no picture")
    source = opened(Dataset(kind="pictures", frames=str(tmp_path)))
    assert names_of(source) == ["a", "below/b"]
    clip = sample_clip(source[1], 1, 1, np.random.default_rng(0))
    np.testing.assert_array_equal(clip.frames[0], picture(40))
    assert clip.masks.shape == (1, 1, HEIGHT, WIDTH)
    assert clip.masks.all()


def test_pictures_with_annotations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind 'pictures' have none"):
        Unlabelled(frames=str(tmp_path), annotations=str(tmp_path))
