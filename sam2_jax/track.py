"""Time: the only file with it. The public functional core under every predictor.

    bank = empty_bank(sam2, num_objects)
    bank, prediction = begin(sam2, params, bank, frame, prompt)      first prompted frame
    bank, prediction = step(sam2, params, bank, frame)               any later frame, prompted or not
    bank, predictions = propagate(sam2, params, bank, frames)        a scan of `step` over a clip
    bank, predictions = track(sam2, params, frames, prompt)          begin + propagate

All are pure and compose with `jax.jit` (the module `sam2` is static), `jax.vmap`, `jax.grad` and sharding.
Frames go forwards or backwards, see `MemoryBank.direction`; the bank's size never depends on how many.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Int, Real

from sam2_jax.model import memory_bank
from sam2_jax.model.sam2 import Sam2
from sam2_jax.structs import Array, Features, Frame, MemoryBank, Prediction, Prompt

_ENCODED_AT_ONCE = 8  # images; bounds the memory that a long clip takes


def empty_bank(
    sam2: Sam2, num_objects: int, num_prompted: int = 1, num_frames: int = 16
) -> MemoryBank:
    """Returns a bank that remembers nothing; see `sam2_jax.model.memory_bank.empty`."""
    return memory_bank.empty(sam2.config, num_objects, num_prompted, num_frames)


def encode(sam2: Sam2, params: dict, images: Real[Array, "t s s 3"]) -> Features:
    """Encodes images, uint8 RGB or normalised float32; a long clip a few at a time."""
    one_batch = lambda images: sam2.apply({"params": params}, images, method="encode")
    if len(images) <= _ENCODED_AT_ONCE:
        return one_batch(images)
    one = lambda image: jax.tree.map(lambda x: x[0], one_batch(image[None]))
    return jax.lax.map(one, images, batch_size=_ENCODED_AT_ONCE)


def begin(
    sam2: Sam2, params: dict, bank: MemoryBank, frame: Frame, prompt: Prompt
) -> tuple[MemoryBank, Prediction]:
    """Takes the first prompted frame: no memory is read, the prompted objects remember it.

    Args:
      sam2: the module.
      params: its parameters.
      bank: of N objects.
      frame: one frame.
      prompt: of N objects; those without one get the decoder's guess and remember nothing.

    Returns:
      The bank and the prediction.
    """
    features = sam2.apply({"params": params}, frame.image[None], method="encode")
    return sam2.apply({"params": params}, bank, features, frame.index, prompt, method="begin")


def step(
    sam2: Sam2, params: dict, bank: MemoryBank, frame: Frame, prompt: Prompt | None = None
) -> tuple[MemoryBank, Prediction]:
    """Takes one frame of a video: the streaming step.

    Args:
      sam2: the module.
      params: its parameters.
      bank: of N objects.
      frame: one frame.
      prompt: of N objects, or None. A prompt starts an object that the bank does not know, and corrects one
        that it knows. Objects without one are tracked.

    Returns:
      The bank with the frame in it, and the prediction.
    """
    features = sam2.apply({"params": params}, frame.image[None], method="encode")
    return sam2.apply({"params": params}, bank, features, frame.index, prompt)


def propagate_features(
    sam2: Sam2, params: dict, bank: MemoryBank, features: Features, indices: Int[Array, " t"]
) -> tuple[MemoryBank, Prediction]:
    """Tracks through encoded frames.

    Args:
      sam2: the module.
      params: its parameters.
      bank: of N objects.
      features: leaves lead with T.
      indices: frame indices in the order of tracking. -1 marks padding, which changes nothing and
        whose predictions mean nothing.

    Returns:
      The bank after the last frame, and predictions whose leaves lead with T.
    """

    def one_frame(bank, xs):
        features, index = xs
        features = jax.tree.map(lambda x: x[None], features)
        return sam2.apply({"params": params}, bank, features, index)

    return jax.lax.scan(
        jax.checkpoint(one_frame, prevent_cse=False), bank, (features, indices.astype(jnp.int32))
    )


def propagate(
    sam2: Sam2, params: dict, bank: MemoryBank, frames: Frame
) -> tuple[MemoryBank, Prediction]:
    """Tracks through a clip: images are encoded, then scanned with the bank as carry.

    Cutting a video into clips and carrying the bank between them gives the same numbers, to rounding, as one
    long clip.

    Args:
      sam2: the module.
      params: its parameters.
      bank: of N objects.
      frames: leaves lead with T; an index of -1 marks padding.

    Returns:
      The bank after the last frame, and predictions whose leaves lead with T.
    """
    return propagate_features(sam2, params, bank, encode(sam2, params, frames.image), frames.index)


def track(
    sam2: Sam2, params: dict, frames: Frame, prompt: Prompt, num_prompted: int = 1
) -> tuple[MemoryBank, Prediction]:
    """Tracks objects that are prompted on the first frame of a clip: `begin`, then `propagate`.

    Args:
      sam2: the module.
      params: its parameters.
      frames: the whole clip, leaves lead with T.
      prompt: of N objects on frame 0.
      num_prompted: prompted slots of the bank that is returned, for later corrections.

    Returns:
      The bank after the last frame, and predictions whose leaves lead with T.
    """
    num_objects, num_frames = prompt.labels.shape[0], frames.index.shape[0]
    bank = empty_bank(sam2, num_objects, num_prompted, num_frames)
    first, rest = jax.tree.map(lambda x: x[0], frames), jax.tree.map(lambda x: x[1:], frames)
    bank, prediction = begin(sam2, params, bank, first, prompt)
    if num_frames == 1:  # a scan of nothing would be compiled all the same
        return bank, jax.tree.map(lambda x: x[None], prediction)
    bank, predictions = propagate(sam2, params, bank, rest)
    join = lambda one, many: jnp.concatenate([one[None], many])
    return bank, jax.tree.map(join, prediction, predictions)
