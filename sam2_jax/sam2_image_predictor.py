"""The image predictor, where the original has it."""

from sam2_jax.predict.image import SAM2ImagePredictor

__all__ = ["SAM2ImagePredictor"]
