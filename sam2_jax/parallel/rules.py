"""Which part of every array each device holds.

Rules name parameters by path. The first that matches says which axes are cut over `model`: matrix products in
pairs, the first by columns and the second by rows, so that one sum after the pair joins the parts (Shoeybi et
al. 2019). Of what is left, the largest axis is cut over `fsdp` (Rajbhandari et al. 2020). Moments of an
optimizer and averages end in their parameter's path and go the same way.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SMALLEST = 1024  # elements; arrays with fewer stay whole on every device of `fsdp`

_COLUMNS = (None, "model")
_ROWS = ("model", None)
_WHOLE = ()

# Searched for in the path. Axes are the last ones of an array, so that a bias goes with its kernel's columns.
RULES = (
    # One head: cut queries and keys would leave every score a sum over devices.
    (r"memory_attention/.*/[qk]_proj/(kernel|bias)$", _WHOLE),
    (r"attn\w*/(qkv|[qkv]_proj)/(kernel|bias)$", _COLUMNS),
    (r"attn\w*/(proj|out_proj)/kernel$", _ROWS),
    (r"(mlp/layers_0|linear1|pwconv1)/(kernel|bias)$", _COLUMNS),
    (r"(mlp/layers_1|linear2|pwconv2)/kernel$", _ROWS),
    # Convolutions, norms, heads on a few tokens, and what is added to maps and tokens.
    (r"/(kernel|bias|scale|gamma)$", _WHOLE),
    (r"(embed|embeddings|pos_enc|token|tokens|no_obj_ptr|gaussian_matrix)(_\w+)?$", _WHOLE),
    # Low-rank updates, the random key of a train state, and Muon's polynomial.
    (r"kernel/[ab]$", _WHOLE),
    (r"^key$", _WHOLE),
    (r"/ns_coeffs$", _WHOLE),
)


def spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how one array is cut.

    An axis that a size of the mesh does not divide is not cut.

    Args:
      mesh: with the axes `fsdp` and `model`.
      path: "/"-joined, such as `params/image_encoder/trunk/blocks_3/attn/qkv/kernel`.
      shape: of the array; one without axes needs no rule.

    Raises:
      ValueError: when no rule matches the path.
    """
    if not shape:
        return PartitionSpec()
    names: list[str | None] = [None] * len(shape)
    for axis, name in zip(range(-1, -len(shape) - 1, -1), reversed(_rule(path)), strict=False):
        if name and shape[axis] % mesh.shape[name] == 0:
            names[axis] = name
    whole = [axis for axis, name in enumerate(names) if name is None]
    divisible = [axis for axis in whole if shape[axis] % mesh.shape["fsdp"] == 0]
    if divisible and math.prod(shape) >= SMALLEST:
        names[max(divisible, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*names)


def _rule(path: str) -> tuple[str | None, ...]:
    for pattern, axes in RULES:
        if re.search(pattern, path):
            return axes
    raise ValueError(f"no sharding rule matches {path!r}; add one to RULES in {__name__}.")


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns how every array of a tree is cut, for parameters, gradients and whole train states.

    Args:
      mesh: from `sam2_jax.parallel.mesh.make_mesh`.
      tree: of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The tree with a `NamedSharding` in place of every array.

    Raises:
      ValueError: when no rule matches the path of an array.
    """

    def one(keys, leaf):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return NamedSharding(mesh, spec(mesh, path, leaf.shape))

    return jax.tree_util.tree_map_with_path(one, tree)
