"""The folder of a run as a checkpoint, as `Checkpoints` writes it, with weights of a small model."""

import jax
import numpy as np
import pytest

from checkpoints_convert.convert import main
from sam2_jax import build_sam2
from sam2_jax.checkpoint import load, run_folder
from sam2_jax.config import get_config
from sam2_jax.model import lora
from sam2_jax.model.sam2 import init_params
from sam2_jax.train.checkpoints import Checkpoints

NANO = "sam2_nano"
OVERRIDES = {"image_size": 64, "hiera": {"window_sizes": (8, 4, 4, 2)}, "dtype": "bfloat16"}
KERNEL = "mask_decoder/output_hypernetworks_mlps_0/layers_0/kernel"


@pytest.fixture(scope="module")
def params():
    return jax.device_get(init_params(get_config(NANO), jax.random.key(0)))


def states(params):
    """The parameters of three steps, each larger than the one before."""
    return {step: jax.tree.map(lambda x, s=step: s * x, params) for step in (1, 2, 3)}


def write(run, states, scores=None, **settings):
    experiment = {"model": "sam2_nano", "model_overrides": OVERRIDES} | settings
    with Checkpoints(run / "checkpoints", keep_last=9) as checkpoints:
        for step, state in states.items():
            state = {"opt_state": {"mu": np.ones(5, np.float32)}, "step": np.int32(step)} | state
            state = jax.tree.map(jax.numpy.asarray, state)
            checkpoints.save(step, state, {"experiment": experiment}, (scores or {}).get(step))


@pytest.fixture(scope="module")
def run(params, tmp_path_factory):
    """Three checkpoints, of which the second is the best."""
    run = tmp_path_factory.mktemp("runs") / "a"
    saved = {step: {"params": tree} for step, tree in states(params).items()}
    write(run, saved, {1: 0.5, 2: 0.9})
    return run


def assert_step(loaded, params, step):
    jax.tree.map(np.testing.assert_array_equal, loaded.params, states(params)[step])


def test_the_model_is_that_of_the_experiment(run, params):
    """The newest checkpoint, with the run's overrides; 64 px once became 256."""
    loaded = load(run)
    assert loaded.name == NANO
    # The compute type is chosen where the model is run.
    assert loaded.config == get_config(NANO, image_size=64, hiera=OVERRIDES["hiera"])
    assert_step(loaded, params, 3)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(loaded.params))
    assert build_sam2(checkpoint=run).config.image_size == 64
    assert build_sam2(checkpoint=run, image_size=96).config.image_size == 96
    with pytest.raises(ValueError, match=r"holds sam2_nano, not sam2\.1_hiera_tiny"):
        load(run, "sam2.1_hiera_tiny")


def test_the_best_and_any_other_checkpoint(run, params, monkeypatch):
    assert_step(load(f"{run}@best"), params, 2)
    assert_step(load(run / "checkpoints" / "1"), params, 1)
    monkeypatch.chdir(run.parent)
    assert_step(load("a@best"), params, 2)
    monkeypatch.chdir(run / "checkpoints")
    assert_step(load(run / "checkpoints" / "2"), params, 2)
    with pytest.raises(FileNotFoundError, match="checkpoints/4"):
        load(run / "checkpoints" / "4")


def test_conversion_keeps_the_overrides_or_tells_of_them(run, tmp_path, capsys):
    assert main(["--input", str(run), "--output", str(tmp_path / "a")]) == 0
    assert load(tmp_path / "a").config.image_size == 64
    assert capsys.readouterr().err == ""
    assert main(["--input", f"{run}@best", "--output", str(tmp_path / "a.pt")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "image_size=64" in line
    assert main(["--input", str(run), "--output", str(run)]) == 2
    assert "which is read as well and would be lost" in capsys.readouterr().err


def test_there_is_no_best_without_scores(params, tmp_path):
    write(tmp_path, {1: {"params": params}})
    with pytest.raises(ValueError, match=r"has a score.*validation\.every"):
        load(f"{tmp_path}@best")


def test_what_training_alone_knows_is_resolved(params, tmp_path):
    """The average takes the place of what it is of, and low-rank updates are added, averaged too."""
    adapters = lora.init(params, 2, np.random.default_rng(0))
    adapters = jax.tree.map(lambda x: x + np.float32(0.1), adapters)
    decoder = jax.tree.map(lambda x: x + 1, params["mask_decoder"])
    averaged = jax.tree.map(lambda x: x / 2, adapters)
    state = {
        "params": params | {"lora": adapters},
        "ema": {"mask_decoder": decoder, "lora": averaged},
    }
    write(tmp_path, {7: state})
    expected = lora.merge(params | {"mask_decoder": decoder, "lora": averaged})
    loaded = load(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(expected))
    assert "lora" not in loaded
    qkv = loaded["image_encoder"]["trunk"]["blocks_0"]["attn"]["qkv"]["kernel"]
    before = params["image_encoder"]["trunk"]["blocks_0"]["attn"]["qkv"]["kernel"]
    assert np.abs(qkv - before).max() > 1e-3


def damage(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", ["record/metadata", "state/d/*", "state/ocdbt.process_0/d/*"])
def test_a_damaged_checkpoint_is_passed_over_but_not_if_it_was_asked_for(
    params, tmp_path, part, caplog
):
    write(tmp_path, {n: {"params": tree} for n, tree in states(params).items()}, {3: 1.0, 1: 0.0})
    newest = tmp_path / "checkpoints" / "3"
    files = list(newest.glob(part))
    assert files
    for file in files:
        damage(file)
    before = sorted(tmp_path.rglob("*"))
    assert_step(load(tmp_path), params, 2)
    assert "checkpoints/3 cannot be read" in caplog.text
    assert_step(load(f"{tmp_path}@best"), params, 1)
    with pytest.raises(ValueError, match=r"holds no checkpoint that is whole; .*checkpoints/3: "):
        load(newest)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_a_whole_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir(parents=True)
    assert run_folder.is_run(tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint that is whole"):
        load(tmp_path)


def test_a_run_of_another_model_than_its_weights_is_refused(params, tmp_path):
    write(tmp_path, {1: {"params": params}}, model="sam2.1_hiera_tiny")
    with pytest.raises(ValueError, match=rf"{tmp_path}: the tensors do not fit"):
        load(tmp_path)


def test_values_that_were_changed_on_the_disk_are_found(params, tmp_path):
    """Files that a disk changed can still be read; the checksums tell."""
    small = {"params": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    write(tmp_path, {1: small})
    record = run_folder.read_record(tmp_path / "checkpoints" / "1")
    (checksum,) = (x[2] for path, x in record["arrays"].items() if path == "params/a")
    assert run_folder.array_checksum(small["params"]["a"]) == checksum
    assert run_folder.array_checksum(small["params"]["a"][::-1].copy()) != checksum
    rows = [run_folder.array_checksum(small["params"]["a"][i : i + 1], [i, 0]) for i in (0, 1)]
    assert sum(rows) % 2**32 == checksum
