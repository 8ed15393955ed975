import numpy as np
import pytest
from PIL import Image

from sam2_jax.data.masks import write_palette_png
from sam2_jax.evaluate.layouts import choose, find_benchmark, open_masks, open_videos
from tests.evaluate import drawn


@pytest.mark.parametrize(
    ("places", "files", "name"),
    [
        (("JPEGImages/480p", "Annotations/480p"), ("ImageSets/2017/val.txt",), "DAVIS 2017"),
        (("JPEGImages/480p", "Annotations/480p"), ("ImageSets/480p/val.txt",), "DAVIS 2016"),
        (("JPEGImages_24fps", "Annotations_6fps"), ("sav_val.txt",), "SA-V"),
        (("JPEGImages", "Annotations"), ("meta.json",), "YouTube-VOS"),
        (("JPEGImages", "Annotations"), ("valid_meta.json",), "LVOS"),
        (("JPEGImages", "Annotations"), (), "MOSE, or another"),
    ],
)
def test_benchmarks_are_recognised(tmp_path, places, files, name):
    for place in places:
        (tmp_path / place).mkdir(parents=True)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    found = find_benchmark(str(tmp_path))
    assert found.name.startswith(name)
    assert (found.frames, found.masks) == tuple(str(tmp_path / place) for place in places)
    assert len(found.lists) == sum(file.endswith(".txt") for file in files)


@pytest.mark.parametrize("inner", ["", "Annotations", "Annotations/480p"])
def test_masks_are_found_wherever_one_points(tmp_path, inner):
    drawn.davis(tmp_path)
    masks = open_masks(str(tmp_path / inner))
    assert masks.keys == ["bear", "camel"]
    assert "2 videos" in masks.where
    video = masks.open("bear")
    assert video.frame_names[2] == "00002"
    assert video.size == (drawn.HEIGHT, drawn.WIDTH)
    np.testing.assert_array_equal(video.masks(2)[2], drawn.labels(2) == 2)


def test_videos_are_folders_or_files(tmp_path):
    drawn.write_video(tmp_path / "a")
    (tmp_path / "b.mp4").touch()
    videos = open_videos(str(tmp_path))
    assert videos.keys == ["a", "b"]
    with videos.open("a") as video:
        first = video.first(2)
        assert (len(first.frames), first.frame_names) == (2, ["00000", "00001"])


def test_objects_have_frames_of_their_own(tmp_path):
    drawn.write_objects(tmp_path / "bear", range(0, 5, 2))
    (tmp_path / "bear" / "002" / "00000.png").unlink()
    masks = open_masks(str(tmp_path)).open("bear")
    assert masks.is_by_object
    assert masks.frame_names == ["00000", "00002", "00004"]
    assert [list(masks.masks(t)) for t in masks.annotated] == [[1], [1, 2], [1, 2]]


def test_black_and_white_is_object_1_and_void_is_none(tmp_path):
    """By the rule of `masks.read_labels`, which training reads by as well."""
    (tmp_path / "a").mkdir()
    mask = np.uint8(255 * (drawn.labels(0) > 0))
    Image.fromarray(mask).save(tmp_path / "a" / "00000.png")
    write_palette_png(tmp_path / "a" / "00001.png", mask)
    write_palette_png(tmp_path / "a" / "00002.png", np.where(drawn.labels(0), drawn.labels(0), 255))
    video = open_masks(str(tmp_path)).open("a")
    for t in (0, 1):
        assert list(video.masks(t)) == [1]
        np.testing.assert_array_equal(video.masks(t)[1], mask > 0)
    assert list(video.masks(2)) == [1, 2]


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder, which should hold masks"):
        open_masks(str(tmp_path / "none"))
    (tmp_path / "notes.md").touch()
    with pytest.raises(
        ValueError, match=r"holds no masks of videos but notes.md; expected are <vid"
    ):
        open_masks(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"holds no videos but notes.md; expected are <video>/<fra"
    ):
        open_videos(str(tmp_path))
    (tmp_path / "valid" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"did you mean .*valid\?"):
        open_masks(str(tmp_path))
    with pytest.raises(ValueError, match="has JPEGImages, but its masks are missing: none of Ann"):
        open_masks(str(tmp_path / "valid"))


def test_lists_choose_videos(tmp_path):
    drawn.davis(tmp_path)
    videos, masks = open_videos(str(tmp_path)), open_masks(str(tmp_path))
    names = tmp_path / "names.txt"
    names.write_text("camel\n")
    assert choose(videos, masks, None) == ["bear", "camel"]
    assert choose(videos, masks, str(names)) == ["camel"]
    names.write_text("camel\ncow\n")
    with pytest.raises(ValueError, match=r"1 of the 2 videos in .* are not in .*: cow"):
        choose(videos, masks, str(names))
    drawn.write_masks(tmp_path / "others" / "dog")
    with pytest.raises(ValueError, match=r"no video is in both .*\(bear, camel\).*\(dog\)"):
        choose(videos, open_masks(str(tmp_path / "others")), None)


def test_the_catalogue_of_tensorflow_datasets(tmp_path, monkeypatch):
    from sam2_jax.data.datasets import Palette
    from sam2_jax.data.tfds_builder import write_catalogue

    drawn.davis(tmp_path)
    places = [str(tmp_path / kind / "480p") for kind in ("JPEGImages", "Annotations")]
    videos = Palette(frames=places[0], annotations=places[1]).open(64)
    write_catalogue(videos, tmp_path / "catalogue", "squares", "validation")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "catalogue"))
    masks = open_masks("tfds:squares")
    assert masks.keys == ["bear", "camel"]
    video = masks.open("bear")
    assert video.size == (drawn.HEIGHT, drawn.WIDTH)
    np.testing.assert_array_equal(video.masks(3)[1], drawn.labels(3) == 1)
    with open_videos("tfds:squares").open("camel") as video:
        assert len(video.frames) == drawn.NUM_FRAMES
        assert np.abs(video.frames[1].astype(int) - drawn.frame(1)).mean() < 8
