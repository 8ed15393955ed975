r"""Adapts a released model with few numbers: the mask decoder, and low-rank updates of all attention.

    python scripts/train.py --config=configs/finetune_decoder_lora.py --workdir=runs/lora \
        --config.init_from=sam2.1_hiera_tiny.pt \
        --config.datasets.mine.frames=JPEGImages --config.datasets.mine.annotations=Annotations

Videos are those of DAVIS, MOSE or YouTube-VOS folders. The result, `runs/lora/export`, is an ordinary
checkpoint: the updates are merged. Hardware: one GPU of 16 GB is meant; it was not measured.
"""

from sam2_jax.experiment import Augment, Dataset, Experiment, Optimizer, to_config_dict


def get_config():
    """Returns the experiment."""
    augment = Augment(degrees=25.0, shear=20.0, brightness=0.1, gray=0.05)
    mine = Dataset(kind="palette", num_frames=4, max_objects=2, batch_size=1, augment=augment)
    return to_config_dict(
        Experiment(
            model="sam2.1_hiera_tiny",
            model_overrides={"dtype": "bfloat16"},
            datasets={"mine": mine},
            trainable="decoder",
            lora_rank=8,
            optimizer=Optimizer(learning_rate=1e-4, encoder_learning_rate=1e-4, warmup_steps=100),
            num_steps=2000,
            checkpoint_every=500,
        )
    )
