"""Videos that are drawn: textured shapes that move over a textured background, with perfect masks.

    seed, index  ->  scenes: shapes, cutouts, textures, motion  ->  frames (H, W, 3), masks (H, W)

Lengths are fractions of the picture's side, times are frames, angles radians. A point is a complex number
x + iy; a shape is about one unit large in its own coordinates, and an affine map brings it into the picture.
"""

from sam2_jax.data.procedural.source import drawn_videos

__all__ = ["drawn_videos"]
