"""SAM 2 and SAM 2.1 for JAX: segment anything in images and videos (arXiv 2408.00714).

    image - image_encoder - features -+- memory_attention - mask_decoder -+- prediction ->
                                      |        ^ read           ^ prompt_encoder - prompt
                                      +--------+-- memory_encoder <-------+
                                          memory_bank <- write

`track.step` is one turn of this loop, `track.propagate` scans it, the predictors are what users call.
"""

from sam2_jax.build import Model, build_sam2
from sam2_jax.config import (
    MODELS,
    HieraConfig,
    ModelConfig,
    Sam2Config,
    SessionOptions,
    get_config,
)
from sam2_jax.model.sam2 import Sam2, init_params
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.predict.mask_generator import SAM2AutomaticMaskGenerator
from sam2_jax.predict.stream import SAM2StreamPredictor
from sam2_jax.predict.video import SAM2VideoPredictor, build_sam2_video_predictor
from sam2_jax.structs import Frame, MemoryBank, Prediction, Prompt
from sam2_jax.track import begin, empty_bank, propagate, step, track

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "Frame",
    "HieraConfig",
    "MemoryBank",
    "Model",
    "ModelConfig",
    "Prediction",
    "Prompt",
    "SAM2AutomaticMaskGenerator",
    "SAM2ImagePredictor",
    "SAM2StreamPredictor",
    "SAM2VideoPredictor",
    "Sam2",
    "Sam2Config",
    "SessionOptions",
    "begin",
    "build_sam2",
    "build_sam2_video_predictor",
    "empty_bank",
    "get_config",
    "init_params",
    "propagate",
    "step",
    "track",
]
