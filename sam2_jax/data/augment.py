"""Augmentations of clips for training (SAM 2 paper, arXiv 2408.00714, appendix D).

    Clip (H, W)  ->  flips, turns, crop, affine maps  ->  resize (S, S)  ->  mosaic, colours  ->  Clip (S, S)

Colours but for the hue are changed by one affine map a frame: brightness, contrast, saturation and gray, drawn
for the clip and again for the frame, are multiplied out. Reversal of time is part of `sample_clip`. What an
`Augment` leaves out draws no random numbers, so that a new kind of augmentation changes no run that does
without it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

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
        The clip with frames (T, S, S, 3), masks (T, O, S, S) and, where given, ignored (T, S, S). What
        fills gaps is known to be background.
    """
    if rng.random() < augment.flip:
        clip = _rearrange(clip, lambda pictures: pictures[:, :, ::-1])
    if augment.vertical_flip and rng.random() < augment.vertical_flip:
        clip = _rearrange(clip, lambda pictures: pictures[:, ::-1])
    if augment.quarter_turn and rng.random() < augment.quarter_turn:
        turns = int(rng.integers(1, 4))
        clip = _rearrange(clip, lambda pictures: np.rot90(pictures, turns, (1, 2)))
    if augment.crop != (1, 1):
        area, place = rng.uniform(*augment.crop), rng.random(2)
        clip = crop_clip(clip, area, (place[0], place[1]))
    maps = _draw_maps(clip, augment, rng)
    if (maps != np.eye(3)).any():
        height, width = clip.frames.shape[1:3]
        if size * size < height * width:
            # The same map costs less after the resize.
            clip = resize_clip(clip, size, size)
            stretch = np.array([size / width, size / height, 1])
            maps = stretch[:, None] * maps / stretch
        clip = map_clip(clip, maps)
    clip = resize_clip(clip, size, size)
    if rng.random() < augment.mosaic:
        rows, columns = augment.mosaic_grid
        cell = int(rng.integers(rows * columns))
        is_flipped = np.zeros((rows, columns), bool)
        if augment.mosaic_flip:
            is_flipped = rng.random((rows, columns)) < augment.mosaic_flip
        clip = mosaic_clip(clip, cell, is_flipped)
    return dataclasses.replace(clip, frames=_jitter(clip.frames, augment, rng))


def _rearrange(clip: Clip, change: Callable[[np.ndarray], np.ndarray]) -> Clip:
    """Changes the places of pixels, axes 1 and 2 of what `change` is given."""
    layers = change(_layers(clip).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return _with_layers(clip, change(clip.frames), layers)


def _layers(clip: Clip) -> np.ndarray:
    """Masks, and as one more of them what is ignored: (T, O or O + 1, H, W) bool."""
    if clip.ignored is None:
        return clip.masks
    return np.concatenate([clip.masks, clip.ignored[:, None]], axis=1)


def _with_layers(clip: Clip, frames: np.ndarray, layers: np.ndarray) -> Clip:
    num_objects = clip.masks.shape[1]
    ignored = None if clip.ignored is None else layers[:, num_objects]
    return dataclasses.replace(clip, frames=frames, masks=layers[:, :num_objects], ignored=ignored)


def crop_clip(clip: Clip, area: float, place: tuple[float, float]) -> Clip:
    """Cuts the same window of the clip's proportions out of all frames.

    Args:
        clip: what to cut; returned as it is if an object of its first frame would leave the picture.
        area: of the window, part of the whole.
        place: of the window, from 0, top and left, to 1, bottom and right.
    """
    whole = np.array(clip.frames.shape[1:3])
    sides = np.maximum(np.round(whole * math.sqrt(area)), 1).astype(int)
    top, left = np.round((whole - sides) * place).astype(int)
    bottom, right = top + sides[0], left + sides[1]
    cut = _rearrange(clip, lambda pictures: pictures[:, top:bottom, left:right])
    return clip if _loses_object(clip, cut.masks) else cut


def _loses_object(clip: Clip, layers: np.ndarray) -> bool:
    """Whether an object of the first frame is not there in changed masks, or layers."""
    seen = clip.masks[0].any((1, 2))
    return bool((seen & ~layers[0, : len(seen)].any((1, 2))).any())


def _draw_maps(clip: Clip, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Draws the affine maps of all frames, (T, 3, 3)."""
    sides = np.array(clip.frames.shape[2:0:-1])

    def draw(
        degrees: float, shear: float, scale: tuple[float, float], translate: tuple[float, float]
    ) -> np.ndarray:
        angle, slant = rng.uniform(-1, 1, 2) * (degrees, shear)
        zoom = rng.uniform(*scale)
        shift = rng.uniform(-1, 1, 2) * translate * sides if any(translate) else (0.0, 0.0)
        return affine_matrix(angle, slant, zoom, (shift[0], shift[1]))

    of_clip = draw(augment.degrees, augment.shear, augment.scale, augment.translate)
    of_frame = (
        augment.frame_degrees,
        augment.frame_shear,
        augment.frame_scale,
        augment.frame_translate,
    )
    if of_frame == (0, 0, (1, 1), (0, 0)):
        return np.tile(of_clip, (len(clip.frames), 1, 1))
    return np.stack([draw(*of_frame) @ of_clip for _ in clip.frames])


def affine_matrix(
    degrees: float, shear: float, scale: float, shift: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """Returns the (3, 3) matrix on x, y, 1 that shears along x, then turns clockwise, zooms and shifts.

    Args:
        degrees: angle of the turn.
        shear: angle by which vertical lines lean, degrees.
        scale: zoom, above 1 enlarges.
        shift: along x and y, pixels.
    """
    angle, slant = math.radians(degrees), math.radians(shear)
    rotation = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array(rotation) @ [[1, -math.tan(slant)], [0, 1]]
    matrix[:2, 2] = shift
    return matrix


def map_clip(clip: Clip, maps: np.ndarray) -> Clip:
    """Maps frames about their centre, images bilinear and masks nearest.

    Args:
        clip: what to change; returned as it is if an object of its first frame would leave the picture.
        maps: (T, 3, 3), or (3, 3) for all frames, on x, y, 1, from the given clip to the result.
    """
    height, width = clip.frames.shape[1:3]
    center = np.array([width, height]) / 2
    inverses = []
    for matrix in np.broadcast_to(maps, (len(clip.frames), 3, 3)):
        inverse = np.linalg.inv(matrix[:2, :2])
        shift = center - inverse @ (center + matrix[:2, 2])
        inverses.append(tuple(np.column_stack([inverse, shift]).ravel().tolist()))
    layers = _layers(clip)
    packed = [_transform(*each) for each in zip(_pack(layers), inverses, strict=True)]
    moved = _unpack(np.stack(packed), layers.shape[1])
    if _loses_object(clip, moved):
        return clip
    fill = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
    frames = [
        _transform(frame, inverse, **fill)
        for frame, inverse in zip(clip.frames[:, None], inverses, strict=True)
    ]
    return _with_layers(clip, np.concatenate(frames), moved)


def _transform(pictures: np.ndarray, inverse: tuple[float, ...], **options: Any) -> np.ndarray:
    move = lambda p: p.transform(p.size, Image.Transform.AFFINE, inverse, **options)
    return _map_pictures(move, pictures)


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


def resize_clip(clip: Clip, height: int, width: int) -> Clip:
    """Stretches a clip, antialiased; a pixel is foreground if more than half of it was."""
    frames = _resize(clip.frames, height, width)
    layers = _layers(clip)
    # Half of 254 is a whole number, so that a pixel that is exactly half covered stays background.
    grey = layers.view(np.uint8) * np.uint8(254)
    resized = np.zeros((*layers.shape[:2], height, width), bool)
    for place in zip(*np.nonzero(layers.any((2, 3))), strict=True):
        resized[place] = _resize(grey[place][None], height, width)[0] > 127
    return _with_layers(clip, frames, resized)


def _resize(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    if pictures.shape[1:3] == (height, width):
        return pictures
    return _map_pictures(lambda p: p.resize((width, height), Image.Resampling.BILINEAR), pictures)


def mosaic_clip(clip: Clip, cell: int, is_flipped: np.ndarray) -> Clip:
    """Fills a grid with small copies of a clip; only one cell keeps its masks.

    Each object then has doubles that differ from it in their place, and in their direction, only.

    Args:
        clip: what to change; returned as it is if an object of its first frame would vanish.
        cell: whose masks stay, counted by rows.
        is_flipped: (rows, columns) bool, which copies are flipped horizontally.
    """
    height, width = clip.frames.shape[1:3]
    rows, columns = is_flipped.shape
    frames, layers = np.zeros_like(clip.frames), np.zeros_like(_layers(clip))
    copies: dict[tuple[int, int], Clip] = {}
    for n, flip in enumerate(is_flipped.ravel()):
        row, column = divmod(n, columns)
        top, bottom = row * height // rows, (row + 1) * height // rows
        left, right = column * width // columns, (column + 1) * width // columns
        sides = bottom - top, right - left
        if sides not in copies:
            copies[sides] = resize_clip(clip, *sides)
        step = -1 if flip else 1
        frames[:, top:bottom, left:right] = copies[sides].frames[:, :, ::step]
        if n == cell:
            layers[..., top:bottom, left:right] = _layers(copies[sides])[..., ::step]
    if _loses_object(clip, layers):
        return clip
    return _with_layers(clip, frames, layers)


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
    hues = np.zeros(len(frames))
    if augment.hue:
        hues += rng.uniform(-augment.hue, augment.hue)
    if augment.frame_hue:
        hues += rng.uniform(-augment.frame_hue, augment.frame_hue, len(frames))
    if is_gray or (clip_factors != 1).any() or any(frame_strengths):
        gray = [(1.0, 1.0, 0.0)] if is_gray else []
        frames = np.stack(
            [
                change_colors(frame, [clip_factors, *gray, factors])
                for frame, factors in zip(frames, frame_factors, strict=True)
            ]
        )
    if is_gray or not hues.any():
        return frames
    return np.stack([shift_hue(frame, hue) for frame, hue in zip(frames, hues, strict=True)])


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


def shift_hue(frame: np.ndarray, turns: float) -> np.ndarray:
    """Moves all colours along the circle of hues; value and saturation (HSV) stay.

    Args:
        frame: (H, W, 3) uint8 RGB.
        turns: 1/3 makes red green, green blue, and blue red.

    Returns:
        (H, W, 3) uint8.
    """
    hue, *others = Image.fromarray(frame).convert("HSV").split()
    shift = round(255 * turns)
    hue = hue.point([(value + shift) % 255 for value in range(256)])  # 255 is 0 again
    return np.asarray(Image.merge("HSV", (hue, *others)).convert("RGB"))


def _map_pictures(change: Callable[[Image.Image], Image.Image], pictures: np.ndarray) -> np.ndarray:
    """Changes pictures (T, H, W) or (T, H, W, 3) uint8 with Pillow."""
    return np.stack(
        [np.asarray(change(Image.fromarray(np.ascontiguousarray(p)))) for p in pictures]
    )
