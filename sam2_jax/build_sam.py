"""The builders, where the original has them."""

import os
from typing import Any

from sam2_jax.build import Model, build_sam2
from sam2_jax.checkpoint.download import cached_checkpoint
from sam2_jax.config import resolve_model_name
from sam2_jax.predict.camera import build_sam2_camera_predictor
from sam2_jax.predict.video import SAM2VideoPredictor, build_sam2_video_predictor

__all__ = [
    "HF_MODEL_ID_TO_FILENAMES",
    "build_sam2",
    "build_sam2_camera_predictor",
    "build_sam2_hf",
    "build_sam2_video_predictor",
    "build_sam2_video_predictor_hf",
]


_SHORT = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}

# Names on the hub: the configuration and the file of each.
HF_MODEL_ID_TO_FILENAMES = {
    f"facebook/{version}-hiera-{size.replace('_', '-')}": (
        f"configs/{version}/{version}_hiera_{short}.yaml",
        f"{version}_hiera_{size}.pt",
    )
    for version in ("sam2", "sam2.1")
    for size, short in _SHORT.items()
}


def _released(model_id: str | os.PathLike) -> tuple[str, Any]:
    name = resolve_model_name(os.fspath(model_id))
    return name, cached_checkpoint(name)


def build_sam2_hf(model_id: str, **kwargs: Any) -> Model:
    """`build_sam2` of a released model by its name on the hub, downloaded unless it is cached.

    Args:
      model_id: such as `facebook/sam2.1-hiera-tiny`.
      **kwargs: as for `build_sam2`.

    Raises:
      ValueError: unknown model or field.
      FileNotFoundError: not cached and no network.
    """
    return build_sam2(*_released(model_id), **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """`build_sam2_video_predictor` of a released model by its name on the hub; see `build_sam2_hf`."""
    return build_sam2_video_predictor(*_released(model_id), **kwargs)
