"""Batches of clips for training: shuffled, augmented, mixed, and the same after a restart.

    datasets by name  ->  make_loader: next() -> (name of a dataset, batch)

What a step gets depends on the seed and the step only, not on how many processes share the batch or read
it. The position is one number.
"""

import atexit
import dataclasses
import functools
import json
import logging
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sam2_jax.config import check_intervals
from sam2_jax.data.annotated import Video
from sam2_jax.data.augment import augment_clip
from sam2_jax.data.clips import Clip, sample_clip
from sam2_jax.data.datasets import Dataset, Procedural

logger = logging.getLogger(__name__)

MAX_TRIES = 100
MAX_DEATHS = 3
MAX_THREADS = 8


def make_loader(
    datasets: Mapping[str, Dataset],
    image_size: int,
    seed: int,
    num_workers: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "Loader":
    """Makes an endless iterator over batches, each from one dataset, chosen by weights or sizes.

    Args:
        datasets: by name; those of weight 0 are left out.
        image_size: S, side of the model's input.
        seed: of the order, the clips and their augmentations.
        num_workers: processes that read; 0 reads in threads of this one.
        process_index: of this process among those that train.
        process_count: how many train; each gets an equal, contiguous part of every batch.

    Returns:
        Gives (name, batch); a batch is, for the B clips of this process:
            images: (B, T, S, S, 3) uint8 RGB.
            masks: (B, T, O, S, S) bool, O = max_objects, empty where there are fewer.
            is_object: (B, O) bool, which of the masks are of objects.
            ignored: (B, T, S, S) bool, which pixels are not known; only of a dataset that has a label for them.
            names: B str, the clips.
            replaced: int, how many samples could not be read and were replaced by others.

    Raises:
        FileNotFoundError: a folder or file of a dataset is missing.
        ValueError: a dataset holds nothing, or does not fit the number of processes; or some have multipliers
            and others have none.
    """
    import grain

    datasets = {name: dataset for name, dataset in datasets.items() if dataset.weight}
    sources = {}
    for name, dataset in datasets.items():
        _check(name, dataset, process_count)
        sources[name] = dataset.open(image_size)
    num_batches = {
        name: (dataset.multiplier or 1) * len(sources[name]) / dataset.batch_size
        for name, dataset in datasets.items()
    }
    weights = _weights(datasets, num_batches)
    parts = []
    for name, dataset in datasets.items():
        source = sources[name]
        if not isinstance(dataset, Procedural):
            kind = "videos" if dataset.num_frames > 1 else "images"
            logger.info("datasets.%s: %d %s.", name, len(set(source.keys)), kind)
        own_seed = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)
        samples = (
            grain.MapDataset.range(len(source))
            .seed(int(own_seed[0]))
            .shuffle()
            .repeat()
            .random_map(Sampler(name, dataset, source, image_size))
        )
        batches = samples.batch(
            dataset.batch_size // process_count, drop_remainder=True, batch_fn=collate
        )[process_index::process_count]
        parts.append(batches.map(functools.partial(_with_name, name)))
    mixed = grain.MapDataset.mix(parts, list(weights.values()))
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    epochs = {
        name: num_batches[name] / shares[name]
        for name, dataset in datasets.items()
        if not _is_endless(dataset)
    }
    return Loader(mixed, num_workers, shares, epochs)


def _is_endless(dataset: Dataset) -> bool:
    return isinstance(dataset, Procedural) and dataset.count < 0


def _weights(datasets: Mapping[str, Dataset], num_batches: Mapping[str, float]) -> dict[str, float]:
    """Returns what the shares of the steps are proportional to, given the batches in an epoch of each."""
    without = [name for name, dataset in datasets.items() if not dataset.multiplier]
    if without and len(without) < len(datasets):
        raise ValueError(
            f"datasets.{without[0]}.multiplier is 0, but others have one; give one to all of them or to none"
        )
    return {
        name: dataset.weight * (1 if without else num_batches[name])
        for name, dataset in datasets.items()
    }


def _with_name(name: str, batch: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return name, batch


def _check(name: str, dataset: Dataset, process_count: int) -> None:
    check_intervals(dataset, f"datasets.{name}.")
    if dataset.multiplier and _is_endless(dataset):
        raise ValueError(
            f"datasets.{name}.multiplier is {dataset.multiplier}, but its videos have no end; set count as well"
        )
    if dataset.batch_size % process_count:
        raise ValueError(
            f"datasets.{name}.batch_size is {dataset.batch_size}; a multiple of the "
            f"{process_count} processes is needed"
        )


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Reads a sample of a dataset, or another one if that cannot be read.

    Attributes:
        name: of the dataset.
        dataset: how clips are sampled and augmented.
        source: its videos.
        image_size: S.
    """

    name: str
    dataset: Dataset
    source: Sequence[Video]
    image_size: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns a batch of one clip of video `index`, without the leading axis.

        Raises:
            ValueError: neither this video nor 99 others could be read.
        """
        for num_replaced in range(MAX_TRIES):
            label = f"number {index}"
            try:
                with self.source[int(index)] as video:
                    label = video.name
                    return self._sample(video, rng) | {"replaced": num_replaced}
            # Whatever is wrong with a sample, it must not end a run of days.
            except Exception as error:
                reason = f"{self.name}/{label}: {error}"
                logger.warning("sample replaced, since it cannot be used: %s", reason)
            index = int(rng.integers(len(self.source)))
        raise ValueError(
            f"{MAX_TRIES} samples of datasets.{self.name} in a row cannot be used; the last one is "
            f"{reason}"
        )

    def _sample(self, video: Video, rng: np.random.Generator) -> dict[str, Any]:
        d = self.dataset
        clip = sample_clip(
            video,
            d.num_frames,
            d.max_objects,
            rng,
            d.stride,
            d.augment.reverse,
            d.max_stride,
            d.truncate_video,
        )
        clip = augment_clip(clip, d.augment, self.image_size, rng)
        return pad_clip(clip, d.max_objects) | {"name": f"{self.name}/{clip.name}"}


def pad_clip(clip: Clip, max_objects: int) -> dict[str, Any]:
    """Turns a clip into arrays whose shapes do not depend on it.

    Objects that are too small to be seen on the first frame are left out.

    Returns:
        images (T, S, S, 3) uint8, masks (T, O, S, S) bool, is_object (O,) bool, and ignored (T, S, S) bool
        where the clip has it.

    Raises:
        ValueError: no object is left.
    """
    kept = clip.masks[:, clip.masks[0].any((1, 2))]
    if kept.shape[1] == 0:
        side = clip.frames.shape[1]
        raise ValueError(f"no object of the first frame is as large as a pixel at {side}x{side}")
    padding = max_objects - kept.shape[1]
    sample = {
        "images": clip.frames,
        "masks": np.pad(kept, ((0, 0), (0, padding), (0, 0), (0, 0))),
        "is_object": np.arange(max_objects) < kept.shape[1],
    }
    return sample if clip.ignored is None else sample | {"ignored": clip.ignored}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples into a batch."""
    arrays = [k for k, value in samples[0].items() if isinstance(value, np.ndarray)]
    return {
        **{k: np.stack([sample[k] for sample in samples]) for k in arrays},
        "names": [sample["name"] for sample in samples],
        "replaced": sum(sample["replaced"] for sample in samples),
    }


class Loader(Iterator):
    """Iterates over batches that can be read at any position; see `make_loader`.

    Attributes:
        shares: parts of the steps by dataset.
        epochs: steps, of all datasets, in which each is gone through `multiplier` times, or once.
    """

    def __init__(
        self, batches: Any, num_workers: int, shares: dict[str, float], epochs: dict[str, float]
    ):
        self.shares, self.epochs = shares, epochs
        self._batches, self._num_workers = batches, num_workers
        self._position, self._iterator = 0, None

    def __next__(self) -> tuple[str, dict[str, Any]]:
        name, batch = self._read()
        self._position += 1
        # Workers hand arrays over in shared memory, which must not outlive them.
        own = lambda value: np.array(value) if isinstance(value, np.ndarray) else value
        return name, {k: own(v) for k, v in batch.items()} if self._num_workers else batch

    def _read(self) -> tuple[str, dict[str, Any]]:
        for num_deaths in range(1, MAX_DEATHS + 1):
            if self._iterator is None:
                self._iterator = self._start()
            try:
                return next(self._iterator)
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                reason = str(error).partition(". ")[0]
            self.close()
            if num_deaths < MAX_DEATHS:
                logger.warning("a process that reads data died, all are started again: %s", reason)
        raise OSError(
            f"processes that read data died {MAX_DEATHS} times in a row: {reason}. Is memory short? Fewer "
            "num_workers, or 0, which reads in threads, need less."
        )

    def _start(self) -> Any:
        import grain

        # From its position on, the sequence is the same for any number of workers.
        rest = self._batches[self._position :]
        threads = 1 if self._num_workers else min(os.cpu_count() or 1, MAX_THREADS)
        batches = rest.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
        if self._num_workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain reads its own flags, even outside of app.run
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._num_workers)
            batches = batches.mp_prefetch(options, worker_init_fn=_begin_worker)
            # Before multiprocessing waits for its children.
            atexit.register(self.close)
        return iter(batches)

    def get_state(self) -> bytes:
        """Returns the position as JSON; the next batch is the first one after it."""
        return json.dumps({"position": self._position}).encode("ascii")

    def set_state(self, state: bytes) -> None:
        """Goes to a position that `get_state` returned, also with another number of processes.

        Raises:
            ValueError: not a state.
        """
        try:
            position = json.loads(state)["position"]
            is_valid = isinstance(position, int) and position >= 0
        except (ValueError, KeyError, TypeError):
            is_valid = False
        if not is_valid:
            raise ValueError(f"{state!r} is not the position of a loader")
        self.close()
        self._position = position

    def close(self) -> None:
        """Stops the threads or processes that read ahead; the next read starts new ones."""
        atexit.unregister(self.close)
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def _begin_worker(index: int, count: int) -> None:
    """Leaves signals to the main process, and ends this one with it, even if that is killed."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
