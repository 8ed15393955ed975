import dataclasses
import importlib.util
from pathlib import Path

import pytest

from sam2_jax.experiment import Dataset, Experiment, Interaction, from_config_dict, to_config_dict
from sam2_jax.train.params import partition
from sam2_jax.train.recipe import make_recipe

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def test_an_experiment_survives_the_way_to_the_command_line_and_back():
    experiment = Experiment(
        model_overrides={"image_size": 64, "hiera": {"stages": (1, 1, 1, 1)}},
        datasets={"a": Dataset(weight=0.25), "b": Dataset(kind="coco")},
    )
    assert from_config_dict(to_config_dict(experiment)) == experiment


def changed(**changes):
    return dataclasses.asdict(Experiment()) | changes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(lerning_rate=1), r"no field config\.lerning_rate"),
        (changed(optimizer={"learnin_rate": 1.0}), r"optimizer\.learnin_rate.*learning_rate"),
        (changed(num_steps="many"), r"config\.num_steps is 'many'; int is expected"),
        (changed(num_steps=0), "num_steps is 0; it must be at least 1"),
        (changed(keep_last=0), "keep_last is 0; it must be at least 1"),
        (changed(remat="some"), "remat is 'some'.*none, dots, full"),
        (changed(trainable="none"), "leaves nothing to train"),
        (changed(trainable="memory", datasets={"a": {"num_frames": 1}}), "no dataset has videos"),
        (changed(optimizer={"kind": "sgd"}), r"optimizer\.kind is 'sgd'.*adamw, muon"),
        (changed(datasets={}), "datasets is empty"),
        (changed(datasets={"a": {"kind": "imagenet"}}), r"datasets\.a\.kind is 'imagenet'"),
        (changed(datasets={"a": {"augment": {"scale": (1.0,)}}}), r"scale.*2 values"),
        (changed(optimizer=3), r"config\.optimizer is 3; a group of fields"),
    ],
)
def test_what_does_not_fit_is_one_error_that_names_it(config, message):
    with pytest.raises(ValueError, match=message):
        from_config_dict(config)


def test_a_field_by_its_earlier_name_is_taken():
    new = Interaction(target_probability=0.3)
    assert Interaction(truth_probability=0.3) == new
    assert dataclasses.replace(new, num_corrections=7) == new
    saved = changed(interaction={"truth_probability": 0.3})
    assert from_config_dict(saved).interaction == new


def test_whole_numbers_are_taken_for_fractions():
    config = to_config_dict(Experiment())
    config.ema_decay = 0
    assert from_config_dict(config).ema_decay == 0.0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_experiments_that_can_be_learnt(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = make_recipe(from_config_dict(module.get_config()))
    assert f"--config=configs/{path.name}" in module.__doc__
    assert partition(recipe.shapes, recipe.is_trained)[0]
