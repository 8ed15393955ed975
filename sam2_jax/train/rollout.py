"""What a model is taught on one clip: to be prompted, to track, to be corrected (paper, appendix D.2.2).

    encode all frames;   scan over frames: read -> click, segment, compare (up to eight times) -> write

The scan visits the prompted frames first and the others in time. Everything is a pure function of one clip;
`sam2_jax.train.step` maps it over a batch. Gradients flow through the memories.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sam2_jax.config import ModelConfig
from sam2_jax.experiment import Interaction
from sam2_jax.model import memory_bank
from sam2_jax.model.repeat import rematerialise
from sam2_jax.model.sam2 import Sam2, asks_for_three
from sam2_jax.ops.resize import upsample_4x
from sam2_jax.structs import Prompt
from sam2_jax.train.clicks import Plan, first_click, jittered_box, next_click
from sam2_jax.train.losses import LossFn, leave_out

_OBJECTS_AT_ONCE = 8  # whose full-size masks exist at the same time


def training_config(config: ModelConfig) -> ModelConfig:
    """What the original does differently while it trains."""
    return config.replace(
        only_obj_ptrs_in_the_past_for_eval=False,
        binarize_mask_from_pts_for_mem_enc=False,
        dynamic_multimask_via_stability=False,
        memory_temporal_stride_for_eval=1,
        memory_dtype=config.dtype,
        memory_policy="recent",
    )


def rollout(
    sam2: Sam2,
    params: dict,
    images: jax.Array,
    targets: jax.Array,
    ignored: jax.Array | None,
    plan: Plan,
    key: jax.Array,
    interaction: Interaction,
    loss_fn: LossFn,
) -> dict[str, jax.Array]:
    """Prompts, tracks and corrects the objects of one clip, and compares every prediction with the target.

    Args:
      sam2: the module, with a `training_config`.
      params: its parameters.
      images: (T, S, S, 3) uint8.
      targets: (T, N, S, S) bool.
      ignored: (T, S, S) bool, pixels that are compared with nothing; None is none.
      plan: what happens on which frame.
      key: random key of the clip.
      interaction: the annotator.
      loss_fn: compares the candidates of one prediction for one object with the target.

    Returns:
      (N,) float32 sums over frames and predictions of what `loss_fn` gives; sums over frames of `true_iou`,
      the IoU of the last mask with the target, and of `present`, whether there is an object.
    """

    def apply(*args: Any, **kwargs: Any) -> Any:
        return sam2.apply({"params": params}, *args, **kwargs)

    encode_key, key = jax.random.split(key)
    features = apply(images, True, method="encode", rngs={"dropout": encode_key})
    num_frames, n = targets.shape[:2]
    slots = max(interaction.max_initial_frames, interaction.max_corrected_frames)
    bank = memory_bank.empty(sam2.config, n, min(slots, num_frames), num_frames)
    no_losses = {
        name: jnp.zeros(n, jnp.float32) for name in _names(loss_fn, sam2.config.image_size)
    }

    def one_frame(bank, xs):
        frame, is_initial, is_corrected, is_box, key = xs
        recall_key, click_key = jax.random.split(key)
        here = jax.tree.map(lambda x: x[frame][None], features)
        target = targets[frame]
        unknown = None if ignored is None else ignored[frame]

        def without_memory():
            embedding = apply(here, method="add_no_memory_embedding")
            return jnp.broadcast_to(embedding, (n, *embedding.shape[1:]))

        def with_memory():
            rngs = {"dropout": recall_key}
            return apply(bank, here, frame, True, method="condition_on_memory", rngs=rngs)

        def by_clicks(embedding):
            segment = lambda prompt: apply(embedding, here, prompt, is_initial, method="segment")
            compare = functools.partial(_compare, sam2.config, loss_fn, target, unknown, is_initial)
            prompt = _first_prompt(click_key, target, unknown, is_initial, is_box, interaction)
            return _interact(
                sam2.remat,
                segment,
                compare,
                prompt,
                target,
                unknown,
                is_corrected,
                click_key,
                interaction,
            )

        def by_masks(_):
            answer = apply(here, target.astype(jnp.float32), method="segment_by_mask")
            return (answer.masks, answer.scores, answer.pointers), no_losses

        if num_frames == 1:  # an image starts from points and leaves nothing to remember
            (masks, _, _), losses = by_clicks(without_memory())
            return bank, losses | _agreement(upsample_4x(masks), target, unknown)
        embedding = jax.lax.cond(is_initial, without_memory, with_memory)
        is_given = is_initial & plan.starts_from_masks
        (masks, scores, pointers), losses = jax.lax.cond(is_given, by_masks, by_clicks, embedding)
        # A mask that was given is remembered as sharp as it is.
        masks = jnp.where(is_given, 20.0 * target - 10.0, upsample_4x(masks))
        everyone = jnp.ones(n, bool)
        is_prompted = everyone & (is_initial | is_corrected)
        memories = apply(here, masks, scores, is_prompted, method="encode_memory")
        bank = memory_bank.write(
            sam2.config, bank, frame, memories, pointers, everyone, is_prompted
        )
        return bank, losses | _agreement(masks, target, unknown)

    keys = jax.random.split(key, num_frames)
    xs = (plan.frames, plan.is_initial, plan.is_corrected, plan.is_box, keys)
    _, sums = jax.lax.scan(rematerialise(one_frame, sam2.remat), bank, xs)
    return jax.tree.map(lambda x: x.sum(0), sums)


def _names(loss_fn, size):
    """What the losses are called."""
    shape = jax.ShapeDtypeStruct
    candidate = (shape((1, size, size), jnp.float32), shape((1,), jnp.float32))
    target = shape((size, size), bool)
    return jax.eval_shape(loss_fn, *candidate, shape((), jnp.float32), target)


def _first_prompt(key, target, ignored, is_initial, is_box, interaction):
    """A box or a click on an initial frame, nothing on others.

    Returns:
      points (N, P, 2), labels (N, P), and () int32 how many of them count. Point 0 is the decoder's own.
    """
    n, room = target.shape[0], 3 + interaction.num_corrections
    keys = jax.random.split(key, n)
    clicks, click_labels = jax.vmap(first_click, (0, 0, None))(keys, target, ignored)
    boxes = jax.vmap(jittered_box)(keys, target)
    points = jnp.zeros((n, room, 2), jnp.float32).at[:, 1].set(clicks)
    points = jnp.where(is_box, points.at[:, 1:3].set(boxes), points)

    unused = jnp.full((n, room), -2, jnp.int32).at[:, 0].set(-1)
    by_box, by_click = unused.at[:, 1].set(2).at[:, 2].set(3), unused.at[:, 1].set(click_labels)
    # A frame without any point has the decoder's own one twice.
    labels = jnp.where(is_initial, jnp.where(is_box, by_box, by_click), unused.at[:, 1].set(-1))
    return points, labels, jnp.where(is_initial, jnp.where(is_box, 2, 1), 0)


def _interact(remat, segment, compare, prompt, target, ignored, is_corrected, key, interaction):
    """Segments a frame; if it is to be corrected, clicks into the error and segments again, seven times.

    A frame without corrections pays next to nothing for them, in either pass. All predictions are one loop, so
    that the decoder, which is most of the program, is compiled once.

    Returns:
      The last masks, scores and pointers, and the losses of all predictions.
    """
    points, labels, num_points = prompt
    n, size = target.shape[0], target.shape[-1] // 4

    @functools.partial(rematerialise, name=remat)
    def predict(points, labels, num_points, masks, is_first):
        answer = segment(Prompt(points, labels, masks, jnp.broadcast_to(~is_first, n)))
        losses = compare(answer, num_points)
        return (answer.masks, answer.scores, answer.pointers), losses

    def click(points, labels, num_points, masks, key):
        added = _add_click(key, points, labels, num_points, masks, target, ignored, interaction)
        return *added, num_points + 1

    def turn(state, xs):
        is_first, key = xs

        def go(state):
            *prompt, (masks, _, _) = state
            keep = lambda points, labels, num_points, *_: (points, labels, num_points)
            prompt = jax.lax.cond(is_first, keep, click, *prompt, masks, key)
            answer, losses = predict(*prompt, masks, is_first)
            return (*prompt, answer), losses

        return jax.lax.cond(is_first | is_corrected, go, lambda state: (state, no_losses), state)

    masks = jnp.zeros((n, size, size))
    shapes = jax.eval_shape(predict, points, labels, num_points, masks, jnp.array(True))
    answer, no_losses = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    keys = jax.random.split(key, 1 + interaction.num_corrections)
    state = (points, labels, num_points, answer)
    (_, _, _, answer), losses = jax.lax.scan(turn, state, (jnp.arange(len(keys)) == 0, keys))
    return answer, jax.tree.map(lambda x: x.sum(0), losses)


def _add_click(key, points, labels, num_points, masks, target, ignored, interaction):
    """The points (N, P, 2) and labels (N, P) with one more click each."""
    target_key, key = jax.random.split(key)
    from_target = jax.random.bernoulli(target_key, interaction.target_probability, masks.shape[:1])
    prediction = (upsample_4x(masks) > 0) & ~from_target[:, None, None]
    clicks, click_labels = jax.vmap(next_click, (0, 0, 0, None))(
        jax.random.split(key, masks.shape[0]), prediction, target, ignored
    )
    is_new = jnp.arange(labels.shape[1]) == num_points + 1
    points = jnp.where(is_new[:, None], clicks[:, None], points)
    return points, jnp.where(is_new, click_labels[:, None], labels)


def _compare(config, loss_fn, target, ignored, is_initial, answer, num_points):
    """Losses (N,) of the three candidates of an ambiguous prompt, of the single one of a clear prompt."""

    @jax.checkpoint
    def one_object(xs):
        logits, ious, score, target = xs
        return loss_fn(leave_out(upsample_4x(logits), ignored), ious, score, target)

    def of(candidates):
        xs = (answer.candidates[:, candidates], answer.candidate_ious[:, candidates])
        xs = (*xs, answer.scores, target)
        return jax.lax.map(one_object, xs, batch_size=min(_OBJECTS_AT_ONCE, target.shape[0]))

    three = asks_for_three(config, num_points, is_initial)
    losses = jax.lax.cond(three, lambda: of(slice(1, None)), lambda: of(slice(0, 1)))
    if ignored is None:
        return losses
    # Whether an object is on a frame of which nothing is known is not known either.
    return jax.tree.map(lambda x: jnp.where(ignored.all(), 0.0, x), losses)


def _agreement(masks, target, ignored):
    """(N,) IoU of mask logits (N, S, S) with the target, and 1 where there is an object; zeros elsewhere."""
    inside, present = leave_out(masks, ignored) > 0, target.any((1, 2))
    union = (inside | target).sum((1, 2))
    iou = (inside & target).sum((1, 2)) / jnp.maximum(union, 1)
    return {"true_iou": jnp.where(present, iou, 0.0), "present": present.astype(jnp.float32)}
