"""Made-up predictions and targets that the golden losses were computed from."""

import numpy as np

STEPS = (1, 3, 2)  # predictions on each frame


def reference_training(seed: int = 17, size: int = 64) -> tuple[np.ndarray, list[list[dict]]]:
    """Returns targets (3, 2, size, size) bool, and for every frame its predictions.

    A prediction holds `masks` (2, M, size, size) logits, `ious` (2, M) and `presence` (2, 1), float32; M is 3
    for the first one on a frame and 1 for the others. The second object is absent from the last frame.
    """
    rng = np.random.default_rng(seed)
    targets = np.zeros((3, 2, size, size), bool)
    targets[:, 0, 8:40, 10:50] = True
    targets[0, 1, 20:60, 5:30] = True
    targets[1, 1, 22:62, 8:33] = True

    def predict(target, num_masks):
        towards = 2 * (2 * target[:, None] - 1.0)
        masks = 3 * rng.standard_normal((2, num_masks, size, size)) + towards
        ious, presence = rng.random((2, num_masks)), rng.standard_normal((2, 1))
        return {
            "masks": np.float32(masks),
            "ious": np.float32(ious),
            "presence": np.float32(presence),
        }

    frames = [
        [predict(target, 1 if step else 3) for step in range(num_steps)]
        for target, num_steps in zip(targets, STEPS, strict=True)
    ]
    return targets, frames
