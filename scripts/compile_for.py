"""Compiles a step for chips that need not be there, and says what it does and what a chip must hold.

    python scripts/compile_for.py --what=inference --platform=gpu --objects=8 --frames=8
    python scripts/compile_for.py --what=inference --model=sam2.1_hiera_large --topology=v5e:2x2
    python scripts/compile_for.py --config=configs/smoke.py --topology=v5e:2x4
    python scripts/compile_for.py --config=configs/train_joint.py:large --dataset=sav --topology=v5e:16x16

What can be compiled:

    train      a training step of the experiment in --config; every chip gets one clip of the shape that
               --dataset has, by default the first
    inference  a tracked frame, or with --frames=T that many in one program; every chip gets a video of its own
    encode     the features of --frames images, by default one
    memory_attention
               memory attention alone, called recall before
    attention  of that, what one layer attends to: the frame itself, and the memory

Compiling takes minutes, far fewer with --quick, which does not optimise. TPUs need libtpu (`make pods`, or
`pip install 'jax[tpu]'`), --platform=gpu needs `pip install 'jax[cuda13]'`, which takes 5 GB and no GPU.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ahead_of_time
import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from sam2_jax.config import POSTPROCESSING_VIDEO, ModelConfig, get_config
from sam2_jax.experiment import Experiment, from_config_dict
from sam2_jax.experiment import Mesh as MeshSizes
from sam2_jax.model import memory_bank
from sam2_jax.model.sam2 import Sam2, param_shapes
from sam2_jax.ops.attention import attend_parts, attention, merge
from sam2_jax.parallel.mesh import BATCH_AXES, make_mesh
from sam2_jax.structs import Features, Frame
from sam2_jax.track import propagate, step
from sam2_jax.train.recipe import make_recipe
from sam2_jax.train.state import abstract_batch, abstract_state
from sam2_jax.train.step import compiled_step

_WHAT = flags.DEFINE_enum(
    "what",
    "train",
    ["train", "inference", "encode", "memory_attention", "recall", "attention"],
    "what is compiled",
)
_PLATFORM = flags.DEFINE_enum("platform", "tpu", ["tpu", "gpu"], "gpu is one H200")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "TPU chips; 2*v5e:16x16 is two slices")
_QUICK = flags.DEFINE_bool("quick", False, "compile without optimising; temporaries are too large")
_JSON = flags.DEFINE_string("json", None, "also write the report to this file")
# Of training.
_CONFIG = config_flags.DEFINE_config_file("config", None, "experiment, such as configs/smoke.py")
_DATASET = flags.DEFINE_string("dataset", None, "whose clips; the first if not given")
# Of all others.
_MODEL = flags.DEFINE_string("model", "sam2.1_hiera_tiny", "which is run")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "side of its input; the model's own if not given"
)
_OBJECTS = flags.DEFINE_integer("objects", 1, "that are tracked", lower_bound=1)
_FRAMES = flags.DEFINE_integer("frames", None, "in one program; None is a step", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "compute type")


def training_step(setting: Experiment, mesh: Mesh) -> tuple[Callable, tuple[Any, ...]]:
    """Returns the training step of one clip a chip, and the shapes of its arguments."""
    name = _DATASET.value or next(iter(setting.datasets))
    if name not in setting.datasets:
        raise ValueError(f"no dataset {name!r}; there are {', '.join(setting.datasets)}.")
    data, recipe = setting.datasets[name], make_recipe(setting)
    num_clips = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = abstract_batch(recipe, mesh, num_clips, data.num_frames, data.max_objects)
    return compiled_step(recipe, mesh), (
        abstract_state(recipe, mesh),
        batch,
        recipe.hyperparameters,
    )


def inference(config: ModelConfig, mesh: Mesh) -> tuple[Callable, tuple[Any, ...]]:
    """Returns what --what asks for, of a video a chip, and the shapes of its arguments."""
    sam2, size, grid = Sam2(config), config.image_size, config.grid
    shape = jax.ShapeDtypeStruct
    bank = jax.eval_shape(functools.partial(memory_bank.empty, config, _OBJECTS.value))
    index = shape((), jnp.int32)
    image = shape((size, size, 3), jnp.uint8)
    clip = lambda x: shape((_FRAMES.value or 1, *x.shape), x.dtype)
    embedding = shape((1, grid, grid, config.hidden_dim), jnp.dtype(config.dtype))
    apply = lambda method: (
        lambda params, *args: sam2.apply({"params": params}, *args, method=method)
    )
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    if _WHAT.value == "encode":
        function, arguments = apply("encode"), (clip(image),)
    elif _WHAT.value in ("memory_attention", "recall"):
        function = apply("condition_on_memory")
        arguments = (bank, Features(embedding, ()), index)
    elif _WHAT.value == "attention":
        c, slots = config.hidden_dim, config.num_maskmem
        each = lambda *sizes: shape((_OBJECTS.value, *sizes), jnp.dtype(config.dtype))
        frame = each(grid**2, 1, c)
        memory = [each(slots, grid**2, width) for width in (c, config.memory_dim)]
        arguments = (frame, frame, frame, *memory, shape((_OBJECTS.value, slots), jnp.bool))

        function = lambda _, q, k, v, *memory: (
            attention(q, k, v),
            merge(attend_parts(q[:, :, 0], *memory)),
        )
    elif _FRAMES.value is None:
        function, arguments = functools.partial(step, sam2), (bank, Frame(image, index))
    else:
        function = functools.partial(propagate, sam2)
        arguments = (bank, Frame(clip(image), clip(index)))

    def one_chip(params, *video):
        alone = lambda tree: jax.tree.map(lambda x: x[0], tree)
        return jax.tree.map(lambda x: x[None], function(params, *map(alone, video)))

    whole, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (BATCH_AXES,)))
    every_chip = jax.shard_map(
        one_chip,
        mesh=mesh,
        in_specs=(whole.spec, *(cut.spec for _ in arguments)),
        out_specs=cut.spec,
        check_vma=False,
    )
    jitted = jax.jit(
        every_chip,
        in_shardings=(whole, *(cut for _ in arguments)),
        out_shardings=cut,
        donate_argnums=1 if _WHAT.value == "inference" else (),
    )
    videos = jax.tree.map(lambda x: shape((mesh.size, *x.shape), x.dtype), arguments)
    return jitted, (param_shapes(config), *videos)


def main(_: list[str]) -> None:
    """Compiles what the command line asks for, and prints the report."""
    jax.config.update("jax_platforms", "cpu")  # the chips are not there
    is_gpu, is_training = _PLATFORM.value == "gpu", _WHAT.value == "train"
    try:
        if is_training != (_CONFIG.value is not None):
            raise ValueError("--config is what --what=train needs, and nothing else reads it.")
        devices = (
            ahead_of_time.gpu_devices() if is_gpu else ahead_of_time.tpu_devices(_TOPOLOGY.value)
        )
        if is_training:
            setting = from_config_dict(_CONFIG.value.to_dict())
            model = setting.model
            function, arguments = training_step(setting, make_mesh(setting.mesh, devices))
        else:
            count = lambda n, name: f"{n} {name}" + "s" * (n > 1)
            objects, frames = count(_OBJECTS.value, "object"), count(_FRAMES.value or 1, "frame")
            model = f"{_MODEL.value}, {objects}, {frames}"
            config = get_config(
                _MODEL.value,
                dtype=_DTYPE.value,
                **POSTPROCESSING_VIDEO,
                **({"image_size": _IMAGE_SIZE.value} if _IMAGE_SIZE.value else {}),
            )
            function, arguments = inference(config, make_mesh(MeshSizes(data=-1), devices))
        report = ahead_of_time.compile_ahead(function, arguments, devices, _QUICK.value)
    except (ValueError, RuntimeError, MemoryError) as error:
        sys.exit(f"compile_for.py: error: {error}")
    chips = devices[0].device_kind if is_gpu else _TOPOLOGY.value
    print(f"{model}, {_WHAT.value}, {chips}\n\n{report.table()}", flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(report.json() + "\n")


if __name__ == "__main__":
    app.run(main)
