"""What a run will need, opened and checked before anything is compiled."""

import jax

from sam2_jax.evaluate.clips import open_held_out
from sam2_jax.experiment import Experiment
from sam2_jax.train.metrics import check_wandb


def preflight(experiment: Experiment, mesh: jax.sharding.Mesh, image_size: int) -> None:
    """Checks that a run can begin, and that it will not end at its first validation.

    Raises:
      ValueError: a setting does not fit.
      FileNotFoundError: data are missing.
    """
    check_batch_sizes(experiment, mesh)
    frozen = [
        f"optimizer.groups.{name}.is_frozen is True"
        for name, group in experiment.optimizer.groups.items()
        if group.is_frozen
    ]
    if experiment.trainable != "all":
        frozen.append(f"trainable is {experiment.trainable!r}")
    if frozen and not experiment.init_from:
        raise ValueError(
            f"{frozen[-1]}, but the frozen parts would be random: name weights to start from with "
            "--config.init_from=CHECKPOINT, or train everything"
        )
    check_wandb(experiment.wandb_project)
    if experiment.validation.every or experiment.draw_every:
        validation = experiment.validation
        for dataset in (validation.dataset, *validation.more.values()):
            open_held_out(dataset, image_size)


def check_batch_sizes(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises a ValueError if the clips of a batch do not spread evenly over the devices."""
    parts = experiment.optimizer.accumulate
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] * parts
    for name, dataset in experiment.datasets.items():
        if dataset.weight and dataset.batch_size % multiple:
            raise ValueError(
                f"datasets.{name}.batch_size is {dataset.batch_size}; it must be a multiple of {multiple}: "
                f"mesh.data {mesh.shape['data']} x mesh.fsdp {mesh.shape['fsdp']} x accumulate {parts}."
            )
