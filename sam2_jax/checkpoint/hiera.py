"""Released Hiera weights (Ryali et al. 2023) as the trunk of a SAM 2, to begin training with.

Hiera has one position for every cell of a 56 x 56 map. SAM 2 adds a coarse table, resized to the map, and a
fine one, repeated in every window (Bolya et al. 2023); the positions are split into these two.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_TRUNK = "image_encoder.trunk."
_FIRST = "blocks.0.attn.qkv.weight"
# What a masked autoencoder and a classifier have besides.
_OTHERS = ("norm.", "head.", "encoder_norm.", "decoder_", "mask_token", "multi_scale_fusion_heads.")


def is_hiera(tensors: Mapping[str, Any]) -> bool:
    """Tells whether these are tensors of a Hiera of its own."""
    return _FIRST in tensors


def in_trunk(name: str) -> bool:
    """Tells whether an official name is that of a tensor of the trunk."""
    return name.startswith(_TRUNK)


def trunk_tensors(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Turns the tensors of a Hiera into those of a trunk, by their official names.

    Args:
      tensors: of an image model, pre-trained or fine-tuned; decoder and head are left out.
      shapes: {official name: shape} of the whole model.

    Raises:
      ValueError: they are of another size; the message names what is missing, unexpected or of another shape.
    """
    wanted = {name: shape for name, shape in shapes.items() if in_trunk(name)}
    trunk = {
        _TRUNK + name.replace("mlp.fc1", "mlp.layers.0").replace("mlp.fc2", "mlp.layers.1"): x
        for name, x in tensors.items()
        if not name.startswith(_OTHERS)
    }
    table, window = f"{_TRUNK}pos_embed", f"{_TRUNK}pos_embed_window"
    if table in trunk and window not in trunk:
        trunk |= _split_positions(trunk[table], wanted[table], wanted[window])
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - trunk.keys())]
    problems += [f"{name} is unexpected" for name in sorted(trunk.keys() - wanted.keys())]
    problems += [
        f"{name} is {trunk[name].shape} instead of {wanted[name]}"
        for name in sorted(wanted.keys() & trunk.keys())
        if trunk[name].shape != tuple(wanted[name])
    ]
    if problems:
        raise ValueError(
            f"these Hiera weights do not fit the model's trunk: {'; '.join(problems[:5])}"
            + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    return {name: np.asarray(trunk[name], np.float32) for name in wanted}


def _split_positions(positions, table, window):
    """Coarse (1, C, g, g) means and the fine (1, C, w, w) rest that all windows share, of (1, L, C)."""
    _, length, c = positions.shape
    side, grid, cells = math.isqrt(length), table[-1], window[-1]
    if side**2 != length or side % grid or side % cells:
        raise ValueError(
            f"these Hiera weights have {length} positions; a square of a multiple of {grid} and {cells} "
            "cells a side is expected, as models for images have it"
        )
    square = np.asarray(positions, np.float32)[0].reshape(side, side, c).transpose(2, 0, 1)
    coarse = square.reshape(c, grid, side // grid, grid, side // grid).mean((2, 4))
    fine = square.reshape(c, side // cells, cells, side // cells, cells).mean((1, 3))
    fine -= fine.mean((1, 2), keepdims=True)
    return {f"{_TRUNK}pos_embed": coarse[None], f"{_TRUNK}pos_embed_window": fine[None]}
