"""Small drawn sets of videos with masks, laid out in folders as benchmarks are."""

import shutil

import numpy as np
from PIL import Image

from sam2_jax.data.masks import write_object_masks, write_palette_png

HEIGHT, WIDTH, NUM_FRAMES = 40, 56, 5


def labels(t, first=(0, 0)):
    """Two squares that move to the right; object i is there from frame first[i - 1] on."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for object_id, (top, start) in enumerate(zip((2, 22), first, strict=True), start=1):
        if t >= start:
            ids[top : top + 14, 4 + 4 * t : 20 + 4 * t] = object_id
    return ids


def frame(t):
    picture = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    picture[labels(t) == 1] = (220, 40, 40)
    picture[labels(t) == 2] = (40, 90, 220)
    return picture


def write_video(folder):
    folder.mkdir(parents=True)
    for t in range(NUM_FRAMES):
        Image.fromarray(frame(t)).save(folder / f"{t:05d}.jpg", quality=95)


def write_masks(folder, change=lambda ids, t: ids, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(NUM_FRAMES):
        write_palette_png(folder / f"{t:05d}.png", change(labels(t, **options), t))


def write_objects(folder, frames=range(NUM_FRAMES), first=(0, 0)):
    for t in frames:
        ids = labels(t, first)
        write_object_masks(folder, t, [1, 2], np.stack([ids == 1, ids == 2]))


def davis(root, videos=("bear", "camel"), **options):
    """Makes a folder like DAVIS 2017's."""
    for name in videos:
        write_video(root / "JPEGImages" / "480p" / name)
        write_masks(root / "Annotations" / "480p" / name, **options)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(videos) + "\n")
    return root


def copy_of_masks(root, folder):
    """The masks of `davis` as predictions."""
    shutil.copytree(root / "Annotations" / "480p", folder)
    return folder
