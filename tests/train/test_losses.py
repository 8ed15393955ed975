import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.experiment import LossWeights
from sam2_jax.train.losses import leave_out, mask_losses, prediction_losses
from tests.parity.reference_training import reference_training

GOLDEN = json.loads((Path(__file__).parents[1] / "parity/golden/losses.json").read_bytes())
WEIGHTS = LossWeights()


def sums(one_object):
    """Sums a function of (masks, ious, score, target) over frames, predictions and the two objects."""
    targets, frames = reference_training()
    total = {}
    for target, predictions in zip(targets, frames, strict=True):
        for x in predictions:
            losses = jax.vmap(one_object)(x["masks"], x["ious"], x["presence"][:, 0], target)
            for name, value in losses.items():
                total[name] = total.get(name, 0.0) + float(value.sum()) / len(target)
    return total


def test_the_recipe_has_the_losses_of_the_original():
    total = sums(lambda *x: prediction_losses(*x, WEIGHTS))
    names = {"mask": "mask", "dice": "dice", "iou": "iou", "presence": "class"}
    for ours, theirs in names.items():
        assert total[ours] == pytest.approx(GOLDEN["finetune"][f"loss_{theirs}"], rel=1e-4), ours
    assert total["loss"] == pytest.approx(GOLDEN["finetune"]["core_loss"], rel=1e-4)


def test_the_parts_give_the_originals_defaults_as_well():
    """Its defaults teach absent objects too, and the squared error of the best mask's IoU."""

    def one_object(masks, ious, _, target):
        focal, dice, true_ious = mask_losses(masks, target)
        best = jnp.argmin(WEIGHTS.mask * focal + WEIGHTS.dice * dice)
        return {"mask": focal[best], "dice": dice[best], "iou": (ious - true_ious)[best] ** 2}

    total = sums(one_object)
    for name in ("mask", "dice", "iou"):
        assert total[name] == pytest.approx(GOLDEN["defaults"][f"loss_{name}"], rel=1e-4), name


def test_only_the_best_candidate_is_taught():
    target = np.zeros((16, 16), bool)
    target[4:12, 4:12] = True
    good = np.where(target, 2.0, -2.0)
    logits = jnp.array(np.stack([-good, good, 0 * good]), jnp.float32)

    def loss(logits):
        return prediction_losses(logits, jnp.zeros(3), jnp.zeros(()), target, WEIGHTS)["loss"]

    size = np.abs(np.asarray(jax.grad(loss)(logits))).sum((1, 2))
    assert size[1] > 0
    assert size[0] == size[2] == 0


def test_an_absent_object_teaches_its_absence_only():
    logits = jnp.full((3, 8, 8), 5.0)

    def loss(logits, ious, score):
        return prediction_losses(logits, ious, score, jnp.zeros((8, 8), bool), WEIGHTS)["loss"]

    by_mask, by_iou, by_score = jax.grad(loss, (0, 1, 2))(logits, jnp.ones(3), jnp.zeros(()))
    assert not np.asarray(by_mask).any()
    assert not np.asarray(by_iou).any()
    assert by_score > 0


def test_predictions_that_say_absent_by_mistake_give_finite_numbers():
    target = np.ones((8, 8), bool)
    logits = jnp.full((1, 8, 8), -1024.0)
    losses = prediction_losses(logits, jnp.zeros(1), jnp.float32(-50.0), target, WEIGHTS)
    assert float(losses["mask"]) == pytest.approx(0.25 * 1024)
    assert all(np.isfinite(float(x)) for x in losses.values())


def test_ignored_pixels_have_no_loss_and_no_gradient():
    """Losses are those of the picture without them; the focal loss stays a mean over the whole one."""
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(0, 3, (3, 16, 16)), jnp.float32)
    target = np.zeros((16, 16), bool)
    target[4:8, 2:8] = True
    ignored = np.ones((16, 16), bool)
    ignored[:10, :10] = False
    focal, dice, iou = mask_losses(leave_out(logits, ignored), target)
    cut_focal, cut_dice, cut_iou = mask_losses(logits[:, :10, :10], target[:10, :10])
    np.testing.assert_allclose(focal, cut_focal * 10**2 / 16**2, rtol=1e-5)
    np.testing.assert_allclose(dice, cut_dice, rtol=1e-5)
    np.testing.assert_array_equal(iou, cut_iou)

    def loss(logits):
        logits = leave_out(logits, ignored)
        return prediction_losses(logits, jnp.zeros(3), jnp.zeros(()), target, WEIGHTS)["loss"]

    gradient = np.asarray(jax.grad(loss)(logits))
    assert not gradient[:, ignored].any()
    assert gradient[:, ~ignored].any(1).sum() == 1
    assert leave_out(logits, None) is logits
