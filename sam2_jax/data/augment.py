"""Augmentations of clips for training (SAM 2 paper, arXiv 2408.00714, appendix D).

    Clip (H, W)  ->  flip, turn and shear  ->  resize (S, S)  ->  mosaic, colours  ->  Clip (S, S)

Colours are changed by one affine map a frame: brightness, contrast, saturation and gray, drawn for the
clip and again for the frame, are multiplied out. Reversal of time is part of `sample_clip`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from sam2_jax.data.clips import Clip
from sam2_jax.data.datasets import Augment

FILL = (123, 116, 103)  # the mean of ImageNet, where a turned frame leaves a gap
LUMA = np.array([0.299, 0.587, 0.114])


def augment_clip(clip: Clip, augment: Augment, size: int, rng: np.random.Generator) -> Clip:
    """Draws augmentations, applies them, and resizes the clip to the model's input.

    Args:
        clip: of any size.
        augment: which ones, how likely and how strong.
        size: S, side of the square result; frames are stretched to it.
        rng: source of randomness.

    Returns:
        The clip with frames (T, S, S, 3) and masks (T, O, S, S).
    """
    if rng.random() < augment.flip:
        clip = dataclasses.replace(
            clip, frames=clip.frames[:, :, ::-1], masks=clip.masks[..., ::-1]
        )
    degrees, shear = rng.uniform(-1, 1, 2) * (augment.degrees, augment.shear)
    scale = rng.uniform(*augment.scale)
    if degrees or shear or scale != 1:
        matrix = affine_matrix(degrees, shear, scale)
        height, width = clip.frames.shape[1:3]
        if size * size < height * width:
            # The same map costs less after the resize.
            clip = resize_clip(clip, size)
            stretch = np.array([size / width, size / height])
            matrix = stretch[:, None] * matrix / stretch
        clip = turn_clip(clip, matrix)
    clip = resize_clip(clip, size)
    if rng.random() < augment.mosaic:
        clip = mosaic_clip(clip, int(rng.integers(4)))
    return dataclasses.replace(clip, frames=_jitter(clip.frames, augment, rng))


def affine_matrix(degrees: float, shear: float, scale: float) -> np.ndarray:
    """Returns the (2, 2) matrix on x, y that shears along x, then turns clockwise, then zooms.

    Args:
        degrees: angle of the turn.
        shear: angle by which vertical lines lean, degrees.
        scale: zoom, above 1 enlarges.
    """
    angle, slant = math.radians(degrees), math.radians(shear)
    rotation = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return scale * np.array(rotation) @ [[1, -math.tan(slant)], [0, 1]]


def turn_clip(clip: Clip, matrix: np.ndarray) -> Clip:
    """Maps all frames about their centre, images bilinear and masks nearest.

    Args:
        clip: what to change; returned as it is if an object of its first frame would leave the picture.
        matrix: (2, 2) on x, y, from the given clip to the result.
    """
    height, width = clip.frames.shape[1:3]
    size, center = (width, height), np.array([width, height]) / 2
    inverse = np.linalg.inv(matrix)
    inverse = tuple(np.column_stack([inverse, center - inverse @ center]).ravel().tolist())
    move = lambda picture: picture.transform(size, Image.Transform.AFFINE, inverse)
    masks = _unpack(
        np.stack([_map_pictures(move, packed) for packed in _pack(clip.masks)]), clip.masks.shape[1]
    )
    if (clip.masks[0].any((1, 2)) & ~masks[0].any((1, 2))).any():
        return clip
    move = lambda picture: picture.transform(
        size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=FILL
    )
    return dataclasses.replace(clip, frames=_map_pictures(move, clip.frames), masks=masks)


def _pack(masks: np.ndarray) -> np.ndarray:
    """Packs eight masks into the bits of one picture, which nearest-neighbour sampling keeps apart.

    (T, O, H, W) bool -> (T, ceil(O / 8), H, W) uint8; numpy's packbits is slow along this axis.
    """
    packed = np.zeros((len(masks), -(-masks.shape[1] // 8), *masks.shape[2:]), np.uint8)
    for o in range(masks.shape[1]):
        packed[:, o // 8] |= masks[:, o].view(np.uint8) << (o % 8)
    return packed


def _unpack(packed: np.ndarray, num_masks: int) -> np.ndarray:
    return np.stack([packed[:, o // 8] & (1 << o % 8) != 0 for o in range(num_masks)], axis=1)


def resize_clip(clip: Clip, size: int) -> Clip:
    """Stretches a clip to (S, S), antialiased; a pixel is foreground if more than half of it was."""
    frames = _resize(clip.frames, size)
    num_frames, num_objects = clip.masks.shape[:2]
    # Half of 254 is a whole number, so that a pixel that is exactly half covered stays background.
    grey = clip.masks.view(np.uint8) * np.uint8(254)
    masks = np.zeros((num_frames, num_objects, size, size), bool)
    for place in zip(*np.nonzero(clip.masks.any((2, 3))), strict=True):
        masks[place] = _resize(grey[place][None], size)[0] > 127
    return dataclasses.replace(clip, frames=frames, masks=masks)


def _resize(pictures: np.ndarray, size: int) -> np.ndarray:
    if pictures.shape[1:3] == (size, size):
        return pictures
    return _map_pictures(lambda p: p.resize((size, size), Image.Resampling.BILINEAR), pictures)


def mosaic_clip(clip: Clip, cell: int) -> Clip:
    """Fills a 2 x 2 grid with small copies of a square clip; only one cell keeps its masks.

    Each object then has three doubles that differ from it in their place only.

    Args:
        clip: frames (T, S, S, 3), masks (T, O, S, S).
        cell: whose masks stay, 0..3 by rows.
    """
    size = clip.frames.shape[1]
    half = (size + 1) // 2
    small = resize_clip(clip, half)
    frames = np.tile(small.frames, (1, 2, 2, 1))[:, :size, :size]
    masks = np.zeros_like(clip.masks)
    top, left = (half * offset for offset in divmod(cell, 2))
    room = masks[..., top : top + half, left : left + half]
    room[:] = small.masks[..., : room.shape[2], : room.shape[3]]
    if (clip.masks[0].any((1, 2)) & ~masks[0].any((1, 2))).any():
        return clip
    return dataclasses.replace(clip, frames=frames, masks=masks)


def _jitter(frames: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Draws changes of colour for the clip and for every frame, and applies them."""
    around_one = lambda *strengths: 1 + rng.uniform(-1, 1, 3) * strengths
    clip_factors = around_one(augment.brightness, augment.contrast, augment.saturation)
    is_gray = rng.random() < augment.gray
    frame_strengths = (
        augment.frame_brightness,
        augment.frame_contrast,
        augment.frame_saturation,
    )
    frame_factors = [around_one(*frame_strengths) for _ in frames]
    if not is_gray and (clip_factors == 1).all() and not any(frame_strengths):
        return frames
    gray = [(1.0, 1.0, 0.0)] if is_gray else []
    return np.stack(
        [
            change_colors(frame, [clip_factors, *gray, factors])
            for frame, factors in zip(frames, frame_factors, strict=True)
        ]
    )


def change_colors(
    frame: np.ndarray, steps: list[tuple[float, float, float] | np.ndarray]
) -> np.ndarray:
    """Changes brightness, contrast and saturation, once per step.

    Brightness fades to black, contrast to the mean grey of the frame, saturation to the grey of the
    pixel. Only the end result is rounded and clipped to 0..255.

    Args:
        frame: (H, W, 3) uint8 RGB.
        steps: (brightness, contrast, saturation) factors, 1 changes nothing.

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(frame)
    mean = np.array(picture.resize((1, 1), Image.Resampling.BOX)).ravel() @ LUMA
    matrix, offset = np.eye(3), np.zeros(3)
    for brightness, contrast, saturation in steps:
        step = contrast * brightness * np.eye(3)
        shift = (1 - contrast) * brightness * mean * np.ones(3)
        mean = brightness * mean
        mix = saturation * np.eye(3) + (1 - saturation) * LUMA
        matrix, offset = mix @ step @ matrix, mix @ (step @ offset + shift)
    colors = np.column_stack([matrix, offset])
    return np.asarray(picture.convert("RGB", tuple(colors.ravel().tolist())))


def _map_pictures(change: Callable[[Image.Image], Image.Image], pictures: np.ndarray) -> np.ndarray:
    """Changes pictures (T, H, W) or (T, H, W, 3) uint8 with Pillow."""
    return np.stack(
        [np.asarray(change(Image.fromarray(np.ascontiguousarray(p)))) for p in pictures]
    )
