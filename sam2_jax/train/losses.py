"""Losses of one prediction (SAM 2 paper, appendix D.2.2), per object, before any averaging.

focal + dice on the best candidate mask, L1 on the predicted IoU, cross-entropy on the presence of the object
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from sam2_jax.experiment import LossWeights
from sam2_jax.model.sam2 import NO_OBJECT
from sam2_jax.structs import Array

# (logits (M, S, S), predicted IoUs (M,), presence (), target (S, S)) -> () float32 each, `loss` among them: as
# `prediction_losses`, in whose place another may be used. Ignored pixels are what `leave_out` makes them.
LossFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], dict[str, jax.Array]]
_ALPHA = 0.25  # of the focal loss; its gamma is 2


def binary_cross_entropy(
    logits: Float[Array, "*b"], targets: Float[Array, "*#b"]
) -> Float[jax.Array, "*b"]:
    """Elementwise, from logits; targets are 0 or 1."""
    return jax.nn.softplus(logits) - logits * targets


def leave_out(
    logits: Float[Array, "m s s"], ignored: Bool[Array, "s s"] | None
) -> Float[jax.Array, "m s s"]:
    """Makes ignored pixels certain background, as in the target: they have neither a loss nor a gradient.

    A mean over pixels still counts them, so that all others weigh what they do in other clips.
    """
    return logits if ignored is None else jnp.where(ignored, NO_OBJECT, logits)


def mask_losses(
    logits: Float[Array, "m s s"], target: Bool[Array, "s s"]
) -> tuple[Float[jax.Array, " m"], Float[jax.Array, " m"], Float[jax.Array, " m"]]:
    """Compares masks with the target.

    Returns:
      Focal loss, mean over pixels; dice loss; IoU of the mask with the target.
    """
    wanted = target.astype(jnp.float32)
    p = jax.nn.sigmoid(logits)
    miss = p + wanted - 2 * p * wanted  # 1 - probability of the target
    weight = (1 - _ALPHA) + (2 * _ALPHA - 1) * wanted
    focal = (weight * jnp.square(miss) * binary_cross_entropy(logits, wanted)).mean((1, 2))
    overlap = (p * wanted).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (p.sum((1, 2)) + wanted.sum() + 1)
    inside = logits > 0
    union = (inside | target).sum((1, 2))
    return focal, dice, (inside & target).sum((1, 2)) / jnp.maximum(union, 1)


def prediction_losses(
    logits: Float[Array, "m s s"],
    ious: Float[Array, " m"],
    score: Float[Array, ""],
    target: Bool[Array, "s s"],
    weights: LossWeights,
) -> dict[str, Float[jax.Array, ""]]:
    """Losses of the candidate masks that the decoder gives for one object.

    Only the candidate with the lowest mask loss is supervised. An object that is absent teaches its absence
    and nothing else.

    Args:
      logits: 1 or 3 candidates.
      ious: predicted IoU of each.
      score: logit that the object is visible.
      target: the object's true mask.
      weights: of the total.

    Returns:
      `mask` (focal), `dice`, `iou`, `presence`, and the weighted `loss`.
    """
    focal, dice, true_ious = mask_losses(logits, target)
    best = jnp.argmin(weights.mask * focal + weights.dice * dice)
    iou_error = jnp.abs(ious - true_ious)
    iou = iou_error.mean() if weights.supervise_all_ious else iou_error[best]
    is_there = jnp.any(target).astype(jnp.float32)
    losses = {
        "mask": is_there * focal[best],
        "dice": is_there * dice[best],
        "iou": is_there * iou,
        "presence": binary_cross_entropy(score, is_there),
    }
    total: Any = sum(getattr(weights, name) * value for name, value in losses.items())
    return losses | {"loss": total}
