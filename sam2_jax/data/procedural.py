"""Videos that are drawn: textured shapes that move over a textured background, with perfect masks.

    seed, index  ->  scene: shapes, textures, motions  ->  frames (H, W, 3), masks (H, W)

Lengths are fractions of the picture's side, times are frames, angles radians. A point is a complex number
x + iy; a shape is about one unit large in its own coordinates, and an affine map brings it into the picture.
"""

import bisect
import cmath
import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from scipy import fft, special

from sam2_jax.data.clips import Video
from sam2_jax.data.media import has_transparency, open_picture

_ENDLESS = 1_000_000  # videos of a source that has no count
_CANVAS = 1.875  # side of the background's canvas; the camera never sees beyond
_TILE = 4.0  # side of an object's texture, in the object's units
_CELLS = 5  # of the grid, along each side, that bends a cutout
_FINER = 2  # contours and the canvas are finer than the picture by this factor
_MIN_AREA = 0.001  # of the picture; a clip does not start with an object of which less is seen

_Affine = tuple[float, float, float, float, float, float]  # x' = a x + b y + c, y' = d x + e y + f
_Rgb = tuple[int, int, int]
_Rng = np.random.Generator


class ProceduralVideos(Sequence):
    """A source of drawn videos, each determined by its index and the arguments below."""

    def __init__(
        self,
        seed: int,
        count: int,
        num_frames: int,
        size: int,
        is_plain: bool = False,
        pictures: Sequence[str] = (),
    ):
        """Opens the source; nothing is drawn yet.

        Args:
            seed: which videos.
            count: how many; -1 is a million.
            num_frames: of every video.
            size: side of the square frames in pixels.
            is_plain: a few large shapes of one colour each over a smooth background, and nothing else.
            pictures: paths of pictures, besides what is drawn: textures are cut from them, and those with
                transparent parts become objects.

        Raises:
            FileNotFoundError: a picture is missing.
            ValueError: an argument is out of range, or a file is no picture.
        """
        if seed < 0 or count < -1 or num_frames < 1 or size < 16:
            raise ValueError(
                f"seed {seed}, count {count}, num_frames {num_frames}, size {size}: seed >= 0, "
                "count >= -1, num_frames >= 1 and size >= 16 are expected"
            )
        self._seed, self._num_frames, self._size = seed, num_frames, size
        if is_plain:
            self._make = _make_plain_scene
        else:
            self._make = functools.partial(_make_scene, collection=_sort(pictures))
        self._count = _ENDLESS if count == -1 else count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> "ProceduralVideo":
        if not 0 <= index < self._count:
            raise IndexError(f"there is no video {index}; the source has {self._count}")
        return ProceduralVideo(self._seed, index, self._num_frames, self._size, self._make)


class ProceduralVideo(Video):
    """A drawn video. Its scene is made when it is first read, a frame whenever it is read."""

    def __init__(
        self, seed: int, index: int, num_frames: int, size: int, make: Callable[..., "_Scene"]
    ):
        self.name = f"procedural {seed}/{index}"
        self.num_frames = num_frames
        self._key, self._size = (seed, index), size
        self._make = make

    def read(self, indices: Sequence[int]) -> tuple[list[np.ndarray], list[dict[int, np.ndarray]]]:
        """Draws frames, each of them independently of the others.

        Args:
            indices: which, each within 0..num_frames - 1, in any order.

        Returns:
            frames: (H, W, 3) uint8 RGB each.
            masks: of every frame the (H, W) bool visible pixels of the objects that have any, by id.

        Raises:
            IndexError: the video has no such frame.
        """
        drawn = [self._draw(index) for index in indices]
        return [frame for frame, _ in drawn], [masks for _, masks in drawn]

    def object_ids(self, index: int) -> list[int]:
        """Returns the objects, from 1, of which more than a few pixels are visible on a frame."""
        self._check(index)
        things, camera = self._scene.things, self._scene.camera
        areas = _visible_areas(things, camera, float(index), self._size)
        return [i for i, area in enumerate(areas) if i > 0 and area >= _MIN_AREA * self._size**2]

    def _draw(self, index: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        self._check(index)
        frame, ids = _draw_frame(self._scene, index, np.random.default_rng((*self._key, index)))
        present = np.flatnonzero(np.bincount(ids.ravel())).tolist()
        return frame, {i: ids == i for i in present if i > 0}

    def _check(self, index: int) -> None:
        if not 0 <= index < self.num_frames:
            raise IndexError(f"{self.name} has no frame {index}; it has {self.num_frames}")

    @functools.cached_property
    def _scene(self) -> "_Scene":
        return self._make(np.random.default_rng(self._key), self.num_frames, self._size)


@dataclasses.dataclass(frozen=True)
class _Collection:
    """Paths of pictures."""

    textures: tuple[str, ...] = ()
    cutouts: tuple[str, ...] = ()  # with transparent parts


def _sort(pictures: Sequence[str]) -> _Collection:
    kinds = {path: has_transparency(path) for path in pictures}
    of = lambda wanted: tuple(path for path, kind in kinds.items() if kind == wanted)
    return _Collection(textures=of(False), cutouts=of(True))


def _log_uniform(rng: _Rng, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _pick(rng: _Rng, **weights: float) -> str:
    """Draws one of the names; several times faster than `rng.choice`."""
    names, edges = list(weights), list(itertools.accumulate(weights.values()))
    return names[bisect.bisect(edges, rng.random() * edges[-1], hi=len(names) - 1)]


def _chances(rng: _Rng, *chances: float) -> list[bool]:
    return (rng.random(len(chances)) < chances).tolist()


# Affine maps


def _affine(matrix: complex, ratio: float, shift: Sequence[float]) -> _Affine:
    """Stretches by `ratio` along x and its inverse along y, then turns and scales, then shifts."""
    c, s = matrix.real, matrix.imag
    return (c * ratio, -s / ratio, shift[0], s * ratio, c / ratio, shift[1])


def _compose(outer: _Affine, inner: _Affine) -> _Affine:
    a, b, c, d, e, f = outer
    p, q, r, s, t, u = inner
    return (
        a * p + b * s,
        a * q + b * t,
        a * r + b * u + c,
        d * p + e * s,
        d * q + e * t,
        d * r + e * u + f,
    )


def _invert(affine: _Affine) -> _Affine:
    a, b, c, d, e, f = affine
    det = a * e - b * d
    p, q, s, t = e / det, -b / det, -d / det, a / det
    return (p, q, -p * c - q * f, s, t, -s * c - t * f)


# Motion


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A smooth path that is 0 at time 0: for every axis a drift and waves of height, rate, phase."""

    axes: tuple[tuple[float, tuple[tuple[float, float, float], ...]], ...]

    def __call__(self, time: float) -> list[float]:
        return [
            drift * time + sum(h * (math.sin(r * time + p) - math.sin(p)) for h, r, p in waves)
            for drift, waves in self.axes
        ]


def _curve(rng: _Rng, axes: int, height: float, rate: float, drift: float = 0.0) -> _Curve:
    """Draws a path whose waves have about this height and rate, and that drifts by up to `drift`."""

    def wave(order: int) -> tuple[float, float, float]:
        phase = rng.uniform(0, 2 * math.pi)
        return height * rng.normal() / order, rate * order * rng.uniform(0.4, 1.4), phase

    return _Curve(tuple((rng.uniform(-drift, drift), (wave(1), wave(2))) for _ in range(axes)))


@dataclasses.dataclass(frozen=True)
class _Motion:
    """How a shape lies in the world at every time."""

    start: tuple[float, float]
    radius: float  # of one unit
    angle: float
    path: _Curve  # of the position
    turn: _Curve
    growth: _Curve  # log of the radius
    ratio: _Curve  # log of the ratio of its axes
    away: tuple[float, float] = (0.0, 0.0)  # where it goes in between
    away_at: float = 0.0  # the middle of that
    away_half: float = 1.0  # half of how long it takes

    def affine(self, time: float) -> _Affine:
        """Returns the map from the shape's coordinates to the world's."""
        share = self._share_away(time) - self._share_away(0.0)
        x, y = (
            _fold(s + p + share * a)
            for s, p, a in zip(self.start, self.path(time), self.away, strict=True)
        )
        size = min(max(self.growth(time)[0], -1.1), 1.3)
        ratio = min(max(self.ratio(time)[0], -0.6), 0.6)
        matrix = cmath.rect(self.radius * math.exp(size), self.angle + self.turn(time)[0])
        return _affine(matrix, math.exp(ratio), (x, y))

    def _share_away(self, time: float) -> float:
        return math.cos(math.pi / 2 * min(abs(time - self.away_at) / self.away_half, 1.0)) ** 2


def _fold(position: float) -> float:
    """Turns paths round that would lead far out of the picture."""
    low, width = -0.35, 1.7
    distance = (position - low) % (2 * width)
    return low + min(distance, 2 * width - distance)


def _motion(rng: _Rng, radius: float, pace: float, num_frames: int) -> _Motion:
    """Draws a motion; a pace of 0 is rest and 1 is fast."""
    speed = pace * _log_uniform(rng, 0.004, 0.05)
    rate = _log_uniform(rng, 0.05, 0.5)
    drifts, spins, leaves, nears = _chances(rng, 0.5, 0.2, 0.25, 0.3)
    height = min(speed / rate, 0.4) * (0.3 if drifts else 0.8)
    swell = _log_uniform(rng, 0.05, 0.4)
    length = max(num_frames, 6)
    away = cmath.rect(rng.uniform(0.5, 1.1) * (leaves and pace > 0), rng.uniform(0, 2 * math.pi))
    return _Motion(
        start=tuple(rng.uniform(0.15, 0.85, 2).tolist()),
        radius=radius,
        angle=rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else rng.normal(0, 0.2),
        path=_curve(rng, 2, height, rate, speed * drifts),
        turn=_curve(rng, 1, 0.15 * pace, rate, pace * (0.15 if spins else 0.02)),
        growth=_curve(rng, 1, 0.15 * pace, swell, 0.04 if nears and pace else 0.02 * pace),
        ratio=_curve(rng, 1, 0.15 * pace, swell, 0.02 * pace),
        away=(away.real, away.imag),
        away_at=length * rng.uniform(0.3, 0.8),
        away_half=length * rng.uniform(0.2, 0.6),
    )


@dataclasses.dataclass(frozen=True)
class _Camera:
    """Pan, zoom and roll."""

    path: _Curve
    zoom: _Curve
    roll: _Curve

    def affine(self, time: float, parallax: float = 1.0) -> _Affine:
        """Returns the map from the world to the picture, 0..1 both; parallax 0 is no motion."""
        zoom = math.exp(min(max(parallax * self.zoom(time)[0], -0.1), 0.6))
        roll = min(max(parallax * self.roll(time)[0], -0.2), 0.2)
        x, y = (-min(max(parallax * p, -0.25), 0.25) for p in self.path(time))
        turned = _affine(cmath.rect(zoom, roll), 1.0, (0.5, 0.5))
        return _compose(turned, (1.0, 0.0, x - 0.5, 0.0, 1.0, y - 0.5))


def _make_camera(rng: _Rng) -> _Camera:
    shakes, moves, zooms, grows, rolls = _chances(rng, 0.2, 0.75, 0.5, 0.3, 0.4)
    pan = _log_uniform(rng, 0.001, 0.05) * moves
    rate = rng.uniform(0.8, 2.5) if shakes else _log_uniform(rng, 0.03, 0.4)
    return _Camera(
        _curve(rng, 2, 0.01 if shakes else min(pan / rate, 0.15), rate, pan * 0.7),
        _curve(rng, 1, 0.06 * zooms, 0.2, 0.015 * grows),
        _curve(rng, 1, 0.04 * rolls, 0.2),
    )


# Shapes


@dataclasses.dataclass(frozen=True)
class _Part:
    """A contour that swings around a joint of an earlier part."""

    contour: np.ndarray  # (K,) complex
    color: _Rgb
    parent: int = -1
    joint: complex = 0j
    angle: float = 0.0
    swing: tuple[float, float, float] = (0.0, 0.0, 0.0)  # height, rate, phase
    is_behind: bool = False
    is_hole: bool = False


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Parts that move against one another, and deformations of the whole.

    Ripples go around every contour, the sway is a wave along x that moves y.
    """

    parts: tuple[_Part, ...]
    ripples: tuple[tuple[int, float, float, float], ...] = ()  # order, height, rate, phase
    sway: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # height, order, rate, phase

    def points(self, time: float) -> np.ndarray:
        """Returns the points of all contours, one after the other, (N,) complex."""
        turns: list[complex] = []
        joints: list[complex] = []
        for part in self.parts:
            height, rate, phase = part.swing
            turn = cmath.rect(1.0, part.angle + height * math.sin(rate * time + phase))
            joint = part.joint
            if part.parent >= 0:
                joint = joints[part.parent] + turns[part.parent] * joint
                turn *= turns[part.parent]
            turns.append(turn)
            joints.append(joint)
        points, lengths = self._stacked
        if self.ripples:
            around = np.concatenate([_around(n) for n in lengths])
            factor = np.ones(len(points))
            for order, height, rate, phase in self.ripples:
                factor += height * np.cos(order * around + (rate * time + phase))
            points = points * factor
        points = points * np.repeat(turns, lengths) + np.repeat(joints, lengths)
        height, order, rate, phase = self.sway
        if height:
            points += 1j * height * np.sin(order * points.real + (rate * time + phase))
        return points

    def cover(self, time: float, affine: _Affine, size: tuple[int, int]) -> "_Cover | None":
        """Returns where it is at a time, None if that is nowhere in a picture of this size."""
        a, b, c, d, e, f = affine
        z = self.points(time)
        points = np.stack([a * z.real + b * z.imag + c, d * z.real + e * z.imag + f], 1)
        if (box := _box_of(points, size)) is None:
            return None
        left, top, right, bottom = box
        points -= (left, top)
        fine = Image.new("L", (_FINER * (right - left), _FINER * (bottom - top)))
        self._draw(fine, _FINER * points, lambda part: 0 if part.is_hole else 255)
        skin = functools.partial(self._skin, points, (right - left, bottom - top))
        return _Cover(fine.reduce(_FINER), (left, top), skin)

    def _skin(self, points: np.ndarray, size: tuple[int, int]) -> Image.Image:
        image = Image.new("RGB", size, self.parts[0].color)
        if len({part.color for part in self.parts}) > 1:
            self._draw(image, points, lambda part: part.color)
        return image

    def _draw(self, image: Image.Image, points: np.ndarray, fill: Callable) -> None:
        draw = ImageDraw.Draw(image)
        flat = (points - 0.5).ravel().tolist()  # Pillow counts from the middle of the first pixel
        for first, last, part in self.order:
            draw.polygon(flat[2 * first : 2 * last], fill(part))

    @functools.cached_property
    def _stacked(self) -> tuple[np.ndarray, list[int]]:
        """The points of all contours, (N,) complex, and how many each has."""
        contours = [part.contour for part in self.parts]
        return np.concatenate(contours), [len(contour) for contour in contours]

    @functools.cached_property
    def order(self) -> list[tuple[int, int, _Part]]:
        """The first and the last + 1 point of every part, the hindmost first."""
        ends = np.cumsum(self._stacked[1]).tolist()
        spans = zip([0, *ends[:-1]], ends, self.parts, strict=True)
        return sorted(spans, key=lambda span: not span[2].is_behind)


@dataclasses.dataclass(frozen=True)
class _Cover:
    """A shape's place in the picture."""

    image: Image.Image  # how much of each pixel is covered
    corner: tuple[int, int]
    skin: Callable[[], Image.Image]  # draws the colours


def _box_of(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The pixels around points (N, 2) that are in a picture: left, top, right, bottom; None without any."""
    low, high = points.min(0).tolist(), points.max(0).tolist()
    left, top = max(int(low[0]) - 1, 0), max(int(low[1]) - 1, 0)
    right, bottom = min(int(high[0]) + 2, size[0]), min(int(high[1]) + 2, size[1])
    return None if right <= left or bottom <= top else (left, top, right, bottom)


@dataclasses.dataclass(frozen=True)
class _Cutout:
    """A picture with transparent parts that bends: waves along x move y, and the other way round."""

    picture: Image.Image  # RGBA, transparent at its border
    bends: tuple[tuple[float, float, float, float], ...]  # for x, y: height, order, rate, phase

    def cover(self, time: float, affine: _Affine, size: tuple[int, int]) -> _Cover | None:
        """Returns where it is at a time, None if that is nowhere in a picture of this size."""
        unit = 2 / max(self.picture.size)  # of a pixel
        half = unit / 2 * np.array(self.picture.size) + [bend[0] for bend in self.bends]
        a, b, c, d, e, f = affine
        x, y = half[0] * np.array([-1, -1, 1, 1]), half[1] * np.array([-1, 1, -1, 1])
        box = _box_of(np.stack([a * x + b * y + c, d * x + e * y + f], 1), size)
        if box is None:
            return None
        left, top, right, bottom = box
        # Within a cell of this grid the picture is stretched evenly.
        columns, rows = (
            np.unique(np.linspace(low, high, _CELLS + 1).astype(int))
            for low, high in ((left, right), (top, bottom))
        )
        a, b, c, d, e, f = _invert(affine)
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
        return _Cover(drawn.getchannel("A"), (left, top), lambda: drawn.convert("RGB"))

    @functools.cached_property
    def _levels(self) -> list[Image.Image]:
        """The picture, and copies of a half and a quarter of its side."""
        return [self.picture, self.picture.reduce(2), self.picture.reduce(4)]


@functools.cache
def _around(points: int) -> np.ndarray:
    """Returns the (K,) angles of points all around."""
    return np.linspace(0, 2 * math.pi, points, endpoint=False)


def _ellipse(width: float, height: float, points: int = 24) -> np.ndarray:
    return width * np.cos(_around(points)) + 1j * height * np.sin(_around(points))


def _blob(rng: _Rng, roughness: float, points: int = 40) -> np.ndarray:
    around, orders = _around(points), np.arange(1, 9)[:, None]
    heights = roughness * rng.standard_normal((8, 1)) / orders
    waves = heights * np.cos(orders * around + rng.uniform(0, 2 * math.pi, (8, 1)))
    return np.maximum(1 + waves.sum(0), 0.15) * np.exp(1j * around)


def _polygon(rng: _Rng) -> np.ndarray:
    corners = int(rng.integers(3, 9))
    around = _around(corners)
    if rng.random() < 0.5:
        around = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radius = rng.uniform(0.4, 1.2, corners) if rng.random() < 0.5 else 1.0
    return radius * np.exp(1j * around)


def _star(rng: _Rng) -> np.ndarray:
    tips = int(rng.integers(4, 12))
    radius = np.tile([1.0, rng.uniform(0.3, 0.7)], tips)
    return radius * np.exp(1j * _around(2 * tips))


def _box(width: float, height: float) -> np.ndarray:
    corner = complex(width, height)
    return np.array([-corner, corner.conjugate(), corner, -corner.conjugate()])


def _limb(length: float, thick: float, thin: float) -> np.ndarray:
    """A tapered rod along x from the joint at 0."""
    arc = np.exp(1j * np.linspace(-math.pi / 2, math.pi / 2, 6))
    return np.concatenate([length + thin * arc, -thick * arc])


def _swing(rng: _Rng, height: float) -> tuple[float, float, float]:
    return rng.uniform(0, height), _log_uniform(rng, 0.1, 1.0), rng.uniform(0, 2 * math.pi)


def _spot(rng: _Rng) -> complex:
    return complex(*rng.uniform(-0.55, 0.55, 2))


def _simple(rng: _Rng, color: Callable[[], _Rgb]) -> list[_Part]:
    """One contour with marks or holes on it."""
    kind = _pick(rng, blob=0.45, polygon=0.2, star=0.05, ellipse=0.2, box=0.1)
    contour = {
        "blob": lambda: _blob(rng, rng.uniform(0.1, 0.45)),
        "polygon": lambda: _polygon(rng),
        "star": lambda: _star(rng),
        "ellipse": lambda: _ellipse(1.0, rng.uniform(0.4, 1.0)),
        "box": lambda: _box(1.0, rng.uniform(0.3, 1.0)),
    }[kind]()
    parts = [_Part(contour, color())]
    for _ in range(rng.integers(0, 4)):
        mark = _blob(rng, 0.2, 16) * rng.uniform(0.1, 0.35)
        parts.append(_Part(mark, color(), joint=_spot(rng), is_hole=rng.random() < 0.1))
    return parts


def _creature(rng: _Rng, color: Callable[[], _Rgb]) -> list[_Part]:
    """A person or an animal: a body with a head, legs, and arms or a tail, which swing."""
    is_upright = rng.random() < 0.55
    waist = rng.uniform(0.2, 0.45)
    body = _ellipse(1.0, 1.0) if rng.random() < 0.6 else _blob(rng, 0.12)
    body = 0.6 * body.real + 1j * waist * body.imag
    coat, skin, legs = color(), color(), color()
    parts = [_Part(body, coat, angle=math.pi / 2 if is_upright else 0.0)]
    height, rate, _ = _swing(rng, 0.7)
    thick = rng.uniform(0.06, 0.18)

    def add(joint: complex, angle: float, length: float, paint: _Rgb, is_behind: bool) -> None:
        phase = rng.uniform(0, 2 * math.pi)
        first = len(parts)
        upper = _limb(length, thick, thick * 0.8)
        parts.append(
            _Part(upper, paint, 0, joint, angle, (height, rate, phase), is_behind=is_behind)
        )
        lower = _limb(length * 0.9, thick * 0.8, thick * 0.6)
        swing, bend = (height * 0.7, rate, phase + 1), rng.uniform(-0.5, 0.5)
        parts.append(_Part(lower, paint, first, length + 0j, bend, swing, is_behind=is_behind))

    # The body's x axis points down where it is upright, forward where it is not.
    length = rng.uniform(0.35, 0.7)
    if is_upright:
        for side in (-1, 1):
            add(0.5 + 0.1j * side, 0.0, length, legs, side < 0)
            add(-0.4 + 0.6j * side * waist, rng.uniform(-1.5, 1.5), 0.8 * length, skin, side < 0)
    else:
        for place in (-0.45, -0.4, 0.4, 0.45):
            add(place + 0.1j, math.pi / 2, length, legs, abs(place) < 0.42)
        if rng.random() < 0.7:
            add(-0.6 + 0j, math.pi + rng.uniform(-1, 1), 0.3, coat, True)
    head = rng.uniform(0.18, 0.32)
    neck = -0.6 - 0.8 * head + 0j if is_upright else 0.6 + 0.5 * head - 0.8j * waist
    contour = _ellipse(head * rng.uniform(0.9, 1.5), head)
    parts.append(_Part(contour, skin, 0, neck, 0.0, (height * 0.3, rate, 0.0)))
    if rng.random() < 0.5:
        parts.append(_Part(0.9 * contour.real + 0.5j * contour.imag, color(), len(parts) - 1))
    return parts


def _vehicle(rng: _Rng, color: Callable[[], _Rgb]) -> list[_Part]:
    """A car, or a bicycle of rods and wheels."""
    paint, dark, glass = color(), color(), color()
    wheel, roof = rng.uniform(0.2, 0.4), rng.uniform(0.3, 0.7)
    if rng.random() < 0.6:
        back, nose = rng.uniform(0.4, 0.95), rng.uniform(0.0, 0.25)
        outline = [-1 + 0.3j, -1 - 0.1j, -back - 0.2j, -back + 0.1 - 1j * roof, 0.4 - 1j * roof]
        body = np.array([*outline, 0.7 - 1j * (nose + 0.1), 1 - 1j * nose, 1 + 0.3j])
        top = 0.9 * roof
        window = np.array([0.05 - back - 0.2j, 0.15 - back - 1j * top, 0.33 - 1j * top, 0.5 - 0.2j])
        parts = [_Part(body, paint), _Part(window, glass)]
    else:
        rods = [(-0.6 + 0.3j, -0.3j), (-0.3j, 0.6 + 0.3j), (-0.6 + 0.3j, 0.1 + 0.2j)]
        parts = [
            _Part(_limb(abs(b - a), 0.05, 0.05), paint, joint=a, angle=cmath.phase(b - a))
            for a, b in rods
        ]
    has_holes = rng.random() < 0.4
    rim = _ellipse(wheel * 0.7, wheel * 0.7) if has_holes else _polygon(rng) * wheel * 0.5
    for x in (-0.6, 0.6):
        swing = (rng.uniform(0, 3), 0.2, 0.0)
        parts.append(_Part(_ellipse(wheel, wheel), dark, joint=x + 0.3j, swing=swing))
        parts.append(_Part(rim, glass, joint=x + 0.3j, swing=swing, is_hole=has_holes))
    return parts


def _strip(rng: _Rng, color: Callable[[], _Rgb]) -> list[_Part]:
    """A long thing, such as a rope, a fish or a flag, with bands across."""
    along = np.linspace(-1.2, 1.2, 24)
    width = rng.uniform(0.05, 0.4) * (1 + rng.uniform(-0.8, 0.8) * along / 1.2)
    edge = along + 1j * width
    parts = [_Part(np.concatenate([edge, edge.conj()[::-1]]), color())]
    for _ in range(rng.integers(0, 3)):
        first = int(rng.integers(0, 20))
        band = edge[first : first + int(rng.integers(3, 8))]
        parts.append(_Part(np.concatenate([band, band.conj()[::-1]]), color()))
    return parts


def _cluster(rng: _Rng, color: Callable[[], _Rgb]) -> list[_Part]:
    """Several simple contours that move as one, some of them rods."""
    parts = []
    for _ in range(rng.integers(2, 6)):
        contour = _blob(rng, 0.3, 24) * rng.uniform(0.25, 0.6)
        if rng.random() < 0.4:
            contour = _limb(rng.uniform(0.5, 1.2), rng.uniform(0.04, 0.15), 0.05)
        angle = rng.uniform(0, 2 * math.pi)
        parts.append(_Part(contour, color(), joint=_spot(rng), angle=angle, swing=_swing(rng, 0.4)))
    if rng.random() < 0.3:
        parts.append(_Part(_ellipse(0.3, 0.3), color(), is_hole=True))
    return parts


def _shape(rng: _Rng, color: Callable[[], _Rgb]) -> _Shape:
    kind = _pick(rng, simple=0.32, creature=0.38, vehicle=0.1, strip=0.1, cluster=0.1)
    ripples, sway = (), (0.0, 0.0, 0.0, 0.0)
    if kind == "simple" and rng.random() < 0.7:
        height = _log_uniform(rng, 0.02, 0.1)
        orders = rng.integers(1, 6, 3).tolist()
        ripples = tuple((o, height * rng.normal(), *_swing(rng, 1.0)[1:]) for o in orders)
    if kind == "strip" or rng.random() < 0.2:
        height = rng.uniform(0.05, 0.4 if kind == "strip" else 0.12)
        sway = (height, rng.uniform(1, 5), *_swing(rng, 1.0)[1:])
    draw = {
        "simple": _simple,
        "creature": _creature,
        "vehicle": _vehicle,
        "strip": _strip,
        "cluster": _cluster,
    }[kind]
    return _Shape(tuple(draw(rng, color)), ripples, sway)


def _occluder(rng: _Rng, color: Callable[[], _Rgb]) -> _Shape:
    """What stands in front, a pole, a fence, leaves or a rock: in units of about the picture."""
    kind = _pick(rng, pole=0.3, fence=0.15, leaves=0.3, rock=0.25)
    if kind == "pole":
        return _Shape((_Part(_box(rng.uniform(0.03, 0.15), 1.9), color()),))
    if kind == "fence":
        paint, gap, width = color(), rng.uniform(0.15, 0.4), rng.uniform(0.01, 0.05)
        places = np.arange(-1.8, 1.8, gap)
        return _Shape(tuple(_Part(_box(width, 1.9) + place, paint) for place in places))
    if kind == "leaves":
        leaves = []
        for _ in range(rng.integers(6, 20)):
            leaf = _ellipse(rng.uniform(0.04, 0.15), rng.uniform(0.02, 0.06), 12)
            angle = rng.uniform(0, 2 * math.pi)
            swing = _swing(rng, 0.3)
            leaves.append(_Part(leaf, color(), joint=0.6 * _spot(rng), angle=angle, swing=swing))
        return _Shape(tuple(leaves))
    return _Shape((_Part(_blob(rng, 0.3) * rng.uniform(0.15, 0.4), color()),))


# Colours and textures


@dataclasses.dataclass(frozen=True)
class _Scheme:
    """The colours of a scene: a few that recur, and how bright and vivid others are."""

    rng: _Rng
    recurring: np.ndarray  # (K, 3)
    middle: float
    spread: float
    vividness: float
    nearness: float  # how often a colour is a recurring one
    collection: _Collection

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

    def rgb(self) -> _Rgb:
        """Draws a colour in whole numbers."""
        return tuple(self.color().astype(int).tolist())


# Daylight varies from yellow to blue more than from green to purple.
_TONES = np.array([[45.0, 4.0, -45.0], [-15.0, 18.0, -15.0], [12.0, -12.0, -12.0]])


def _tone(rng: _Rng, brightness: float, vividness: float) -> np.ndarray:
    return (brightness + vividness * rng.standard_normal(3) @ _TONES).clip(0, 255)


def _make_scheme(rng: _Rng, collection: _Collection) -> _Scheme:
    middle, spread = rng.uniform(90, 155), rng.uniform(70, 140)
    vividness = _log_uniform(rng, 0.15, 1.3)
    nearness = 0.9 if rng.random() < 0.2 else rng.uniform(0, 0.4)
    levels = middle + spread * np.linspace(-1, 1, rng.integers(3, 8))
    recurring = np.array([_tone(rng, level, vividness) for level in levels])
    return _Scheme(rng, recurring, middle, spread, vividness, nearness, collection)


@functools.lru_cache(maxsize=8)
def _squared_frequencies(side: int) -> tuple[np.ndarray, np.ndarray]:
    rows = fft.fftfreq(side, 1 / side).astype(np.float32)[:, None]
    return rows**2, fft.rfftfreq(side, 1 / side).astype(np.float32) ** 2


def _noise(rng: _Rng, side: int, slope: float, stretch: float = 1.0) -> np.ndarray:
    """Draws (side, side) float32 noise of variance 1 whose amplitude falls as 1 / frequency**slope."""
    if slope > 1.4 and side >= 128:  # the highest frequencies cannot be seen
        small = Image.fromarray(_noise(rng, side // 4, slope, stretch))
        return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    rows, columns = _squared_frequencies(side)
    amplitude = (np.float32(stretch) * rows + columns + 1) ** np.float32(-slope / 2)
    amplitude[0, 0] = 0
    spectrum = rng.standard_normal((*amplitude.shape, 2), np.float32).view(np.complex64)[..., 0]
    field = fft.irfft2(spectrum * amplitude, (side, side))
    return field * np.float32(1 / (math.sqrt(np.vdot(field, field)) / side + 1e-6))


def _field(rng: _Rng, side: int, scale: float) -> np.ndarray:
    """Draws a pattern, (side, side) float32 about within -1..1; scale is the size of its features."""
    kind = _pick(
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
        stretch = _log_uniform(rng, 0.05, 20) if rng.random() < 0.35 else 1.0
        return np.float32(0.7) * _noise(rng, side, rng.uniform(0.7, 1.9), stretch)
    if kind == "grain":
        cells = min(max(int(side / scale * rng.uniform(1, 3)), 4), side)
        image = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        resampling = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.NEAREST
        return np.asarray(image.resize((side, side), resampling))
    if kind == "discs":
        return _discs(rng, side, scale)
    along = (np.arange(side, dtype=np.float32) - side / 2) * np.float32(math.pi / scale)
    angle = rng.uniform(0, 2 * math.pi)
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    x, y = c * along - s * along[:, None], s * along + c * along[:, None]
    if kind == "gradient":
        return x * np.float32(scale / side / 1.5)
    if rng.random() < 0.4:
        bend = np.float32(rng.uniform(0.2, 1.5)) * _noise(rng, side, 2.0)
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
        wave = _noise(rng, side, 2.5)
    return (wave - np.float32(rng.uniform(-0.3, 0.6))) * 5


def _discs(rng: _Rng, side: int, scale: float) -> np.ndarray:
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


def _paint(field: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Turns a pattern into RGB by a scale of colours, (K, 3)."""
    levels = np.arange(256)
    stops = np.linspace(0, 255, len(colors))
    table = np.stack([np.interp(levels, stops, c) for c in colors.T], 1)
    image = _grey(field * np.float32(90) + 128)
    image.putpalette(np.clip(table, 0, 255).astype(np.uint8).tobytes())
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _colored(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else Image.merge("RGB", [image] * 3)


def _texture(rng: _Rng, side: int, scheme: _Scheme) -> Image.Image:
    """Draws 1 to 3 patterns that meet in lines or in patches, or cuts a piece out of a picture."""
    if scheme.collection.textures and rng.random() < 0.4:
        return _cut(rng, side, scheme)

    def pattern() -> Image.Image:
        scale = side * _log_uniform(rng, 0.012, 0.2)
        return _paint(_field(rng, side, scale), scheme.several(int(rng.integers(2, 5))))

    image = pattern()
    for _ in range(int(_pick(rng, **{"0": 0.25, "1": 0.45, "2": 0.3}))):
        other = pattern()
        border = _noise(rng, side, rng.uniform(1.4, 2.4)) * np.float32(rng.uniform(0.1, 1.0))
        if rng.random() < 0.6:  # a horizon
            down = np.linspace(-3, 3, side, dtype=np.float32)[:, None]
            border = np.float32(0.3) * border + down + np.float32(rng.uniform(-0.8, 0.8))
            other = _recede(other, rng.uniform(0, 4))
        sharpness = np.float32(_log_uniform(rng, 60, 3000))
        image.paste(other, mask=_grey(border * sharpness + 128))
    if rng.random() < 0.7:
        grain = _noise(rng, side // 2, rng.uniform(0.3, 1.3)) * np.float32(rng.uniform(4, 32))
        grain = _grey(np.tile(grain + 128, (2, 2))).resize(image.size)
        image = ImageChops.add(image, _colored(grain), 1, -128)
    return image


def _any_shape(rng: _Rng, scheme: _Scheme, has_color: bool) -> _Shape | _Cutout:
    """Draws a shape or takes a cutout, grey if it gets its colours elsewhere."""
    if scheme.collection.cutouts and rng.random() < 0.55:
        return _cutout(rng, scheme, has_color)
    return _shape(rng, scheme.rgb if has_color else lambda: (128, 128, 128))


def _cutout(rng: _Rng, scheme: _Scheme, has_color: bool) -> _Cutout:
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
            colors = _paint(values, scheme.several(int(rng.integers(2, 5))))
        gains = np.exp(rng.normal(0, 0.2) + 0.15 * rng.standard_normal(3))
        colors = _brighten(colors, gains)
    else:
        colors = Image.new("RGB", picture.size, (128, 128, 128))
    colors.putalpha(alpha)
    height = _log_uniform(rng, 0.01, 0.2)
    bends = tuple((height * rng.uniform(), rng.uniform(1, 4), *_swing(rng, 1.0)[1:]) for _ in "xy")
    return _Cutout(colors, bends)


@functools.lru_cache(maxsize=256)
def _open_cutout(path: str) -> Image.Image:
    """Opens a picture with transparent parts, its border included, 256 pixels long at most."""
    with open_picture(path) as image:
        picture = image.convert("RGBA")
    picture.thumbnail((254, 254))
    framed = Image.new("RGBA", (picture.width + 2, picture.height + 2))
    framed.paste(picture, (1, 1))
    return framed


@functools.lru_cache(maxsize=64)
def _open_picture(path: str) -> Image.Image:
    """Opens a picture, 1024 pixels long at most; grey where it has no colours."""
    with open_picture(path) as image:
        picture = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    picture.thumbnail((1024, 1024))
    return picture


def _cut(rng: _Rng, side: int, scheme: _Scheme) -> Image.Image:
    """Cuts a square out of a picture; what is grey gets colours, what has some another light."""
    textures = scheme.collection.textures
    picture = _open_picture(textures[rng.integers(len(textures))])
    length = min(picture.size) * _log_uniform(rng, 0.35, 1.0)
    left, top = (rng.uniform(0, extent - length) for extent in picture.size)
    box = (left, top, left + length, top + length)
    image = picture.resize((side, side), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if image.mode == "L":
        values = (np.asarray(image, np.float32) - 128) / 90
        return _paint(values, scheme.several(int(rng.integers(2, 5))))
    return _brighten(image, np.exp(rng.normal(0, 0.25) + 0.1 * rng.standard_normal(3)))


def _brighten(image: Image.Image, gains: np.ndarray) -> Image.Image:
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


def _detail(rng: _Rng, side: int) -> Image.Image:
    """Draws what is added to the brightness of a shape; 128 adds nothing."""
    values = _field(rng, side, side * _log_uniform(rng, 0.02, 0.2))
    values = values * np.float32(_log_uniform(rng, 10, 80)) + 128
    if rng.random() < 0.6:  # light from one side, most often from above
        slope, angle = _log_uniform(rng, 40, 250), rng.normal(-math.pi / 2, 1)
        along = np.linspace(-0.5, 0.5, side, dtype=np.float32) * np.float32(slope)
        values += np.float32(math.cos(angle)) * along
        values += np.float32(math.sin(angle)) * along[:, None]
    return _grey(values)


# Scenes


@dataclasses.dataclass(frozen=True)
class _Thing:
    """A shape with its motion and its look."""

    object_id: int  # 0 is not annotated
    shape: _Shape | _Cutout
    motion: _Motion
    detail: Image.Image
    parallax: float  # 0 follows the picture, 1 the background
    roundness: float = 0.0  # how dark it gets towards its edge
    shadow: tuple[float, float] = (0.0, 0.0)  # where it falls; (0, 0) is none

    def affine(self, camera: _Camera, time: float, size: int) -> _Affine:
        """Returns the map from the shape's coordinates to pixels."""
        affine = self.motion.affine(time)
        if self.parallax:
            affine = _compose(camera.affine(time, self.parallax), affine)
        return tuple(size * v for v in affine)


@dataclasses.dataclass(frozen=True)
class _Look:
    """What happens between the scene and the picture."""

    exposure: _Curve  # log gain; how warm the light is
    instants: int  # that a frame averages, for motion blur
    shutter: float  # time between the first and the last of them
    blur: float  # pixels
    noise: float  # grey levels
    quality: int  # of JPEG; 0 is none
    light: Image.Image | None  # brightness over twice the picture's side
    light_path: _Curve


@dataclasses.dataclass(frozen=True)
class _Scene:
    size: int
    canvas: Image.Image
    camera: _Camera
    things: list[_Thing]  # the hindmost first
    look: _Look


def _make_scene(
    rng: _Rng, num_frames: int, size: int, collection: _Collection = _Collection()
) -> _Scene:
    scheme, camera = _make_scheme(rng, collection), _make_camera(rng)
    for _ in range(20):  # until an object is seen on the first frame, nearly always the first time
        things = _make_things(rng, scheme, num_frames, size)
        if max(_visible_areas(things, camera, 0.0, size)[1:]) >= 4 * _MIN_AREA * size**2:
            break
    canvas = _texture(rng, int(size * _CANVAS), scheme)
    if rng.random() < 0.55:
        _scatter(rng, canvas, [thing.shape for thing in things], scheme)
    if rng.random() < 0.15:
        canvas = canvas.filter(ImageFilter.BoxBlur(size * rng.uniform(0.005, 0.03)))
    # So fine that its nearest pixel will do, which is ten times faster than to interpolate.
    side = _FINER * canvas.width
    canvas = canvas.resize((side, side), Image.Resampling.BILINEAR)
    return _Scene(size, canvas, camera, things, _make_look(rng, size))


def _make_plain_scene(rng: _Rng, num_frames: int, size: int) -> _Scene:
    colors = [rng.uniform(20, 235, 3)]  # of the background, then of the shapes, all far apart
    for _ in range(rng.integers(1, 4)):
        others = rng.uniform(0, 255, (50, 3))
        distances = np.linalg.norm(others[:, None] - np.array(colors), axis=2).min(1)
        colors.append(others[rng.choice(np.flatnonzero(distances >= np.median(distances)))])
    pace = _log_uniform(rng, 0.12, 0.5)
    things = []
    for i, color in enumerate(colors[1:], 1):
        shape = _Shape(tuple(_simple(rng, lambda c=color: tuple(c.astype(int).tolist()))[:1]))
        motion = _motion(rng, rng.uniform(0.15, 0.3), pace, num_frames)
        things.append(_Thing(i, shape, motion, Image.new("L", (size, size), 128), 0.0))
    side = int(size * _CANVAS)
    shade = 15 * _noise(rng, side, 2.5)
    canvas = np.clip(colors[0] + shade[..., None], 0, 255).astype(np.uint8)
    canvas = Image.fromarray(canvas).resize((_FINER * side, _FINER * side))
    look = _Look(
        _curve(rng, 2, 0.0, 0.1), 1, 0.0, 0.0, rng.uniform(0, 5), 0, None, _curve(rng, 2, 0, 1)
    )
    return _Scene(size, canvas, _make_camera(rng), things, look)


def _make_things(rng: _Rng, scheme: _Scheme, num_frames: int, size: int) -> list[_Thing]:
    """Draws 1 to 5 annotated objects, and perhaps others among and in front of them."""
    annotated = 1 + int(5 * rng.random() ** 1.5)
    count = annotated + (int(rng.integers(1, 3)) if rng.random() < 0.3 else 0)
    pace = _log_uniform(rng, 0.12, 1.2)
    shadow = (0.0, 0.0)
    if rng.random() < 0.3:
        shadow = tuple(rng.uniform(-0.15, 0.15, 2).tolist())
    things: list[_Thing] = []
    for index in range(count):
        radius = _log_uniform(rng, *((0.11, 0.5) if count < 3 else (0.09, 0.28)))
        is_still = rng.random() < 0.15
        side = max(size // 2, int(radius * _TILE * size))
        is_skin = rng.random() < (0.4 if scheme.collection.textures else 0.25)
        detail = _texture(rng, side, scheme) if is_skin else _detail(rng, side)
        thing = _Thing(
            object_id=index + 1 if index < annotated else 0,
            shape=_any_shape(rng, scheme, has_color=detail.mode == "L"),
            motion=_motion(rng, radius, 0.0 if is_still else pace, num_frames),
            detail=detail,
            parallax=1.0 if is_still else float(rng.random() < 0.5),
            roundness=rng.uniform(0.2, 0.7) if rng.random() < 0.4 else 0.0,
            shadow=shadow,
        )
        if things and rng.random() < 0.4:
            thing = _relate(rng, thing, things[rng.integers(index)])
        things.append(thing)
    things = [things[i] for i in rng.permutation(count)]
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.3 else 0):
        motion = _motion(rng, rng.uniform(0.6, 0.9), pace * 0.3 * (rng.random() < 0.5), num_frames)
        motion = dataclasses.replace(motion, angle=rng.normal(0, 0.2))
        shape = _occluder(rng, scheme.rgb)
        things.append(_Thing(0, shape, motion, _detail(rng, size), rng.uniform(1, 1.6)))
    return things


def _relate(rng: _Rng, thing: _Thing, other: _Thing) -> _Thing:
    """Makes a thing look like another one, or move along with it."""
    if rng.random() < 0.3:
        aside = rng.normal(0, 0.7 * other.motion.radius, 2)
        start = tuple((other.motion.start + aside).tolist())
        motion = dataclasses.replace(other.motion, start=start, radius=thing.motion.radius)
        return dataclasses.replace(thing, motion=motion, parallax=other.parallax)
    radius = other.motion.radius * (1.0 if rng.random() < 0.5 else rng.uniform(0.7, 1.4))
    motion = dataclasses.replace(thing.motion, radius=radius)
    return dataclasses.replace(thing, shape=other.shape, detail=other.detail, motion=motion)


def _scatter(
    rng: _Rng, canvas: Image.Image, shapes: list[_Shape | _Cutout], scheme: _Scheme
) -> None:
    """Paints things that never move onto the canvas, some of them with the shapes of objects."""
    detail = _detail(rng, canvas.width // 4)
    for _ in range(rng.integers(2, 10)):
        shape = shapes[rng.integers(len(shapes))]
        if rng.random() < 0.6:
            is_solid = rng.random() < 0.8
            shape = _any_shape(rng, scheme, True) if is_solid else _occluder(rng, scheme.rgb)
        matrix = cmath.rect(canvas.width * _log_uniform(rng, 0.03, 0.15), rng.normal(0, 0.4))
        affine = _affine(matrix, 1.0, rng.uniform(0, canvas.width, 2).tolist())
        _paste(canvas, shape, 0.0, affine, detail)


def _make_look(rng: _Rng, size: int) -> _Look:
    changes, lit, moves, blurs, noisy, packed = _chances(rng, 0.35, 0.25, 0.15, 0.2, 0.4, 0.3)
    light = None
    if lit:
        light = _grey(_noise(rng, 64, 2.5) * rng.uniform(10, 45) + rng.uniform(150, 220))
    return _Look(
        exposure=_curve(rng, 2, 0.15 * changes, _log_uniform(rng, 0.05, 0.6), 0.01 * changes),
        instants=3 if moves else 1,
        shutter=rng.uniform(0.3, 0.9),
        blur=blurs * size * rng.uniform(0.002, 0.008),
        noise=noisy * rng.uniform(1, 10),
        quality=int(packed * rng.integers(15, 90)),
        light=light,
        light_path=_curve(rng, 2, 4.0, 0.15),
    )


# Frames


def _draw_frame(scene: _Scene, index: int, rng: _Rng) -> tuple[np.ndarray, np.ndarray]:
    """Draws a frame, (H, W, 3) uint8, and which object each pixel shows, (H, W) uint8, 0 for none."""
    look, size, time = scene.look, scene.size, float(index)
    ids = Image.new("L", (size, size))
    image = _draw_instant(scene, time, ids)
    for i in range(1, look.instants):
        # The mean of all so far; the instants lie on both sides of the one that the masks show.
        offset = look.shutter * (i - look.instants / 2)
        image = Image.blend(image, _draw_instant(scene, time + offset, None), 1 / (i + 1))
    if look.light is not None:
        x, y = (min(max(16 + v, 0), 32) for v in look.light_path(time))
        light = look.light.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + 32, y + 32))
        image = ImageChops.multiply(image, _colored(light))
    gain, warmth = look.exposure(time)
    if gain or warmth:
        logs = np.clip([gain + 0.2 * warmth, gain, gain - 0.2 * warmth], -0.6, 0.5)
        image = _brighten(image, np.exp(logs))
    if look.blur:
        image = image.filter(ImageFilter.BoxBlur(look.blur))
    if look.noise:
        grain = Image.frombytes("RGB", (size, size), rng.bytes(3 * size**2))
        normal = special.ndtri((np.arange(256) + 0.5) / 256)
        grain = grain.point(np.round(128 + look.noise * normal).astype(int).tolist() * 3)
        image = ImageChops.add(image, grain, 1, -128)
    if look.quality:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=look.quality)
        image = Image.open(buffer)
    return np.array(image), np.asarray(ids)


def _draw_instant(scene: _Scene, time: float, ids: Image.Image | None) -> Image.Image:
    """Draws the scene at a time, and into `ids`, if any, which object each pixel shows."""
    size, camera = scene.size, scene.camera
    a, b, c, d, e, f = _invert(camera.affine(time))
    margin, scale = (_CANVAS - 1) / 2, _FINER * size
    affine = (_FINER * a, _FINER * b, scale * (c + margin))
    affine += (_FINER * d, _FINER * e, scale * (f + margin))
    image = scene.canvas.transform((size, size), Image.Transform.AFFINE, affine)
    for thing in scene.things:
        affine = thing.affine(camera, time, size)
        cover = _paste(
            image, thing.shape, time, affine, thing.detail, thing.roundness, thing.shadow
        )
        if ids is not None:
            _mark(ids, cover, thing.object_id)
    return image


def _visible_areas(things: list[_Thing], camera: _Camera, time: float, size: int) -> list[int]:
    """Counts the pixels that show each object, by id from 0, the background."""
    ids = Image.new("L", (size, size))
    for thing in things:
        affine = thing.affine(camera, time, size)
        _mark(ids, thing.shape.cover(time, affine, ids.size), thing.object_id)
    return ids.histogram()


def _mark(ids: Image.Image, cover: _Cover | None, object_id: int) -> None:
    """Sets the pixels that are covered for the most part."""
    if cover is not None:
        is_covered = cover.image.convert("1", dither=Image.Dither.NONE)
        ids.paste(object_id, cover.corner, is_covered)


def _paste(
    image: Image.Image,
    shape: _Shape | _Cutout,
    time: float,
    affine: _Affine,
    detail: Image.Image,
    roundness: float = 0.0,
    shadow: tuple[float, float] = (0.0, 0.0),
) -> _Cover | None:
    """Draws a shape onto the picture and returns where it is."""
    cover = shape.cover(time, affine, image.size)
    if cover is None:
        return None
    left, top = cover.corner
    if any(shadow):
        dark = cover.image.filter(ImageFilter.BoxBlur(image.width / 64))
        dark = dark.point([v // 2 for v in range(256)])
        place = (left + int(shadow[0] * image.width), top + int(shadow[1] * image.width))
        image.paste((0, 0, 0), place, dark)
    skin = cover.skin()
    scale = detail.width / _TILE
    a, b, c, d, e, f = (scale * v for v in _invert(affine))
    middle = detail.width / 2
    back = (a, b, a * left + b * top + c + middle, d, e, d * left + e * top + f + middle)
    texture = detail.transform(
        skin.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor="#808080"
    )
    skin = ImageChops.add(skin, _colored(texture), 1, -128)
    if roundness:
        unit = math.sqrt(abs(affine[0] * affine[4] - affine[1] * affine[3]))
        soft = cover.image.filter(ImageFilter.BoxBlur(unit / 5))
        soft = soft.point([int(255 - roundness * (255 - v)) for v in range(256)])
        skin = ImageChops.multiply(skin, _colored(soft))
    image.paste(skin, cover.corner, cover.image)
    return cover
