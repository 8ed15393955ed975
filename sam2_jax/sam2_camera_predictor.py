"""The predictor for cameras, where segment-anything-2-real-time has it."""

from sam2_jax.predict.camera import SAM2CameraPredictor

__all__ = ["SAM2CameraPredictor"]
