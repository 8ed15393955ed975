"""Videos in files of TensorFlow Datasets, written and read without TensorFlow.

    videos  ->  write_catalogue: ArrayRecord files  ->  open_catalogue: len(), [i] -> Video

An example is a video: `name`; `frames`, encoded pictures; `masks`, JSON of the run lengths by
object id. All stay encoded until they are asked for, since a clip needs only a few frames of a
video.
"""

import contextlib
import dataclasses
import functools
import glob
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sam2_jax.data.annotated import FrameMasks, Video, VideoList
from sam2_jax.data.listing import check_folder
from sam2_jax.data.masks import encode_rle, frame_name, read_object_mask
from sam2_jax.data.readers import labeled_masks, masks_of_rles
from sam2_jax.data.videos import Pictures

JPEG_QUALITY = 95  # of frames that come out of a video file
VERSION = "1.0.0"


def write_catalogue(
    videos: Sequence[Video], data_dir: str | os.PathLike, name: str, split: str = "train"
) -> str:
    """Writes videos as a dataset of the catalogue, which `tfds.data_source` reads as well.

    Args:
        videos: such as `Dataset.open` returns; pictures are copied from their files as they are.
        data_dir: folder of datasets; it is made if needed.
        name: of the dataset, lower case with underscores.
        split: name of the only split that it gets.

    Returns:
        The folder of the dataset, `<data_dir>/<name>/1.0.0`.

    Raises:
        FileExistsError: there is one already.
        FileNotFoundError: a file of a video is missing.
        ValueError: a file of a video is damaged, the name is not allowed, or masks have an `ignore_label`.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"the name is {name!r}; lower-case letters, digits and _ are expected")
    builder = _builder_class(name)(
        videos, split, data_dir=os.path.abspath(data_dir), file_format="array_record"
    )
    if os.path.exists(builder.data_dir):
        raise FileExistsError(f"there is a dataset already: {builder.data_dir}")
    builder.download_and_prepare()
    return str(builder.data_dir)


def _builder_class(dataset_name: str) -> type:
    """Makes a builder, here and not on import, since tensorflow_datasets takes seconds to import."""
    import tensorflow_datasets as tfds

    class VideoBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Writes one split from open videos."""

        name = dataset_name
        VERSION = tfds.core.Version(VERSION)
        code_path = (
            None  # finding it takes a package that is not installed with tensorflow_datasets
        )

        def __init__(self, videos: Sequence[Video], split: str, **options: Any):
            self._videos, self._split = videos, split
            super().__init__(**options)

        def _info(self) -> tfds.core.DatasetInfo:
            # Text takes any bytes, and leaves them encoded when it is read.
            text = tfds.features.Text
            sequence = tfds.features.Sequence
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"name": text(), "frames": sequence(text()), "masks": sequence(text())}
                ),
            )

        def _split_generators(self, _: Any) -> dict[str, Iterator]:
            return {self._split: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
            for index in range(len(self._videos)):
                video = self._videos[index]
                yield f"{index:08d}", encode_video(video)

    return VideoBuilder


def encode_video(video: Video) -> dict[str, Any]:
    """Encodes the annotated frames of a video as an example: name, frames (bytes) and masks (JSON)."""
    frames, masks = [], []
    for index in video.annotated:
        frames.append(video.frames.encoded(index) or _jpeg_bytes(video.frames[index]))
        of_frame = video.masks(index)
        if of_frame.ignored is not None:
            raise ValueError(
                f"{video.name} has an ignore_label, which a catalogue has no place for; leave it out"
            )
        rles = {i: encode_rle(mask) for i, mask in of_frame.items()}
        masks.append(json.dumps(rles))
    return {"name": video.name, "frames": frames, "masks": masks}


def _jpeg_bytes(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def open_catalogue(
    name: str, data_dir: str, split: str, first: int = 0, count: int = -1
) -> VideoList:
    """Opens a dataset in the layout of the catalogue, in ArrayRecord files.

    Reads datasets of `write_catalogue`, and those with the features of `davis` or `youtube_vis`.

    Args:
        name: of the dataset, such as "davis/480p", perhaps with a version.
        data_dir: folder of datasets.
        split: such as "train".
        first: place of the first video to use.
        count: how many; -1 is all.

    Returns:
        The videos, by their places.

    Raises:
        FileNotFoundError: there is no such dataset.
        ValueError: it has no such split, no video is left, or its features are unknown.
    """
    folder = _find_folder(name, data_dir)
    files = sorted(glob.glob(os.path.join(glob.escape(folder), f"*-{split}.array_record*")))
    if not files:
        found = ", ".join(sorted(os.listdir(folder)))
        raise ValueError(
            f"no split {split!r} in ArrayRecord files in {folder}, which holds {found}; "
            'datasets are prepared that way with file_format="array_record"'
        )
    examples = _Examples(os.path.join(folder, "features.json"), tuple(files))
    used = range(len(examples))[first : None if count < 0 else first + count]
    if not used:
        raise ValueError(
            f"{name} has {len(examples)} {split} videos; none is left by first={first}, count={count}"
        )
    videos = VideoList(used, functools.partial(_open_example, examples))
    videos[0]  # unknown features are an error here, not in every sample
    return videos


def _open_example(examples: "_Examples", index: int) -> Video:
    example = examples[index]
    if {"name", "frames", "masks"} <= example.keys():
        return _own_video(example)
    if {"video", "tracks", "metadata"} <= example.keys():
        return _youtube_vis_video(example)
    if {"video", "metadata"} <= example.keys():
        return _davis_video(example)
    raise ValueError(
        f"examples have {', '.join(sorted(example))}; the features of write_catalogue, davis or "
        "youtube_vis are expected"
    )


def _encoded_video(
    name: bytes, frames: Sequence[bytes], read_masks: Callable[[int, tuple[int, int]], FrameMasks]
) -> Video:
    """A video in memory, still encoded; masks are read by the index and the size of the frame."""
    pictures = Pictures(frames)
    return Video(
        name=name.decode(),
        frame_names=[frame_name(index) for index in range(len(frames))],
        frames=pictures,
        annotated=range(len(frames)),
        read_masks=lambda index: read_masks(index, (pictures.height, pictures.width)),
    )


def _own_video(example: Mapping[str, Any]) -> Video:
    def read(index: int, size: tuple[int, int]) -> FrameMasks:
        rles = json.loads(example["masks"][index])
        return masks_of_rles({int(i): rle for i, rle in rles.items()}, size)

    return _encoded_video(example["name"], example["frames"], read)


def _davis_video(example: Mapping[str, Any]) -> Video:
    video, labels = example["video"], example["video"]["segmentations"]
    read = lambda index, _: labeled_masks(labels[index])
    return _encoded_video(example["metadata"]["video_name"], video["frames"], read)


def _youtube_vis_video(example: Mapping[str, Any]) -> Video:
    """Only frames on which a track has a mask are listed; tracks are numbered from 1."""
    tracks = example["tracks"]
    masks_of_frame: dict[int, dict[int, bytes]] = {}
    for n, (frames, masks) in enumerate(
        zip(tracks["frames"], tracks["segmentations"], strict=True), start=1
    ):
        for frame, mask in zip(frames, masks, strict=True):
            masks_of_frame.setdefault(int(frame), {})[n] = mask
    listed = sorted(masks_of_frame)

    def read(index: int, size: tuple[int, int]) -> FrameMasks:
        by_id = masks_of_frame[listed[index]]
        return FrameMasks(list(by_id), lambda object_id: read_object_mask(by_id[object_id]), size)

    frames = [example["video"][frame] for frame in listed]
    return _encoded_video(example["metadata"]["video_name"], frames, read)


def _find_folder(name: str, data_dir: str) -> str:
    """Returns the folder of the newest version of a dataset, or of the one that the name ends with."""
    root = check_folder(data_dir, "datasets of tensorflow_datasets")
    path = check_folder(os.path.join(root, *re.split("[/:]", name)), f"the dataset {name}")
    if os.path.exists(os.path.join(path, "features.json")):
        return path
    found = glob.glob(os.path.join(glob.escape(path), "*.*.*", "features.json"))
    if not found:
        raise FileNotFoundError(
            f"{path} holds no version of a prepared dataset (a folder such as 1.0.0 with "
            f"features.json), but {', '.join(sorted(os.listdir(path))) or 'nothing'}; a dataset with "
            "configurations is named with one, such as davis/480p"
        )
    folders = map(os.path.dirname, found)
    return max(
        folders, key=lambda folder: [int(n) for n in re.findall("[0-9]+", os.path.basename(folder))]
    )


@dataclasses.dataclass(frozen=True)
class _Examples(Sequence):
    """Examples of a split, with all pictures in them left encoded.

    Attributes:
        features: path of the description of an example.
        files: paths of the ArrayRecord files.
    """

    features: str
    files: tuple[str, ...]

    @functools.cached_property
    def _records(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        with _naming(self.files[0]):
            return ArrayRecordDataSource(self.files)

    @functools.cached_property
    def _parser(self) -> Any:
        import tensorflow_datasets as tfds

        with open(self.features, encoding="utf-8") as file:
            description = json.load(file)
        return tfds.features.FeatureConnector.from_json(_leave_encoded(description))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with _naming(f"record {index} of {self.files[0]}"):
            record = self._records[index]
        return self._parser.deserialize_example_np(record)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _Examples, (self.features, self.files)  # open files stay behind


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turns what is raised on a damaged file into a ValueError that names it."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split()) or "is it cut short?"
        raise ValueError(f"{what} cannot be read as ArrayRecord: {reason}") from error


_BYTES = {
    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "tensor": {"dtype": "string", "encoding": "none", "shape": {}},
}


def _leave_encoded(node: Any) -> Any:
    """Makes pictures in a description of features bytes, and videos sequences of them.

    Decoding all frames would take long, and the class of videos needs TensorFlow.
    """
    if not isinstance(node, Mapping):
        return node
    kind = str(node.get("pythonClassName")).rpartition(".")[2]
    if kind == "Image":
        return _BYTES
    if kind == "Video":
        return {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": _BYTES, "length": "-1"},
        }
    return {key: _leave_encoded(value) for key, value in node.items()}
