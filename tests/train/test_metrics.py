import json
import resource
import struct
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sam2_jax.train import metrics
from sam2_jax.train.metrics import (
    MetricWriter,
    Speed,
    count_flops,
    memory_gb,
    one_line,
    peak_flops,
    read_metrics,
)


def write(folder: Path, steps: range, last_step: int = 0, **kwargs) -> None:
    writer = MetricWriter(folder, last_step, **kwargs)
    for step in steps:
        writer.write(step, {"loss": step / 2, "dataset": "drawn", "skipped": 0})
    writer.close()


def events(folder: Path) -> list:
    """Events of all TensorBoard files, in the order in which they were written."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_every_line_has_step_and_values(tmp_path):
    write(tmp_path, range(1, 4))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "loss": 0.5, "dataset": "drawn", "skipped": 0}
    assert read_metrics(tmp_path) == lines


def test_numbers_that_are_not_finite_are_null(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": jnp.float32(jnp.nan), "grad_norm": float("inf")})
    writer.close()
    assert '"loss": null, "grad_norm": null' in (tmp_path / "metrics.jsonl").read_text()


def test_no_step_appears_twice_after_a_restart(tmp_path):
    write(tmp_path, range(1, 8))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed here
    write(tmp_path, range(6, 9), last_step=5)
    assert [line["step"] for line in read_metrics(tmp_path)] == [*range(1, 9)]


def test_tensorboard_reads_the_numbers_and_forgets_those_of_dropped_steps(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    write(tmp_path, range(1, 4))
    write(tmp_path, range(3, 5), last_step=2)
    found = events(tmp_path)
    assert found[0].file_version == "brain.Event:2"
    losses = {
        event.step: value.simple_value
        for event in found
        for value in event.summary.value
        if value.tag == "loss"
    }
    assert losses == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}
    starts = [event.step for event in found if event.session_log.status == SessionLog.START]
    assert starts == [1, 3]
    tags = {value.tag for event in found for value in event.summary.value}
    assert tags == {"loss", "skipped"}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    writer = MetricWriter(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            writer.write(1, {"loss": 1.0, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()


def test_wandb_is_asked_for_only_if_wanted(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write(tmp_path, range(1, 2))
    with pytest.raises(ValueError, match="wandb_project is 'mine', but the package wandb is not"):
        MetricWriter(tmp_path, wandb_project="mine")


def test_wandb_gets_the_values_and_the_same_run_after_a_restart(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values["loss"]))

        def finish(self):
            calls.append("finish")

    def init(**kwargs):
        calls.append((kwargs["project"], kwargs["id"], kwargs["resume"], kwargs["config"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for last_step in (0, 1):
        steps = range(last_step + 1, last_step + 2)
        write(tmp_path, steps, last_step, wandb_project="mine", settings={"seed": 1})
    assert calls[0] == calls[3]
    assert calls[0][0] == "mine"
    assert calls[0][2:] == ("allow", {"seed": 1})
    assert calls[1:3] == [(1, 0.5), "finish"]
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path, range(1, 2), wandb_project="mine")
    assert calls[6][1] != calls[0][1], "the same path on another machine is another run"


def test_flops_of_a_scan_count_every_time():
    def loss(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=5)[0].sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(jnp.ones((4, 8)), jnp.ones((8, 8)))
    assert count_flops(traced.jaxpr) == 3 * 5 * 2 * 4 * 8 * 8


def test_flops_of_convolutions_and_of_branches():
    image, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))

    def depthwise(image, kernel):
        return jax.lax.conv_general_dilated(
            image,
            kernel,
            (2, 2),
            "SAME",
            feature_group_count=4,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    assert count_flops(jax.jit(depthwise).trace(image, kernel).jaxpr) == 2 * 4 * 4 * 4 * 9

    def branch(is_large, x):
        return jax.lax.cond(is_large, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_flops(jax.jit(branch).trace(True, jnp.ones((4, 4))).jaxpr) == 2 * 2 * 4**3


def test_flops_are_those_of_all_devices():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    product = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"),
        axis_names={"data"},
    )  # fmt: skip
    traced = jax.jit(product).trace(jnp.ones((8, 4)), jnp.ones((4, 4)))
    assert count_flops(traced.jaxpr) == 2 * 8 * 4 * 4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("cpu", None),
    ],
)
def test_peak_flops_of_known_devices(kind, expected):
    assert peak_flops(kind) == expected


def test_speed(monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    speed = Speed(peak_flops=1000.0)
    assert speed.rates() == {}
    speed.count(16, 500.0, waited=0.5)
    speed.count(16, 1500.0)
    now += 4
    assert speed.rates() == {"frames_per_s": 8.0, "step_s": 2.0, "data_s": 0.25, "mfu": 0.5}
    assert speed.rates() == {}  # nothing was done since
    speed.count(6, None)
    with speed.paused():
        now += 50
    now += 3
    assert speed.rates()["step_s"] == 3.0
    unknown = Speed(peak_flops=None)
    unknown.count(6, None)
    now += 2
    assert unknown.rates() == {"frames_per_s": 3.0, "step_s": 2.0, "data_s": 0.0}


def test_memory_is_that_of_the_process_on_a_cpu():
    assert 0.05 < memory_gb(jax.devices()[0]) < 100


def test_one_line():
    assert one_line({"loss": 0.123456, "dataset": "drawn"}) == "loss 0.1235, dataset drawn"
