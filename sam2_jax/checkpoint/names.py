"""The names of weights: official PyTorch, Hugging Face, and this project's parameter paths.

A path is the official name with "/" for ".", list numbers joined by "_" and a few renames:
`memory_encoder.fuser.layers.0.dwconv.weight` -> `memory_encoder/fuser_0/dwconv/kernel`. Every
translation is one to one and only moves values, so that it can be undone bit by bit.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from sam2_jax import config

# Whole components of a name, both ways; * is a number. Applied in this order, undone in reverse.
_FLAX_RULES = (
    ("sam_prompt_encoder", "prompt_encoder"),
    ("sam_mask_decoder", "mask_decoder"),
    ("patch_embed.proj", "patch_embed"),
    ("neck.convs.*.conv", "neck.convs.*"),
    ("memory_encoder.fuser.layers.*", "memory_encoder.fuser.*"),
)

_THREE_LAYER_HEADS = (
    "output_hypernetworks_mlps.*",
    "iou_prediction_head",
    "pred_obj_score_head",
    "object_pointer_proj",
)

_HUGGING_FACE_RULES = (
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    ("obj_ptr_proj", "object_pointer_proj"),
    ("obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer"),
    ("image_encoder.trunk", "vision_encoder.backbone"),
    ("image_encoder.neck.convs.*.conv", "vision_encoder.neck.convs.*"),
    ("sam_prompt_encoder", "prompt_encoder"),
    ("sam_mask_decoder", "mask_decoder"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("norm", "layer_norm"),
    ("norm*", "layer_norm*"),
    ("norm_final_attn", "layer_norm_final_attn"),
    ("out_proj", "o_proj"),
    ("mlp.layers.0", "mlp.proj_in"),
    ("mlp.layers.1", "mlp.proj_out"),
    *(
        (f"{head}.{official}", f"{head}.{hugging_face}")
        for head in _THREE_LAYER_HEADS
        for official, hugging_face in (
            ("layers.0", "proj_in"),
            ("layers.1", "layers.0"),
            ("layers.2", "proj_out"),
        )
    ),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
    *(
        (
            f"mask_downsampler.encoder.{3 * i + j}",
            f"mask_downsampler.layers.{i}.{('conv', 'layer_norm')[j]}",
        )
        for i in range(4)
        for j in range(2)
    ),
    ("mask_downsampler.encoder.12", "mask_downsampler.final_conv"),
    ("memory_encoder.pix_feat_proj", "memory_encoder.feature_projection"),
    ("memory_encoder.o_proj", "memory_encoder.projection"),
    ("fuser", "memory_fuser"),
    ("dwconv", "depthwise_conv"),
    ("pwconv*", "pointwise_conv*"),
    ("gamma", "scale"),
)

_EMBEDDING = re.compile(
    r"(point_embeddings\.\d+|not_a_point_embed|no_mask_embed|iou_token|mask_tokens|obj_score_token)$"
)

_POINTS = "sam_prompt_encoder.point_embeddings.{}.weight"
_HF_POINTS = "prompt_encoder.point_embed.weight"
_HF_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
_HF_POSITIONS_COPY = "shared_image_embedding.positional_embedding"

_FLOATS = (np.dtype("float32"), np.dtype("float16"), np.dtype(ml_dtypes.bfloat16))

Shapes = Mapping[str, tuple[int, ...]]


def flax_path(name: str, ndim: int) -> str:
    """Returns the parameter path of an official tensor with `ndim` dimensions."""
    name = _apply(_FLAX_FORWARD, name)
    stem, _, leaf = name.rpartition(".")
    if leaf == "weight" and _EMBEDDING.search(stem):
        name = stem
    elif leaf == "weight":
        name = f"{stem}.scale" if ndim == 1 else f"{stem}.kernel"
    return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name).replace(".", "/")


def official_name(path: str) -> str:
    """Returns the official name of a parameter path."""
    name = re.sub(r"_(\d+)(?=/|$)", r".\1", path).replace("/", ".")
    if _EMBEDDING.search(name):
        name = f"{name}.weight"
    return _apply(_FLAX_BACKWARD, re.sub(r"\.(kernel|scale)$", ".weight", name))


def to_params(state_dict: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Turns official tensors into parameters.

    Args:
      state_dict: {official name: array}; float16 and bfloat16 are widened.
      expected: nested dict of objects with `.shape`: the parameters of the model.

    Returns:
      Nested dict of float32 arrays, shaped as `expected`.

    Raises:
      ValueError: that names every missing, unexpected, wrong-shaped and wrongly typed tensor.
    """
    check(state_dict, expected)
    params: dict[str, Any] = {}
    for name, tensor in state_dict.items():
        *parents, leaf = flax_path(name, tensor.ndim).split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        # Always a copy: the tensor may be a view of a file.
        moved = tensor.transpose(_axes_to_flax(name, tensor.ndim))
        node[leaf] = np.array(moved, np.float32, order="C")
    return params


def to_state_dict(params: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turns parameters into official tensors, the inverse of `to_params`.

    Returns:
      {official name: array}, sorted by name; views of the parameters where possible.

    Raises:
      ValueError: that names every missing, unexpected, wrong-shaped and wrongly typed tensor.
    """
    state_dict = {}
    for path, leaf in _leaves(params):
        name, array = official_name(path), np.asarray(leaf)
        state_dict[name] = array.transpose(np.argsort(_axes_to_flax(name, array.ndim)))
    check(state_dict, expected)
    return dict(sorted(state_dict.items()))


def official_shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns {official name: official shape} of a nested dict of objects with `.shape`."""
    shapes = {}
    for path, leaf in _leaves(params):
        name = official_name(path)
        to_official = np.argsort(_axes_to_flax(name, len(leaf.shape)))
        shapes[name] = tuple(int(leaf.shape[axis]) for axis in to_official)
    return shapes


def check(state_dict: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    """Checks official tensors against the parameters of a model.

    Raises:
      ValueError: that names every missing, unexpected, wrong-shaped and wrongly typed tensor.
    """
    wanted = official_shapes(expected)
    both = sorted(wanted.keys() & state_dict.keys())
    problems = {
        "missing": sorted(wanted.keys() - state_dict.keys()),
        "unexpected": sorted(state_dict.keys() - wanted.keys()),
        "wrong shape": [
            f"{name} {state_dict[name].shape} instead of {wanted[name]}"
            for name in both
            if state_dict[name].shape != wanted[name]
        ],
        "wrong type": [
            f"{name} {state_dict[name].dtype}"
            for name in both
            if state_dict[name].dtype not in _FLOATS
        ],
    }
    found = [
        f"{len(names)} {problem}: {', '.join(names)}"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(f"the tensors do not fit the model; {'; '.join(found)}.")


def recognise(shapes: Shapes) -> str:
    """Returns the released model that tensors of these official names and shapes belong to.

    Raises:
      ValueError: when no released model has this width and depth; the message lists all.
    """
    name = find_model(shapes)
    if name is None:
        raise ValueError(
            f"the tensors are of no known model (trunk of {_depth(shapes)} blocks, width {_width(shapes)}); "
            f"known models: {', '.join(config.MODELS)}. The first of {len(shapes)} names is "
            f"{next(iter(shapes), None)}."
        )
    return name


def find_model(shapes: Shapes) -> str | None:
    """As `recognise`, but None when there is no such model."""
    return next((name for name, model in config.MODELS.items() if may_fit(shapes, model)), None)


def may_fit(shapes: Shapes, model: config.ModelConfig) -> bool:
    """Tells whether width, depth and version of a model are those of the tensors."""
    found = _width(shapes), _depth(shapes), "no_obj_embed_spatial" in shapes
    return found == (model.hiera.embed_dim, sum(model.hiera.stages), model.no_obj_embed_spatial)


def _width(shapes: Shapes) -> int:
    return (*shapes.get("image_encoder.trunk.pos_embed", ()), 0, 0)[1]


def _depth(shapes: Shapes) -> int:
    prefix = "image_encoder.trunk.blocks."
    return len({name.split(".")[3] for name in shapes if name.startswith(prefix)})


def is_hugging_face(names: Iterable[str]) -> bool:
    """Tells whether these are names of transformers' `Sam2Model` or `Sam2VideoModel`."""
    return any(name.startswith("vision_encoder.") for name in names)


def from_hugging_face(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the tensors of a `Sam2VideoModel` (or the part in a `Sam2Model`) to official names.

    Raises:
      ValueError: when the two copies of the prompt position table differ.
    """
    tensors = dict(tensors)
    copy = tensors.pop(_HF_POSITIONS_COPY, None)
    if copy is not None and not np.array_equal(copy, tensors.setdefault(_HF_POSITIONS, copy)):
        raise ValueError(f"{_HF_POSITIONS_COPY} and {_HF_POSITIONS} differ.")
    points = tensors.pop(_HF_POINTS, np.empty((0, 0)))
    official = {_apply(_HF_BACKWARD, name): tensor for name, tensor in tensors.items()}
    return official | {_POINTS.format(i): row[None] for i, row in enumerate(np.atleast_2d(points))}


def to_hugging_face(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames official tensors to those of a `Sam2VideoModel`, the inverse of `from_hugging_face`.

    Raises:
      KeyError: when a point embedding or the prompt position table is missing.
    """
    state_dict = dict(state_dict)
    points = [state_dict.pop(_POINTS.format(i)) for i in range(4)]
    renamed = {_apply(_HF_FORWARD, name): tensor for name, tensor in state_dict.items()}
    copy = {_HF_POSITIONS_COPY: renamed[_HF_POSITIONS]}
    return renamed | copy | {_HF_POINTS: np.concatenate(points)}


def _axes_to_flax(name: str, ndim: int) -> tuple[int, ...]:
    """Returns the axes of an official tensor in the order that Flax has them."""
    if re.search(r"output_upscaling\.[03]\.weight$", name):
        return (2, 3, 0, 1)  # transposed convolution: in, out, height, width
    if re.search(r"\.pos_embed(_window)?$", name):
        return (0, 2, 3, 1)
    if name.endswith(".weight") and not _EMBEDDING.search(name.removesuffix(".weight")):
        return {2: (1, 0), 4: (2, 3, 1, 0)}.get(ndim, tuple(range(ndim)))
    return tuple(range(ndim))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _compile(rules: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern, str]]:
    """Turns rules into (pattern of whole components, replacement)."""
    return [
        (
            re.compile(rf"(?<![^.]){re.escape(old)}(?![^.])".replace(r"\*", r"(\d+)")),
            new.replace("*", r"\1"),
        )
        for old, new in rules
    ]


def _apply(rules: Iterable[tuple[re.Pattern, str]], name: str) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


_FLAX_FORWARD = _compile(_FLAX_RULES)
_FLAX_BACKWARD = _compile((new, old) for old, new in reversed(_FLAX_RULES))
_HF_FORWARD = _compile(_HUGGING_FACE_RULES)
_HF_BACKWARD = _compile((new, old) for old, new in reversed(_HUGGING_FACE_RULES))
