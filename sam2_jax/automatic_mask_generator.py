"""The mask generator, where the original has it."""

from sam2_jax.predict.mask_generator import SAM2AutomaticMaskGenerator

__all__ = ["SAM2AutomaticMaskGenerator"]
