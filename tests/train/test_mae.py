"""Pre-training of the trunk on pictures: the whole run, and another one that begins with what it has learnt."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from sam2_jax.checkpoint import load, load_start
from sam2_jax.experiment import Dataset, Experiment, Mae, Optimizer, Validation
from sam2_jax.parallel.mesh import make_mesh
from sam2_jax.train import loop
from sam2_jax.train.metrics import read_metrics
from sam2_jax.train.recipe import make_recipe
from tests import toy

EXPERIMENT = Experiment(
    objective="mae",
    model_overrides={
        "image_size": 64,
        "hidden_dim": 32,
        "memory_dim": 8,
        "memory_attention_layers": 1,
        "hiera": dataclasses.asdict(toy.HIERA)
        | {"stages": (1, 1, 1, 1), "global_attention_blocks": (2,)},
    },
    drop_path_rate=0.0,
    mae=Mae(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
    optimizer=Optimizer(learning_rate=1e-2, encoder_learning_rate=1e-2, schedule="constant"),
    remat="none",
    num_steps=2,
    log_every=1,
)


def test_a_trunk_learns_from_pictures_and_begins_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 70, 50, 3), np.uint8)
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    pictures = Dataset(
        kind="pictures", frames=str(tmp_path / "pictures"), max_objects=1, batch_size=2
    )
    run = tmp_path / "run"
    loop.train(dataclasses.replace(EXPERIMENT, datasets={"mine": pictures}), run)
    first, last = read_metrics(run)
    assert last["loss"] < first["loss"]
    assert "true_iou" not in last

    masks = make_recipe(dataclasses.replace(EXPERIMENT, objective="masks", seed=1))
    drawn = masks.draw()
    begun = [
        load_start(path, EXPERIMENT.model, masks.config, lambda: drawn).params
        for path in (run, run / "export")
    ]
    chex.assert_trees_all_equal(*begun)
    begun = begun[0]
    trunks = [params["image_encoder"].pop("trunk") for params in (begun, drawn)]
    chex.assert_trees_all_equal(begun, drawn)
    chex.assert_trees_all_equal_shapes(*trunks)
    before = make_recipe(EXPERIMENT).draw()["image_encoder"]["trunk"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), trunks[0], before)
    assert all(jax.tree.leaves(moved))
    with pytest.raises(ValueError, match=r"masked autoencoder.*init_from"):
        load(run / "export")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 2}, "trains the whole trunk"),
        ({"validation": Validation(every=1)}, "predicts no masks"),
        ({"mae": Mae(decoder_embed_dim=6, decoder_num_heads=4)}, "a multiple of"),
        ({"objective": "pixels"}, "must be one of masks, mae"),
    ],
)
def test_what_does_not_go_with_pixels_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(EXPERIMENT, **changes)
