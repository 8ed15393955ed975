"""Compiles the training or the inference step for TPUs that need not be there, and says what a chip must hold.

    python scripts/compile_for.py --config=configs/smoke.py --topology=v5e:2x4
    python scripts/compile_for.py --config=configs/train_joint.py:large --dataset=sav --topology=v5e:16x16
    python scripts/compile_for.py --config=configs/smoke.py --topology=2*v5e:4x4 --what=inference --quick

Every chip gets one clip of the shape that the dataset has, by default the first. Compiling takes minutes, far
fewer with --quick, which does not optimise. Needs libtpu: `make pods`, or `pip install 'jax[tpu]'`.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from sam2_jax.experiment import Dataset, Experiment, from_config_dict
from sam2_jax.model import memory_bank
from sam2_jax.model.sam2 import Sam2, param_shapes
from sam2_jax.parallel import ahead_of_time
from sam2_jax.parallel.mesh import BATCH_AXES, make_mesh
from sam2_jax.structs import Frame
from sam2_jax.track import step
from sam2_jax.train.step import Learner, model_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "experiment, such as configs/smoke.py")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "chips; 2*v5e:16x16 is two slices")
_DATASET = flags.DEFINE_string("dataset", None, "whose clips; the first if not given")
_WHAT = flags.DEFINE_enum("what", "train", ["train", "inference"], "which step")
_QUICK = flags.DEFINE_bool("quick", False, "compile without optimising; temporaries are too large")
_JSON = flags.DEFINE_string("json", None, "also write the report to this file")


def training_step(
    experiment: Experiment, data: Dataset, mesh: Mesh
) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the training step and the shapes of its arguments."""
    learner = Learner(experiment)
    num_clips = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = learner.abstract_batch(mesh, num_clips, data.num_frames, data.max_objects)
    return learner.step(mesh), (learner.abstract_state(mesh), batch)


def inference_step(
    experiment: Experiment, data: Dataset, mesh: Mesh
) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the step of one frame of one video a chip, and the shapes of its arguments."""
    config = model_config(experiment)
    whole, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (BATCH_AXES,)))

    def one_chip(params, bank, frame):
        alone = lambda tree: jax.tree.map(lambda x: x[0], tree)
        answer = step(Sam2(config), params, alone(bank), alone(frame))
        return jax.tree.map(lambda x: x[None], answer)

    every_chip = jax.shard_map(
        one_chip,
        mesh=mesh,
        in_specs=(whole.spec, cut.spec, cut.spec),
        out_specs=cut.spec,
        check_vma=False,
    )
    num_videos, size = mesh.shape["data"] * mesh.shape["fsdp"], config.image_size
    bank = jax.eval_shape(functools.partial(memory_bank.empty, config, data.max_objects))
    bank = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_videos, *x.shape), x.dtype), bank)
    image = jax.ShapeDtypeStruct((num_videos, size, size, 3), np.uint8)
    frame = Frame(image, jax.ShapeDtypeStruct((num_videos,), np.int32))
    jitted = jax.jit(
        every_chip, in_shardings=(whole, cut, cut), out_shardings=cut, donate_argnums=1
    )
    return jitted, (param_shapes(config), bank, frame)


def _dataset(experiment: Experiment, name: str | None) -> Dataset:
    name = name or next(iter(experiment.datasets))
    if name not in experiment.datasets:
        raise ValueError(f"no dataset {name!r}; there are {', '.join(experiment.datasets)}.")
    return experiment.datasets[name]


def main(_: list[str]) -> None:
    """Compiles what the command line asks for, and prints the report."""
    jax.config.update("jax_platforms", "cpu")  # the chips are not there
    try:
        experiment = from_config_dict(_CONFIG.value.to_dict())
        devices = ahead_of_time.tpu_devices(_TOPOLOGY.value)
        build = training_step if _WHAT.value == "train" else inference_step
        data = _dataset(experiment, _DATASET.value)
        function, arguments = build(experiment, data, make_mesh(experiment.mesh, devices))
        report = ahead_of_time.compile_ahead(function, arguments, len(devices), _QUICK.value)
    except (ValueError, RuntimeError, MemoryError) as error:
        sys.exit(f"compile_for.py: error: {error}")
    print(f"{experiment.model}, {_WHAT.value}, {_TOPOLOGY.value}\n\n{report.table()}", flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(report.json() + "\n")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
