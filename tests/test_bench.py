"""The device benchmark as users run it, on a CPU with the smallest sizes; parity_torch/ has PyTorch's side."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam2_jax.bench import phases, runner
from sam2_jax.cli import main

ROOT = Path(__file__).parents[1]
SMALL = {"models": ["sam2_nano"], "objects": [2], "image_size": 64}
PHASES = [name for name in runner.LIMITS if name != "pytorch"]
# What only reads videos, trains or shows progress; the device benchmark's machine may lack it.
MISSING = ("av", "grain", "ml_collections", "orbax", "tensorflow_datasets", "tqdm")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What the script prints where nothing is installed but what it needs."""
    folder = tmp_path_factory.mktemp("missing")
    for name in MISSING:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not installed here')")
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "benchmark_device.py"),
            "--models=sam2_nano",
            "--objects=2",
            "--image-size=64",
            f"--phases={','.join(PHASES)}",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def test_every_phase_prints_a_line(output):
    lines = output.partition("\n\n")[0].splitlines()
    records = {record["phase"]: record for record in map(json.loads, lines)}
    assert list(records) == PHASES
    assert all(record["ok"] for record in records.values())
    rows = {name: records[name]["rows"] for name in PHASES}
    assert "jax " in rows["machine"][0]["packages"]
    assert [row["unit"] for row in rows["ceilings"]] == ["GB/s", "TFLOP/s"]
    attention = {row["case"]: row for row in rows["attention"]}
    assert "16 x 112, 2 objects, cpu" in attention
    assert all(row["relative error"] < 1e-5 for row in attention.values())
    assert [row["case"] for row in rows["encode"]] == [
        "sam2_nano, 64 px, batch 1",
        "sam2_nano, 64 px, batch 8",
    ]
    (tracked,) = rows["propagate"]
    assert tracked["case"] == "sam2_nano, 64 px, 2 objects"
    assert tracked["kernels a frame"] > 100
    assert tracked["seconds to compile"] > 0
    assert all(row["case"].startswith(tracked["case"]) for row in rows["video"])


def test_the_output_ends_in_a_table(output):
    facts, _, lines = output.partition("\n\n")[2].partition("\n\n")
    assert all(line.startswith("- ") for line in facts.splitlines())
    header, rule, *rows = lines.splitlines()
    assert header == "| phase | case | ms | rate | |"
    assert rule == "|---|---|---|---|---|"
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows} == set(PHASES[1:])
    assert all(row.count("|") == 6 for row in rows)


def test_all_but_the_first_model_track_the_first_number_of_objects(monkeypatch):
    monkeypatch.setattr(phases, "random_model", lambda name, *_: name)
    models = ["sam2.1_hiera_t.yaml", "facebook/sam2.1-hiera-large"]
    cases = list(phases.Settings(models=models, objects=[4, 9]).build_cases())
    tiny, large = "sam2.1_hiera_tiny", "sam2.1_hiera_large"
    assert cases == [(tiny, 4), (tiny, 9), (large, 4)]
    assert [name for name, _ in phases.Settings().configs()] == ["sam2_nano"], "on a CPU"


def test_every_phase_has_a_limit():
    assert all(callable(getattr(phases, name)) for name in runner.LIMITS)
    assert sum(runner.LIMITS.values()) <= 600


def test_a_phase_that_fails_says_why_and_the_next_one_runs():
    wrong = SMALL | {"dtype": "float99"}
    failed, machine = runner.run(["encode", "machine"], wrong, {"encode": 60, "machine": 60})
    assert failed["phase"] == "encode"
    assert not failed["ok"]
    assert "dtype is 'float99'" in failed["error"]
    assert machine["ok"]
    assert f"| encode | **failed** | | | {failed['error']} |" in runner.table([failed, machine])


def test_a_phase_that_takes_too_long_is_ended():
    start = time.monotonic()
    (record,) = runner.run(["propagate"], SMALL, {"propagate": 0.5})
    assert time.monotonic() - start < 5
    assert (record["ok"], record["rows"]) == (False, [])
    assert record["error"] == "it took longer than 0.5 s"


def test_what_was_measured_before_the_end_is_kept(monkeypatch, tmp_path):
    endless = tmp_path / "sam2_jax" / "bench"
    endless.mkdir(parents=True)
    for folder in (endless, endless.parent):
        (folder / "__init__.py").touch()
    (endless / "__main__.py").write_text(
        'import time\nprint(\'{"case": "first"}\', flush=True)\ntime.sleep(60)\n'
    )
    monkeypatch.setattr(runner, "_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)  # where `python -m` looks first
    (record,) = runner.run(["encode"], {}, {"encode": 5})
    assert record["rows"] == [{"case": "first"}]
    assert record["error"] == "it took longer than 5 s"


def test_the_exit_status_says_whether_all_phases_ran(monkeypatch, capsys):
    machine = {"phase": "machine", "ok": True, "seconds": 1.0, "rows": [{"case": "cpu"}]}
    row = {"case": "copy", "ms": 1.5, "rate": 1234.5, "unit": "GB/s", "MiB": 64}
    late = {"phase": "ceilings", "ok": False, "seconds": 40.0, "rows": [row], "error": "it is late"}
    monkeypatch.setattr(runner, "run", lambda names, settings: iter([machine, late]))
    assert main(["bench"]) == 1
    said = capsys.readouterr()
    assert "| ceilings | copy | 1.5 | 1,234 GB/s | MiB: 64 |\n| ceilings | **failed**" in said.out
    assert said.err.endswith("sam2-jax bench: failed: ceilings\n")


@pytest.mark.parametrize("torch", [None, "torch is there"])
def test_pytorch_is_left_out_where_it_is_not_installed(torch, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(runner, "run", lambda names, settings: ran.extend(names) or iter(()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: torch)
    assert main(["bench"]) == 0
    assert ("pytorch" in ran) == (torch is not None)
    assert ("pip install torch transformers" in capsys.readouterr().err) == (torch is None)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--phases=copying", "there is no phase 'copying'; there are ceilings, attention, encode"),
        ("--objects=1,0", "invalid list of whole numbers from 1 value: '1,0'"),
        ("--models=sam3", "Unknown model 'sam3'"),
        ("--image-size=100", "image_size is 100; it must be a positive multiple of 32"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(argument, message, capsys):
    try:
        status = main(["bench", argument])
    except SystemExit as stop:  # as argparse does
        status = stop.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
