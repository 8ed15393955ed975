import dataclasses
import importlib.util
from pathlib import Path

import pytest

from sam2_jax.data.datasets import Augment, Dataset, Palette
from sam2_jax.experiment import Experiment, Interaction, from_config_dict, to_config_dict
from sam2_jax.train.params import partition
from sam2_jax.train.recipe import make_recipe

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def test_an_experiment_survives_the_way_to_the_command_line_and_back():
    experiment = Experiment(
        model_overrides={"image_size": 64, "hiera": {"stages": (1, 1, 1, 1)}},
        datasets={"a": Dataset(weight=0.25), "b": Dataset(kind="coco")},
    )
    assert from_config_dict(to_config_dict(experiment)) == experiment


def test_the_command_line_may_choose_another_kind_of_data():
    """What the configuration had set of the kind before is dropped, a field that is typed is not."""
    config = to_config_dict(Experiment(datasets={"a": Dataset(is_plain=True, weight=0.5)}))
    config.datasets.a.kind = "palette"
    config.datasets.a.frames, config.datasets.a.annotations = "frames", "masks"
    found = from_config_dict(config).datasets["a"]
    assert found == Palette(frames="frames", annotations="masks", weight=0.5)
    config.datasets.a.annotated_every = 2
    with pytest.raises(
        ValueError, match=r"no field config\.datasets\.a\.annotated_every of kind 'pal"
    ):
        from_config_dict(config)
    config.datasets.a.kind = "sav"
    assert from_config_dict(config).datasets["a"].annotated_every == 2


def test_fields_of_datasets_keep_their_old_names(caplog):
    config = to_config_dict(Experiment())
    config.datasets.procedural.frames = "pictures"
    config.validation.dataset.kind = "tfds"
    config.validation.dataset.frames, config.validation.dataset.annotations = "davis/480p", "there"
    experiment = from_config_dict(config)
    assert experiment.datasets["procedural"].pictures == "pictures"
    found = experiment.validation.dataset
    assert (found.name, found.data_dir, found.count) == ("davis/480p", "there", 8)
    assert (
        "config.validation.dataset.frames is called config.validation.dataset.name now"
        in caplog.text
    )


def test_records_from_when_all_kinds_were_one_class_are_read():
    fields = {
        "kind": "palette",
        "frames": "f",
        "annotations": "a",
        "split": "train",
        "file_list": "",
    }
    fields |= {"excluded_list": "", "first": 0, "count": -1, "weight": 1.0, "batch_size": 1}
    fields |= {
        "num_frames": 8,
        "max_objects": 3,
        "stride": 1,
        "annotated_every": 4,
        "max_area": 0.9,
    }
    fields |= {"seed": 0, "is_plain": False, "augment": {"flip": 0.0}}
    found = from_config_dict(changed(datasets={"a": fields})).datasets["a"]
    assert found == Palette(frames="f", annotations="a", augment=Augment(flip=0.0))


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
        (
            changed(optimizer={"accumulate": 0}),
            r"optimizer\.accumulate is 0; it must be at least 1",
        ),
        (changed(optimizer={"b2": 2.0}), r"b2 is 2\.0; it must be at least 0 and less than 1"),
        (
            changed(optimizer={"learning_rate": -1e-3}),
            r"optimizer\.learning_rate is -0\.001; .*least 0",
        ),
        (changed(optimizer={"gradient_clip": float("nan")}), "gradient_clip is nan; .*more than 0"),
        (changed(ema_decay=1.5), "ema_decay is 1.5; it must be at least 0 and less than 1"),
        (changed(interaction={"point_probability": 2}), r"interaction\.point_probability is 2\.0"),
        (changed(datasets={"a": {"stride": 0}}), r"datasets\.a\.stride is 0"),
        (changed(datasets={"a": {"weight": 0}}), "all weights are 0"),
        (
            changed(datasets={"a": {"augment": {"scale": (0.0, 1.0)}}}),
            r"datasets\.a\.augment\.scale is \(0\.0, 1\.0\); it must be more than 0",
        ),
        (changed(remat="some"), "remat is 'some'.*none, dots, full"),
        (changed(trainable="none"), "leaves nothing to train"),
        (changed(trainable="memory", datasets={"a": {"num_frames": 1}}), "no dataset has videos"),
        (changed(optimizer={"kind": "sgd"}), r"optimizer\.kind is 'sgd'.*adamw, muon"),
        (changed(datasets={}), "datasets is empty"),
        (changed(datasets={"a": {"kind": "imagenet"}}), r"datasets\.a\.kind is 'imagenet'"),
        (
            changed(datasets={"a": {"kind": "palette", "max_area": 0.5}}),
            r"no field config\.datasets\.a\.max_area of kind 'palette'. Did you mean .*max_objects",
        ),
        (changed(datasets={"a": {"kind": "coco", "max_aera": 0.5}}), "max_aera.*mean max_area"),
        (changed(datasets={"a": {"count": "all"}}), r"a\.count is 'all'; int is expected"),
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
