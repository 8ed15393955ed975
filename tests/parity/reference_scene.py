"""Reference inputs: a small moving scene drawn with numpy only, the same on every machine.

frames = scene(num_frames=10, height=240, width=320, seed=0)   # (T, H, W, 3) uint8
masks = scene_masks(...)                                        # (T, 2, H, W) bool: disc, box
"""

import numpy as np


def _texture(height, width, rng, scale):
    coarse = rng.random((height // scale + 2, width // scale + 2, 3))
    return np.kron(coarse, np.ones((scale, scale, 1)))[:height, :width]


def scene_masks(num_frames=10, height=240, width=320, seed=0):
    """(T, 2, H, W) bool: a disc that moves right, a box that moves down-left and hides part of it."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed + 1)
    shift = rng.integers(0, 12, 2)
    masks = np.zeros((num_frames, 2, height, width), bool)
    for t in range(num_frames):
        cx, cy = 0.25 * width + shift[0] + 0.045 * width * t, 0.45 * height + 6 * np.sin(0.7 * t)
        masks[t, 0] = (x - cx) ** 2 + (y - cy) ** 2 < (0.16 * height) ** 2
        bx, by = 0.72 * width - 0.03 * width * t, 0.30 * height + shift[1] + 0.02 * height * t
        masks[t, 1] = (abs(x - bx) < 0.11 * width) & (abs(y - by) < 0.17 * height)
    masks[:, 0] &= ~masks[:, 1]
    return masks


def scene(num_frames=10, height=240, width=320, seed=0):
    """(T, H, W, 3) uint8 RGB frames."""
    rng = np.random.default_rng(seed)
    layers = [_texture(height, width, rng, s) * 0.5 + rng.random(3) * 0.5 for s in (16, 8, 4)]
    masks = scene_masks(num_frames, height, width, seed)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        image = np.roll(layers[0], 2 * t, axis=1)
        for k in range(2):
            image = np.where(
                masks[t, k][..., None], np.roll(layers[k + 1], (3 * t, 5 * t), (0, 1)), image
            )
        frames[t] = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return frames
