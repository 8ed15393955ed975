"""Passes over videos: chunks of frames through the compiled scan, answers into the session.

A pass carries the bank on the device from chunk to chunk. What a caller changes between two results (a
click, an object added or removed) counts from the next frame on: what was computed further ahead is
dropped, and the bank is loaded anew from the session.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sam2_jax.build import Model
from sam2_jax.model.sam2 import Sam2
from sam2_jax.predict import transforms
from sam2_jax.predict.answers import new_entry, remember_prompts, video_masks
from sam2_jax.predict.session import InferenceState, ObjectStore, load_bank
from sam2_jax.structs import Frame, MemoryBank, Prediction
from sam2_jax.track import propagate

_NOT_LOADED = -1

_propagate = jax.jit(propagate, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
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


class Pass:
    """One pass over one video in one direction.

    Attributes:
      clip: set by `advance`, the frames for the next call of the compiled program, padded to a chunk.
      is_idle: whether there is nothing to compute for these frames.
      is_stale: whether the bank has to be loaded before they are tracked.
      stores: the objects that have prompts, in the order of the bank.
    """

    def __init__(
        self, model: Model, state: InferenceState, frames: range, direction: int, chunk: int
    ):
        """Prepares a pass over `frames`, `chunk` of them at a time."""
        self._model, self._state, self._direction = model, state, direction
        self._ahead = frames
        self._version = _NOT_LOADED
        self._tracked: list[int] = []
        self._met: list[int] = []
        self.stores: list[ObjectStore] = []
        self.is_stale = True
        self._chunk = chunk

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute for the frames of the clip."""
        return not self._tracked

    def load_bank(self, num_objects: int = 1, num_prompted: int = 1) -> MemoryBank:
        """The bank before the next frame, with room for so many objects and prompted frames at least."""
        self.is_stale = False
        config, now = self._model.config, self._ahead[0] if self._ahead else 0
        length = self._state.code_length(config)
        return load_bank(
            config, self.stores, now, self._direction, length, num_objects, num_prompted
        )

    def advance(self) -> bool:
        """Reads the next frames; returns whether there are any.

        Raises:
          ValueError, OSError: the next frame cannot be read. Everything before it has been yielded.
        """
        state = self._state
        if self._version != state.version:
            remember_prompts(self._model, state)
            self._version, self.is_stale = state.version, True
            self.stores = [store for store in state.objects.values() if store.prompted]
        self._met, self._tracked = [], []
        size = self._model.config.image_size
        images = np.zeros((self._chunk, size, size, 3), np.uint8)
        indices = np.full(self._chunk, -1, np.int32)
        for t in self._ahead[: self._chunk]:
            try:
                if not state.frames.exists(t):
                    break
                if any(t not in store.prompted for store in self.stores):
                    image = transforms.frame_to_input(state.frames[t], size)
                    images[len(self._tracked)], indices[len(self._tracked)] = image, t
                    self._tracked.append(t)
            except (ValueError, OSError):
                if not self._met:
                    raise
                break  # first what could be read; the next call says why it ends here
            self._met.append(t)
        self.clip = Frame(images, indices)
        return bool(self._met)

    def results(
        self, prediction: Prediction | None
    ) -> Iterator[tuple[int, list[int | str], np.ndarray]]:
        """Stores the answers of the clip and yields them frame by frame, see `propagate_in_video`."""
        state, config = self._state, self._model.config
        for t in self._met:
            self._ahead = self._ahead[1:]
            for n, store in enumerate(self.stores):
                store.passes[t] = self._direction
                if t not in store.prompted:
                    # Copies, so that one kept answer does not keep its whole chunk alive.
                    k = self._tracked.index(t)
                    said = jax.tree.map(lambda x, k=k, n=n: x[k, n].copy(), prediction)
                    entry = new_entry(config, state, said, said.memories)
                    entry.verdict, entry.policy = int(said.verdicts), said.policy
                    store.tracked[t] = entry
                elif config.clear_non_cond_mem_around_input:
                    store.forget_tracked_around(t, config.memory_window)
                    self._version = _NOT_LOADED
                if state.keep_frames is not None:
                    near = (t, *store.prompted)
                    store.keep_only_near(near, state.keep_frames, config, self._direction)
            masks = video_masks(config, state, t)
            if state.results is not None:
                state.results.write(t, state.obj_ids, masks[:, 0] > 0)
            yield t, state.obj_ids, masks
            if self._version != state.version:
                return


def run(model: Model, this: Pass) -> Iterator[tuple[int, list[int | str], np.ndarray]]:
    """Runs a pass; see `propagate_in_video`."""
    bank = None
    while this.advance():
        prediction = None
        if not this.is_idle:
            if this.is_stale:
                bank = this.load_bank()
            bank, prediction = _propagate(model.module, model.params, bank, this.clip)
            prediction = jax.device_get(prediction)
        yield from this.results(prediction)


def run_many(
    model: Model, passes: Sequence[Pass], devices: Sequence[jax.Device]
) -> Iterator[tuple[int, int, list[int | str], np.ndarray]]:
    """Runs passes over several videos at once; see `propagate_in_videos`."""
    mesh = Mesh(np.array(devices[: len(passes)]), ("video",))
    shares = NamedSharding(mesh, PartitionSpec("video"))
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    padding = -len(passes) % mesh.size

    def stack(trees):
        trees = [*trees, *[trees[0]] * padding]
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *trees), shares)

    banks = None
    while True:
        has_more = [this.advance() for this in passes]
        if not any(has_more):
            return
        predictions = None
        if not all(this.is_idle for this in passes):
            if any(this.is_stale for this in passes):
                num_objects = max(len(this.stores) for this in passes)
                prompted = [len(store.prompted) for this in passes for store in this.stores]
                banks = stack([this.load_bank(num_objects, max(prompted)) for this in passes])
            clips = stack([this.clip for this in passes])
            banks, predictions = _propagate_many(model.module, mesh, params, banks, clips)
            predictions = jax.device_get(predictions)
        for v, this in enumerate(passes):
            prediction = jax.tree.map(lambda x, v=v: x[v], predictions)
            for result in this.results(prediction):
                yield v, *result
