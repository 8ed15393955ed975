r"""Trains the package's own small model on drawn images and videos, in stages that build on one another.

    python scripts/train.py --config=configs/smoke.py --config.num_steps=3000 --workdir=runs/smoke
    python scripts/train.py --config=configs/nano.py:small --workdir=runs/nano_small \
        --config.init_from=runs/smoke/export
    python scripts/train.py --config=configs/nano.py:full --workdir=runs/nano_full \
        --config.init_from=runs/nano_small/export

`small` sees 128 px, a quarter of the work; `full` goes on at the model's own 256 px. docs/nano.md has what
came of it, how long it took and on what.
"""

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

SIZES = {"small": 128, "full": 256}
STEPS = {"small": 700, "full": 300}
CLIPS = {"small": 8, "full": 4}
RATES = {"small": 1e-3, "full": 3e-4}


def get_config(stage: str = "small"):
    """Returns the experiment of a stage."""
    augment = Augment(gray=0.05, reverse=0.5, frame_brightness=0.05)
    clips = CLIPS[stage]
    images = Dataset(num_frames=1, max_objects=3, batch_size=2 * clips, weight=0.2)
    videos = Dataset(num_frames=3, max_objects=2, batch_size=clips, weight=0.8, augment=augment)
    held_out = Dataset(num_frames=8, max_objects=2, seed=1, count=24)
    return to_config_dict(
        Experiment(
            model="sam2_nano",
            model_overrides={"image_size": SIZES[stage]},
            drop_path_rate=0.0,
            datasets={"images": images, "videos": videos},
            interaction=Interaction(point_probability=0.3, max_initial_frames=1, num_corrections=0),
            # The published weights teach empty masks first.
            loss=LossWeights(mask=1.0, dice=3.0),
            optimizer=Optimizer(
                learning_rate=RATES[stage],
                encoder_learning_rate=RATES[stage],
                layer_decay=1.0,
                schedule="constant",
                warmup_steps=100,
                cooldown_steps=STEPS[stage] // 4,
                weight_decay=0.05,
                gradient_clip=1.0,
                b2=0.99,
            ),
            remat="none",
            num_steps=STEPS[stage],
            checkpoint_every=100,
            draw_every=200,
            validation=Validation(every=200, dataset=held_out),
        )
    )
