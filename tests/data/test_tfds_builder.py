"""Datasets of the catalogue: written here, and with the features of davis and youtube_vis.

`youtube_vis/` holds the description and an example of a dataset that tensorflow_datasets wrote with the help
of TensorFlow, which its class of videos needs: 5 frames of 16 x 20, of value 10 t; track 1 is on frames 0, 1
and 3, track 2 on 3 and 4.
"""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from sam2_jax.data import tfds_builder
from sam2_jax.data.annotated import FrameMasks, Video
from sam2_jax.data.clips import sample_clip
from sam2_jax.data.datasets import Palette, Tfds
from sam2_jax.data.loader import make_loader
from sam2_jax.data.masks import write_palette_png
from sam2_jax.data.videos import FrameList

HEIGHT, WIDTH = 16, 20


def frame(value):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def drawn():
    """Twenty frames that are in no file, with two objects that overlap."""

    def masks_on(index):
        masks = np.zeros((2, HEIGHT, WIDTH), bool)
        masks[0, :8] = True
        masks[1, 4:, :index] = True
        return FrameMasks([3, 700], lambda i: masks[[3, 700].index(i)], (HEIGHT, WIDTH))

    frames = FrameList([frame(5 * t) for t in range(20)])
    return Video("drawn", [str(t) for t in range(20)], frames, range(20), masks_on)


@pytest.fixture(scope="module")
def palette(tmp_path_factory):
    """A dataset of folders."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("a", "b"):
        (root / "frames" / name).mkdir(parents=True)
        (root / "masks" / name).mkdir(parents=True)
        for t in range(4):
            Image.fromarray(frame(50 * t)).save(root / "frames" / name / f"{t:05d}.jpg")
            ids = np.zeros((HEIGHT, WIDTH), np.uint8)
            ids[4 : 8 + t, 4:12] = 1 + t % 2
            write_palette_png(root / "masks" / name / f"{t:05d}.png", ids)
    return Palette(frames=str(root / "frames"), annotations=str(root / "masks")).open(64)


@pytest.fixture(scope="module")
def written(palette, tmp_path_factory):
    """The folder of datasets in which the videos of `palette`, and a drawn one, were written."""
    root = tmp_path_factory.mktemp("datasets")
    videos = [*palette, drawn()]
    folder = tfds_builder.write_catalogue(videos, root, "my_videos", split="validation")
    assert folder == str(root / "my_videos" / "1.0.0")
    return root


def opened(root, name="my_videos", split="validation", **fields):
    """Opens a dataset as a worker process gets it."""
    source = Tfds(name=name, data_dir=str(root), split=split, **fields).open(64)
    return cloudpickle.loads(cloudpickle.dumps(source))


def test_round_trip(written, palette):
    source = opened(written)
    videos = {source[i].name: source[i] for i in range(len(source))}
    assert sorted(videos) == ["a", "b", "drawn"]
    for original in palette:
        video = videos[original.name]
        for t in range(4):
            assert video.frames.encoded(t) == original.frames.encoded(t)  # the same JPEG
            there, here = original.masks(t), video.masks(t)
            assert list(there) == list(here)
            assert all((there[i] == here[i]).all() for i in there)
        assert [video.object_ids(t) for t in range(4)] == [[1], [2], [1], [2]]
    video = videos["drawn"]
    np.testing.assert_allclose([video.frames[t][0, 0, 0] for t in (19, 2)], [95, 10], atol=2)
    np.testing.assert_array_equal(video.masks(19)[700], drawn().masks(19)[700])
    np.testing.assert_array_equal(video.masks(2)[3], drawn().masks(2)[3])


def test_the_library_itself_reads_it(written):
    import tensorflow_datasets as tfds

    source = tfds.data_source("my_videos", data_dir=str(written), split="validation")
    names = sorted(source[i]["name"] for i in range(len(source)))
    assert names == [b"a", b"b", b"drawn"]


def test_damaged_records_are_one_error_that_names_the_file(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    (path,) = (tmp_path / "copy").rglob("*.array_record*")
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"record 0 of .*array_record.* cannot be read.*mismatch"):
        opened(tmp_path / "copy")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"array_record.* cannot be read as ArrayRecord"):
        opened(tmp_path / "copy")


def test_batches_come_out_of_it(written):
    dataset = Tfds(
        name="my_videos", data_dir=str(written), split="validation", num_frames=4, batch_size=3
    )
    loader = make_loader({"catalogue": dataset}, 32, seed=0, num_workers=0)
    _, batch = next(loader)
    loader.close()
    assert batch["images"].shape == (3, 4, 32, 32, 3)
    assert batch["replaced"] == 0


def test_selection(written):
    everything = opened(written)
    part = opened(written, first=1, count=1)
    assert len(part) == 1
    assert part[0].name == everything[1].name
    with pytest.raises(ValueError, match="none is left by first=3"):
        opened(written, first=3)


def test_what_is_not_there(written, tmp_path):
    with pytest.raises(FileNotFoundError, match="should hold datasets of tensorflow_datasets"):
        opened(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="should hold the dataset davis/480p"):
        opened(written, "davis/480p")
    with pytest.raises(ValueError, match=r"no split 'train' in ArrayRecord files .*validation"):
        opened(written, split="train")
    (tmp_path / "davis" / "480p").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no version of a prepared dataset.*but 480p"):
        opened(tmp_path, "davis")


def test_what_cannot_be_written(written):
    with pytest.raises(FileExistsError, match="there is a dataset already"):
        tfds_builder.write_catalogue([drawn()], written, "my_videos")
    with pytest.raises(ValueError, match="lower-case letters"):
        tfds_builder.write_catalogue([drawn()], written, "My videos")
    unknown = FrameMasks(
        [], lambda _: None, (HEIGHT, WIDTH), ignored=np.ones((HEIGHT, WIDTH), bool)
    )
    video = dataclasses.replace(drawn(), read_masks=lambda _: unknown)
    with pytest.raises(ValueError, match="drawn has an ignore_label"):
        tfds_builder.write_catalogue([video], written, "unknown")


def test_features_of_davis(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "video": tfds.features.Sequence(
                {
                    "frames": tfds.features.Image(shape=(None, None, 3)),
                    "segmentations": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
                }
            ),
            "metadata": {"num_frames": np.int64, "video_name": np.str_},
        }
    )
    ids = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    ids[:, 4:8], ids[1:, 10:] = 1, 2
    video = {
        "frames": [png(frame(t)) for t in (9, 19, 29)],
        "segmentations": [png(i) for i in ids],
    }
    example = {"video": video, "metadata": {"num_frames": 3, "video_name": "bear"}}
    write_examples(tmp_path / "davis" / "480p" / "2.1.0", features.to_json(), features, [example])
    source = opened(tmp_path, "davis/480p", "train")
    assert source[0].name == "bear"
    assert [source[0].object_ids(t) for t in range(3)] == [[1], [1, 2], [1, 2]]
    assert source[0].frames[2][0, 0].tolist() == [29] * 3
    np.testing.assert_array_equal(source[0].masks(2)[2], ids[2] == 2)


def write_examples(folder, description, features, examples):
    """Writes examples as tensorflow_datasets does, without a builder."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serializer = ExampleSerializer(features.get_serialized_info())
    records = [serializer.serialize_example(features.encode_example(e)) for e in examples]
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(description))
    write_records(folder / "davis-train.array_record-00000-of-00001", records)


def write_records(path, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.fixture
def youtube_vis(tmp_path):
    folder = tmp_path / "youtube_vis" / "full" / "1.0.0"
    folder.mkdir(parents=True)
    here = Path(__file__).parent / "youtube_vis"
    shutil.copy(here / "features.json", folder)
    record = (here / "example.bin").read_bytes()
    write_records(folder / "youtube_vis-train.array_record-00000-of-00001", [record])
    return tmp_path


@pytest.mark.parametrize("name", ["youtube_vis/full", "youtube_vis/full:1.0.0"])
def test_features_of_youtube_vis(youtube_vis, name):
    (youtube_vis / "youtube_vis" / "full" / "0.9.0").mkdir()
    video = opened(youtube_vis, name, "train")[0]
    assert list(video.annotated) == [0, 1, 2, 3]  # frame 2 has no track
    assert [video.object_ids(t) for t in range(4)] == [[1], [1], [1, 2], [2]]
    clip = sample_clip(video, 4, 3, np.random.default_rng(0))
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 10, 30, 40]
    assert clip.masks.sum((2, 3)).tolist() == [[9], [9], [9], [0]]
    assert video.masks(2)[2].sum() == 8 * WIDTH


def test_newest_version_is_opened(youtube_vis):
    folder = youtube_vis / "youtube_vis" / "full"
    shutil.copytree(folder / "1.0.0", folder / "10.0.0")
    (folder / "1.0.0" / "features.json").write_text("{}")
    assert len(opened(youtube_vis, "youtube_vis/full", "train")) == 1


def test_other_features_are_an_error(written, tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": np.int64})
    example = {"image": png(frame(1)), "label": 3}
    write_examples(tmp_path / "mnist" / "1.0.0", features.to_json(), features, [example])
    with pytest.raises(ValueError, match="examples have image, label; the features of"):
        opened(tmp_path, "mnist", "train")


def test_damaged_frames(written):
    video = opened(written)[0]
    video.frames._pictures[1] = video.frames._pictures[1][:300]
    with pytest.raises(ValueError, match="a stored picture is not a picture that can be read"):
        video.frames[1]
