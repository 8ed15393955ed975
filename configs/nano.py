r"""Trains the package's own small model from nothing on drawn images and videos, in two stages.

    python scripts/train.py --config=configs/nano.py:small --workdir=runs/nano_small
    python scripts/train.py --config=configs/nano.py:full --workdir=runs/nano_full \
        --config.init_from=runs/nano_small/export

`small` sees 128 px, a quarter of the work; `full` goes on at the model's own 256 px. docs/nano.md has what came of
it, how long it took and on what.
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


def get_config(stage: str = "small"):
    """Returns the experiment of a stage."""
    size, steps, rate = {"small": (128, 6000, 1e-3), "full": (256, 1000, 3e-4)}[stage]
    clips = 8 if stage == "small" else 4
    augment = Augment(gray=0.05, reverse=0.5, frame_brightness=0.05)
    images = Dataset(num_frames=1, max_objects=3, batch_size=2 * clips, weight=0.3)
    videos = Dataset(num_frames=3, max_objects=2, batch_size=clips, weight=0.7, augment=augment)
    return to_config_dict(
        Experiment(
            model="sam2_nano",
            model_overrides={"image_size": size},
            drop_path_rate=0.0,
            datasets={"images": images, "videos": videos},
            interaction=Interaction(
                point_probability=0.2,
                max_initial_frames=1,
                max_corrected_frames=1,
                num_corrections=1,
            ),
            # From nothing, the published weights teach empty masks first.
            loss=LossWeights(mask=1.0, dice=3.0),
            optimizer=Optimizer(
                learning_rate=rate,
                encoder_learning_rate=rate,
                layer_decay=1.0,
                warmup_steps=200,
                weight_decay=0.05,
                gradient_clip=1.0,
                b2=0.99,
            ),
            remat="none",
            num_steps=steps,
            checkpoint_every=200,
            draw_every=200,
            validation=Validation(
                every=200, dataset=Dataset(num_frames=8, max_objects=2, seed=1, count=24)
            ),
        )
    )
