"""What would be trained: a table of the parameters, the batches, and the first one as a picture."""

import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

from sam2_jax.data.contact_sheet import contact_sheet, stack_sheets
from sam2_jax.data.loader import Loader, make_loader
from sam2_jax.data.masks import png_bytes
from sam2_jax.experiment import Experiment
from sam2_jax.files import write_file
from sam2_jax.parallel.mesh import batch_share, make_mesh
from sam2_jax.train.optimizer import learning_rates, weight_decays
from sam2_jax.train.preflight import preflight
from sam2_jax.train.recipe import Recipe, make_recipe
from sam2_jax.train.state import abstract_state, starting_params

FIRST_BATCH = "first_batch.png"


def dry_run(experiment: Experiment, folder: str | os.PathLike) -> str:
    """Tells what a run would train, and on what, without compiling or training anything.

    Args:
      experiment: of the run.
      folder: of the run; the first batch becomes a picture in it.

    Returns:
      Lines of text.

    Raises:
      ValueError: a setting does not fit.
      FileNotFoundError: data are missing.
    """
    recipe, mesh = make_recipe(experiment), make_mesh(experiment.mesh)
    preflight(experiment, mesh, recipe.config.image_size)
    start = "random weights"
    if starting_params(recipe) is not None:
        start = experiment.init_from
    loader = make_loader(
        experiment.datasets,
        recipe.config.image_size,
        experiment.seed,
        experiment.num_workers,
        *batch_share(mesh),
    )
    name, batch = next(loader)
    loader.close()
    path = Path(folder).absolute() / FIRST_BATCH
    write_png(path, draw_batch(batch))
    lines = [
        *parameter_table(recipe, mesh),
        "",
        f"starts from: {start}",
        f"mesh: {', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())}",
        *(_describe_dataset(experiment, name, loader) for name in experiment.datasets),
        "",
        f"first batch: {name}, {path}",
        *(
            f"  {key:<10}{x.shape!s:<24}{x.dtype}"
            for key, x in batch.items()
            if isinstance(x, np.ndarray)
        ),
        *(f"  {clip}" for clip in batch["names"]),
    ]
    return "\n".join(lines)


def parameter_table(recipe: Recipe, mesh: jax.sharding.Mesh) -> list[str]:
    """Returns one line a parameter: path, shape, how it is cut, peak learning rate, weight decay."""
    params: dict[str, Any] = flatten_dict(abstract_state(recipe, mesh).params, sep="/")
    optimizer, depth = recipe.experiment.optimizer, sum(recipe.config.hiera.stages)
    rates, decays = learning_rates(params, depth, optimizer), weight_decays(params, optimizer)
    is_learned = {path: recipe.is_trained(path) for path in params}
    width = max(map(len, params))
    row = f"{{:<{width}}}  {{:<20}}  {{:<26}}  {{:>13}}  {{:>12}}"
    lines = [row.format("parameter", "shape", "sharding", "learning rate", "weight decay")]
    for path, x in params.items():
        rate, decay = f"{rates[path]:.3g}", f"{decays[path]:g}"
        learned = (rate, decay) if is_learned[path] else ("frozen", "")
        lines.append(row.format(path, str(x.shape), _cut(x.sharding.spec), *learned).rstrip())
    size = lambda paths: sum(params[path].size for path in paths)
    trained = [path for path in params if is_learned[path]]
    lines.append(
        f"{len(params)} arrays, {size(params):,} parameters; trained: {len(trained)} arrays, "
        f"{size(trained):,} parameters"
    )
    return lines


def _cut(spec: jax.sharding.PartitionSpec) -> str:
    return f"({', '.join('-' if name is None else str(name) for name in spec)})"


def _describe_dataset(experiment: Experiment, name: str, loader: Loader) -> str:
    dataset, share = experiment.datasets[name], loader.shares.get(name, 0)
    epoch = ""
    if name in loader.epochs:
        steps = math.ceil(loader.epochs[name])
        epoch = f"; an epoch takes {steps} steps, the run has {experiment.num_steps / steps:.3g}"
    return (
        f"dataset {name}: {share:.0%} of the steps, {dataset.batch_size} clips of {dataset.num_frames} "
        f"frames with up to {dataset.max_objects} objects{epoch}"
    )


def draw_batch(batch: dict[str, Any]) -> np.ndarray:
    """Draws the clips of a batch with their masks, (H, W, 3) uint8."""
    clips = zip(batch["images"], batch["masks"], batch["is_object"], batch["names"], strict=True)
    return stack_sheets(
        [
            contact_sheet(images, masks[:, is_object], title=name)
            for images, masks, is_object, name in clips
        ]
    )


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes a picture (H, W, 3) uint8; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, png_bytes(Image.fromarray(image)))
