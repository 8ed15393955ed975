"""Low-rank updates of attention projections (Hu et al. 2021): W + A B, of which only A and B are trained."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

_ATTENTION = re.compile(r"attn[^/]*/(qkv|proj|[qkv]_proj|out_proj)/kernel$")


def init(params: Mapping[str, Any], rank: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns `a` (in, rank) and `b` (rank, out) for the kernel of every attention projection.

    `b` is zero, so that nothing changes before the first step.

    Args:
      params: of the model, nested; anything with `.shape`.
      rank: of the updates.
      rng: draws `a`.
    """
    adapters = {}
    kernels: dict[str, Any] = flatten_dict(params, sep="/")
    for path, kernel in kernels.items():
        if _ATTENTION.search(path):
            width, out = kernel.shape
            scale = np.float32(width**-0.5)
            adapters[f"{path}/a"] = scale * rng.standard_normal((width, rank), np.float32)
            adapters[f"{path}/b"] = np.zeros((rank, out), np.float32)
    return unflatten_dict(adapters, sep="/")


def merge(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the model alone, with the updates under `lora` added to them."""
    model = {name: x for name, x in params.items() if name != "lora"}
    if "lora" not in params:
        return model
    merged: dict[str, Any] = flatten_dict(model, sep="/")
    flat: dict[str, Any] = flatten_dict(params["lora"], sep="/")
    for path in {name.rpartition("/")[0] for name in flat}:
        update = jnp.matmul(
            flat[f"{path}/a"], flat[f"{path}/b"], precision=jax.lax.Precision.HIGHEST
        )
        merged[path] = nn.meta.unbox(merged[path]) + update
    return unflatten_dict(merged, sep="/")
