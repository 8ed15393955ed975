"""Draws the demo clip: a disc passes behind a box, over a moving background.

    python scripts/make_demo_clip.py

writes `assets/demo.mp4` and its masks, `assets/demo_masks/demo/*.png` (1 the disc, 2 the box). The scene is
the same on every run; the bytes of the encoder need not be.
"""

from pathlib import Path

import numpy as np
from scipy import ndimage

from sam2_jax.data.masks import pack_masks, write_palette_png
from sam2_jax.data.media import write_video

ASSETS = Path(__file__).resolve().parents[1] / "assets"
HEIGHT, WIDTH, NUM_FRAMES, FPS = 240, 320, 24, 12
DISC_RADIUS, BOX_HALF_SIZE = 34.0, (40.0, 30.0)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Returns (size, size) noise within 0..1, of `cells` bumps across and finer ones on top."""
    total = np.zeros((size, size))
    for octave in range(4):
        coarse = rng.standard_normal((cells << octave, cells << octave))
        # Wrapping around lets a texture be shifted without a seam.
        fine = ndimage.zoom(coarse, size / len(coarse), mode="grid-wrap", grid_mode=True)
        total += np.asarray(fine) / 1.8**octave
    return (total - total.min()) / np.ptp(total)


def texture(rng: np.random.Generator, cells: int, dark: tuple, bright: tuple) -> np.ndarray:
    """Returns (512, 512, 3) smooth noise between two colours."""
    level = smooth_noise(rng, 512, cells)[..., None]
    return np.array(dark) * (1 - level) + np.array(bright) * level


def look_up(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Samples a texture that repeats at float positions, linearly."""
    channels = [
        ndimage.map_coordinates(channel, [y, x], order=1, mode="grid-wrap")
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def draw_frame(t: float, background: np.ndarray, disc: np.ndarray, box: np.ndarray) -> tuple:
    """Draws the scene at time t within 0..1: (H, W, 3) uint8, and the (2, H, W) bool masks."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    image = look_up(background, x + 46 * t, y + 14 * t)

    disc_x, disc_y = x - (62 + 190 * t), y - (128 - 44 * np.sin(np.pi * t))
    disc_distance = np.hypot(disc_x, disc_y) - DISC_RADIUS

    angle = 0.2 + 0.5 * t
    dx, dy = x - (202 - 56 * t), y - (116 + 20 * t)
    box_x = np.cos(angle) * dx + np.sin(angle) * dy
    box_y = np.cos(angle) * dy - np.sin(angle) * dx
    box_distance = np.maximum(np.abs(box_x) - BOX_HALF_SIZE[0], np.abs(box_y) - BOX_HALF_SIZE[1])

    spin = 1.6 * t
    disc_u = np.cos(spin) * disc_x + np.sin(spin) * disc_y
    disc_v = np.cos(spin) * disc_y - np.sin(spin) * disc_x
    # Lit from above on the left.
    disc_light = 1.05 - 0.35 * (disc_x + disc_y) / (2 * DISC_RADIUS)
    for distance, colors in (
        (disc_distance, look_up(disc, disc_u, disc_v) * disc_light[..., None]),
        (box_distance, look_up(box, box_x, box_y)),
    ):
        shadow = 0.45 * np.exp(-(np.clip(distance, 0, None) ** 2) / 60)[..., None]
        coverage = np.clip(0.5 - distance, 0, 1)[..., None]
        image = image * (1 - shadow) * (1 - coverage) + colors * coverage
    is_box = box_distance < 0
    masks = np.stack([(disc_distance < 0) & ~is_box, is_box])
    return np.clip(np.round(image), 0, 255).astype(np.uint8), masks


def main() -> None:
    """Writes the clip and its masks."""
    rng = np.random.default_rng(7)
    background = texture(rng, 5, (38, 74, 66), (168, 186, 132))
    disc = texture(rng, 14, (196, 58, 40), (252, 186, 92))
    box = texture(rng, 10, (44, 62, 138), (150, 188, 236))
    scene = [draw_frame(i / (NUM_FRAMES - 1), background, disc, box) for i in range(NUM_FRAMES)]
    folder = ASSETS / "demo_masks" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    write_video(ASSETS / "demo.mp4", [image for image, _ in scene], FPS)
    for index, (_, masks) in enumerate(scene):
        write_palette_png(folder / f"{index:05d}.png", pack_masks(masks, [1, 2]))


if __name__ == "__main__":
    main()
