"""The commands of docs/finetune.md, on drawn pictures; the training itself is not waited for."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from sam2_jax import cli
from sam2_jax.commands import train
from sam2_jax.experiment import Experiment, from_config_dict
from tests.train.toy_run import ROOT

TEXT = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = [shlex.split(line) for line in re.findall(r"^    sam2-jax (.*)", TEXT, re.MULTILINE)]
ADVICE = [line.split() for line in re.findall(r"^\| .*`(--config.*?)`.* \|$", TEXT, re.MULTILINE)]


def of_kind(*words: str) -> list[list[str]]:
    return [command for command in COMMANDS if command[: len(words)] == list(words)]


def experiment(flags: list[str]) -> Experiment:
    return from_config_dict(train._parse(flags, "sam2-jax train")[1].config)


def test_a_folder_is_all_that_training_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = np.zeros((40, 50), np.uint16)
    labels[5:20, 5:25], labels[25:35, 30:45] = 1, 300
    for kind, image in (("images", labels.astype(np.uint8)), ("labels", labels)):
        folder = tmp_path / "mine" / "train" / kind
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "a.png")
    dry, (_, *trains) = of_kind("train")
    assert dry == ["train", *trains, "--config.dry_run"]
    found = experiment(trains)
    assert found.init_from == found.model == "sam2_nano"
    (video,) = found.datasets["mine"].open(image_size=64)
    assert list(video.masks(0)) == [1, 300]


def test_commands_that_read_the_result_are_understood():
    parse = cli._parser().parse_args
    before, after = map(parse, of_kind("evaluate", "images"))
    assert (before.images, before.annotations) == (after.images, after.annotations)
    assert before.out != after.out
    (image,) = map(parse, of_kind("image"))
    assert after.checkpoint == image.checkpoint == "runs/mine/export"


@pytest.mark.parametrize("flags", ADVICE, ids=" ".join)
def test_advice_can_be_followed(flags):
    config = [] if "--config=" in flags[0] else ["--config=finetune_nano:mine/train"]
    experiment([*config, *flags])


def test_all_advice_is_found():
    assert len(ADVICE) == TEXT.count("| `--config") == 6
