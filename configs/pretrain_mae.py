r"""Pre-trains the trunk on a folder of pictures, without labels, as a masked autoencoder (arXiv 2306.00989).

    python scripts/train.py --config=configs/pretrain_mae.py:large --workdir=runs/mae \
        --config.datasets.mine.frames=PICTURES

and then `--config.init_from=runs/mae` in a run that learns masks with the same model. Sizes are tiny, small,
base_plus and large; rate and decay are those of masked autoencoders (He et al. 2022) for a step of this size.
Not run here at this size: the paper's models saw 1.28 million pictures up to 1600 times.
"""

from sam2_jax.experiment import (
    Augment,
    Dataset,
    Experiment,
    Mesh,
    Optimizer,
    ParameterGroup,
    to_config_dict,
)


def get_config(size: str = "tiny"):
    """Returns the experiment for a size."""
    pictures = Dataset(
        kind="pictures",
        max_objects=1,
        batch_size=256,
        augment=Augment(flip=0.5, crop=(0.2, 1.0)),
    )
    return to_config_dict(
        Experiment(
            objective="mae",
            model=f"sam2.1_hiera_{size}",
            model_overrides={"image_size": 224, "dtype": "bfloat16"},
            drop_path_rate=0.0,
            datasets={"mine": pictures},
            optimizer=Optimizer(
                learning_rate=1.5e-4,
                encoder_learning_rate=1.5e-4,
                warmup_steps=5000,
                final_fraction=0.0,
                layer_decay=1.0,
                b2=0.95,
                weight_decay=0.05,
                gradient_clip=1.0,
                groups={"tables": ParameterGroup(r"pos_embed|mask_token", weight_decay=0.0)},
            ),
            mesh=Mesh(data=-1),
            num_steps=100_000,
            checkpoint_every=5000,
            num_workers=16,
        )
    )
