r"""A small model on drawn shapes, from nothing, on a laptop: shows that training runs, and that it learns.

    python scripts/train.py --config=configs/smoke.py --workdir=runs/smoke

does 20 steps. With `--config.num_steps=4400` the IoU of held-out shapes after one click passes 0.8 in 13
minutes on two hyperthreads (docs/reports/training_diary.md has the curve).
"""

from sam2_jax.experiment import (
    Dataset,
    Experiment,
    Interaction,
    LossWeights,
    Optimizer,
    Validation,
    to_config_dict,
)


def get_config():
    """Returns the experiment."""
    shapes = Dataset(num_frames=1, max_objects=3, batch_size=16, is_plain=True)
    return to_config_dict(
        Experiment(
            model="sam2_nano",
            # One mask a click: nothing is ambiguous here, and to judge three takes longer to learn.
            model_overrides={
                "image_size": 64,
                "multimask_output_in_sam": False,
                "hiera": {"window_sizes": (8, 4, 4, 2)},  # as large as the maps
            },
            drop_path_rate=0.0,
            memory_attention_dropout=0.0,
            datasets={"shapes": shapes},
            interaction=Interaction(box_probability=0.0, num_corrections=0),
            # From nothing, the published weights teach empty masks first.
            loss=LossWeights(mask=1.0, dice=3.0),
            optimizer=Optimizer(
                learning_rate=1e-3,
                encoder_learning_rate=1e-3,
                layer_decay=1.0,
                warmup_steps=100,
                weight_decay=0.05,
                gradient_clip=1.0,
                b2=0.99,
                final_fraction=0.0,
            ),
            remat="none",
            num_steps=20,
            checkpoint_every=500,
            validation=Validation(
                every=500,
                dataset=Dataset(num_frames=1, max_objects=3, seed=1, count=100, is_plain=True),
            ),
        )
    )
