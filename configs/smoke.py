"""A small model learns to segment drawn objects from clicks and boxes, from nothing, on a laptop.

python scripts/train.py --config=configs/smoke.py --workdir=runs/smoke
"""

from sam2_jax.experiment import (
    Dataset,
    Experiment,
    Interaction,
    Optimizer,
    Validation,
    to_config_dict,
)


def get_config():
    """Returns the experiment."""
    images = Dataset(num_frames=1, max_objects=3, batch_size=16)
    return to_config_dict(
        Experiment(
            model="sam2_nano",
            model_overrides={"image_size": 128},
            drop_path_rate=0.0,
            datasets={"drawn": images},
            interaction=Interaction(num_corrections=2),
            optimizer=Optimizer(
                learning_rate=1e-3,
                encoder_learning_rate=1e-3,
                layer_decay=1.0,
                warmup_steps=50,
                weight_decay=0.05,
                gradient_clip=1.0,
            ),
            remat="none",
            num_steps=20,
            checkpoint_every=100,
            validation=Validation(
                every=100, dataset=Dataset(num_frames=1, max_objects=3, seed=1, count=64)
            ),
        )
    )
