r"""Trains on SA-1B images and SA-V videos together, as the paper's Table 13b has it.

    python scripts/train.py --config=configs/train_joint.py:large --workdir=runs/joint --distributed \
        --config.init_from=runs/pretrain/export \
        --config.datasets.sa1b.frames=SA-1B \
        --config.datasets.sav.frames=SA-V --config.datasets.sav.annotations=SA-V

Sizes tiny, small, base_plus, large. Not run here: neither the data nor the hardware were at hand. The paper
also has internal videos, whose share goes to SA-V here.
"""

from sam2_jax.experiment import Augment, Dataset, Experiment, Mesh, Optimizer, to_config_dict

LAYER_DECAY = {"tiny": 0.8, "small": 0.8, "base_plus": 0.9, "large": 0.925}
DROP_PATH = {"tiny": 0.1, "small": 0.1, "base_plus": 0.2, "large": 0.3}


def get_config(size: str = "base_plus"):
    """Returns the experiment for a size."""
    sa1b = Dataset(kind="sa1b", num_frames=1, max_objects=64, batch_size=256, weight=0.152)
    video = Augment(
        degrees=25.0,
        shear=20.0,
        brightness=0.1,
        contrast=0.03,
        saturation=0.03,
        gray=0.05,
        frame_brightness=0.1,
        frame_contrast=0.05,
        frame_saturation=0.05,
        mosaic=0.1,
        reverse=0.5,
    )
    sav = Dataset(kind="sav", num_frames=8, batch_size=256, weight=0.848, augment=video)
    return to_config_dict(
        Experiment(
            model=f"sam2.1_hiera_{size}",
            model_overrides={"dtype": "bfloat16"},
            drop_path_rate=DROP_PATH[size],
            datasets={"sa1b": sa1b, "sav": sav},
            optimizer=Optimizer(
                learning_rate=3e-4,
                encoder_learning_rate=6e-5,
                warmup_steps=15_000,
                final_fraction=0.0,
                layer_decay=LAYER_DECAY[size],
            ),
            mesh=Mesh(data=-1, fsdp=8),
            num_steps=150_000,
            num_workers=16,
        )
    )
