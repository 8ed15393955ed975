"""The video predictor, where the original has it; both its classes are one here, compiled as it is."""

from tqdm import tqdm

from sam2_jax.predict.video import SAM2VideoPredictor

SAM2VideoPredictorVOS = SAM2VideoPredictor

__all__ = ["SAM2VideoPredictor", "SAM2VideoPredictorVOS", "tqdm"]  # tqdm: see utils.misc
