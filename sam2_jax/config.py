"""Configurations of models: frozen dataclasses, and the released models by name.

Field names are the original's, so that its yaml files and overrides read the same. Sizes follow the paper's
symbols: C is `hidden_dim`, M is `memory_dim`.

    ModelConfig     what a model computes: a static argument of compiled functions
    SessionOptions  what a video session does with the answers, on the host
    PictureOptions  what predictors on pictures do with them, where they are not told

How a model is trained is part of an experiment (`sam2_jax.experiment`).
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

MEMORY_POLICIES = ("recent", "quality", "motion", "distractor")
# Fields of earlier versions, which files of theirs still hold: now they are fields of `Experiment`.
TRAINING_OPTIONS = ("drop_path_rate", "memory_attention_dropout", "remat")


def within(interval: str, default: Any) -> Any:
    """Returns a field of a dataclass whose numbers lie in an interval; see `check_intervals`.

    Args:
      interval: such as "[0, 1)", which holds 0 but not 1, or "[1, inf)".
      default: a number, or a tuple of numbers.
    """
    return dataclasses.field(default=default, metadata={"interval": interval})


def check_intervals(config: Any, name: str = "") -> None:
    """Checks the numbers of a dataclass and of those in it, however deep.

    Args:
      config: its fields are declared by `within` where not every number makes sense.
      name: what stands before the names of its fields in messages, such as "optimizer.".

    Raises:
      ValueError: a number is outside of its interval, or is NaN.
    """
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{name}{field.name}"
        for key, each in (value if isinstance(value, Mapping) else {"": value}).items():
            if dataclasses.is_dataclass(each):
                check_intervals(each, f"{path}.{key}." if key else f"{path}.")
        interval = field.metadata.get("interval")
        numbers = value if isinstance(value, tuple) else (value,)
        if interval and not all(_is_within(number, interval) for number in numbers):
            raise ValueError(f"{path} is {value}; it must be {_in_words(interval)}.")


def _is_within(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    is_above = number >= low if interval[0] == "[" else number > low
    return is_above and (number <= high if interval[-1] == "]" else number < high)


def _in_words(interval: str) -> str:
    low, high = interval[1:-1].split(", ")
    low = f"at least {low}" if interval[0] == "[" else f"more than {low}"
    if math.isinf(float(high)):
        return low
    return f"{low} and {'at most' if interval[-1] == ']' else 'less than'} {high}"


@dataclasses.dataclass(frozen=True)
class HieraConfig:
    """Sizes of the Hiera trunk (Ryali et al. 2023; SAM 2 paper, appendix D.1). Defaults: tiny."""

    embed_dim: int = 96  # channels of stage 1; every stage doubles them
    num_heads: int = 1  # heads of stage 1; every stage doubles them
    stages: tuple[int, ...] = (1, 2, 7, 2)  # blocks per stage
    global_attention_blocks: tuple[int, ...] = (5, 7, 9)  # blocks that see the whole map
    window_sizes: tuple[int, ...] = (8, 4, 14, 7)  # side of an attention window, per stage
    position_grid: tuple[int, int] = (7, 7)  # grid of the learned background position table

    def __post_init__(self):
        if len(self.stages) != len(self.window_sizes):
            raise ValueError(
                f"stages is {self.stages} and window_sizes {self.window_sizes}; as many numbers are "
                "expected in both, one for each stage."
            )
        if min(*self.stages, *self.window_sizes, self.embed_dim, self.num_heads) < 1:
            raise ValueError(
                f"embed_dim {self.embed_dim}, num_heads {self.num_heads}, stages {self.stages} and "
                f"window_sizes {self.window_sizes} must all be at least 1."
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim is {self.embed_dim}; a multiple of num_heads, {self.num_heads}, is expected."
            )
        if not all(0 <= block < sum(self.stages) for block in self.global_attention_blocks):
            raise ValueError(
                f"global_attention_blocks is {self.global_attention_blocks}; blocks 0 to "
                f"{sum(self.stages) - 1} of stages {self.stages} are expected."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.stages)))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a model computes. Defaults: SAM 2.1 as released.

    Raises:
      ValueError: on a combination that no SAM 2 can compute.
    """

    hiera: HieraConfig = HieraConfig()

    # Sizes
    image_size: int = 1024  # S, side of the square input in pixels; a multiple of 32
    hidden_dim: int = 256  # C, channels of the features
    memory_dim: int = 64  # M, channels of a stored memory
    dtype: str = "float32"  # compute type; parameters, softmax, norms and logits stay float32
    memory_dtype: str = "bfloat16"  # type in which memories are stored
    memory_attention_layers: int = 4

    # Memory bank (paper section 4, "Memory bank")
    num_maskmem: int = 7  # memories read: prompted frames count as one, the rest are recent ones
    max_obj_ptrs_in_encoder: int = 16
    max_cond_frames_in_attn: int = -1  # prompted frames attended at most; -1 is all
    memory_temporal_stride_for_eval: int = 1
    directly_add_no_mem_embed: bool = True
    use_obj_ptrs_in_encoder: bool = True
    add_tpos_enc_to_obj_ptrs: bool = True
    proj_tpos_enc_in_obj_ptrs: bool = True
    use_signed_tpos_enc_to_obj_ptrs: bool = True
    only_obj_ptrs_in_the_past_for_eval: bool = True
    memory_policy: str = "recent"  # which tracked frames are remembered; see model/memory_policy.py

    # Memory encoder
    sigmoid_scale_for_mem_enc: float = 20.0
    sigmoid_bias_for_mem_enc: float = -10.0
    binarize_mask_from_pts_for_mem_enc: bool = False
    non_overlap_masks_for_mem_enc: bool = False  # accepted: every object is remembered alone
    no_obj_embed_spatial: bool = True

    # Mask decoder
    use_high_res_features_in_sam: bool = True
    multimask_output_in_sam: bool = True
    multimask_output_for_tracking: bool = True
    multimask_min_pt_num: int = 0
    multimask_max_pt_num: int = 1
    iou_prediction_use_sigmoid: bool = True
    pred_obj_scores: bool = True
    pred_obj_scores_mlp: bool = True
    dynamic_multimask_via_stability: bool = False
    dynamic_multimask_stability_delta: float = 0.05
    dynamic_multimask_stability_thresh: float = 0.98
    use_mask_input_as_output_without_sam: bool = True

    # Object pointers
    use_multimask_token_for_obj_ptr: bool = True
    use_mlp_for_obj_ptr_proj: bool = True
    fixed_no_obj_ptr: bool = True
    soft_no_obj_ptr: bool = False

    def __post_init__(self):
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(
                f"image_size is {self.image_size}; it must be a positive multiple of 32, "
                f"for example {max(32, round(self.image_size / 32) * 32)}."
            )
        for field, least in (
            ("memory_attention_layers", 1),
            ("num_maskmem", 0),
            ("max_obj_ptrs_in_encoder", 1),
        ):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {least}.")
        if self.hidden_dim < 1 or self.hidden_dim % 16:
            raise ValueError(f"hidden_dim is {self.hidden_dim}; a multiple of 16 is expected.")
        if self.memory_dim < 4 or self.memory_dim % 4 or self.hidden_dim % self.memory_dim:
            raise ValueError(
                f"memory_dim is {self.memory_dim}; a multiple of 4 that divides hidden_dim, {self.hidden_dim}, "
                "is expected."
            )
        for field in ("dtype", "memory_dtype"):
            if getattr(self, field) not in ("float32", "bfloat16"):
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; it must be 'float32' or 'bfloat16'."
                )
        if not self.directly_add_no_mem_embed:
            raise ValueError(
                "directly_add_no_mem_embed=False needs memory attention over one unrotated token of "
                "width memory_dim, which no released checkpoint has; leave it True."
            )
        if self.max_cond_frames_in_attn in (0, 1):
            raise ValueError(
                f"max_cond_frames_in_attn is {self.max_cond_frames_in_attn}; it must be -1 (all) or at "
                "least 2 (the nearest before and the nearest after)."
            )
        if self.proj_tpos_enc_in_obj_ptrs and not self.add_tpos_enc_to_obj_ptrs:
            raise ValueError("proj_tpos_enc_in_obj_ptrs=True needs add_tpos_enc_to_obj_ptrs=True.")
        if self.memory_temporal_stride_for_eval < 1:
            raise ValueError("memory_temporal_stride_for_eval must be at least 1.")
        if self.memory_policy not in MEMORY_POLICIES:
            raise ValueError(
                f"memory_policy is {self.memory_policy!r}; it must be one of "
                f"{', '.join(map(repr, MEMORY_POLICIES))}."
            )
        if self.memory_policy != "recent" and (
            self.memory_temporal_stride_for_eval > 1 or self.num_maskmem < 3
        ):
            raise ValueError(
                f"memory_policy={self.memory_policy!r} chooses frames itself: it needs "
                "memory_temporal_stride_for_eval=1 and num_maskmem of at least 3."
            )

    @property
    def grid(self) -> int:
        """Side of the stride-16 feature map, in cells."""
        return self.image_size // 16

    @property
    def memory_window(self) -> int:
        """Frames around a frame whose memories may be read with it."""
        return self.memory_temporal_stride_for_eval * self.num_maskmem

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks, in cells of stride 4."""
        return self.image_size // 4

    def replace(self, **overrides: Any) -> "ModelConfig":
        """Returns a copy with some fields changed; `hiera` may be a mapping of the fields to change in it.

        Raises:
          ValueError: for a field that does not exist; the message lists the near names.
        """
        _check_fields(overrides, type(self))
        hiera = overrides.get("hiera")
        if isinstance(hiera, Mapping):
            as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in hiera.items()}
            _check_fields(as_tuples, HieraConfig)
            overrides["hiera"] = dataclasses.replace(self.hiera, **as_tuples)
        return dataclasses.replace(self, **overrides)


Sam2Config = ModelConfig  # its name in earlier versions


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """What a video session does with the answers of a model. Defaults: the original's, but for the last two."""

    fill_hole_area: int = 0  # background specks up to this many cells of the S/4 map are filled
    non_overlap_masks: bool = False  # of the objects at a pixel, only the likeliest keeps it
    clear_non_cond_mem_around_input: bool = False  # a prompt drops the tracked frames around it
    add_all_frames_to_correct_as_cond: bool = True  # a corrected frame counts as a prompted one
    allow_empty_masks: bool = False  # an object may start with an empty mask, as absent


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """What predictors on pictures do with masks, where they are not told. Defaults: the original's."""

    pred_iou_thresh: float = 0.8  # of automatic masks
    stability_score_thresh: float = 0.95  # likewise
    min_mask_region_area: int = 0  # likewise: holes and specks up to this many cells of the S/4 map
    max_hole_area: float = 0.0  # of masks that answer prompts: holes are filled
    max_sprinkle_area: float = 0.0  # likewise: specks are removed
    keep_clicked: bool = (
        False  # of a mask that answers clicks alone, what hangs together with one of them
    )


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Fields to change, by what they are fields of.

    Attributes:
      model: of `ModelConfig`; `hiera` may be a mapping.
      session: of `SessionOptions`.
      training: `TRAINING_OPTIONS`, which mean nothing to a model that is trained.
    """

    model: dict[str, Any]
    session: dict[str, Any]
    training: dict[str, Any]


def sort_overrides(overrides: Mapping[str, Any]) -> Overrides:
    """Sorts fields that are given by name alone, as builders and files of earlier versions do.

    Raises:
      ValueError: for a field that does not exist; the message lists the near names.
    """
    model, training = dict(overrides), {}
    if isinstance(hiera := model.get("hiera"), Mapping):
        training = {k: v for k, v in hiera.items() if k in TRAINING_OPTIONS}
        model["hiera"] = {k: v for k, v in hiera.items() if k not in TRAINING_OPTIONS}
    training |= {name: model.pop(name) for name in TRAINING_OPTIONS if name in model}
    session = {
        f.name: model.pop(f.name) for f in dataclasses.fields(SessionOptions) if f.name in model
    }
    _check_fields(model, ModelConfig, SessionOptions)
    return Overrides(model, session, training)


def _check_fields(names: Iterable[str], *kinds: type) -> None:
    known = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    for name in names:
        if name not in known:
            where = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"There is no field {name!r} in {where}.{did_you_mean(name, known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a question that ends a message, with the known names near to one; "" if none is."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f" Did you mean {', '.join(near)}?" if near else ""


_HIERA = {
    "tiny": HieraConfig(),
    "small": HieraConfig(stages=(1, 2, 11, 2), global_attention_blocks=(7, 10, 13)),
    "base_plus": HieraConfig(
        embed_dim=112,
        num_heads=2,
        stages=(2, 3, 16, 3),
        global_attention_blocks=(12, 16, 20),
        position_grid=(14, 14),
    ),
    "large": HieraConfig(
        embed_dim=144,
        num_heads=2,
        stages=(2, 6, 36, 4),
        global_attention_blocks=(23, 33, 43),
        window_sizes=(8, 4, 16, 8),
    ),
}

# What SAM 2 does differently from SAM 2.1.
_SAM2: dict[str, Any] = {
    "no_obj_embed_spatial": False,
    "add_tpos_enc_to_obj_ptrs": False,
    "proj_tpos_enc_in_obj_ptrs": False,
    "use_signed_tpos_enc_to_obj_ptrs": False,
}

# The original's builders switch these on by default, for images, for video and for its sessions.
POSTPROCESSING_IMAGE = {"dynamic_multimask_via_stability": True}
POSTPROCESSING_VIDEO = POSTPROCESSING_IMAGE | {"binarize_mask_from_pts_for_mem_enc": True}
POSTPROCESSING_SESSION = {"fill_hole_area": 8}

RELEASED: dict[str, ModelConfig] = {
    f"{version}_hiera_{size}": ModelConfig(hiera=hiera, **flags)
    for version, flags in (("sam2", _SAM2), ("sam2.1", {}))
    for size, hiera in _HIERA.items()
}

# The project's own small model: SAM 2.1 with narrower maps and fewer blocks.
_NANO = ModelConfig(
    hiera=HieraConfig(
        embed_dim=32,
        stages=(1, 2, 5, 1),
        global_attention_blocks=(5, 7),
        window_sizes=(8, 4, 8, 4),
    ),
    image_size=256,
    hidden_dim=128,
    memory_dim=32,
    memory_attention_layers=2,
    multimask_output_for_tracking=False,
)

MODELS: dict[str, ModelConfig] = RELEASED | {"sam2_nano": _NANO}

# It is less sure than the released models, and its masks come with specks: docs/nano.md.
PICTURE_OPTIONS: dict[str, PictureOptions] = {
    "sam2_nano": PictureOptions(
        pred_iou_thresh=0.4,
        stability_score_thresh=0.6,
        min_mask_region_area=8,
        max_hole_area=8,
        max_sprinkle_area=8,
        keep_clicked=True,
    )
}

_SIZES = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large", "base-plus": "base_plus"}


def resolve_model_name(name: str) -> str:
    """Returns the key of `MODELS` that a spelling of the original or of the hub stands for.

    Accepts `sam2.1_hiera_tiny`, `sam2.1_hiera_t.yaml`, `sam2_1_hiera_t.yaml`,
    `configs/sam2.1/sam2.1_hiera_b+.yaml`, with backslashes, too, and `facebook/sam2.1-hiera-base-plus`.

    Raises:
      ValueError: for an unknown model; the message lists the known ones.
    """
    stem = re.sub(r"\.(ya?ml|pt)$", "", re.split(r"[/\\]", name)[-1])
    if stem in MODELS:
        return stem
    match = re.fullmatch(r"(sam2(?:[._]1)?)[_-]hiera[_-](.+)", stem)
    if match:
        version = match[1].replace("_", ".")
        candidate = f"{version}_hiera_{_SIZES.get(match[2], match[2])}"
        if candidate in MODELS:
            return candidate
    raise ValueError(f"Unknown model {name!r}. Known models: {', '.join(MODELS)}.")


def get_config(name: str, **overrides: Any) -> ModelConfig:
    """Returns the configuration of a model, with some fields changed.

    Raises:
      ValueError: for an unknown model or field.
    """
    return MODELS[resolve_model_name(name)].replace(**overrides)
