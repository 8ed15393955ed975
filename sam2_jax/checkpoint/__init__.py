"""Every way into and out of a model's weights; see `load` and `save`."""

from sam2_jax.checkpoint.checkpoint import Checkpoint, digest
from sam2_jax.checkpoint.io import load, load_start, save

__all__ = ["Checkpoint", "digest", "load", "load_start", "save"]
