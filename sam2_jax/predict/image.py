"""Segment what is pointed at in a picture: the original's `SAM2ImagePredictor`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sam2_jax.build import Model, load_pretrained
from sam2_jax.config import POSTPROCESSING_IMAGE
from sam2_jax.model.sam2 import Sam2
from sam2_jax.predict import transforms
from sam2_jax.structs import Features, Prompt

_LOGIT_LIMIT = 32.0  # of the low-resolution masks that are handed out


@functools.partial(jax.jit, static_argnums=0)
def _encode(sam2: Sam2, params: dict, images: jax.Array) -> Features:
    """Features of images (B, S, S, 3), whose embedding looks at no memory."""
    features = sam2.apply({"params": params}, images, method="encode")
    embedding = sam2.apply({"params": params}, features, method="forget")
    return features.replace(embedding=embedding)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _decode(
    sam2: Sam2, params: dict, features: Features, prompt: Prompt, is_multimask: bool
) -> tuple[jax.Array, jax.Array]:
    """Masks (N, 3 or 1, S/4, S/4) and IoUs (N, 3 or 1) of prompts on one image; object scores are ignored."""
    decoded = sam2.apply(
        {"params": params}, features.embedding, features.high_res, prompt, method="decode"
    )
    if is_multimask:
        return decoded.masks[:, 1:], decoded.ious[:, 1:]
    unstable = sam2.apply({"params": params}, decoded.masks[:, 0], method="is_unstable")
    chosen = jnp.where(unstable, 1 + jnp.argmax(decoded.ious[:, 1:], -1), 0)
    pick = jax.vmap(lambda x, i: x[i][None])
    return pick(decoded.masks, chosen), pick(decoded.ious, chosen)


class SAM2ImagePredictor:
    """Encodes an image once, then answers prompts on it.

    Attributes:
      model: the model and its parameters.
      mask_threshold: logits above it are the object.
    """

    def __init__(
        self,
        sam_model: Model,
        mask_threshold: float = 0.0,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
    ):
        """Makes a predictor.

        Args:
          sam_model: from `build_sam2`.
          mask_threshold: logits above it are the object.
          max_hole_area: holes up to this many cells of the S/4 map are filled.
          max_sprinkle_area: specks up to this many cells are removed.
        """
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self._max_hole_area = max_hole_area
        self._max_sprinkle_area = max_sprinkle_area
        self.reset_predictor()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> "SAM2ImagePredictor":
        """Loads a released model by its hub name, or a local folder or file; see `load_pretrained`."""
        return cls(load_pretrained(model_id, POSTPROCESSING_IMAGE, **kwargs))

    def reset_predictor(self) -> None:
        """Forgets the image."""
        self._features: Features | None = None
        self._size: tuple[int, int] | None = None

    def set_image(self, image: np.ndarray | Image.Image) -> None:
        """Encodes an image for later calls of `predict`.

        Args:
          image: (H, W, 3) RGB; uint8, or float in [0, 1]; or a PIL image.

        Raises:
          ValueError: it is not an RGB image.
        """
        image = transforms.check_image(image)
        inputs = transforms.image_to_input(image, self.model.config.image_size)
        self.reset_predictor()
        self._features = _encode(self.model.module, self.model.params, inputs[None])
        self._size = image.shape[:2]

    def get_image_embedding(self) -> np.ndarray:
        """Returns the embedding of the image in the original's layout, (1, C, S/16, S/16) float32."""
        features, _ = self._image()
        return np.asarray(features.embedding, np.float32).transpose(0, 3, 1, 2)

    def _image(self) -> tuple[Features, tuple[int, int]]:
        if self._features is None:
            raise RuntimeError("No image is set: call set_image(image) before asking about it.")
        return self._features, self._size

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segments what is pointed at.

        Args:
          point_coords: (P, 2) or (N, P, 2) points (x, y) in pixels.
          point_labels: (P,) or (N, P): 1 object, 0 background.
          box: (4,) or (N, 4) boxes x0, y0, x1, y1 in pixels.
          mask_input: (1, S/4, S/4) or (N, 1, S/4, S/4) logits of an earlier low-resolution mask.
          multimask_output: three candidates instead of one; better for a single ambiguous click.
          return_logits: logits instead of bools.
          normalize_coords: False means that coordinates are in [0, 1] already.

        Returns:
          masks (C, H, W) bool (or float32 logits), predicted IoUs (C,), and low-resolution logits
          (C, S/4, S/4) within +-32. C is 3 or 1; with N > 1 prompts all have a leading N.

        Raises:
          RuntimeError: no image is set.
          ValueError: shapes that do not fit.
        """
        features, (height, width) = self._image()
        config = self.model.config
        points, labels = transforms.join_prompts(point_coords, point_labels, box)
        points = transforms.scale_points(points, height, width, config.image_size, normalize_coords)
        logits = self._check_mask_input(mask_input)
        n = max(len(points), len(logits))
        if {len(points), len(logits)} - {0, 1, n}:
            raise ValueError(f"{len(logits)} mask inputs do not go with {len(points)} prompts.")

        padded = transforms.bucket(n)
        repeat = lambda x: x[np.minimum(np.arange(padded), len(x) - 1)]
        prompt = transforms.pad_points(repeat(points), repeat(labels))
        if len(logits):
            prompt = prompt.replace(
                mask_logits=repeat(logits), has_mask_logits=np.ones(padded, bool)
            )
        masks, ious = _decode(
            self.model.module, self.model.params, features, prompt, multimask_output
        )
        masks, ious = np.asarray(masks), np.asarray(ious)

        cleaned = transforms.clean_masks(
            masks,
            self._max_hole_area,
            self._max_sprinkle_area,
            threshold=self.mask_threshold,
            filled=self.mask_threshold + 10.0,
            removed=self.mask_threshold - 10.0,
        )
        full = np.asarray(transforms.resize_masks(cleaned, height, width))[:n]
        if not return_logits:
            full = full > self.mask_threshold
        ious, low_res = ious[:n], np.clip(masks[:n], -_LOGIT_LIMIT, _LOGIT_LIMIT)
        if n == 1:  # as in the original, a single prompt has no axis of its own
            return full[0], ious[0], low_res[0]
        return full, ious, low_res

    def _check_mask_input(self, mask_input: np.ndarray | None) -> np.ndarray:
        """Returns (N, S/4, S/4) float32; N is 0 without a mask."""
        size = self.model.config.mask_size
        if mask_input is None:
            return np.zeros((0, size, size), np.float32)
        mask = np.asarray(mask_input, np.float32)
        if mask.ndim not in (3, 4) or mask.shape[-3] != 1 or mask.shape[-2:] != (size, size):
            raise ValueError(
                f"mask_input has shape {mask.shape}; expected (1, {size}, {size}) logits, as `predict` "
                "returns them for one mask."
            )
        return mask.reshape(-1, size, size)
