"""Transformations of a tree of parameters: freezing and low-rank updates.

Pure functions of nested dicts; paths are "/"-joined, such as `mask_decoder/iou_token`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam2_jax.experiment import Experiment
from sam2_jax.model import lora
from sam2_jax.train.optimizer import group_of

Params = Mapping[str, Any]

_MEMORY = r"memory_attention/|memory_encoder/|maskmem_tpos_enc|no_obj|obj_ptr_"
# Parts that `Experiment.trainable` names, as regular expressions on paths.
_TRAINED = {
    "all": r".",
    "no_encoder": r"^(?!image_encoder/)",
    "decoder": r"^mask_decoder/",
    "memory": rf"^({_MEMORY}|no_mem_embed)",
    "none": r"(?!)",
}
# A table of random frequencies that checkpoints carry, and a parameter that nothing reads.
_NEVER_TRAINED = re.compile(r"positional_encoding_gaussian_matrix$|^no_mem_pos_enc$")
# What images do not reach; weight decay would wear it down all the same.
_TRAINED_BY_VIDEOS = re.compile(rf"^({_MEMORY}|mask_downsample/)")


def is_trained(experiment: Experiment, path: str) -> bool:
    """Tells whether an experiment trains a parameter, or a low-rank update."""
    if path.startswith("lora/"):
        return True
    group = group_of(path, experiment.optimizer)
    if group and experiment.optimizer.groups[group].is_frozen:
        return False
    return (
        bool(re.search(_TRAINED[experiment.trainable], path))
        and not _NEVER_TRAINED.search(path)
        and (experiment.has_videos or not _TRAINED_BY_VIDEOS.search(path))
    )


def partition(params: Params, is_chosen: Callable[[str], bool]) -> tuple[dict, dict]:
    """Splits a tree by path: what is chosen, and the rest. `merge` puts it together again."""
    flat = flatten_dict(params, sep="/")
    parts = (
        {path: x for path, x in flat.items() if is_chosen(path) == wanted}
        for wanted in (True, False)
    )
    chosen, rest = (unflatten_dict(part, sep="/") for part in parts)
    return chosen, rest


def merge(params: Params, changed: Params) -> dict[str, Any]:
    """Returns the parameters with some of them added or replaced."""
    return unflatten_dict(flatten_dict(params, sep="/") | flatten_dict(changed, sep="/"), sep="/")


def with_lora(experiment: Experiment, params: Params) -> dict[str, Any]:
    """Returns the parameters with low-rank updates of frozen attention projections, under `lora`."""
    if not experiment.lora_rank:
        return dict(params)
    updates = lora.init(params, experiment.lora_rank, np.random.default_rng(experiment.seed))
    is_frozen = lambda path: not is_trained(experiment, path.rpartition("/")[0])
    return {**params, "lora": partition(updates, is_frozen)[0]}
