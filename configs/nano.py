r"""Trains the package's own small model on drawn images and videos, in stages that build on one another.

    python scripts/train.py --config=configs/smoke.py --config.num_steps=1200 --workdir=runs/smoke
    python scripts/train.py --config=configs/nano.py:start --workdir=runs/nano_start \
        --config.init_from=runs/smoke/export
    python scripts/train.py --config=configs/nano.py:small --workdir=runs/nano_small \
        --config.init_from=runs/nano_start/export
    python scripts/train.py --config=configs/nano.py:full --workdir=runs/nano_full \
        --config.init_from=runs/nano_small/export
    python scripts/train.py --config=configs/nano.py:clicks --workdir=runs/nano_clicks \
        --config.init_from=runs/nano_full/export
    python scripts/train.py --config=configs/nano.py:full --workdir=runs/nano_again \
        --config.init_from=runs/nano_clicks/export --config.interaction.point_probability=0.25
    python scripts/train.py --config=configs/nano.py:far --workdir=runs/nano_far \
        --config.init_from=runs/nano_soft
    python scripts/train.py --config=configs/nano.py:last --workdir=runs/nano_last \
        --config.init_from=runs/nano_far/export
    python scripts/train.py --config=configs/nano.py:gpu --workdir=runs/nano_gpu \
        --config.init_from=runs/nano_last/export --config.datasets.videos.frames=runs/pictures \
        --config.datasets.far.frames=runs/pictures

`start`, `small` and `clicks` see 128 px, a quarter of the work; `full` goes on at the model's own 256 px with
clips of six frames. `clicks` sees more images than videos, and correction clicks. `far` and `last` see larger
batches of what moves far, and train with Muon; before `far` the attention to memories was softened. `gpu` is
for one large GPU and 16 processor cores: large batches in bfloat16, and an average of the parameters, so that
it may end at any step. docs/nano.md has what came of it, how long it took and on what.
"""

import dataclasses

from sam2_jax.experiment import (
    Augment,
    Dataset,
    Experiment,
    Interaction,
    LossWeights,
    Optimizer,
    Validation,
    to_config_dict,
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage sees, and for how long."""

    size: int
    frames: int
    clips: int
    rate: float
    steps: int
    by_clicks: float  # share of the steps whose clips start from clicks or boxes instead of masks
    by_boxes: float = 0.5  # share of boxes among them
    warmup: int = 100
    corrections: int = 0  # clicks, on two frames of a clip
    schedule: str = "cosine"
    average: float = 0.0  # decay of the average of the parameters
    kind: str = "adamw"
    is_validated: bool = True


STAGES = {
    "start": Stage(128, 4, 6, 1e-3, 640, by_clicks=0.3, schedule="constant"),
    # Where clicks are not understood yet, the frames after them teach nothing: images teach clicks.
    "small": Stage(128, 4, 6, 1e-3, 1700, by_clicks=0.0),
    "full": Stage(256, 6, 2, 3e-4, 300, by_clicks=0.1, warmup=30),
    "clicks": Stage(
        128,
        4,
        6,
        6e-4,
        780,
        by_clicks=0.15,
        by_boxes=0.4,
        warmup=50,
        corrections=1,
        schedule="constant",
        average=0.998,
    ),
    "far": Stage(
        128,
        4,
        12,
        8e-4,
        676,
        by_clicks=0.2,
        warmup=50,
        corrections=1,
        schedule="constant",
        kind="muon",
        is_validated=False,
    ),
    "last": Stage(
        256,
        8,
        4,
        5e-4,
        330,
        by_clicks=0.2,
        warmup=30,
        kind="muon",
        is_validated=False,
    ),
    "gpu": Stage(
        256,
        8,
        48,
        1e-3,
        1300,
        by_clicks=0.4,
        warmup=50,
        average=0.99,
        kind="muon",
        is_validated=False,
    ),
}


def get_config(name: str = "small"):
    """Returns the experiment of a stage."""
    if name not in STAGES:
        raise ValueError(f"{name!r} is no stage; known are {', '.join(STAGES)}.")
    stage = STAGES[name]
    videos = Dataset(
        num_frames=stage.frames,
        max_objects=3,
        batch_size=stage.clips,
        weight=0.6,
        stride=4,
        seed=3 if name == "small" else 0,
        augment=Augment(gray=0.05, reverse=0.5, frame_brightness=0.05),
    )
    datasets = {"videos": videos}
    if name != "gpu":  # where another shape to compile would cost more than it teaches
        datasets["images"] = Dataset(
            num_frames=1, max_objects=3, batch_size=2048 // stage.size, weight=0.15, seed=5
        )
    if stage.size == 128:
        datasets["plain"] = dataclasses.replace(
            videos, is_plain=True, weight=0.25, stride=3, seed=2
        )
    if name == "clicks":
        images = dataclasses.replace(datasets["images"], weight=0.4, seed=31)
        datasets = {
            "videos": dataclasses.replace(videos, weight=0.3, seed=33),
            "images": images,
            "plain": dataclasses.replace(datasets["plain"], weight=0.1, seed=34),
            "plain_images": dataclasses.replace(images, is_plain=True, weight=0.2, seed=35),
        }
    if name in ("far", "last", "gpu"):
        # What moves far between frames is found by its looks.
        datasets["videos"] = dataclasses.replace(videos, weight=0.25, seed=51)
        datasets["far"] = dataclasses.replace(videos, weight=0.25, stride=12, seed=52)
        if "plain" in datasets:
            datasets["plain"] = dataclasses.replace(
                datasets["plain"], weight=0.1, stride=8, seed=53
            )
    if name in ("far", "last"):
        datasets["images"] = dataclasses.replace(
            datasets["images"], batch_size=4096 // stage.size, weight=0.4, seed=54
        )
    held_out = Dataset(num_frames=stage.frames, max_objects=3, seed=1, count=24)
    experiment = Experiment(
        model="sam2_nano",
        model_overrides={"image_size": stage.size},
        drop_path_rate=0.0,
        memory_attention_dropout=0.0,
        datasets=datasets,
        interaction=Interaction(
            point_probability=stage.by_clicks,
            box_probability=stage.by_boxes,
            max_initial_frames=1,
            num_corrections=stage.corrections,
        ),
        # The published weights teach empty masks first.
        loss=LossWeights(mask=1.0, dice=3.0),
        optimizer=Optimizer(
            kind=stage.kind,
            learning_rate=stage.rate,
            encoder_learning_rate=stage.rate,
            layer_decay=1.0,
            schedule=stage.schedule,
            timescale=300,
            warmup_steps=stage.warmup,
            final_fraction=0.02,
            weight_decay=0.05,
            gradient_clip=1.0,
            b2=0.99,
        ),
        remat="none",
        ema_decay=stage.average,
        num_steps=stage.steps,
        checkpoint_every=250,
        validation=Validation(every=stage.steps // 5 * stage.is_validated, dataset=held_out),
    )
    if name == "gpu":
        experiment = dataclasses.replace(
            experiment,
            model_overrides={"image_size": stage.size, "dtype": "bfloat16"},
            remat="dots",
            num_workers=15,
        )
    return to_config_dict(experiment)
