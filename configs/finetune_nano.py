r"""Fine-tunes the small model of the package on your own pictures, on a laptop.

    sam2-jax train --config=configs/finetune_nano.py:FOLDER --workdir=runs/mine

FOLDER holds `images`, and `labels`: label images whose values are instances, named as the images are.
docs/finetune.md tells all the way from the installation to masks; docs/reports/training_diary.md has the
scores of such a run. Hardware: one core of a processor and 6 GB of memory, some minutes.
"""

import os

from sam2_jax.experiment import (
    Augment,
    Dataset,
    Experiment,
    Interaction,
    LossWeights,
    Optimizer,
    to_config_dict,
)


def get_config(folder: str = ""):
    """Returns the experiment for a folder that holds `images` and `labels`."""
    augment = Augment(flip=0.5, degrees=15.0, scale=(0.8, 1.25), brightness=0.1, contrast=0.1)
    mine = Dataset(
        kind="masks",
        frames=os.path.join(folder, "images"),
        annotations=os.path.join(folder, "labels"),
        num_frames=1,
        max_objects=6,
        batch_size=4,
        augment=augment,
    )
    return to_config_dict(
        Experiment(
            model="sam2_nano",
            model_overrides={"image_size": 256},
            init_from="sam2_nano",
            drop_path_rate=0.0,
            memory_attention_dropout=0.0,
            datasets={"mine": mine},
            interaction=Interaction(box_probability=0.5, num_corrections=1),
            loss=LossWeights(mask=1.0, dice=3.0),
            optimizer=Optimizer(
                learning_rate=5e-4,
                encoder_learning_rate=5e-4,
                layer_decay=1.0,
                warmup_steps=20,
                gradient_clip=1.0,
                b2=0.99,
                final_fraction=0.02,
            ),
            remat="none",
            num_steps=150,
            checkpoint_every=50,
        )
    )
