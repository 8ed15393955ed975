"""What programs for the original do with a `torch.nn.Module`, on models and predictors.

A model stays where it is: moving it and switching it to evaluation do nothing. Options can be set as
attributes: what decides shapes is refused, all else takes effect from the next call on.
"""

import dataclasses
import functools
import inspect
import sys
import warnings
from typing import Any, TypeVar

import jax

_Class = TypeVar("_Class", bound=type)

# What the parameters were made for, or what the state of a session on the device is shaped by.
_FIXED = {
    "hiera",
    "image_size",
    "hidden_dim",
    "memory_dim",
    "dtype",
    "memory_dtype",
    "memory_attention_layers",
    "num_maskmem",
    "max_obj_ptrs_in_encoder",
    "memory_policy",
}
_CACHED = {"config": ("_module",), "params": ("digest",)}  # what is computed from an attribute
_TORCH_ONLY = {
    "parameters",
    "named_parameters",
    "state_dict",
    "load_state_dict",
    "requires_grad_",
    "modules",
    "forward_image",
    "image_encoder",
    "memory_attention",
    "memory_encoder",
    "sam_prompt_encoder",
    "sam_mask_decoder",
    "track_step",
    "_run_single_frame_inference",
    "_run_memory_encoder",
    "_get_image_feature",
    "_prepare_memory_conditioned_features",
    "_encode_new_memory",
    "_forward_sam_heads",
    "_transforms",
}
_WHERE_TO_GO = (
    "is a part of the original's PyTorch module, which is not here: the model is a function of its "
    "parameters. `model.params` holds them, `model.module` is the Flax module, and docs/training.md says how "
    "to fine-tune."
)


class ModuleLike:
    """Mix-in of `Model` and of predictors that hold one as `model`."""

    def _options(self) -> Any:
        """The model, whose parts hold the options."""
        return vars(self).get("model", self)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Returns itself, where it was: `JAX_PLATFORMS` or `jax.default_device` choose the device."""
        del args, kwargs
        return self

    def eval(self) -> Any:
        """Returns itself: dropout is never on outside of training."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Returns itself with `mode=False`.

        Raises:
          NotImplementedError: with `mode=True`: training is `sam2-jax train`.
        """
        if mode:
            raise NotImplementedError(
                "A predictor does not train: sam2-jax train does, and docs/training.md says how."
            )
        return self

    def cpu(self) -> Any:
        """As `to`."""
        return self

    cuda = float = half = bfloat16 = to

    @property
    def device(self) -> Any:
        """The device of the parameters; where PyTorch is imported, by the name PyTorch gives it."""
        (leaf, *_) = jax.tree.leaves(self._options().params)
        platform = next(iter(leaf.devices())).platform
        torch = sys.modules.get("torch")
        if torch is None:
            return platform
        is_cuda = platform in ("gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda" if is_cuda else "cpu")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            options = self._options()
            for part in ("config", "session"):
                held = vars(options).get(part)
                if held is not None and any(f.name == name for f in dataclasses.fields(held)):
                    return getattr(held, name)
        if name in _TORCH_ONLY:
            raise AttributeError(f"{type(self).__name__}.{name} {_WHERE_TO_GO}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        options = self._options()
        for part in ("config", "session"):
            held = vars(options).get(part)
            if held is None or name not in {f.name for f in dataclasses.fields(held)}:
                continue
            if value == getattr(held, name):
                return
            if name in _FIXED:
                raise AttributeError(
                    f"{name} cannot be set on a model that is built: build it with {name}={value!r}."
                )
            setattr(options, part, dataclasses.replace(held, **{name: value}))
            return
        if name in _TORCH_ONLY:
            raise AttributeError(f"{type(self).__name__}.{name} {_WHERE_TO_GO}")
        object.__setattr__(self, name, value)
        for cached in _CACHED.get(name, ()):
            vars(self).pop(cached, None)


def lets_unknown_pass(cls: _Class) -> _Class:
    """Class decorator: keywords that the constructor does not know are dropped with a warning.

    The original's constructors drop them without a word, and programs pass what was meant for a builder.
    """
    init = cls.__init__
    known = set(inspect.signature(init).parameters)

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        if unknown := sorted(kwargs.keys() - known):
            warnings.warn(
                f"{type(self).__name__} does not know {', '.join(unknown)}: without effect.",
                stacklevel=2,
            )
        init(self, *args, **{name: kwargs[name] for name in kwargs if name in known})

    cls.__init__ = wrapped
    return cls
