"""Which part of every array each device holds.

Rules, which are part of an experiment, name parameters by path. The first that matches says how an array is cut
over `model`: `columns`, `rows` or `whole`. Of what is left, the largest axis is cut over `fsdp` (Rajbhandari et
al. 2020). Moments of an optimizer and averages end in their parameter's path and go the same way.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sam2_jax.experiment import Rules

SMALLEST = 1024  # elements; arrays with fewer stay whole on every device of `fsdp`

# Axes are the last ones of an array, so that a bias goes with its kernel's columns.
_CUTS = {"columns": (None, "model"), "rows": ("model", None), "whole": ()}


def spec(mesh: Mesh, rules: Rules, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how one array is cut.

    An axis that a size of the mesh does not divide is not cut.

    Args:
      mesh: with the axes `fsdp` and `model`.
      rules: see `Experiment.sharding`.
      path: "/"-joined, such as `params/image_encoder/trunk/blocks_3/attn/qkv/kernel`.
      shape: of the array; one without axes needs no rule.

    Raises:
      ValueError: when no rule matches the path.
    """
    if not shape:
        return PartitionSpec()
    names: list[str | None] = [None] * len(shape)
    for axis, name in zip(
        range(-1, -len(shape) - 1, -1), reversed(_rule(rules, path)), strict=False
    ):
        if name and shape[axis] % mesh.shape[name] == 0:
            names[axis] = name
    whole = [axis for axis, name in enumerate(names) if name is None]
    divisible = [axis for axis in whole if shape[axis] % mesh.shape["fsdp"] == 0]
    if divisible and math.prod(shape) >= SMALLEST:
        names[max(divisible, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*names)


def _rule(rules: Rules, path: str) -> tuple[str | None, ...]:
    for pattern, cut in rules:
        if re.search(pattern, path):
            return _CUTS[cut]
    raise ValueError(f"no sharding rule matches {path!r}; add one to `sharding` of the experiment.")


def shardings(mesh: Mesh, rules: Rules, tree: Any) -> Any:
    """Returns how every array of a tree is cut, for parameters, gradients and whole train states.

    Args:
      mesh: from `sam2_jax.parallel.mesh.make_mesh`.
      rules: see `Experiment.sharding`.
      tree: of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The tree with a `NamedSharding` in place of every array.

    Raises:
      ValueError: when no rule matches the path of an array.
    """

    def one(keys, leaf):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return NamedSharding(mesh, spec(mesh, rules, path, leaf.shape))

    return jax.tree_util.tree_map_with_path(one, tree)
