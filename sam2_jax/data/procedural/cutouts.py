"""Pictures with transparent parts that bend, as objects."""

import dataclasses
import functools
import itertools
import math

import numpy as np
from PIL import Image

from sam2_jax.data.media import open_picture
from sam2_jax.data.procedural.motion import Affine, invert
from sam2_jax.data.procedural.sampling import Rng, log_uniform
from sam2_jax.data.procedural.shapes import Cover, box_around, make_swing
from sam2_jax.data.procedural.textures import Scheme, brighten, paint

_CELLS = 5  # of the grid, along each side, that bends a cutout


@dataclasses.dataclass(frozen=True)
class Cutout:
    """A picture with transparent parts that bends: waves along x move y, and the other way round."""

    picture: Image.Image  # RGBA, transparent at its border
    bends: tuple[tuple[float, float, float, float], ...]  # for x, y: height, order, rate, phase

    def cover(self, time: float, affine: Affine, size: tuple[int, int]) -> Cover | None:
        """Returns where it is at a time, None if that is nowhere in a picture of this size."""
        unit = 2 / max(self.picture.size)  # of a pixel
        half = unit / 2 * np.array(self.picture.size) + [bend[0] for bend in self.bends]
        a, b, c, d, e, f = affine
        x, y = half[0] * np.array([-1, -1, 1, 1]), half[1] * np.array([-1, 1, -1, 1])
        box = box_around(np.stack([a * x + b * y + c, d * x + e * y + f], 1), size)
        if box is None:
            return None
        left, top, right, bottom = box
        # Within a cell of this grid the picture is stretched evenly.
        columns, rows = (
            np.unique(np.linspace(low, high, _CELLS + 1).astype(int))
            for low, high in ((left, right), (top, bottom))
        )
        a, b, c, d, e, f = invert(affine)
        x = a * columns + b * rows[:, None] + c
        y = d * columns + e * rows[:, None] + f
        wave = lambda bend, along: bend[0] * np.sin(bend[1] * along + bend[2] * time + bend[3])
        x, y = x + wave(self.bends[0], y), y + wave(self.bends[1], x)
        # A smaller copy where pixels of the picture are finer than those of the frame.
        finer = math.sqrt(abs(a * e - b * d)) / unit
        picture = self._levels[min(int(math.log2(max(finer, 1))), len(self._levels) - 1)]
        unit = unit * self.picture.width / picture.width
        points = np.stack([x, y], -1) / unit + np.array(picture.size) / 2
        mesh = []
        for i, j in itertools.product(range(len(rows) - 1), range(len(columns) - 1)):
            cell = (columns[j] - left, rows[i] - top, columns[j + 1] - left, rows[i + 1] - top)
            corners = points[[i, i + 1, i + 1, i], [j, j, j + 1, j + 1]]
            mesh.append((tuple(map(int, cell)), tuple(corners.ravel().tolist())))
        drawn = picture.transform(
            (right - left, bottom - top), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
        )
        return Cover(drawn.getchannel("A"), (left, top), lambda: drawn.convert("RGB"))

    @functools.cached_property
    def _levels(self) -> list[Image.Image]:
        """The picture, and copies of a half and a quarter of its side."""
        return [self.picture, self.picture.reduce(2), self.picture.reduce(4)]


def make_cutout(rng: Rng, scheme: Scheme, has_color: bool) -> Cutout:
    """Takes a cutout, in another light; it bends, most often a little."""
    cutouts = scheme.collection.cutouts
    picture = _open_cutout(cutouts[rng.integers(len(cutouts))])
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = picture.getchannel("A")
    if has_color:
        colors = picture.convert("RGB")
        if rng.random() < 0.3:
            values = (np.asarray(colors.convert("L"), np.float32) - 128) / 90
            colors = paint(values, scheme.several(int(rng.integers(2, 5))))
        gains = np.exp(rng.normal(0, 0.2) + 0.15 * rng.standard_normal(3))
        colors = brighten(colors, gains)
    else:
        colors = Image.new("RGB", picture.size, (128, 128, 128))
    colors.putalpha(alpha)
    height = log_uniform(rng, 0.01, 0.2)
    bends = tuple(
        (height * rng.uniform(), rng.uniform(1, 4), *make_swing(rng, 1.0)[1:]) for _ in "xy"
    )
    return Cutout(colors, bends)


@functools.lru_cache(maxsize=256)
def _open_cutout(path: str) -> Image.Image:
    """Opens a picture with transparent parts, its border included, 256 pixels long at most."""
    with open_picture(path) as image:
        picture = image.convert("RGBA")
    picture.thumbnail((254, 254))
    framed = Image.new("RGBA", (picture.width + 2, picture.height + 2))
    framed.paste(picture, (1, 1))
    return framed
