"""A small model with non-trivial weights, for tests that ask about structure rather than numbers."""

import collections
import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType

import jax
import numpy as np
import pytest

from sam2_jax.build import Model
from sam2_jax.checkpoint.names import official_shapes, to_params
from sam2_jax.config import HieraConfig, ModelConfig, SessionOptions, sort_overrides
from sam2_jax.model.sam2 import param_shapes
from sam2_jax.ops.bicubic import resize_bicubic
from sam2_jax.predict import image, postprocessing, preprocessing, propagation, session
from sam2_jax.structs import Frame, Prompt
from tests.parity.reference_scene import scene, scene_masks
from tests.parity.reference_weights import reference_tensor

# Compiled functions as `counted_programs` takes them.
IMAGE_PROGRAMS = [
    (image, "encode_images", 0),
    (image, "decode_prompts", (0, 5)),
    (postprocessing, "finish_masks", 4),
]
VIDEO_PROGRAMS = [
    (session, "_encode", 0),
    (session, "_segment_first", 0),
    (session, "_segment_again", 0),
    (session, "_encode_memory", 0),
    (propagation, "_propagate", 0),
    (postprocessing, "_show", (5, 6, 7)),
]
HIERA = HieraConfig(
    embed_dim=8, stages=(1, 2, 2, 1), global_attention_blocks=(3,), window_sizes=(8, 4, 2, 2)
)
SIZE = 64


def config(**overrides) -> ModelConfig:
    """64 px, 32 channels, six blocks, one layer of memory attention."""
    sizes = {"image_size": SIZE, "hidden_dim": 32, "memory_dim": 8, "memory_attention_layers": 1}
    return ModelConfig(hiera=HIERA, **(sizes | overrides))


@functools.cache
def _params(config: ModelConfig) -> dict:
    expected = param_shapes(config)
    shapes = official_shapes(expected)
    return to_params({n: np.float32(reference_tensor(n, s)) for n, s in shapes.items()}, expected)


def model(**overrides) -> Model:
    """A model with pseudo-random weights that see every object as present."""
    changes = sort_overrides(overrides)
    toy = config(**changes.model)
    return Model("toy", toy, jax.device_put(_params(toy)), SessionOptions(**changes.session))


def clip(num_frames: int, size: int = SIZE, seed: int = 0) -> Frame:
    """The first frames of a drawn video."""
    frames = scene(num_frames, seed=seed)
    images = [resize_bicubic(frame, size, size, implementation="pillow") for frame in frames]
    return Frame(np.stack(images), np.arange(num_frames, dtype=np.int32))


def clicks(num_objects: int, size: int = SIZE) -> Prompt:
    """One click for each object, at different places."""
    points = np.random.default_rng(num_objects > 0).uniform(5, size - 5, (8, 1, 2))
    return preprocessing.pad_points(points[:num_objects], np.ones((num_objects, 1), np.int32))


def masks(num_objects: int, size: int = SIZE) -> Prompt:
    """The mask of an object for each of at most two."""
    drawn = [preprocessing.mask_to_input(mask, size) for mask in scene_masks(1)[0]]
    prompt = preprocessing.pad_points(
        np.zeros((num_objects, 1, 2)), np.full((num_objects, 1), -1, np.int32)
    )
    return prompt.replace(masks=np.stack(drawn[:num_objects]), has_mask=np.ones(num_objects, bool))


@contextlib.contextmanager
def counted_programs(
    functions: list[tuple[ModuleType, str, int | tuple[int, ...]]],
) -> Iterator[collections.Counter]:
    """Counts how often jitted functions, given as (module, name, static arguments), are traced."""
    counts: collections.Counter = collections.Counter()
    with pytest.MonkeyPatch.context() as patch:
        for module, name, static in functions:
            original = getattr(module, name).__wrapped__

            @functools.wraps(original)
            def counted(*args, _name=name, _original=original):
                counts[_name] += 1
                return _original(*args)

            patch.setattr(module, name, jax.jit(counted, static_argnums=static))
        yield counts
