"""The real run around a recipe that compiles in a second; as a script, the real command.

    python -m tests.train.toy_run --config=... --workdir=...

Everything but the model and its loss is what users run: the command line, procedural data, the optimizer, the
compiled and sharded step, checkpoints and metrics.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sam2_jax.commands import train as command
from sam2_jax.experiment import Dataset, Experiment, Optimizer
from sam2_jax.train import dry_run, launch, loop
from sam2_jax.train.optimizer import make_optimizer
from sam2_jax.train.recipe import Recipe
from tests import flags, toy

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.train.toy_run")
HIDDEN = 2048


def objective(params, batch, plan, keys):
    """How well a perceptron on noisy pixels learns the colours of objects."""
    decoder = params["mask_decoder"]
    noise = jax.vmap(lambda key: jax.random.normal(key, (1, 1, 1, 3)))(keys)
    x = batch.images[:, :, ::8, ::8] / 255 + 0.1 * noise
    x = jnp.tanh(x @ decoder["hidden"]["kernel"] + decoder["hidden"]["bias"])
    logits = (x @ decoder["out"]["kernel"] + decoder["out"]["bias"])[..., 0]
    target = batch.masks[..., ::8, ::8].astype(jnp.float32)
    loss = optax.sigmoid_binary_cross_entropy(logits[:, :, None], target).mean((1, 3, 4))
    names = ("loss", "mask", "dice", "iou", "presence", "true_iou", "present")
    return {name: (loss * batch.is_object).sum() for name in names}


def make_recipe(experiment: Experiment, loss_fn=None, objective=objective) -> Recipe:
    rng = np.random.default_rng(experiment.seed)
    kernel = lambda *shape: rng.standard_normal(shape).astype(np.float32) / shape[0]
    params = {
        "mask_decoder": {
            "hidden": {"kernel": kernel(3, HIDDEN), "bias": np.zeros(HIDDEN, np.float32)},
            "out": {"kernel": kernel(HIDDEN, 1), "bias": np.zeros(1, np.float32)},
        }
    }
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    optimizer = make_optimizer(shapes, 1, experiment.optimizer)
    return Recipe(experiment, toy.config(), shapes, lambda: params, objective, optimizer)


def experiment(**changes) -> Experiment:
    """Sixty quick steps on small drawn clips."""
    settings = {
        "datasets": {"drawn": Dataset(num_frames=2, max_objects=2, batch_size=2)},
        "optimizer": Optimizer(learning_rate=1e-2, encoder_learning_rate=1e-2),
        "num_steps": 60,
        "checkpoint_every": 5,
        "log_every": 1,
    }
    return Experiment(**(settings | changes))


def use_toy_recipe(patch=setattr) -> None:
    """Puts the toy in the place of the real recipe."""
    patch(loop, "make_recipe", make_recipe)
    patch(dry_run, "make_recipe", make_recipe)
    patch(launch, "COMMAND", COMMAND)


def write_config(folder: Path, **changes) -> Path:
    """Writes a file for `--config`."""
    path = folder / "toy.py"
    path.write_text(
        "from sam2_jax.data.datasets import *\nfrom sam2_jax.experiment import *\n"
        f"def get_config():\n    return to_config_dict({experiment(**changes)!r})\n"
    )
    return path


def start(
    config: Path,
    workdir: Path,
    *options: str,
    num_devices: int = 1,
    cache: Path | None = None,
    command: Sequence[str] = COMMAND,
    **environment: str,
) -> subprocess.Popen:
    """Starts the command, or one that starts it, in a process of its own."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags.QUICK} --xla_force_host_platform_device_count={num_devices}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COMPILATION_CACHE_DIR": str(cache or ROOT / ".cache" / "jax"),
        "PYTHONPATH": str(ROOT),
        **environment,
    }
    return subprocess.Popen(
        [*command, f"--config={config}", f"--workdir={workdir}", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    use_toy_recipe()
    sys.exit(command.main(sys.argv[1:]))
