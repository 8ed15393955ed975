"""Experiments: everything that a training run is made of, as frozen dataclasses.

A file in `configs/` returns one from `get_config()` as a `ConfigDict`, so that the command line can change
any field (`--config.optimizer.learning_rate=1e-4`); `from_config_dict` turns it back, strictly. Defaults are
the published recipe where there is one (SAM 2 paper, appendix D).
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from sam2_jax.config import HieraConfig, ModelConfig, check_intervals, did_you_mean, within
from sam2_jax.data.datasets import Augment as Augment  # configurations import it from here
from sam2_jax.data.datasets import Dataset, all_fields, resolve

REMAT = ("none", "dots", "full")
OBJECTIVES = ("masks", "mae")
TRAINABLE = ("all", "no_encoder", "decoder", "memory", "none")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "rsqrt")
CUTS = ("columns", "rows", "whole")

Rules = tuple[tuple[str, str], ...]
# Matrix products go in pairs, the first cut by columns and the second by rows, so that one sum after the pair
# joins the parts (Shoeybi et al. 2019).
SHARDING: Rules = (
    # One head: cut queries and keys would leave every score a sum over devices.
    (r"memory_attention/.*/[qk]_proj/(kernel|bias)$", "whole"),
    (r"attn\w*/(qkv|[qkv]_proj)/(kernel|bias)$", "columns"),
    (r"attn\w*/(proj|out_proj)/kernel$", "rows"),
    (r"(mlp/layers_0|linear1|pwconv1)/(kernel|bias)$", "columns"),
    (r"(mlp/layers_1|linear2|pwconv2)/kernel$", "rows"),
    # Convolutions, norms, heads on a few tokens, and what is added to maps and tokens.
    (r"/(kernel|bias|scale|gamma)$", "whole"),
    (r"(embed|embeddings|pos_enc|token|tokens|no_obj_ptr|gaussian_matrix)(_\w+)?$", "whole"),
    # Low-rank updates, the random key of a train state, and Muon's polynomial.
    (r"kernel/[ab]$", "whole"),
    (r"^key$", "whole"),
    (r"/ns_coeffs$", "whole"),
)


@dataclasses.dataclass(frozen=True)
class Interaction:
    """The simulated annotator (paper, appendix D.2.2). Images always start from a point."""

    point_probability: float = within(
        "[0, 1]", 0.5
    )  # a clip starts from points or boxes, else from masks
    box_probability: float = within("[0, 1]", 0.5)  # and then from a box instead of a point
    max_initial_frames: int = within("[1, inf)", 2)  # prompted frames; drawn anew for every step
    max_corrected_frames: int = within(
        "[0, inf)", 2
    )  # with correction clicks; includes the prompted ones
    num_corrections: int = within(
        "[0, inf)", 7
    )  # clicks on a corrected frame after its first prompt
    target_probability: float = within(
        "[0, 1]", 0.1
    )  # a correction goes into the target, not the error
    truth_probability: dataclasses.InitVar[float | None] = None  # its name in earlier versions

    def __post_init__(self, truth_probability: float | None) -> None:
        if truth_probability is not None:
            object.__setattr__(self, "target_probability", truth_probability)


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the loss (paper, appendix D.2.2)."""

    mask: float = within("[0, inf)", 20.0)  # focal
    dice: float = within("[0, inf)", 1.0)
    iou: float = within("[0, inf)", 1.0)  # L1
    presence: float = within("[0, inf)", 1.0)  # cross-entropy
    supervise_all_ious: bool = True  # of all three masks, not only of the best one


@dataclasses.dataclass(frozen=True)
class Mae:
    """A masked autoencoder around the trunk (Ryali et al. 2023)."""

    mask_ratio: float = within("(0, 1)", 0.6)  # share of the units of 32 px that are hidden
    decoder_embed_dim: int = within("[1, inf)", 512)
    decoder_depth: int = within("[1, inf)", 8)
    decoder_num_heads: int = within("[1, inf)", 16)


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained in another way than the others; a parameter is in the first that fits."""

    pattern: str = ""  # a regular expression that is found in their paths, such as "^mask_decoder/"
    learning_rate: float = within("[-1, inf)", -1.0)  # peak; below 0 is that of the others
    weight_decay: float = within("[-1, inf)", -1.0)  # below 0 is that of the others
    is_frozen: bool = False


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer and its schedule."""

    kind: str = "adamw"  # or muon: kernels by Muon, at the rates of AdamW; all others by NAdamW
    learning_rate: float = within("[0, inf)", 5e-6)
    encoder_learning_rate: float = within("[0, inf)", 3e-6)  # of image_encoder
    schedule: str = "cosine"  # constant, cosine, rsqrt
    warmup_steps: int = within("[0, inf)", 0)  # linear from 0
    cooldown_steps: int = within("[0, inf)", 0)  # linear to 0 at the end (constant, rsqrt)
    timescale: int = within("[1, inf)", 1000)  # rsqrt: steps after which the rate falls
    final_fraction: float = within("[0, 1]", 0.1)  # cosine: what is left at the end
    layer_decay: float = within("(0, 1]", 0.9)  # of the trunk, per block from the top
    b1: float = within("[0, 1)", 0.9)
    b2: float = within("[0, 1)", 0.999)
    weight_decay: float = within("[0, inf)", 0.1)
    gradient_clip: float = within("(0, inf]", 0.1)  # global L2 norm
    accumulate: int = within("[1, inf)", 1)  # parts that a batch is cut into, one after the other
    groups: dict[str, ParameterGroup] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices as a grid; -1, once, is what is left."""

    data: int = -1  # copies of the model
    fsdp: int = 1  # parameters and optimizer state are cut into this many parts
    model: int = 1  # every matrix product is


@dataclasses.dataclass(frozen=True)
class Validation:
    """Periodic scores on clips that training does not see: the first mask is given, the rest is tracked.

    A dataset of images is scored by the IoU after one click instead.
    """

    every: int = within("[0, inf)", 0)  # steps; 0 is never
    dataset: Dataset = dataclasses.field(default_factory=lambda: Dataset(seed=1, count=8))
    more: dict[str, Dataset] = dataclasses.field(
        default_factory=dict
    )  # the best is chosen without them
    has_loss: bool = False  # also that of training, with prompts that are always the same ones


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training run."""

    # What is learnt: masks, or, by the trunk alone, the hidden parts of pictures (mae).
    objective: str = "masks"
    model: str = "sam2.1_hiera_tiny"
    model_overrides: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `ModelConfig`
    drop_path_rate: float = within("[0, 1)", 0.1)  # of the last trunk block
    memory_attention_dropout: float = within("[0, 1)", 0.1)
    # Checkpoint (.pt, .safetensors, folder, run), Hiera MAE weights, or the name of a model; "" is random.
    init_from: str = ""
    init_except: str = ""  # pattern of parameters that are drawn anew all the same; "" is none
    datasets: dict[str, Dataset] = dataclasses.field(
        default_factory=lambda: {"procedural": Dataset()}
    )
    interaction: Interaction = Interaction()
    loss: LossWeights = LossWeights()
    mae: Mae = Mae()
    optimizer: Optimizer = Optimizer()
    trainable: str = "all"  # all, no_encoder, decoder, memory (attention and encoder), none
    lora_rank: int = within(
        "[0, inf)", 0
    )  # > 0 adds low-rank updates to frozen attention projections
    ema_decay: float = within("[0, 1)", 0.0)  # > 0 also keeps an average of the parameters
    remat: str = "full"  # what the backward pass recomputes: none, dots (all but products), full
    mesh: Mesh = Mesh()
    # How arrays are cut over `mesh.model`: the first regular expression that is found in a path counts.
    sharding: Rules = SHARDING
    num_steps: int = within("[1, inf)", 1000)
    checkpoint_every: int = within("[1, inf)", 1000)
    keep_last: int = within("[1, inf)", 3)
    keep_best: int = within("[0, inf)", 1)  # by validation score
    keep_steps: tuple[int, ...] = ()  # saved and kept for ever
    log_every: int = within("[1, inf)", 10)
    draw_every: int = within("[0, inf)", 0)  # steps between pictures of predictions; 0 is never
    validation: Validation = Validation()
    max_skipped: int = within(
        "[1, inf)", 10
    )  # steps in a row without a finite loss that end the run
    num_workers: int = within("[0, inf)", 0)  # processes that read data; 0 reads in threads
    seed: int = within("[0, inf)", 0)
    wandb_project: str = ""
    dry_run: bool = False  # prints what would be trained, draws the first batch, stops

    def __post_init__(self):
        check_intervals(self)
        for name, value, known in (
            ("objective", self.objective, OBJECTIVES),
            ("remat", self.remat, REMAT),
            ("trainable", self.trainable, TRAINABLE),
            ("optimizer.kind", self.optimizer.kind, OPTIMIZERS),
            ("optimizer.schedule", self.optimizer.schedule, SCHEDULES),
            *((f"sharding {pattern!r}", cut, CUTS) for pattern, cut in self.sharding),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        if not any(dataset.weight for dataset in self.datasets.values()):
            raise ValueError("datasets is empty, or all weights are 0; at least one is needed.")
        if self.objective == "mae":
            self._check_mae()
        if self.trainable == "none" and not self.lora_rank:
            raise ValueError("trainable='none' leaves nothing to train; set lora_rank as well.")
        if self.trainable == "memory" and not self.has_videos and not self.lora_rank:
            raise ValueError("trainable='memory' leaves nothing to train; no dataset has videos.")

    def _check_mae(self):
        if self.trainable != "all" or self.lora_rank:
            raise ValueError(
                "objective='mae' trains the whole trunk; it goes with trainable='all' and lora_rank=0."
            )
        if self.validation.every or self.draw_every:
            raise ValueError(
                "objective='mae' predicts no masks that could be scored or drawn; set validation.every and "
                "draw_every to 0."
            )
        if self.mae.decoder_embed_dim % self.mae.decoder_num_heads:
            raise ValueError(
                f"mae.decoder_embed_dim is {self.mae.decoder_embed_dim}; a multiple of "
                f"mae.decoder_num_heads, {self.mae.decoder_num_heads}, is expected."
            )

    @property
    def has_videos(self) -> bool:
        """Whether any clip has more than one frame."""
        return any(d.num_frames > 1 for d in self.datasets.values() if d.weight)


def to_config_dict(experiment: Experiment) -> Any:
    """Returns the experiment as an `ml_collections.ConfigDict`, which the command line can change.

    What an experiment leaves open has a place as well: every field of the model, and of every kind of data.
    """
    from ml_collections import config_dict

    fields = dataclasses.asdict(experiment)
    fields["model_overrides"] = _open_fields(ModelConfig) | fields["model_overrides"]
    hiera = fields["model_overrides"]["hiera"]
    fields["model_overrides"]["hiera"] = _open_fields(HieraConfig) | hiera
    validation = fields["validation"]
    for dataset in (
        *fields["datasets"].values(),
        validation["dataset"],
        *validation["more"].values(),
    ):
        for name, value in new_dataset().items():
            dataset.setdefault(name, value)
    return config_dict.ConfigDict(fields)


def new_dataset() -> dict[str, Any]:
    """Returns the fields of a dataset about which nothing is known yet, for a `ConfigDict`."""
    from ml_collections import config_dict

    fields = {name: config_dict.placeholder(kind) for name, kind in all_fields().items()}
    return fields | {"augment": _open_fields(Augment)}


def _open_fields(kind: type) -> dict[str, Any]:
    from ml_collections import config_dict

    return {
        field.name: _open_fields(type(field.default))
        if dataclasses.is_dataclass(field.default)
        else config_dict.placeholder(type(field.default))
        for field in dataclasses.fields(kind)
    }


def from_config_dict(config: Mapping[str, Any]) -> Experiment:
    """Turns what `to_config_dict` returned, changed or not, into an experiment.

    Raises:
      ValueError: for a field that does not exist, a value of the wrong type, or one that is not allowed;
        the message gives the field's full name.
    """
    return _build(Experiment, _plain(config), "config")


def _build(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}; a group of fields is expected.")
        if kind is Dataset:
            kind, value = resolve(value, name)
        fields = typing.get_type_hints(kind)
        for key in value:
            if key not in fields:
                raise ValueError(f"there is no field {name}.{key}.{did_you_mean(key, fields)}")
        make: Any = kind
        return make(**{k: _build(fields[k], v, f"{name}.{k}") for k, v in value.items()})
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}; a group of fields is expected.")
        return {k: _build(arguments[1], v, f"{name}.{k}") for k, v in value.items()}
    if origin is tuple:
        items = tuple(value)
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(items)
        if len(items) != len(arguments):
            raise ValueError(f"{name} is {value!r}; {len(arguments)} values are expected.")
        return tuple(_build(a, v, name) for a, v in zip(arguments, items, strict=True))
    if kind is Any:
        return value
    if isinstance(kind, dataclasses.InitVar):  # a field's earlier name
        kind = float
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}; {kind.__name__} is expected.")
    return value


def _plain(value: Any) -> Any:
    """Mappings and `ConfigDict`, which is none, become dicts, all the way down, without what was left open."""
    if hasattr(value, "items"):
        plain = {k: _plain(v) for k, v in value.items() if v is not None}
        return {k: v for k, v in plain.items() if v != {} or not value[k]}
    return value
