r"""Fine-tunes on your own images, on one small GPU: the encoder stays as it is.

    python scripts/train.py --config=configs/finetune_images_custom.py --workdir=runs/mine \
        --config.init_from=sam2.1_hiera_tiny.pt \
        --config.datasets.mine.frames=images --config.datasets.mine.annotations=labels

`annotations` is a folder of label images whose values are instances, named as the images are; for instances
in COCO's JSON add `--config.datasets.mine.kind=coco` and name the file. docs/reports/training_diary.md has the
scores of such a run. `--config.trainable=all` also trains the encoder, and needs more memory.
"""

from sam2_jax.experiment import Augment, Dataset, Experiment, Optimizer, to_config_dict


def get_config():
    """Returns the experiment."""
    augment = Augment(flip=0.5, degrees=25.0, scale=(0.8, 1.25), brightness=0.1, contrast=0.1)
    mine = Dataset(kind="masks", num_frames=1, max_objects=8, batch_size=4, augment=augment)
    return to_config_dict(
        Experiment(
            model="sam2.1_hiera_tiny",
            model_overrides={
                "image_size": 1024,
                "dtype": "bfloat16",
                "multimask_output_in_sam": True,
            },
            datasets={"mine": mine},
            trainable="no_encoder",
            optimizer=Optimizer(learning_rate=2e-5, warmup_steps=50),
            num_steps=1000,
            checkpoint_every=200,
        )
    )
