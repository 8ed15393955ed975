"""The original's configuration: names of yaml files and overrides as its programs write them.

Hydra and the yaml files are not here; what a name or an override means is said by fields of `ModelConfig`.
"""

import ast
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

from sam2_jax.config import resolve_model_name

# Folders in which the files of this name are the original's.
_ORIGINAL_FOLDERS = ("", "configs", "sam2_configs", "sam2", "sam2.1", "facebook", "checkpoints")
# Projects whose files have the original's names and say something else: what comes closest here.
_FORKS: dict[str, dict[str, Any]] = {
    "samurai": {"memory_policy": "motion"},
    "dam4sam": {"memory_policy": "distractor"},
}
_PREDICTORS = ("SAM2VideoPredictor", "SAM2VideoPredictorVOS", "SAM2CameraPredictor", "SAM2Base")
_TRUNK = {
    "embed_dim": "embed_dim",
    "num_heads": "num_heads",
    "stages": "stages",
    "global_att_blocks": "global_attention_blocks",
    "window_spec": "window_sizes",
    "window_pos_embed_bkg_spatial_size": "position_grid",
}


def find_config(
    name: str | os.PathLike | None, has_checkpoint: bool = False
) -> tuple[str | None, dict[str, Any]]:
    """Returns the model that the name of a configuration stands for, and fields that it implies.

    Args:
      name: a model, or a yaml file in any spelling: a `Path`, with backslashes, `sam2_1_hiera_t.yaml`.
      has_checkpoint: then a file of an unknown name is let pass with a warning, as the checkpoint says which
        model it is: the model is None.

    Raises:
      ValueError: unknown, and no checkpoint tells.
    """
    if name is None:
        return None, {}
    path = os.fspath(name).replace("\\", "/")
    *folders, _ = path.split("/")
    try:
        model = resolve_model_name(path)
    except ValueError:
        if not has_checkpoint or not path.endswith((".yaml", ".yml")):
            raise
        warnings.warn(
            f"{path} is not read: the model is what the checkpoint says it is. Other settings are arguments of "
            "the builder, by the original's names.",
            stacklevel=4,
        )
        return None, {}
    folder = folders[-1] if folders else ""
    if folder in _FORKS:
        implied = _FORKS[folder]
        said = ", ".join(f"{key}={value!r}" for key, value in implied.items())
        warnings.warn(
            f"{path} is of {folder.upper()}, whose rules are not plain SAM 2: built with {said}, which does "
            "what its memory does; see docs/video.md. For SAM 2 itself, give the plain name.",
            stacklevel=4,
        )
        return model, dict(implied)
    if folder not in _ORIGINAL_FOLDERS:
        warnings.warn(
            f"{path} is not read: from its name it is taken for {model}. What else it says has to be given "
            "to the builder, by the original's names.",
            stacklevel=4,
        )
    return model, {}


def field_overrides(entries: Sequence[str]) -> dict[str, Any]:
    """Overrides such as `++model.fill_hole_area=0` -> fields of the configuration.

    Raises:
      ValueError: not of this form, or about what has no field; the message says which.
    """
    fields: dict[str, Any] = {}
    hiera: dict[str, Any] = {}
    for entry in entries:
        key, separator, text = entry.lstrip("+").partition("=")
        if not separator:
            raise ValueError(f"The override {entry!r} is not of the form '++model.field=value'.")
        value = _parse(text.strip())
        path = key.removeprefix("model.").removeprefix("sam_mask_decoder_extra_args.")
        part, _, rest = path.partition(".")
        last = path.rpartition(".")[-1]
        if path == "_target_":
            if str(value).rpartition(".")[-1] not in _PREDICTORS:
                raise ValueError(
                    f"The override {entry!r} asks for a class of another program; only the original's "
                    "predictors are built here."
                )
        elif path == "compile_image_encoder" or last == "feat_sizes":
            continue  # everything is compiled; sizes follow from image_size
        elif rest.startswith("trunk.") and part == "image_encoder" and last in _TRUNK:
            hiera[_TRUNK[last]] = tuple(value) if isinstance(value, list) else value
        elif path == "memory_attention.num_layers":
            fields["memory_attention_layers"] = value
        elif path == "memory_attention.d_model":
            fields["hidden_dim"] = value
        elif path == "memory_encoder.out_dim":
            fields["memory_dim"] = value
        elif rest:
            raise ValueError(
                f"The override {entry!r} sets a detail of {part} that is fixed here; build_sam2 takes the "
                "fields of ModelConfig, hiera=... among them."
            )
        else:
            fields[path] = value
    return fields | ({"hiera": hiera} if hiera else {})


def _parse(text: str) -> Any:
    """A value as yaml reads it."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("null", "~", ""):
        return None
    if re.fullmatch(r"[\[\]\s\d.,eE+-]+", text):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    return text.strip("'\"")
