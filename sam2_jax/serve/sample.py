"""The sample clip, to click on without uploading anything; it is drawn, so that no file ships."""

import functools

import numpy as np

from sam2_jax.serve.limits import Limits
from sam2_jax.serve.unpack import write_frames

# Two plain shapes, one of which hides the other for a while: the small model of the package can
# follow both from a click on each.
_SEED, _SIZE, _NUM_FRAMES, _FPS = 30, 480, 36, 12.0


@functools.cache
def frames(num_frames: int = _NUM_FRAMES) -> list[np.ndarray]:
    """The first frames of the clip, (480, 480, 3) uint8 each."""
    from sam2_jax.data.procedural import drawn_videos

    video = drawn_videos(_SEED, _NUM_FRAMES, _SIZE, is_plain=True)[0]
    return [video.frames[index] for index in range(num_frames)]


def write(folder: str, limits: Limits) -> dict:
    """Writes the clip as `sam2_jax.serve.unpack` does."""
    return write_frames(frames(), folder, _FPS, limits)
