"""Videos in files of the catalogue of tensorflow_datasets, written and read without TensorFlow.

    videos  ->  write_catalogue: ArrayRecord files  ->  open_catalogue: len(), [i] -> Video

An example is a video: `name`; `frames`, encoded pictures; `masks`, JSON of the run lengths by object id. All
stay encoded until they are asked for, since a clip takes few frames of a video.
"""

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

from sam2_jax.data.clips import LazyMasks, Masks, StoredVideo, Video, VideoList
from sam2_jax.data.listing import check_folder
from sam2_jax.data.masks import decode_rle, encode_rle
from sam2_jax.data.sources import masks_of_labels
from sam2_jax.experiment import Dataset

JPEG_QUALITY = 95  # of frames that come out of a video file
FRAMES_AT_ONCE = 16  # are in memory when a video is encoded
VERSION = "1.0.0"


def write_catalogue(
    videos: Sequence[Video], data_dir: str | os.PathLike, name: str, split: str = "train"
) -> str:
    """Writes videos as a dataset of the catalogue, which `tfds.data_source` reads as well.

    Args:
        videos: such as `open_source` returns; pictures are taken over as they are in their files.
        data_dir: folder of datasets; it is made if needed.
        name: of the dataset, lower case with underscores.
        split: of which this becomes the only one.

    Returns:
        The folder of the dataset, `<data_dir>/<name>/1.0.0`.

    Raises:
        FileExistsError: there is one already.
        FileNotFoundError: a file of a video is missing.
        ValueError: a file of a video is damaged, or the name is not allowed.
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
    """Encodes a video as an example: name, frames (bytes) and masks (JSON), one a frame."""
    frames, masks = [], []
    for start in range(0, video.num_frames, FRAMES_AT_ONCE):
        indices = range(start, min(start + FRAMES_AT_ONCE, video.num_frames))
        for index, frame, by_id in zip(indices, *video.read(indices), strict=True):
            frames.append(_file_bytes(video.frame_path(index)) or _jpeg_bytes(frame))
            masks.append(json.dumps({i: encode_rle(mask) for i, mask in by_id.items()}))
    return {"name": video.name, "frames": frames, "masks": masks}


def _file_bytes(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


def _jpeg_bytes(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def open_catalogue(dataset: Dataset) -> VideoList:
    """Opens a dataset in the layout of the catalogue, in ArrayRecord files.

    Read are datasets of `write_catalogue`, and those with the features of `davis` or `youtube_vis`.
    """
    folder = _find_folder(dataset.frames, dataset.annotations)
    files = sorted(glob.glob(os.path.join(glob.escape(folder), f"*-{dataset.split}.array_record*")))
    if not files:
        found = ", ".join(sorted(os.listdir(folder)))
        raise ValueError(
            f"no split {dataset.split!r} in ArrayRecord files in {folder}, which holds {found}; "
            'datasets are prepared that way with file_format="array_record"'
        )
    examples = _Examples(os.path.join(folder, "features.json"), tuple(files))
    stop = len(examples) if dataset.count < 0 else dataset.first + dataset.count
    used = range(len(examples))[dataset.first : stop]
    if not used:
        raise ValueError(
            f"{dataset.frames} has {len(examples)} {dataset.split} videos; none is left by "
            f"first={dataset.first}, count={dataset.count}"
        )
    videos = VideoList(used, functools.partial(_open_example, examples))
    videos[0]  # other features are an error here, and not one of every sample
    return videos


def _open_example(examples: "_Examples", index: int) -> "CatalogueVideo":
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


class CatalogueVideo(StoredVideo):
    """A video whose frames and masks are in memory, encoded.

    Args:
        name: of the video.
        frames: encoded pictures of the annotated frames.
        masks: gives the masks on one of them.
    """

    def __init__(self, name: str, frames: Sequence[bytes], masks: Callable[[int], Masks]):
        self.name, self.num_frames = name, len(frames)
        self._frames, self._masks = frames, masks

    def frames_at(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Decodes frames."""
        return [_decode(self._frames[index], "RGB") for index in indices]

    def masks_on(self, index: int) -> Masks:
        """Decodes the masks on a frame."""
        return self._masks(index)


def _decode(data: bytes, mode: str | None = None) -> np.ndarray:
    """Decodes a picture; without a mode its values are kept, of a palette picture the indices."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert(mode) if mode else image)
    # Pillow reports damaged pixels by several unrelated types.
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"a picture is damaged: {error}") from error


def _own_video(example: Mapping[str, Any]) -> CatalogueVideo:
    def masks(index: int) -> Masks:
        by_id = {int(i): rle for i, rle in json.loads(example["masks"][index]).items()}
        return LazyMasks(list(by_id), lambda object_id: decode_rle(by_id[object_id]))

    return CatalogueVideo(example["name"].decode(), example["frames"], masks)


def _davis_video(example: Mapping[str, Any]) -> CatalogueVideo:
    video, name = example["video"], example["metadata"]["video_name"].decode()
    labels = video["segmentations"]
    return CatalogueVideo(
        name, video["frames"], lambda index: masks_of_labels(_decode(labels[index]))
    )


def _youtube_vis_video(example: Mapping[str, Any]) -> CatalogueVideo:
    """Only frames are listed on which a track has a mask; tracks are numbered from 1."""
    tracks = example["tracks"]
    masks_of_frame: dict[int, dict[int, bytes]] = {}
    for n, (frames, masks) in enumerate(
        zip(tracks["frames"], tracks["segmentations"], strict=True), start=1
    ):
        for frame, mask in zip(frames, masks, strict=True):
            masks_of_frame.setdefault(int(frame), {})[n] = mask
    listed = sorted(masks_of_frame)

    def masks(index: int) -> Masks:
        by_id = masks_of_frame[listed[index]]
        return LazyMasks(list(by_id), lambda object_id: _decode(by_id[object_id]) > 0)

    name = example["metadata"]["video_name"].decode()
    return CatalogueVideo(name, [example["video"][frame] for frame in listed], masks)


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
    """Examples of a split, with everything in them that is a picture left encoded.

    Attributes:
        features: path of the description of an example.
        files: paths of the ArrayRecord files.
    """

    features: str
    files: tuple[str, ...]

    @functools.cached_property
    def _records(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

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
        return self._parser.deserialize_example_np(self._records[index])

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _Examples, (self.features, self.files)  # open files stay behind


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
