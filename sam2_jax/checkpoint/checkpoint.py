"""The weights of a model, and all that is needed to run them."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from sam2_jax.config import MODELS, ModelConfig, resolve_model_name


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """What every loader returns and every writer takes.

    Attributes:
      name: the released model it is a version of, a key of `sam2_jax.config.MODELS`.
      config: what it computes.
      params: nested dicts of arrays.
    """

    name: str
    config: ModelConfig
    params: Mapping[str, Any]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the parameters; see `digest`."""
        return digest(self.params)

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of the configuration that are not those of the released model; `hiera` is a dict.

        The compute type is the choice of whoever runs the model, so it is none of them.

        Raises:
          ValueError: when there is no model of this name.
        """
        released = MODELS[resolve_model_name(self.name)]
        changed = _changed(self.config, released)
        changed.pop("dtype", None)
        if "hiera" in changed:
            changed["hiera"] = _changed(self.config.hiera, released.hiera)
        return changed


def digest(params: Mapping[str, Any]) -> str:
    """Returns the SHA-256, in hexadecimal, over path, shape, type and bytes of every parameter.

    It is the same whatever file equal parameters come from.

    Args:
      params: nested dicts of arrays.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.asarray(leaf)
        total.update(f"{path} {array.shape} {array.dtype}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _changed(config: Any, released: Any) -> dict[str, Any]:
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for name, value in fields.items() if value != getattr(released, name)}
