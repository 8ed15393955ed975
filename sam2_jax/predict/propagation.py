"""Propagation: clips of frames through the compiled scan, results into the sessions.

The bank stays on the device from clip to clip, and the next clip is launched before the masks of the last one
are read. What a caller changes between two results (a click, an object added or removed) counts from the next
frame on: what was computed further ahead is dropped, and the bank is loaded anew from the session.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sam2_jax.build import Model
from sam2_jax.data.videos import Frames
from sam2_jax.model.sam2 import Sam2
from sam2_jax.outputs import as_array
from sam2_jax.predict.history import Entry, ObjectHistory, load_bank
from sam2_jax.predict.postprocessing import VideoMasks, fill_holes
from sam2_jax.predict.preprocessing import frame_to_input
from sam2_jax.predict.reader import FrameReader
from sam2_jax.predict.session import FrameMasks, InferenceState
from sam2_jax.structs import Frame, MemoryBank, Prediction
from sam2_jax.track import propagate

_NOT_LOADED = -1

# The bank is given up for the next one, in place.
_propagate = jax.jit(propagate, static_argnums=0, donate_argnums=2)
_stack = jax.jit(lambda images: jnp.stack(images))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _propagate_many(
    sam2: Sam2, mesh: Mesh, params: dict, banks: MemoryBank, clips: Frame
) -> tuple[MemoryBank, Prediction]:
    """`propagate` of several videos, leaves lead with V, each device its share of them."""
    videos = PartitionSpec("video")
    # One after the other on a CPU, where a batch gains nothing and undoes what `cond` saves.
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    batch = None if is_cpu else clips.index.shape[0] // mesh.size

    def share(params, banks, clips):
        one = lambda video: propagate(sam2, params, *video)
        return jax.lax.map(one, (banks, clips), batch_size=batch)

    return jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(PartitionSpec(), videos, videos),
        out_specs=videos,
        check_vma=False,
    )(params, banks, clips)


@dataclasses.dataclass
class _Results:
    """The results for the clip of one video; arrays may still be computed, nothing waits for them.

    Attributes:
      place: where the clip is on the leading axes of the arrays: () or (video,).
      prediction: leaves lead with those axes, T and N; holes of the masks are filled.
      shown: masks by frame, where every object was tracked.
    """

    place: tuple[int, ...]
    prediction: Prediction
    shown: dict[int, VideoMasks]

    def entries(self, session: InferenceState, frames: int, objects: int) -> Iterator[list[Entry]]:
        """The entries of that many frames and objects; hands their arrays to the store."""

        def part(x):
            is_whole = not self.place and x.shape[:2] == (frames, objects)
            return x if is_whole else x[(*self.place, slice(frames), slice(objects))]

        keep = lambda x: session.store.keep(part(x))
        masks, pointers = keep(self.prediction.masks), keep(self.prediction.pointers)
        memories = keep(self.prediction.memories)
        policy = jax.tree.map(keep, self.prediction.policy)
        small = (self.prediction.ious, self.prediction.scores, self.prediction.retention)
        ious, scores, retention = (np.asarray(x)[self.place] for x in small)
        for k in range(frames):
            yield [
                Entry(
                    mask=masks.at(k, n),
                    iou=float(ious[k, n]),
                    score=float(scores[k, n]),
                    pointer=pointers.at(k, n),
                    memory=memories.at(k, n),
                    retention=int(retention[k, n]),
                    policy=jax.tree.map(lambda kept, k=k, n=n: kept.at(k, n), policy),
                )
                for n in range(objects)
            ]


@dataclasses.dataclass
class _Clip:
    """Frames of one video for one call of the compiled program.

    Attributes:
      frames: indices, in the order of tracking.
      tracked: those of them that something is computed for.
      images: of these.
      results: None until they are launched, and where nothing is computed.
    """

    frames: list[int] = dataclasses.field(default_factory=list)
    tracked: list[int] = dataclasses.field(default_factory=list)
    images: list[np.ndarray | jax.Array] = dataclasses.field(default_factory=list)
    results: _Results | None = None


def _read(
    frames: Frames, order: range, size: int, device: jax.Device | None
) -> Iterator[tuple[int, np.ndarray | jax.Array | Exception]]:
    """Yields indices and images of the model's size, or in place of an image why it cannot be read."""
    for t in order:
        if not frames.exists(t):
            return
        try:
            image = frame_to_input(frames[t], size, device)
        except (ValueError, OSError) as error:
            image = error
        yield t, image


class Propagation:
    """Propagation through one video in one direction.

    Attributes:
      session: of the video.
      chunk: frames at a time.
      objects: those that have prompts, in the order of the bank.
    """

    def __init__(
        self,
        session: InferenceState,
        order: range,
        direction: int,
        chunk: int,
        return_logits: bool,
        reads_ahead: bool = True,
    ):
        """Prepares to track through the frames `order`; nothing is read yet."""
        self.session, self.chunk = session, chunk
        self.objects: list[ObjectHistory] = []
        self._order, self._direction = order, direction
        self._return_logits, self._reads_ahead = return_logits, reads_ahead
        self._version = _NOT_LOADED

    def open(self, device: jax.Device | None) -> None:
        """Prepares to read frames for a device; None is JAX's default device."""
        size = self.session.model.config.image_size
        images = _read(self.session.frames, self._order, size, device)
        self._reader = FrameReader(images, self.chunk + 1 if self._reads_ahead else 0)

    def close(self) -> None:
        """Ends reading."""
        self._reader.close()

    @property
    def is_changed(self) -> bool:
        """Whether the session changed since `take_up_changes` looked."""
        return self._version != self.session.version

    def take_up_changes(self) -> bool:
        """Takes up what changed in the session; returns whether anything did."""
        if not self.is_changed:
            return False
        self.session.encode_prompted()
        self._version = self.session.version
        self.objects = [history for history in self.session.objects.values() if history.prompted]
        return True

    def bank(self, now: int, num_objects: int, num_prompted: int) -> MemoryBank:
        """The bank before frame `now`, with room for so many objects and prompted frames at least."""
        config, length = self.session.model.config, self.session.code_length
        return load_bank(
            config, self.objects, now, self._direction, length, num_objects, num_prompted
        )

    def clip(self, start: int = 0, wait: bool = True) -> _Clip | None:
        """The clip that begins `start` frames ahead; without `wait`, None where it cannot be had yet.

        Raises:
          ValueError, OSError: the next frame cannot be read. Everything before it has been yielded.
        """
        items, clip = self._reader.look(self.chunk, start, wait), _Clip()
        if items is None:
            return None
        for t, image in items:
            if any(t not in history.prompted for history in self.objects):
                if isinstance(image, Exception):
                    if clip.frames:
                        break  # first what could be read; the next call says why it ends here
                    if wait:
                        raise image
                    return None
                clip.tracked.append(t)
                clip.images.append(image)
            clip.frames.append(t)
        return clip

    def show(self, place: tuple[int, ...], prediction: Prediction, clip: _Clip) -> _Results:
        """Starts the post-processing of what was launched for a clip."""
        for x in (prediction.ious, prediction.scores, prediction.retention):
            x.copy_to_host_async()
        shown = {}
        first = sum(place) * self.chunk  # one leading axis before that of the frames, or none
        is_everything = len(self.objects) == len(self.session.objects)
        for k, t in enumerate(clip.tracked):
            if is_everything and all(t not in history.prompted for history in self.objects):
                shown[t] = self.session.show(
                    prediction.masks, first + k, len(self.objects), self._return_logits
                )
        return _Results(place, prediction, shown)

    def results(self, clip: _Clip) -> Iterator[FrameMasks]:
        """Takes the results of a clip into the session and yields them, until the session is changed."""
        session, count = self.session, len(self.objects)
        entries = iter(())
        if clip.results is not None:
            entries = clip.results.entries(session, len(clip.tracked), count)
        for t in clip.frames:
            self._reader.take()
            found = next(entries) if t in clip.tracked else [None] * count
            session.record(t, self._direction, self.objects, found)
            shown = clip.results.shown.pop(t, None) if clip.results else None
            masks = shown.get() if shown else session.video_masks(t, self._return_logits)
            if session.results is not None:
                session.results.write(t, session.obj_ids, np.asarray(as_array(masks[:, 0] > 0)))
            yield t, session.obj_ids, masks
            if self.is_changed:
                return


# Banks, the clips with images -> the banks after them, and for each clip where its results are.
_Step = Callable[[Any, Sequence[_Clip]], tuple[Any, list[tuple[tuple[int, ...], Prediction]]]]


def run(
    runs: Sequence[Propagation],
    load: Callable[[Sequence[MemoryBank]], Any],
    step: _Step,
    devices: Sequence[jax.Device | None],
) -> Iterator[tuple[int, int, list[int | str], np.ndarray]]:
    """Propagates through several videos side by side: `chunk` frames of one video, then of the next.

    Args:
      runs: a propagation each.
      load: brings banks to where `step` takes them.
      step: launches the compiled program.
      devices: where each video is.

    Yields:
      See `SAM2VideoPredictor.propagate_in_videos`.
    """
    banks = None

    def launch(ahead: Sequence[int], wait: bool) -> list[_Clip] | None:
        nonlocal banks
        clips = []
        for one, start in zip(runs, ahead, strict=True):
            clips.append(one.clip(start, wait))
            if clips[-1] is None:
                return None
        if not any(clip.frames for clip in clips):
            return None
        if any(clip.tracked for clip in clips):
            if banks is None:
                objects = [history for one in runs for history in one.objects]
                num_objects = max(len(one.objects) for one in runs)
                num_prompted = max(len(history.prompted) for history in objects)
                starts = [clip.frames[0] if clip.frames else 0 for clip in clips]
                pairs = zip(runs, starts, strict=True)
                banks = load([one.bank(now, num_objects, num_prompted) for one, now in pairs])
            banks, predictions = step(banks, clips)
            for one, clip, (place, prediction) in zip(runs, clips, predictions, strict=True):
                clip.results = one.show(place, prediction, clip)
        return clips

    for one, device in zip(runs, devices, strict=True):
        one.open(device)
    try:
        following = None
        while True:
            changes = [one.take_up_changes() for one in runs]
            if any(changes):
                banks = following = None
            current, following = following or launch([0] * len(runs), wait=True), None
            if current is None:
                return
            left = [len(clip.frames) for clip in current]
            for v, (one, clip) in enumerate(zip(runs, current, strict=True)):
                results = one.results(clip)
                while True:
                    # As early as the frames are there: the device shall not wait for what the host does.
                    if following is None and not any(one.is_changed for one in runs):
                        following = launch(left, wait=False)
                    result = next(results, None)
                    if result is None:
                        break
                    left[v] -= 1
                    yield v, *result
    finally:
        for one in runs:
            one.close()


def run_one(one: Propagation) -> Iterator[FrameMasks]:
    """Propagates through one video; see `SAM2VideoPredictor.propagate_in_video`."""
    model = one.session.model

    def step(bank, clips):
        (clip,) = clips
        images, indices = _pad(clip, one.chunk, clip.images[0])
        frames = Frame(_stack(images), indices)
        bank, prediction = _propagate(model.module, model.params, bank, frames)
        return bank, [((), _filled(model, prediction))]

    for _, *result in run([one], lambda banks: banks[0], step, [None]):
        yield tuple(result)


def run_many(
    runs: Sequence[Propagation], devices: Sequence[jax.Device]
) -> Iterator[tuple[int, int, list[int | str], np.ndarray]]:
    """Propagates through several videos at once; see `SAM2VideoPredictor.propagate_in_videos`."""
    model, devices = runs[0].session.model, devices[: len(runs)]
    mesh = Mesh(np.array(devices), ("video",))
    videos = NamedSharding(mesh, PartitionSpec("video"))
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    # Videos of a device; the last devices may have none of their own.
    share = -(-len(runs) // mesh.size)

    def load(banks):
        banks = [*banks, *[banks[0]] * (share * mesh.size - len(banks))]
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *banks), videos)

    def step(banks, clips):
        chunk = runs[0].chunk
        blank = next(clip.images[0] for clip in clips if clip.images)
        padding = [_Clip()] * (share * mesh.size - len(clips))
        padded = [_pad(clip, chunk, blank) for clip in [*clips, *padding]]
        images = []
        for i, device in enumerate(devices):
            own = [x for each, _ in padded[i * share : (i + 1) * share] for x in each]
            stacked = _stack([jax.device_put(x, device) for x in own])
            images.append(stacked.reshape(share, chunk, *stacked.shape[1:]))
        shape = (len(padded), *images[0].shape[1:])
        images = jax.make_array_from_single_device_arrays(shape, videos, images)
        indices = jax.device_put(np.stack([indices for _, indices in padded]), videos)
        clip = Frame(images, indices)
        banks, predictions = _propagate_many(model.module, mesh, params, banks, clip)
        on = [jax.tree.map(lambda x, d=d: _on_device(x, d), predictions) for d in devices]
        on = [_filled(model, prediction) for prediction in on]
        return banks, [((v % share,), on[v // share]) for v in range(len(clips))]

    return run(runs, load, step, [devices[v // share] for v in range(len(runs))])


def _filled(model: Model, prediction: Prediction) -> Prediction:
    """The prediction with holes of its masks filled, as they are kept and shown."""
    return prediction.replace(masks=fill_holes(prediction.masks, model.session.fill_hole_area))


def _pad(
    clip: _Clip, chunk: int, blank: np.ndarray | jax.Array
) -> tuple[list[np.ndarray | jax.Array], np.ndarray]:
    """Images and (chunk,) indices; -1 marks the padding."""
    missing = chunk - len(clip.images)
    return clip.images + [blank] * missing, np.array(clip.tracked + [-1] * missing, np.int32)


def _on_device(x: jax.Array, device: jax.Device) -> jax.Array:
    """What of an array is on a device, without a copy."""
    (data,) = [shard.data for shard in x.addressable_shards if shard.device == device]
    return data
