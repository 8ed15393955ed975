r"""Pre-trains on SA-1B images, as the paper's Table 13a has it; sizes tiny, small, base_plus, large.

    python scripts/train.py --config=configs/pretrain_image.py:large --workdir=runs/pretrain --distributed \
        --config.datasets.sa1b.frames=SA-1B --config.init_from=mae_hiera_large.pth

Not run here: neither the images nor the hardware were at hand. The paper trains some 90,000 steps of 256
images.
"""

from sam2_jax.experiment import (
    Augment,
    Dataset,
    Experiment,
    Interaction,
    Mesh,
    Optimizer,
    to_config_dict,
)

LAYER_DECAY = {"tiny": 0.8, "small": 0.8, "base_plus": 0.9, "large": 0.925}
DROP_PATH = {"tiny": 0.1, "small": 0.1, "base_plus": 0.2, "large": 0.3}


def get_config(size: str = "base_plus"):
    """Returns the experiment for a size."""
    sa1b = Dataset(
        kind="sa1b", num_frames=1, max_objects=64, batch_size=256, augment=Augment(flip=0.5)
    )
    return to_config_dict(
        Experiment(
            model=f"sam2.1_hiera_{size}",
            model_overrides={"dtype": "bfloat16"},
            drop_path_rate=DROP_PATH[size],
            datasets={"sa1b": sa1b},
            interaction=Interaction(box_probability=0.0),
            optimizer=Optimizer(
                learning_rate=4e-4,
                encoder_learning_rate=4e-4,
                schedule="rsqrt",
                warmup_steps=1000,
                cooldown_steps=5000,
                timescale=1000,
                layer_decay=LAYER_DECAY[size],
            ),
            mesh=Mesh(data=-1, fsdp=8),
            num_steps=90_000,
            num_workers=16,
        )
    )
