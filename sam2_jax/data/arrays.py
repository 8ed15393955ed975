"""What an array that is no RGB picture seems to be, for messages."""

import numpy as np


def rgb_hint(array: np.ndarray) -> str:
    """Returns how to make (H, W, 3) of an array, " " before it, or "" where that is unclear."""
    if array.ndim == 2:
        return " Repeat a grey picture: np.stack([image] * 3, -1)."
    if array.ndim == 3 and array.shape[-1] == 4:
        return " Drop the alpha channel: image[..., :3]."
    if array.ndim == 3 and array.shape[0] == 3:
        return " Move the channels: image.transpose(1, 2, 0)."
    return ""
