"""What is timed: models, full memories and videos of random numbers, the same every time."""

import warnings

import jax
import numpy as np

from sam2_jax.build import Model, build_model
from sam2_jax.config import ModelConfig
from sam2_jax.model import memory_bank
from sam2_jax.model.retention import RECENT, rules
from sam2_jax.predict.video import POSTPROCESSING
from sam2_jax.structs import MemoryBank

NOW = 20  # the frame that is tracked; frame 0 is prompted
HEIGHT, WIDTH = 720, 1280  # of a video


def random_model(name: str, image_size: int | None = None, dtype: str = "float32") -> Model:
    """Builds a model as users of the video predictor do, with random weights if it is a released one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No checkpoint was given")
        return build_model(name, None, POSTPROCESSING, image_size=image_size, dtype=dtype)


def memory_tokens(config: ModelConfig) -> int:
    """Returns what one object reads when its memory is full: seven maps, and sixteen pointers cut in pieces."""
    pointers = config.max_obj_ptrs_in_encoder * config.hidden_dim // config.memory_dim
    return config.num_maskmem * config.grid**2 + pointers


def full_bank(config: ModelConfig, num_objects: int) -> MemoryBank:
    """Returns a bank of random memories without an empty slot, as frame `NOW` finds it."""
    bank = jax.tree.map(np.array, memory_bank.empty(config, num_objects))
    bank.prompted_frames[:] = 0
    tracked = dict.fromkeys(range(1, NOW), RECENT)
    for rule, frames in zip(
        rules(config), (bank.recent_frames, bank.recent_pointer_frames), strict=True
    ):
        for slot, frame in rule.fill(tracked, NOW, 1).items():
            frames[:, slot] = frame
    rng = np.random.default_rng(1)

    def fill(x):
        is_index = np.issubdtype(x.dtype, np.integer)
        return x if is_index else rng.standard_normal(x.shape, np.float32).astype(x.dtype)

    bank = jax.device_put(jax.tree.map(fill, bank))
    seen = memory_bank.read(config, bank, NOW)
    tokens = seen.slot_mask.sum(1) * config.grid**2
    tokens += seen.pointer_mask.sum(1) * (config.hidden_dim // config.memory_dim)
    assert (tokens == memory_tokens(config)).all()
    return bank


def random_images(*shape: int) -> np.ndarray:
    """Returns uint8 RGB of a shape that ends with height, width, 3."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)
