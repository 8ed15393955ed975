"""The run in this process, around the toy learner; `test_never_lost` has it in processes of its own."""

import asyncio
import dataclasses
import functools
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from sam2_jax.checkpoint import folder, run_folder
from sam2_jax.commands import train as command
from sam2_jax.data.datasets import Augment, Palette
from sam2_jax.data.media import read_image
from sam2_jax.experiment import Dataset, Interaction, Optimizer, ParameterGroup, Validation
from sam2_jax.parallel.mesh import make_mesh
from sam2_jax.train import dry_run, interruptions, loop
from sam2_jax.train.loop import train
from sam2_jax.train.metrics import read_metrics
from sam2_jax.train.recipe import Batch
from sam2_jax.train.workdir import as_json, check_settings
from tests.train import toy_run

# ml_collections loads files in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def _toy_recipe_on_one_device(monkeypatch):
    toy_run.use_toy_recipe(monkeypatch.setattr)
    for module in (loop, dry_run):
        monkeypatch.setattr(
            module, "make_mesh", lambda mesh, *_: make_mesh(mesh, jax.devices()[:1])
        )


@pytest.fixture(scope="module", autouse=True)
def _shared_programs():
    """Runs with the same step share its program, which takes longer to compile than to run."""
    compile_step, programs = loop.compile_step, {}

    def compile_once(recipe, mesh, state, batch, values, counts_flops):
        key = (recipe.objective, recipe.experiment.optimizer.schedule, batch.masks.shape)
        if key not in programs:
            programs[key] = compile_step(recipe, mesh, state, batch, values, counts_flops)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_step", compile_once)
        yield


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(n, action)`: calls `action(batch)` when the batch of step n is read."""

    def install(step, action):
        class Loader:
            def __init__(self, *args):
                self.inner, self.count = make_loader(*args), 0

            def __getattr__(self, name):
                return getattr(self.inner, name)

            def __next__(self):
                dataset, batch = next(self.inner)
                self.count += 1
                if self.count == step:
                    action(batch)
                return dataset, batch

        make_loader = loop.make_loader
        monkeypatch.setattr(loop, "make_loader", Loader)

    return install


def toy(**changes):
    return toy_run.experiment(**({"num_steps": 6, "checkpoint_every": 3} | changes))


def checkpoint_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(workdir)}


def test_the_folder_of_a_run(tmp_path, caplog):
    workdir = tmp_path / "runs" / "toy"
    with caplog.at_level(logging.INFO, "sam2_jax"):
        train(toy(), workdir)
    assert json.loads((workdir / "config.json").read_text())["num_steps"] == 6
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert json.loads((workdir / "versions.json").read_text())["jax"] == jax.__version__
    expected = {
        "loss",
        "grad_norm",
        "learning_rate",
        "learning_rate/encoder",
        "skipped",
        "replaced",
        "dataset",
        "memory_gb",
    }
    assert expected <= set(lines[0])
    assert "frames_per_s" not in lines[0]  # that step was compiled
    assert lines[1]["frames_per_s"] > 0
    assert "mfu" not in lines[1]  # a CPU's peak is not known
    assert checkpoint_steps(workdir) == [3, 6]
    assert list(workdir.glob("events.out.tfevents.*"))
    exported = folder.load(workdir / "export")
    assert exported.name == "sam2.1_hiera_tiny"
    assert exported.params["mask_decoder"]["hidden"]["kernel"].shape == (3, toy_run.HIDDEN)
    assert "is started at step 0 of 6" in caplog.text
    assert "step 6/6: loss" in caplog.text


def test_a_finished_run_says_so_and_does_nothing(tmp_path, caplog):
    train(toy(), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    with caplog.at_level(logging.INFO, "sam2_jax"):
        train(toy(), tmp_path)
    assert "is finished at step 6 of 6" in caplog.text
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    del before[tmp_path / ".lock"], after[tmp_path / ".lock"]
    assert after == before


def test_a_finished_run_without_its_export_gets_one(tmp_path):
    train(toy(), tmp_path)
    (tmp_path / "export" / "model.json").unlink()
    for path in sorted((tmp_path / "export").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    train(toy(), tmp_path)
    assert folder.load(tmp_path / "export").name == "sam2.1_hiera_tiny"
    assert len(losses(tmp_path)) == 6


def test_parameters_of_the_newest_checkpoint(tmp_path, caplog):
    train(toy(), tmp_path)
    half_written = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"  # by a run that is at work
    half_written.mkdir()
    exported = folder.load(tmp_path / "export").params
    np.testing.assert_equal(run_folder.load(tmp_path).params, exported)
    (tmp_path / "checkpoints" / "6" / "record" / "metadata").write_bytes(b"{}")
    before = run_folder.load(tmp_path).params
    assert "6 cannot be read" in caplog.text
    kernel = before["mask_decoder"]["hidden"]["kernel"]
    last = exported["mask_decoder"]["hidden"]["kernel"]
    assert 0 < np.abs(kernel - last).max() < 0.1
    assert sorted(path.name for path in half_written.parent.iterdir()) == [
        "3",
        "6",
        half_written.name,
    ]


def test_lines_and_checkpoints_come_when_they_are_due(tmp_path):
    train(toy(num_steps=11, log_every=4, checkpoint_every=5, keep_last=9), tmp_path)
    assert list(losses(tmp_path)) == [1, 4, 8, 11]
    assert checkpoint_steps(tmp_path) == [5, 10, 11]


def test_lines_are_means_since_the_last_one_also_across_a_restart(tmp_path, at_step):
    every = toy(num_steps=8, checkpoint_every=4)
    train(every, tmp_path / "every")
    single = losses(tmp_path / "every")
    at_step(6, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    seldom = dataclasses.replace(every, log_every=8)
    train(seldom, tmp_path / "seldom")
    assert checkpoint_steps(tmp_path / "seldom") == [4, 6]
    train(seldom, tmp_path / "seldom")
    assert losses(tmp_path / "seldom")[8] == pytest.approx(
        np.mean([single[n] for n in range(2, 9)])
    )


def test_more_steps_go_on_from_the_end(tmp_path, caplog):
    constant = Optimizer(learning_rate=1e-2, schedule="constant")
    train(toy(optimizer=constant), tmp_path / "two")
    with caplog.at_level(logging.INFO, "sam2_jax"):
        train(toy(optimizer=constant, num_steps=9), tmp_path / "two")
    assert "is resumed after step 6 of 9" in caplog.text
    assert "num_steps has changed: 6 -> 9" in caplog.text
    train(toy(optimizer=constant, num_steps=9), tmp_path / "one")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")


@pytest.mark.parametrize(
    "changes", [{"model": "sam2.1_hiera_small"}, {"model_overrides": {"hidden_dim": 128}}]
)
def test_another_model_in_the_same_folder_is_one_clear_error(tmp_path, changes):
    train(toy(num_steps=1), tmp_path)
    with pytest.raises(ValueError, match=rf"a run of another model \({next(iter(changes))}: "):
        train(toy(**changes), tmp_path)


def test_other_data_in_the_same_folder_need_a_word(tmp_path, caplog):
    train(toy(num_steps=1), tmp_path)
    first = losses(tmp_path)
    other = toy(datasets={"drawn": Dataset(num_frames=2, max_objects=2, batch_size=2, seed=7)})
    with pytest.raises(
        ValueError, match=r"differs in datasets\.drawn.*--resume=must.*--resume=never"
    ):
        train(other, tmp_path)
    train(dataclasses.replace(other, num_steps=2), tmp_path, resume="must")
    assert list(losses(tmp_path)) == [1, 2]
    train(dataclasses.replace(other, num_steps=1), tmp_path, resume="never")
    assert losses(tmp_path)[1] != first[1]
    assert list(losses(tmp_path / "previous_1")) == [1, 2]
    assert checkpoint_steps(tmp_path / "previous_1") == [1, 2]


def test_a_run_from_before_a_field_was_added_goes_on(tmp_path):
    config = as_json(toy())
    for field in ("max_stride", "truncate_video"):
        del config["datasets"]["drawn"][field]
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_settings(tmp_path, toy(), "auto")
    drawn = toy().datasets["drawn"]
    shorter = toy(datasets={"drawn": dataclasses.replace(drawn, truncate_video=2)})
    with pytest.raises(ValueError, match=r"differs in datasets\.drawn"):
        check_settings(tmp_path, shorter, "auto")


def test_nothing_to_go_on_from_is_an_error_where_it_must_be(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to go on from"):
        train(toy(), tmp_path, resume="must")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": Validation(2, Palette(frames="gone", annotations="gone"))}, "gone"),
        ({"draw_every": 1, "validation": Validation(0, Dataset(count=-1))}, "need a number"),
        ({"trainable": "decoder"}, "trainable is 'decoder', but the frozen parts"),
        (
            {
                "optimizer": Optimizer(
                    groups={"a": ParameterGroup("^image_encoder/", is_frozen=True)}
                )
            },
            r"groups\.a\.is_frozen is True, but the frozen parts",
        ),
    ],
)
def test_what_a_run_will_need_is_looked_at_first(tmp_path, changes, message):
    for begin in (train, dry_run.dry_run):
        with pytest.raises((ValueError, OSError), match=message):
            begin(toy(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_validation_that_fails_loses_no_step(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk of the validation data is gone")

    monkeypatch.setattr(loop, "validate", fail)
    with pytest.raises(OSError, match="is gone"):
        train(toy(validation=dataclasses.replace(VALIDATION, every=5)), tmp_path)
    assert checkpoint_steps(tmp_path) == [3, 5]


def test_two_runs_in_one_folder_are_one_too_many(tmp_path):
    hold = (
        f"import fcntl; f = open({str(tmp_path / '.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    )
    command = [sys.executable, "-c", f"{hold}; print('held', flush=True); input()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is at work in"):
            train(toy(num_steps=1), tmp_path)
        other.communicate("\n")
    train(toy(num_steps=1), tmp_path)


def test_sigterm_ends_the_run_after_the_step(tmp_path, at_step):
    train(toy(num_steps=12), tmp_path / "one")
    at_step(5, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    train(toy(num_steps=12), tmp_path / "two")
    assert checkpoint_steps(tmp_path / "two") == [3, 5]
    assert list(losses(tmp_path / "two")) == [1, 2, 3, 4, 5]
    assert not (tmp_path / "two" / "export").exists()
    train(toy(num_steps=12), tmp_path / "two")  # is told to end again
    train(toy(num_steps=12), tmp_path / "two")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    ours, theirs = (folder.load(tmp_path / run / "export").params for run in ("two", "one"))
    np.testing.assert_equal(ours, theirs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_wait_for_a_compilation(tmp_path, monkeypatch, number):
    is_free, compile_step = threading.Event(), loop.compile_step

    def slow(*args):
        if is_second:
            os.kill(os.getpid(), number)
            is_free.wait(60)
        is_second.append(True)
        return compile_step(*args)

    is_second = []
    monkeypatch.setattr(loop, "compile_step", slow)
    shapes = {
        name: Dataset(num_frames=2, max_objects=2, batch_size=size)
        for name, size in (("drawn", 2), ("other", 1))
    }
    train(toy(datasets=shapes), tmp_path)
    assert interruptions.is_left_behind()
    is_free.set()
    (step,) = checkpoint_steps(tmp_path)
    assert list(losses(tmp_path)) == list(range(1, step + 1))
    monkeypatch.undo()


def test_ctrl_c_saves_and_is_a_keyboard_interrupt(tmp_path, at_step):
    before = signal.getsignal(signal.SIGINT)
    at_step(5, lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(toy(), tmp_path)
    assert checkpoint_steps(tmp_path) == [3, 5]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_is_met_at_once(tmp_path, at_step):
    def twice(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(5, twice)
    with pytest.raises(KeyboardInterrupt):
        train(toy(), tmp_path)
    assert checkpoint_steps(tmp_path) == [3]


def diverging(params, batch, plan, keys):
    """Has no finite loss on batches whose first pixel is marked."""
    is_marked = (batch.images[:, 0, :2, :2] == 255).all()
    sums = toy_run.objective(params, batch, plan, keys)
    return {name: value / (1 - is_marked) for name, value in sums.items()}


@pytest.fixture
def _diverges(monkeypatch):
    make = functools.partial(toy_run.make_recipe, objective=diverging)
    monkeypatch.setattr(loop, "make_recipe", make)


def mark(batch):
    batch["images"][:, 0, :2, :2] = 255


@pytest.mark.usefixtures("_diverges")
def test_a_step_without_a_finite_loss_is_skipped_and_counted(tmp_path, at_step, caplog):
    at_step(2, mark)
    train(toy(num_steps=4), tmp_path)
    assert losses(tmp_path)[2] is None
    assert [line["skipped"] for line in read_metrics(tmp_path)] == [0, 1, 1, 1]
    assert "Step 2 is skipped, its loss is not finite: drawn/" in caplog.text


@pytest.mark.usefixtures("_diverges")
def test_too_many_skipped_steps_end_the_run_and_the_batch_is_saved(tmp_path, at_step):
    for step in (4, 5, 6):
        at_step(step, mark)
    with pytest.raises(ValueError, match=r"3 steps in a row had no finite loss .* drawn/"):
        train(toy(num_steps=20, max_skipped=3), tmp_path)
    (path,) = (tmp_path / "bad_batches").iterdir()
    assert path.name == "step_0000006_process_0.npz"
    saved = np.load(path)
    assert (saved["images"][:, 0, :2, :2] == 255).all()
    assert len(saved["names"]) == 2
    assert checkpoint_steps(tmp_path) == [3]


@pytest.mark.usefixtures("_diverges")
def test_a_diverged_run_goes_on_from_before_at_a_lower_rate(tmp_path, at_step):
    changes = {"max_skipped": 4, "checkpoint_every": 1, "keep_last": 1}
    for step in (4, 5, 6, 7):
        at_step(step, mark)
    with pytest.raises(
        ValueError, match="the same command goes on from the last checkpoint before"
    ):
        train(toy(num_steps=9, **changes), tmp_path)
    assert checkpoint_steps(tmp_path) == [3]
    lower = Optimizer(learning_rate=1e-3, encoder_learning_rate=1e-2)
    train(toy(num_steps=9, optimizer=lower, **changes), tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert lines[-1]["learning_rate"] < 1e-3


def test_between_two_steps_nothing_moves_unasked(tmp_path, monkeypatch):
    """A batch that was not put on the devices would be on every step's way."""
    monkeypatch.setattr(
        loop, "put_batch", lambda _, batch: Batch(*(batch[name] for name in FIELDS))
    )
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(toy(), tmp_path)


def test_replaced_samples_are_counted_also_across_a_restart(tmp_path, at_step):
    at_step(2, lambda batch: batch.update(replaced=3))
    train(toy(num_steps=4), tmp_path)
    train(toy(num_steps=8), tmp_path)
    assert [line["replaced"] for line in read_metrics(tmp_path)] == [0, 3, 3, 3, 3, 6, 6, 6]


@pytest.fixture
def drawn_scores(monkeypatch):
    """Validation of which one only sees the parameters: predictions are the truth, cut off at the right."""
    widths = iter([32, 64, 40])

    def predict(sam2, params, clip, num_objects):
        masks = clip.masks.copy()
        masks[1:, ..., width[0] :] = False
        return masks

    width = [0]
    validate = loop.validate

    def next_width(*args):
        width[0] = next(widths)
        return validate(*args)

    monkeypatch.setattr(loop, "predict_masks", predict)
    monkeypatch.setattr(loop, "validate", next_width)


FIELDS = ("images", "masks", "is_object")
VALIDATION = Validation(
    every=2, dataset=Dataset(num_frames=2, max_objects=2, count=2, seed=1, batch_size=1)
)


def test_validation_scores_are_in_the_lines_and_the_best_checkpoint_stays(tmp_path, drawn_scores):
    changes = {"validation": VALIDATION, "checkpoint_every": 100, "keep_last": 1, "log_every": 100}
    train(toy(**changes), tmp_path)
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert list(lines) == [1, 2, 4, 6]
    scores = {step: lines[step]["validation/J&F"] for step in (2, 4, 6)}
    assert scores[4] == 1
    assert max(scores[2], scores[6]) < 1
    assert {"validation/J", "validation/F", "loss"} <= set(lines[2])
    assert checkpoint_steps(tmp_path) == [4, 6]
    best, last = (folder.load(tmp_path / name).params for name in ("export_best", "export"))
    np.testing.assert_equal(best, run_folder.load(tmp_path / "checkpoints" / "4").params)
    np.testing.assert_equal(last, run_folder.load(tmp_path / "checkpoints" / "6").params)


def test_further_validation_sets_and_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "predict_masks", lambda sam2, params, clip, num_objects: clip.masks)
    images = Dataset(num_frames=1, max_objects=2, count=2, seed=1)
    validation = dataclasses.replace(VALIDATION, every=3, more={"still": images}, has_loss=True)
    train(toy(validation=validation), tmp_path)
    lines = [line for line in read_metrics(tmp_path) if "validation/J&F" in line]
    assert [line["step"] for line in lines] == [3, 6]
    assert [line["validation/still/iou"] for line in lines] == [1, 1]
    for name in ("validation/loss", "validation/still/loss"):
        first, last = (line[name] for line in lines)
        assert first != last
        assert 0 < min(first, last) < max(first, last) < 2


def test_some_checkpoints_stay(tmp_path):
    train(toy(keep_last=1, keep_steps=(2,)), tmp_path)
    assert checkpoint_steps(tmp_path) == [2, 6]


def test_the_command_line_adds_data_and_groups_and_changes_any_field_of_the_model(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = toy_run.write_config(tmp_path)
    given = []
    monkeypatch.setattr(loop, "train", lambda experiment, *_, **__: given.append(experiment))
    flags = (
        "datasets.mine.kind=palette",
        "datasets.mine.frames=f",
        "datasets.mine.annotations=a",
        "datasets.mine.augment.flip=0.0",
        "datasets.drawn.weight=0",
        "validation.more.still.num_frames=1",
        "optimizer.groups.slow.pattern=^no_mem",
        "optimizer.groups.slow.learning_rate=1e-6",
        "model_overrides.num_maskmem=5",
        "model_overrides.hiera.stages=(1, 2, 5, 1)",
        "model_overrides.soft_no_obj_ptr=True",
    )
    assert run_command(f"--config={config}", *(f"--config.{flag}" for flag in flags)) == 0
    (found,) = given
    mine = Palette(frames="f", annotations="a", augment=Augment(flip=0.0))
    assert found.datasets["mine"] == mine
    assert found.datasets["drawn"].weight == 0
    assert found.validation.more == {"still": Dataset(num_frames=1)}
    assert found.optimizer.groups == {"slow": ParameterGroup("^no_mem", 1e-6)}
    assert found.model_overrides == {
        "num_maskmem": 5,
        "hiera": {"stages": (1, 2, 5, 1)},
        "soft_no_obj_ptr": True,
    }


def test_images_are_validated_by_one_click(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "predict_masks", lambda sam2, params, clip, num_objects: clip.masks)
    images = Validation(every=3, dataset=Dataset(num_frames=1, count=1, seed=1))
    train(toy(num_steps=3, validation=images), tmp_path)
    assert read_metrics(tmp_path)[-1]["validation/iou"] == 1


def test_predictions_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "predict_masks", lambda sam2, params, clip, num_objects: clip.masks)
    train(toy(draw_every=4, validation=Validation(dataset=VALIDATION.dataset)), tmp_path)
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step_0000004.png", "step_0000006.png"]
    assert read_image(pictures[0]).shape[1] > 2 * 64


def run_command(*arguments: str) -> int:
    return command.main([str(argument) for argument in arguments])


def test_the_command_trains_in_a_folder_named_after_the_config(tmp_path, monkeypatch):
    config = toy_run.write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_command(f"--config={config}", "--config.num_steps=2") == 0
    assert list(losses(tmp_path / "runs" / "toy")) == [1, 2]


def test_another_argument_of_a_config_is_another_run(tmp_path, monkeypatch):
    config = toy_run.write_config(tmp_path, num_steps=1)
    text = config.read_text().replace("get_config()", "get_config(stage='start')")
    config.write_text(text)
    monkeypatch.chdir(tmp_path)
    for argument in ("small", "start"):
        assert run_command(f"--config={config}:{argument}") == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["toy_small", "toy_start"]


@pytest.mark.parametrize(
    "flags", [["--config=smoke"], ["--config", "smoke"], ["--config=nano:small"]]
)
def test_experiments_that_are_installed_are_known_by_name(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        dry_run, "dry_run", lambda experiment, workdir: f"{experiment.model} {workdir}"
    )
    assert run_command(*flags, "--config.dry_run") == 0
    name = flags[-1].removeprefix("--config=").replace(":", "_")
    assert capsys.readouterr().out == f"sam2_nano runs/{name}\n"


def test_a_field_by_its_earlier_name_is_taken_with_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = toy_run.write_config(tmp_path)
    given = []
    monkeypatch.setattr(
        loop, "train", lambda experiment, *_, **__: given.append(experiment.interaction)
    )
    assert run_command(f"--config={config}", "--config.interaction.truth_probability=0.3") == 0
    assert given == [Interaction(target_probability=0.3)]
    assert "truth_probability is called --config.interaction.target_prob" in capsys.readouterr().err


def test_the_command_leaves_loggers_and_hooks_as_they_were(tmp_path):
    config = toy_run.write_config(tmp_path, num_steps=1)
    watched = [logging.getLogger(name) for name in (None, "sam2_jax", "absl", "asyncio")]
    state = lambda: (
        sys.unraisablehook,
        warnings.filters[:],
        [(x.level, x.handlers[:]) for x in watched],
        [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)],
    )
    before = state()
    assert run_command(f"--config={config}", f"--workdir={tmp_path / 'run'}") == 0
    assert state() == before


def test_what_an_error_leaves_behind_does_not_complain(tmp_path, monkeypatch, capsys, caplog):
    """As tasks of Orbax that nobody awaits, when several of its files find the disk full."""

    def fail(*args, **kwargs):
        future = asyncio.Future(loop=events)
        future.set_exception(OSError("also full"))
        error = OSError("the disk is full")
        error.cause = future
        raise error

    events = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "train", fail)
    config = toy_run.write_config(tmp_path)
    with caplog.at_level(logging.ERROR, "asyncio"):
        assert run_command(f"--config={config}", f"--workdir={tmp_path / 'run'}") == 2
        gc.collect()
    events.close()
    assert "the disk is full" in capsys.readouterr().err
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--config=nowhere"], "no experiment 'nowhere'; known are finetune_decoder_lora, "),
        (["--config={}", "--config.num_stepz=2"], 'Did you mean "num_steps"'),
        (["--config={}", "--config.batch_size=2"], "has no field 'batch_size'"),
        (["--config={}:small"], "TypeError: get_config() takes 0 positional arguments"),
        (["--config={}", "--config.ema_decay=1.5"], "ema_decay is 1.5; it must be at least 0"),
        (["--config={}", "--config.datasets.x.kind=none"], "datasets.x.kind is 'none'"),
        (["--config={}", "--config.num_steps=x"], "config.num_steps=x"),
        (["--config={}", "--config.remat=some"], "remat is 'some'"),
        (["--config={}", "--config.mesh.fsdp=3"], "does not fit"),
        (["--config={}", "--config.optimizer.accumulate=3"], "it must be a multiple of 3"),
        (["--config={}", "--config.wandb_project=mine"], "wandb is not installed"),
        (["--config={}", "--workdir={}"], "File exists"),
        (["--config={}", "--config.init_from=sam2.1_hiera_tiny"], "sam2.1_hiera_tiny.pt cannot be"),
        (["--config={}", "--devices=some"], "--devices is 'some'; all, or a number"),
        (["--config={}", "--devices=2", "--distributed"], "give one of them"),
        (["--config={}", "--frequency=3"], "frequency"),
        (["--config={}", "now"], "'now' is not a flag"),
    ],
)
def test_errors_of_users_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    config = toy_run.write_config(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody is there
    assert run_command(*[argument.format(config) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("sam2-jax train: error: ")
    assert line.count("\n") == 1
    assert message in line


def test_help(capsys):
    assert run_command("--help") == 0
    assert "--config.field=value" in capsys.readouterr().out


def test_a_dry_run_tells_what_would_be_trained(tmp_path, capsys):
    config = toy_run.write_config(tmp_path)
    flags = (f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.dry_run")
    assert run_command(*flags) == 0
    text = capsys.readouterr().out
    assert f"mask_decoder/hidden/kernel  (3, {toy_run.HIDDEN})" in text
    assert "images    (2, 2, 64, 64, 3)" in text
    assert "dataset drawn: 100% of the steps, 2 clips of 2 frames with up to 2 objects\n" in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["first_batch.png"]


def test_the_script_is_the_command():
    script = toy_run.ROOT / "scripts" / "train.py"
    result = subprocess.run(
        [sys.executable, script, "--config=nowhere.py"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2
    assert result.stderr.startswith("scripts/train.py: error: ")
