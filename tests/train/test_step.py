"""The training step on a small model: what is learnt, on any mesh, and what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sam2_jax.experiment import SHARDING, Dataset, Experiment, Interaction, Mesh, Optimizer
from sam2_jax.model.sam2 import NO_OBJECT
from sam2_jax.parallel.mesh import batch_sharding, make_mesh
from sam2_jax.parallel.rules import shardings
from sam2_jax.train.params import partition
from sam2_jax.train.recipe import Recipe, make_recipe, training_module
from sam2_jax.train.state import (
    abstract_state,
    export_params,
    init_state,
    put_batch,
    put_hyperparameters,
)
from sam2_jax.train.step import compiled_step, value_and_grad
from tests.parity.reference_scene import scene, scene_masks

SIZE = 64
TOY = {
    "image_size": SIZE,
    "hidden_dim": 32,
    "memory_dim": 8,
    "memory_attention_layers": 1,
    "hiera": {
        "embed_dim": 8,
        "stages": (1, 1, 1, 1),
        "global_attention_blocks": (2,),
        "window_sizes": (8, 4, 2, 2),
    },
}
FEW = Interaction(num_corrections=1)
# A program with corrections takes twice as long to compile; clips have them.
CLICKS = Interaction(
    point_probability=1.0, box_probability=0.0, max_initial_frames=1, num_corrections=0
)


def recipe(**changes) -> Recipe:
    settings = {
        "model_overrides": TOY,
        "interaction": FEW,
        "remat": "none",
        "optimizer": Optimizer(
            learning_rate=1e-3, encoder_learning_rate=1e-3, schedule="constant", gradient_clip=1.0
        ),
    }
    return make_recipe(Experiment(**(settings | changes)))


def clips(num_frames: int, count: int) -> dict[str, np.ndarray]:
    """Cuts of a drawn video with two objects; of the last clip one is filling only."""
    frames, masks = scene(count + num_frames), scene_masks(count + num_frames)
    images = np.stack([frame[: 3 * SIZE : 3, : 3 * SIZE : 3] for frame in frames])
    masks = np.stack([mask[:, : 3 * SIZE : 3, : 3 * SIZE : 3] for mask in masks])
    cut = lambda x: np.stack([x[i : i + num_frames] for i in range(count)])
    is_object = np.ones((count, 2), bool)
    is_object[-1, -1] = False
    return {"images": cut(images), "masks": cut(masks).astype(bool), "is_object": is_object}


def images() -> dict[str, np.ndarray]:
    """Enough for eight devices."""
    return clips(num_frames=1, count=8)


def start(recipe: Recipe, mesh: jax.sharding.Mesh):
    """The first state, of a model that sees all objects: masks of absent ones would teach nothing."""
    params = recipe.draw()
    params["mask_decoder"]["pred_obj_score_head"]["layers_2"]["bias"][:] = 5.0
    return init_state(recipe, mesh, params)


def trained(recipe: Recipe) -> dict:
    """Shapes of what is trained, by path."""
    return flatten_dict(partition(recipe.shapes, recipe.is_trained)[0], sep="/")


def one_device() -> jax.sharding.Mesh:
    return make_mesh(Mesh(), jax.devices()[:1])


def gradient_on(recipe: Recipe, mesh: jax.sharding.Mesh, batch: dict):
    return gradient_and_program_on(recipe, mesh, batch)[0]


def gradient_and_program_on(recipe: Recipe, mesh: jax.sharding.Mesh, batch: dict):
    parts = partition(start(recipe, mesh).params, recipe.is_trained)
    cut, whole = shardings(mesh, SHARDING, parts)
    function = jax.jit(
        functools.partial(value_and_grad, recipe, mesh),
        in_shardings=(cut, whole, batch_sharding(mesh), None),
        out_shardings=(None, cut),
    )
    arguments = (*parts, put_batch(mesh, batch), jax.random.key(3))
    program = function.lower(*arguments).compile()
    metrics, gradient = program(*arguments)
    for x, sharding in zip(jax.tree.leaves(gradient), jax.tree.leaves(cut), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    return jax.device_get((gradient, metrics)), program.as_text()


def assert_same(ours, theirs, tolerance=1e-4):
    ours, theirs = (flatten_dict(x, sep="/") for x in (ours, theirs))
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(x).max() for x in theirs.values())
    for path, x in theirs.items():
        np.testing.assert_allclose(ours[path], x, rtol=0, atol=tolerance * largest, err_msg=path)


@pytest.fixture(scope="module")
def alone():
    return gradient_on(recipe(), one_device(), clips(num_frames=3, count=4))


def test_the_gradient_reaches_every_trained_part(alone):
    gradient, metrics = alone
    assert all(np.isfinite(x) for x in metrics.values())
    flat = flatten_dict(gradient, sep="/")
    silent = {path for path, x in flat.items() if not np.abs(x).any()}
    # No gradient: candidates that were never the best, and what only masks, boxes or absence use.
    allowed = ("hypernetworks", "mask_downsample/", "point_embeddings", "no_obj_")
    assert not {path for path in silent if not any(part in path for part in allowed)}
    assert "no_mem_pos_enc" not in flat


def test_loss_and_gradient_of_clips_are_those_of_one_device(alone):
    gradient, metrics = gradient_on(
        recipe(), make_mesh(Mesh(2, 2, 2)), clips(num_frames=3, count=4)
    )
    assert metrics["loss"] == pytest.approx(alone[1]["loss"], rel=1e-4)
    assert_same(gradient, alone[0])


def gradient_of_images(mesh: jax.sharding.Mesh, accumulate: int = 1):
    """Of a trunk with blocks in a loop."""
    subject = recipe(
        interaction=CLICKS,
        optimizer=Optimizer(accumulate=accumulate),
        model_overrides=TOY | {"hiera": TOY["hiera"] | {"stages": (1, 1, 1, 3)}},
    )
    return gradient_and_program_on(subject, mesh, images())


@pytest.fixture(scope="module")
def whole():
    return gradient_of_images(one_device())[0]


def test_loss_and_gradient_of_images_are_those_of_one_device(whole):
    (gradient, metrics), program = gradient_of_images(make_mesh(Mesh(2, 4, 1)))
    assert metrics["loss"] == pytest.approx(whole[1]["loss"], rel=1e-4)
    assert_same(gradient, whole[0])
    # Kernels of the two last blocks are gathered where they are used.
    loops = [text for text in program.split("\n\n") if "ENTRY" not in text]
    gathered = sorted(text.count(" all-gather(") for text in loops if " all-gather(" in text)
    assert gathered == [4]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(whole):
    """With clicks only, all parts have the same plan."""
    (gradient, metrics), _ = gradient_of_images(one_device(), accumulate=4)
    assert metrics["loss"] == pytest.approx(whole[1]["loss"], rel=1e-5)
    assert_same(gradient, whole[0])


def test_images_leave_alone_what_they_do_not_reach():
    """Weight decay would wear it down."""
    only_images = {"images": Dataset(num_frames=1)}
    of_all, of_images = trained(recipe()), trained(recipe(datasets=only_images))
    left = {path.split("/")[0] for path in of_all.keys() - of_images.keys()}
    assert {"memory_attention", "memory_encoder", "maskmem_tpos_enc", "obj_ptr_proj"} < left
    assert not left & {"image_encoder", "prompt_encoder", "mask_decoder", "no_mem_embed"}


def test_the_state_of_muon_is_cut_like_its_parameters():
    mesh = make_mesh(Mesh(1, 8, 1))
    state = abstract_state(recipe(optimizer=Optimizer(kind="muon")), mesh)
    kernel = state.params["memory_encoder"]["fuser_0"]["pwconv1"]["kernel"]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert moments
    assert not kernel.sharding.is_fully_replicated
    assert all(x.sharding.is_equivalent_to(kernel.sharding, x.ndim) for x in moments)


class Program:
    """A compiled step on one device."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.mesh = recipe, one_device()
        self.batch = put_batch(self.mesh, images())
        self.values = put_hyperparameters(recipe, self.mesh)
        step = compiled_step(recipe, self.mesh)
        state = abstract_state(recipe, self.mesh)
        self.step = step.lower(state, self.batch, self.values).compile()

    def run(self, num_steps: int, state=None):
        state = start(self.recipe, self.mesh) if state is None else state
        metrics = []
        for _ in range(num_steps):
            state, values = self.step(state, self.batch, self.values)
            metrics.append(jax.device_get(values))
        return state, metrics


@pytest.fixture(scope="module")
def program():
    return Program(recipe(interaction=CLICKS, ema_decay=0.5))


def test_steps_learn(program):
    _, metrics = program.run(40)
    losses = [x["loss"] for x in metrics]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_the_same_steps_give_the_same_bits(program):
    first, second = (program.run(3)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(second))


def test_the_state_is_given_up(program):
    state = start(program.recipe, program.mesh)
    kernel = state.params["mask_decoder"]["conv_s0"]["kernel"]
    program.step(state, program.batch, program.values)
    assert kernel.is_deleted()


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(program):
    state = start(program.recipe, program.mesh)
    broken = jax.tree.map(jnp.copy, state)
    nan = jnp.full_like(broken.params["mask_decoder"]["iou_token"], jnp.nan)
    broken.params["mask_decoder"]["iou_token"] = nan
    before = jax.device_get(broken)
    after, metrics = program.run(2, broken)
    assert [x["is_finite"] for x in metrics] == [0.0, 0.0]
    assert (int(after.step), int(after.skipped)) == (2, 2)
    for name in ("params", "opt_state", "ema"):
        same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
        same(jax.device_get(getattr(after, name)), getattr(before, name))
    good, _ = program.run(1, state)
    assert int(good.skipped) == 0


def test_the_average_follows_the_parameters_and_is_exported(program):
    before = jax.device_get(start(program.recipe, program.mesh).params)
    state, _ = program.run(1)
    old, new = (
        p["mask_decoder"]["conv_s0"]["kernel"] for p in (before, jax.device_get(state.params))
    )
    average = export_params(state)["mask_decoder"]["conv_s0"]["kernel"]
    np.testing.assert_allclose(average, 0.5 * (old + new), atol=1e-7)


def test_what_is_frozen_stays_and_low_rank_updates_are_merged():
    program = Program(recipe(interaction=CLICKS, trainable="decoder", lora_rank=2))
    before = jax.device_get(start(program.recipe, program.mesh).params)
    state, metrics = program.run(3)
    assert all(np.isfinite(x["loss"]) for x in metrics)
    end = flatten_dict(jax.device_get(state.params), sep="/")
    moved = {p for p, x in flatten_dict(before, sep="/").items() if (end[p] != x).any()}
    assert moved
    assert all(path.startswith(("mask_decoder/", "lora/")) for path in moved)
    # The decoder's own projections are trained, so they have no updates.
    assert not any(path.startswith("lora/mask_decoder") for path in end)
    exported = flatten_dict(export_params(state), sep="/")
    qkv = "image_encoder/trunk/blocks_0/attn/qkv/kernel"
    update = end[f"lora/{qkv}/a"] @ end[f"lora/{qkv}/b"]
    np.testing.assert_allclose(exported[qkv], end[qkv] + update, atol=1e-6)
    assert np.abs(update).max() > 0
    assert not any(path.startswith("lora/") for path in exported)


@pytest.mark.parametrize(
    ("trainable", "inside", "outside"),
    [
        ("all", "image_encoder/trunk/patch_embed/kernel", "no_mem_pos_enc"),
        ("no_encoder", "memory_attention/norm/scale", "image_encoder/neck/convs_0/kernel"),
        ("decoder", "mask_decoder/iou_token", "memory_attention/norm/scale"),
        ("memory", "maskmem_tpos_enc", "mask_decoder/iou_token"),
    ],
)
def test_parts_are_trained_by_name(trainable, inside, outside):
    paths = trained(recipe(trainable=trainable))
    assert inside in paths
    assert outside not in paths


def test_unknown_fields_of_the_trunk_are_named():
    with pytest.raises(ValueError, match="no field 'depth' in HieraConfig"):
        recipe(model_overrides={"hiera": {"depth": 3}})


def test_rates_of_earlier_experiments_are_found_among_the_overrides():
    rate = lambda **changes: training_module(recipe(**changes).experiment).memory_attention_dropout
    assert rate(memory_attention_dropout=0.3) == 0.3
    assert rate(model_overrides=TOY | {"memory_attention_dropout": 0.2}) == 0.2


def test_another_loss_takes_the_place_of_the_published_one():
    """Here the predicted presence alone: a gradient that is known. Frames that are all unknown have none."""

    def loss_fn(logits, ious, score, target):
        return {
            "loss": 2.0 * score,
            "candidates": jnp.float32(len(ious)),
            "left_out": (logits == NO_OBJECT).mean() * len(ious),
        }

    subject = make_recipe(recipe(interaction=CLICKS).experiment, loss_fn)
    batch = images()
    ignored = np.zeros((8, 1, SIZE, SIZE), bool)
    ignored[:6, ..., : SIZE // 2], ignored[0] = True, True
    batch |= {"ignored": ignored, "masks": batch["masks"] & ~ignored[:, :, None]}
    gradient, metrics = gradient_on(subject, one_device(), batch)
    head = gradient["mask_decoder"]["pred_obj_score_head"]["layers_2"]
    known = 13 / 15  # of the objects
    assert head["bias"] == pytest.approx(2.0 * known)
    assert metrics.keys() == {"loss", "candidates", "left_out", "true_iou"}
    assert metrics["candidates"] == pytest.approx(3 * known)
    assert metrics["left_out"] == pytest.approx(3 * 0.5 * 10 / 15)
