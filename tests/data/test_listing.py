import pytest

from sam2_jax.data.listing import list_files, natural_order, select
from sam2_jax.data.readers import palette_masks
from sam2_jax.data.videos import ImageFolder


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "10"],
        ["00002", "00010", "00100"],
        ["9", "010", "0011", "12"],
        ["shot 2", "shot 10"],
        ["a1b2", "a1b10", "a2b1"],
        ["a", "b", "ba", "c"],  # text by its letters, not by its length
        ["7", "8a", "11"],
    ],
)
def test_numbers_are_in_the_order_of_numbers(names):
    shuffled = names[::-1]
    assert sorted(shuffled, key=natural_order) == names


def test_names_of_one_number_are_in_one_order():
    for names in (["1", "01", "2"], ["01", "2", "1"]):
        assert sorted(names, key=natural_order) == ["01", "1", "2"]


def test_frames_and_masks_are_listed_in_the_same_order(tmp_path):
    """Frames of evaluation, frames of training and masks of both."""
    from PIL import Image

    names = ["b10", "b9", "a100", "a20"]
    for name in names:
        Image.new("L", (4, 3), 1).save(tmp_path / f"{name}.png")
    ordered = ["a20", "a100", "b9", "b10"]
    assert list(list_files(str(tmp_path), (".png",))) == ordered
    assert ImageFolder(tmp_path).names == ordered
    assert palette_masks("v", str(tmp_path)).frame_names == ordered


def test_select():
    assert select({"b", "a", "c"}, "videos", first=1) == ["b", "c"]
    assert select({"b", "a", "c"}, "videos", first=1, count=1) == ["b"]
    with pytest.raises(ValueError, match=r"there are 0 videos$"):
        select((), "videos")
    with pytest.raises(ValueError, match=r"there are 1 videos, and none is left by .*count=0"):
        select(["a"], "videos", count=0)
