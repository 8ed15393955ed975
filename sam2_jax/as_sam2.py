"""Lets programs for the original run unchanged: `import sam2_jax.as_sam2` before `import sam2`.

Or, without touching them at all:

    python -m sam2_jax.as_sam2 program.py --its-own options

From then on `sam2` is this package. Video results are tensors where PyTorch is installed, as the original's
are; what has no counterpart here (`sam2.modeling`, its training, Hydra's configurations) cannot be imported,
and the error says where to go.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MODULES = (
    "build_sam",
    "sam2_image_predictor",
    "sam2_video_predictor",
    "sam2_camera_predictor",
    "automatic_mask_generator",
    "utils",
    "utils.amg",
    "utils.misc",
)
_ELSEWHERE = {
    "modeling": "the model is Flax Linen, in sam2_jax.model; its parts are listed in docs/architecture.md",
    "configs": "configurations are sam2_jax.config.ModelConfig, and arguments of the builders",
    "training": "training is sam2-jax train; docs/training.md says how",
}


class _Refusal(importlib.abc.MetaPathFinder):
    """Says where to go for what of `sam2` is not here."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if not fullname.startswith("sam2."):
            return
        part = fullname.split(".")[1]
        where = _ELSEWHERE.get(part, "docs/migrate.md lists what there is")
        raise ModuleNotFoundError(
            f"{fullname} of the original has no counterpart in sam2_jax: {where}.", name=fullname
        )


def register() -> None:
    """Puts this package under the name `sam2`; done by importing this module.

    Raises:
      ImportError: the original is imported already.
    """
    known = sys.modules.get("sam2")
    if known is not None:
        if vars(known).get("__file__") == __file__:
            return
        raise ImportError(
            "sam2 is imported already: import sam2_jax.as_sam2 must come before it, at the top of the program."
        )
    package = types.ModuleType("sam2", __doc__)
    package.__path__ = []
    package.__file__ = __file__
    modules = {"sam2": package}
    for name in _MODULES:
        original = importlib.import_module(f"sam2_jax.{name}")
        copy = types.ModuleType(f"sam2.{name}", original.__doc__)
        copy.__dict__.update({k: v for k, v in vars(original).items() if not k.startswith("__")})
        copy.__file__ = original.__file__
        modules[f"sam2.{name}"] = copy
        parent, _, last = f"sam2.{name}".rpartition(".")
        setattr(modules[parent], last, copy)
    modules["sam2.utils"].__path__ = []  # type: ignore[attr-defined]
    builders = modules["sam2.build_sam"]
    for module, predictor, *builds in (
        (
            "video",
            "SAM2VideoPredictor",
            "build_sam2_video_predictor",
            "build_sam2_video_predictor_hf",
        ),
        ("camera", "SAM2CameraPredictor", "build_sam2_camera_predictor"),
    ):
        own = modules[f"sam2.sam2_{module}_predictor"]
        tensors = _with_tensors(getattr(own, predictor))
        setattr(own, predictor, tensors)
        for name in builds:
            setattr(builders, name, _building(tensors, getattr(builders, name)))
    own = modules["sam2.sam2_video_predictor"]
    own.SAM2VideoPredictorVOS = own.SAM2VideoPredictor  # type: ignore[attr-defined]
    sys.modules.update(modules)
    sys.meta_path.insert(0, _Refusal())


def _options() -> dict[str, Any]:
    """What predictors of videos do as the original's: tensors, where PyTorch is installed, and no refusal."""
    outputs = "torch" if importlib.util.find_spec("torch") else "numpy"
    return {"outputs": outputs, "allow_empty_masks": True}


def _with_tensors(predictor: type) -> type:
    """A class of predictors with `from_pretrained` as the original's."""

    def from_pretrained(cls, model_id, **kwargs):
        return super(own, cls).from_pretrained(model_id, **{**_options(), **kwargs})

    members = {"from_pretrained": classmethod(from_pretrained), "__doc__": predictor.__doc__}
    own: Any = type(predictor.__name__, (predictor,), members)
    return own


def _building(predictor: type, build: Any) -> Any:
    """A builder of it."""
    return functools.wraps(build)(
        lambda *args, **kwargs: predictor(build(*args, **{**_options(), **kwargs}))
    )


def main(arguments: Sequence[str]) -> None:
    """Runs a program with `sam2` as this package.

    Args:
      arguments: the program's path and its own arguments.

    Raises:
      SystemExit: without a program.
    """
    if not arguments:
        sys.exit("usage: python -m sam2_jax.as_sam2 program.py [its arguments]")
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    runpy.run_path(arguments[0], run_name="__main__")


register()

if __name__ == "__main__":
    main(sys.argv[1:])
