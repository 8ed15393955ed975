"""Colours that go together, and pictures in them: patterns, and pieces of pictures from files."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw
from scipy import fft

from sam2_jax.data.media import has_transparency, open_picture
from sam2_jax.data.procedural.sampling import Rng, log_uniform, pick

Rgb = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Collection:
    """Paths of pictures."""

    textures: tuple[str, ...] = ()
    cutouts: tuple[str, ...] = ()  # with transparent parts


def sort_pictures(pictures: Sequence[str]) -> Collection:
    """Tells pictures with transparent parts from others; ValueError where one is no picture."""
    kinds = {path: has_transparency(path) for path in pictures}
    of = lambda wanted: tuple(path for path, kind in kinds.items() if kind == wanted)
    return Collection(textures=of(False), cutouts=of(True))


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The colours of a scene: a few that recur, and how bright and vivid others are."""

    rng: Rng
    recurring: np.ndarray  # (K, 3)
    middle: float
    spread: float
    vividness: float
    nearness: float  # how often a colour is a recurring one
    collection: Collection

    def color(self) -> np.ndarray:
        """Draws (3,) float RGB."""
        if self.rng.random() < self.nearness:
            return self.near()
        brightness = self.middle + self.spread * self.rng.uniform(-1, 1)
        return _tone(self.rng, brightness, self.vividness)

    def near(self) -> np.ndarray:
        """Draws a recurring colour, a little changed."""
        return self.several(1)[0]

    def several(self, count: int) -> np.ndarray:
        """Draws (count, 3) recurring colours, a little changed, different ones if possible."""
        order = self.rng.permutation(len(self.recurring))
        colors = self.recurring[np.resize(order, count)]
        changes = self.rng.standard_normal((count, 4))
        return (colors + 8 * changes[:, :1] + 5 * changes[:, 1:]).clip(0, 255)

    def rgb(self) -> Rgb:
        """Draws a colour in whole numbers."""
        return tuple(self.color().astype(int).tolist())


# Daylight varies from yellow to blue more than from green to purple.
_TONES = np.array([[45.0, 4.0, -45.0], [-15.0, 18.0, -15.0], [12.0, -12.0, -12.0]])


def _tone(rng: Rng, brightness: float, vividness: float) -> np.ndarray:
    return (brightness + vividness * rng.standard_normal(3) @ _TONES).clip(0, 255)


def make_scheme(rng: Rng, collection: Collection) -> Scheme:
    """Draws the colours of a scene."""
    middle, spread = rng.uniform(90, 155), rng.uniform(70, 140)
    vividness = log_uniform(rng, 0.15, 1.3)
    nearness = 0.9 if rng.random() < 0.2 else rng.uniform(0, 0.4)
    levels = middle + spread * np.linspace(-1, 1, rng.integers(3, 8))
    recurring = np.array([_tone(rng, level, vividness) for level in levels])
    return Scheme(rng, recurring, middle, spread, vividness, nearness, collection)


@functools.lru_cache(maxsize=8)
def _squared_frequencies(side: int) -> tuple[np.ndarray, np.ndarray]:
    rows = fft.fftfreq(side, 1 / side).astype(np.float32)[:, None]
    return rows**2, fft.rfftfreq(side, 1 / side).astype(np.float32) ** 2


def make_noise(rng: Rng, side: int, slope: float, stretch: float = 1.0) -> np.ndarray:
    """Draws (side, side) float32 noise of variance 1 whose amplitude falls as 1 / frequency**slope."""
    if slope > 1.4 and side >= 128:  # the highest frequencies cannot be seen
        small = Image.fromarray(make_noise(rng, side // 4, slope, stretch))
        return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    rows, columns = _squared_frequencies(side)
    amplitude = (np.float32(stretch) * rows + columns + 1) ** np.float32(-slope / 2)
    amplitude[0, 0] = 0
    spectrum = rng.standard_normal((*amplitude.shape, 2), np.float32).view(np.complex64)[..., 0]
    field = np.asarray(fft.irfft2(spectrum * amplitude, (side, side)))
    return field * np.float32(1 / (math.sqrt(np.vdot(field, field)) / side + 1e-6))


def _make_field(rng: Rng, side: int, scale: float) -> np.ndarray:
    """Draws a pattern, (side, side) float32 about within -1..1; scale is the size of its features."""
    kind = pick(
        rng,
        noise=0.36,
        grain=0.09,
        stripes=0.11,
        checks=0.05,
        spots=0.12,
        gradient=0.07,
        bricks=0.05,
        discs=0.15,
    )
    if kind == "noise":
        stretch = log_uniform(rng, 0.05, 20) if rng.random() < 0.35 else 1.0
        return np.float32(0.7) * make_noise(rng, side, rng.uniform(0.7, 1.9), stretch)
    if kind == "grain":
        cells = min(max(int(side / scale * rng.uniform(1, 3)), 4), side)
        image = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        resampling = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.NEAREST
        return np.asarray(image.resize((side, side), resampling))
    if kind == "discs":
        return _make_discs(rng, side, scale)
    along = (np.arange(side, dtype=np.float32) - side / 2) * np.float32(math.pi / scale)
    angle = rng.uniform(0, 2 * math.pi)
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    x, y = c * along - s * along[:, None], s * along + c * along[:, None]
    if kind == "gradient":
        return x * np.float32(scale / side / 1.5)
    if rng.random() < 0.4:
        bend = np.float32(rng.uniform(0.2, 1.5)) * make_noise(rng, side, 2.0)
        x, y = x + bend, y + bend
    if kind == "stripes":
        wave = np.sin(x)
        return np.sign(wave) if rng.random() < 0.4 else wave
    if kind == "bricks":
        row = np.floor(y / 3)
        column = x / 6 + row / 2
        brick = np.floor(column)
        is_mortar = (y / 3 - row < 0.12) | (column - brick < 0.06)
        return np.where(is_mortar, np.float32(1), np.sin(row * 7 + brick * 3) / 3)
    wave = np.sin(x) * np.sin(y)
    if kind == "checks":
        return np.sign(wave)
    if rng.random() < 0.5:
        wave = make_noise(rng, side, 2.5)
    return (wave - np.float32(rng.uniform(-0.3, 0.6))) * 5


def _make_discs(rng: Rng, side: int, scale: float) -> np.ndarray:
    """Draws discs that cover one another: edges at all scales, as in photographs."""
    image = Image.new("L", (side, side), 128)
    draw = ImageDraw.Draw(image)
    count = 120
    radii = 0.5 * scale / np.sort(rng.uniform(0.15, 1, count))[:, None]
    halves = radii * rng.uniform(0.4, 1, (count, 2))
    spots = rng.uniform(0, side, (count, 2))
    boxes = np.concatenate([spots - halves, spots + halves], 1).tolist()
    for box, shade in zip(boxes, rng.integers(0, 256, count).tolist(), strict=True):
        draw.ellipse(box, shade)
    return np.asarray(image, np.float32) * np.float32(1 / 127.5) - 1


def paint(field: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Turns a pattern into RGB by a scale of colours, (K, 3)."""
    levels = np.arange(256)
    stops = np.linspace(0, 255, len(colors))
    table = np.stack([np.interp(levels, stops, c) for c in colors.T], 1)
    image = to_grey(field * np.float32(90) + 128)
    image.putpalette(np.clip(table, 0, 255).astype(np.uint8).tobytes())
    return image.convert("RGB")


def to_grey(values: np.ndarray) -> Image.Image:
    """Turns (H, W) values around 0..255 into a grey picture."""
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns a grey picture into RGB, and leaves RGB as it is."""
    return image if image.mode == "RGB" else Image.merge("RGB", [image] * 3)


def make_texture(rng: Rng, side: int, scheme: Scheme) -> Image.Image:
    """Draws 1 to 3 patterns that meet in lines or in patches, or cuts a piece out of a picture."""
    if scheme.collection.textures and rng.random() < 0.4:
        return _cut(rng, side, scheme)

    def pattern() -> Image.Image:
        scale = side * log_uniform(rng, 0.012, 0.2)
        return paint(_make_field(rng, side, scale), scheme.several(int(rng.integers(2, 5))))

    image = pattern()
    for _ in range(int(pick(rng, **{"0": 0.25, "1": 0.45, "2": 0.3}))):
        other = pattern()
        border = make_noise(rng, side, rng.uniform(1.4, 2.4)) * np.float32(rng.uniform(0.1, 1.0))
        if rng.random() < 0.6:  # a horizon
            down = np.linspace(-3, 3, side, dtype=np.float32)[:, None]
            border = np.float32(0.3) * border + down + np.float32(rng.uniform(-0.8, 0.8))
            other = _recede(other, rng.uniform(0, 4))
        sharpness = np.float32(log_uniform(rng, 60, 3000))
        image.paste(other, mask=to_grey(border * sharpness + 128))
    if rng.random() < 0.7:
        grain = make_noise(rng, side // 2, rng.uniform(0.3, 1.3)) * np.float32(rng.uniform(4, 32))
        grain = to_grey(np.tile(grain + 128, (2, 2))).resize(image.size)
        image = ImageChops.add(image, to_rgb(grain), 1, -128)
    return image


@functools.lru_cache(maxsize=64)
def _open_picture(path: str) -> Image.Image:
    """Opens a picture, 1024 pixels long at most; grey where it has no colours."""
    with open_picture(path) as image:
        picture = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    picture.thumbnail((1024, 1024))
    return picture


def _cut(rng: Rng, side: int, scheme: Scheme) -> Image.Image:
    """Cuts a square out of a picture; what is grey gets colours, what has some another light."""
    textures = scheme.collection.textures
    picture = _open_picture(textures[rng.integers(len(textures))])
    length = min(picture.size) * log_uniform(rng, 0.35, 1.0)
    left, top = (rng.uniform(0, extent - length) for extent in picture.size)
    box = (left, top, left + length, top + length)
    image = picture.resize((side, side), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if image.mode == "L":
        values = (np.asarray(image, np.float32) - 128) / 90
        return paint(values, scheme.several(int(rng.integers(2, 5))))
    return brighten(image, np.exp(rng.normal(0, 0.25) + 0.1 * rng.standard_normal(3)))


def brighten(image: Image.Image, gains: np.ndarray) -> Image.Image:
    """Multiplies red, green and blue by a factor each."""
    table = np.minimum(np.outer(gains, np.arange(256)), 255)
    return image.point(table.astype(int).ravel().tolist())


def _recede(image: Image.Image, depth: float) -> Image.Image:
    """Looks at a picture as at the ground: larger towards the lower edge."""
    h = depth / image.height
    plane = (1, h * image.width / 2, 0, 0, 1, 0, 0, h)
    return image.transform(
        image.size, Image.Transform.PERSPECTIVE, plane, Image.Resampling.BILINEAR
    )


def make_detail(rng: Rng, side: int) -> Image.Image:
    """Draws what is added to the brightness of a shape; 128 adds nothing."""
    values = _make_field(rng, side, side * log_uniform(rng, 0.02, 0.2))
    values = values * np.float32(log_uniform(rng, 10, 80)) + 128
    if rng.random() < 0.6:  # light from one side, most often from above
        slope, angle = log_uniform(rng, 40, 250), rng.normal(-math.pi / 2, 1)
        along = np.linspace(-0.5, 0.5, side, dtype=np.float32) * np.float32(slope)
        values += np.float32(math.cos(angle)) * along
        values += np.float32(math.sin(angle)) * along[:, None]
    return to_grey(values)
