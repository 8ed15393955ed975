import json

import numpy as np
import pytest

from sam2_jax.data import sav
from sam2_jax.data.masks import decode_rle, encode_rle

HEIGHT, WIDTH = 40, 50
MEANS = ("masklet_size_rel", "masklet_size_abs")
COMPUTED = (
    "video_duration",
    "video_resolution",
    "masklet_size_bucket",
    "masklet_visibility_changes",
    "masklet_first_appeared_frame",
    "masklet_frame_count",
    "masklet_type",
    "masklet_num",
)


def stack():
    """Three objects on four frames: always seen; late, gone, and back; never seen."""
    masks = np.zeros((4, 3, HEIGHT, WIDTH), bool)
    masks[:, 0, :33, :32] = True
    masks[[1, 3], 1, :10, :10] = True
    return masks


def document():
    masklet = [[encode_rle(mask) for mask in frame] for frame in stack()]
    return sav.sav_document("clip", masklet, [4, 7, 9], num_frames=13)


def test_fields_that_follow_from_the_masks():
    made = document()
    assert made["video_duration"] == pytest.approx(13 / 24)
    assert (made["video_height"], made["video_width"], made["video_resolution"]) == (40, 50, 2000)
    assert made["masklet_size_abs"] == [33 * 32, 100, 0]
    assert made["masklet_size_rel"] == [33 * 32 / 2000, 0.05, 0]
    assert made["masklet_size_bucket"] == ["medium", "small", "small"]
    assert made["masklet_first_appeared_frame"] == [0, 1, 4]
    assert made["masklet_visibility_changes"] == [0, 2, 0]
    assert made["masklet_frame_count"] == [4, 4, 4]
    assert made["masklet_num"] == 3


def test_round_trip(tmp_path):
    sav.write_sav_json(tmp_path / "a.json", document())
    again = sav.read_sav_json(tmp_path / "a.json")
    assert again == document()
    masks = [[decode_rle(rle) for rle in frame] for frame in again["masklet"]]
    np.testing.assert_array_equal(masks, stack())


def test_null_is_a_frame_without_annotation(tmp_path):
    """As the original's training takes it: null for the frame, or for any of its objects."""
    made = document()
    made["masklet"][1] = None
    made["masklet"][2][1] = None
    (tmp_path / "a.json").write_text(json.dumps(made))
    masklet = sav.read_sav_json(tmp_path / "a.json")["masklet"]
    assert [frame is None for frame in masklet] == [False, True, True, False]


def test_real_annotations(real_data, tmp_path):
    path = real_data / "sav" / "sav_000001_manual.json"
    original = json.loads(path.read_text())
    read = sav.read_sav_json(path)
    assert read == original
    assert isinstance(read["video_height"], int)
    assert decode_rle(read["masklet"][60][3]).shape == (848, 480)
    sav.write_sav_json(tmp_path / "a.json", read)
    assert json.loads((tmp_path / "a.json").read_text()) == original
    made = sav.sav_document("sav_000001", read["masklet"], read["masklet_id"], num_frames=483)
    for field in COMPUTED:
        assert made[field] == original[field], field
    for field in MEANS:
        np.testing.assert_allclose(made[field], original[field], rtol=1e-6)


def without(field):
    return {name: value for name, value in document().items() if name != field}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "a JSON object is expected"),
        (without("masklet"), "lacks masklet"),
        ({"video_height": 3}, "lacks video_width, masklet, masklet_id"),
        (document() | {"video_height": 40.5}, "video_height is 40.5; a whole number"),
        (document() | {"video_width": "50"}, "video_width is '50'"),
        (
            document() | {"video_width": 51},
            r"masklet\[0\]\[0\] is of size \[40, 50\], but the video is 40 rows x 51",
        ),
        (document() | {"masklet_id": [1, 2]}, r"masklet\[0\] holds 3 masks for 2 objects"),
        (document() | {"masklet_id": 3}, "are lists"),
        (document() | {"masklet": [3]}, r"masklet\[0\] holds int masks"),
        (document() | {"masklet": [[{}, {}, {}]]}, r"masklet\[0\]\[0\] is not"),
        (document() | {"masklet": [[{"size": None, "counts": ""}] * 3]}, "is of size None"),
    ],
)
def test_wrong_documents(tmp_path, wrong, message):
    (tmp_path / "a.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=rf"a\.json.* {message}"):
        sav.read_sav_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match=f"^the document.* {message}"):
        sav.write_sav_json(tmp_path / "b.json", wrong)
    assert not (tmp_path / "b.json").exists()


def test_files_that_are_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        sav.read_sav_json(tmp_path / "gone.json")
    for data in (b"", json.dumps(document()).encode()[:-20], b"\xff\xfe\x00"):
        (tmp_path / "a.json").write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.json is not JSON, or is cut short"):
            sav.read_sav_json(tmp_path / "a.json")


def test_document_of_nothing():
    for masklet in ([], [[]]):
        with pytest.raises(ValueError, match="there are no masks"):
            sav.sav_document("clip", masklet, [], num_frames=1)
