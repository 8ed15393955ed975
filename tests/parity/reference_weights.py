"""Reference weights: the same pseudo-random tensors on every machine, from names and shapes alone.

Default initialisations hide errors (zero biases, unit norms, gamma 1e-6), so every tensor here is
non-trivial. A tensor depends on its name, its shape and the seed only: numpy's PCG64, seeded with
crc32(f"{seed}/{name}"). The expected outputs in `golden/` were computed with these weights.
"""

import ast
import csv
import os
import zlib
from pathlib import Path

import numpy as np

NAMES = Path(__file__).parent / "names"

_TRANSPOSED = ("output_upscaling.0.weight", "output_upscaling.3.weight")
_EMBEDDINGS = (
    "maskmem_tpos_enc",
    "no_mem_embed",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "point_embeddings",
    "not_a_point_embed",
    "no_mask_embed",
    "iou_token",
    "mask_tokens",
    "obj_score_token",
)
_GAIN = np.float32(1.4)  # above 1, so that prompts and memories move the masks
_PRESENCE_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"


def read_shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Reads a names/*.tsv file: {name: PyTorch shape} in checkpoint order."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row["name"]: tuple(ast.literal_eval(row["shape"])) for row in rows}


def reference_tensor(
    name: str, shape: tuple[int, ...], seed: int = 0, presence_bias: float = 1.0
) -> np.ndarray:
    """Returns one float32 tensor. `presence_bias` > 0 makes objects present, < 0 absent."""
    if name == _PRESENCE_BIAS:
        return np.full(shape, presence_bias, np.float32)
    rng = np.random.default_rng(zlib.crc32(f"{seed}/{name}".encode()))
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("positional_encoding_gaussian_matrix"):
        return noise
    if "pos_embed" in name:
        return 0.3 * noise
    if name.endswith("gamma"):
        return 0.5 + 0.2 * noise
    if any(key in name for key in _EMBEDDINGS):
        return 0.5 * noise
    if len(shape) == 1 and name.endswith("weight"):  # scale of a normalisation
        return 1 + 0.2 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    fan_in = shape[0] if name.endswith(_TRANSPOSED) else int(np.prod(shape[1:]))
    return _GAIN * noise / np.float32(np.sqrt(fan_in))


def reference_weights(
    path: str | os.PathLike, seed: int = 0, presence_bias: float = 1.0
) -> dict[str, np.ndarray]:
    """Returns all tensors of one model, {name: float32 array} in checkpoint order."""
    return {
        name: reference_tensor(name, shape, seed, presence_bias)
        for name, shape in read_shapes(path).items()
    }
