"""Shapes of parts that swing and bend: creatures, vehicles, simple forms, and what stands in front."""

import cmath
import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from sam2_jax.data.procedural.motion import Affine
from sam2_jax.data.procedural.sampling import Rng, log_uniform, pick
from sam2_jax.data.procedural.textures import Rgb

FINER = 2  # contours and the canvas are finer than the picture by this factor


@dataclasses.dataclass(frozen=True)
class _Part:
    """A contour that swings around a joint of an earlier part."""

    contour: np.ndarray  # (K,) complex
    color: Rgb
    parent: int = -1
    joint: complex = 0j
    angle: float = 0.0
    swing: tuple[float, float, float] = (0.0, 0.0, 0.0)  # height, rate, phase
    is_behind: bool = False
    is_hole: bool = False


@dataclasses.dataclass(frozen=True)
class Shape:
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

    def cover(self, time: float, affine: Affine, size: tuple[int, int]) -> "Cover | None":
        """Returns where it is at a time, None if that is nowhere in a picture of this size."""
        a, b, c, d, e, f = affine
        z = self.points(time)
        points = np.stack([a * z.real + b * z.imag + c, d * z.real + e * z.imag + f], 1)
        if (box := box_around(points, size)) is None:
            return None
        left, top, right, bottom = box
        points -= (left, top)
        fine = Image.new("L", (FINER * (right - left), FINER * (bottom - top)))
        self._draw(fine, FINER * points, lambda part: 0 if part.is_hole else 255)
        skin = functools.partial(self._skin, points, (right - left, bottom - top))
        return Cover(fine.reduce(FINER), (left, top), skin)

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
class Cover:
    """A shape's place in the picture."""

    image: Image.Image  # how much of each pixel is covered
    corner: tuple[int, int]
    skin: Callable[[], Image.Image]  # draws the colours


def box_around(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The pixels around points (N, 2) that are in a picture: left, top, right, bottom; None without any."""
    low, high = points.min(0).tolist(), points.max(0).tolist()
    left, top = max(int(low[0]) - 1, 0), max(int(low[1]) - 1, 0)
    right, bottom = min(int(high[0]) + 2, size[0]), min(int(high[1]) + 2, size[1])
    return None if right <= left or bottom <= top else (left, top, right, bottom)


@functools.cache
def _around(points: int) -> np.ndarray:
    """Returns the (K,) angles of points all around."""
    return np.linspace(0, 2 * math.pi, points, endpoint=False)


def _ellipse(width: float, height: float, points: int = 24) -> np.ndarray:
    return width * np.cos(_around(points)) + 1j * height * np.sin(_around(points))


def _blob(rng: Rng, roughness: float, points: int = 40) -> np.ndarray:
    around, orders = _around(points), np.arange(1, 9)[:, None]
    heights = roughness * rng.standard_normal((8, 1)) / orders
    waves = heights * np.cos(orders * around + rng.uniform(0, 2 * math.pi, (8, 1)))
    return np.maximum(1 + waves.sum(0), 0.15) * np.exp(1j * around)


def _polygon(rng: Rng) -> np.ndarray:
    corners = int(rng.integers(3, 9))
    around = _around(corners)
    if rng.random() < 0.5:
        around = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radius = rng.uniform(0.4, 1.2, corners) if rng.random() < 0.5 else 1.0
    return radius * np.exp(1j * around)


def _star(rng: Rng) -> np.ndarray:
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


def make_swing(rng: Rng, height: float) -> tuple[float, float, float]:
    """Draws height, rate and phase of a wave."""
    return rng.uniform(0, height), log_uniform(rng, 0.1, 1.0), rng.uniform(0, 2 * math.pi)


def _spot(rng: Rng) -> complex:
    return complex(*rng.uniform(-0.55, 0.55, 2))


def make_simple(rng: Rng, color: Callable[[], Rgb]) -> list[_Part]:
    """One contour with marks or holes on it."""
    kind = pick(rng, blob=0.45, polygon=0.2, star=0.05, ellipse=0.2, box=0.1)
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


def _make_creature(rng: Rng, color: Callable[[], Rgb]) -> list[_Part]:
    """A person or an animal: a body with a head, legs, and arms or a tail, which swing."""
    is_upright = rng.random() < 0.55
    waist = rng.uniform(0.2, 0.45)
    body = _ellipse(1.0, 1.0) if rng.random() < 0.6 else _blob(rng, 0.12)
    body = 0.6 * body.real + 1j * waist * body.imag
    coat, skin, legs = color(), color(), color()
    parts = [_Part(body, coat, angle=math.pi / 2 if is_upright else 0.0)]
    height, rate, _ = make_swing(rng, 0.7)
    thick = rng.uniform(0.06, 0.18)

    def add(joint: complex, angle: float, length: float, paint: Rgb, is_behind: bool) -> None:
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


def _make_vehicle(rng: Rng, color: Callable[[], Rgb]) -> list[_Part]:
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


def _make_strip(rng: Rng, color: Callable[[], Rgb]) -> list[_Part]:
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


def _make_cluster(rng: Rng, color: Callable[[], Rgb]) -> list[_Part]:
    """Several simple contours that move as one, some of them rods."""
    parts = []
    for _ in range(rng.integers(2, 6)):
        contour = _blob(rng, 0.3, 24) * rng.uniform(0.25, 0.6)
        if rng.random() < 0.4:
            contour = _limb(rng.uniform(0.5, 1.2), rng.uniform(0.04, 0.15), 0.05)
        angle = rng.uniform(0, 2 * math.pi)
        parts.append(
            _Part(contour, color(), joint=_spot(rng), angle=angle, swing=make_swing(rng, 0.4))
        )
    if rng.random() < 0.3:
        parts.append(_Part(_ellipse(0.3, 0.3), color(), is_hole=True))
    return parts


def make_shape(rng: Rng, color: Callable[[], Rgb]) -> Shape:
    """Draws a shape; `color` draws the colours of its parts."""
    kind = pick(rng, simple=0.32, creature=0.38, vehicle=0.1, strip=0.1, cluster=0.1)
    ripples, sway = (), (0.0, 0.0, 0.0, 0.0)
    if kind == "simple" and rng.random() < 0.7:
        height = log_uniform(rng, 0.02, 0.1)
        orders = rng.integers(1, 6, 3).tolist()
        ripples = tuple((o, height * rng.normal(), *make_swing(rng, 1.0)[1:]) for o in orders)
    if kind == "strip" or rng.random() < 0.2:
        height = rng.uniform(0.05, 0.4 if kind == "strip" else 0.12)
        sway = (height, rng.uniform(1, 5), *make_swing(rng, 1.0)[1:])
    draw = {
        "simple": make_simple,
        "creature": _make_creature,
        "vehicle": _make_vehicle,
        "strip": _make_strip,
        "cluster": _make_cluster,
    }[kind]
    return Shape(tuple(draw(rng, color)), ripples, sway)


def make_occluder(rng: Rng, color: Callable[[], Rgb]) -> Shape:
    """What stands in front, a pole, a fence, leaves or a rock: in units of about the picture."""
    kind = pick(rng, pole=0.3, fence=0.15, leaves=0.3, rock=0.25)
    if kind == "pole":
        return Shape((_Part(_box(rng.uniform(0.03, 0.15), 1.9), color()),))
    if kind == "fence":
        paint, gap, width = color(), rng.uniform(0.15, 0.4), rng.uniform(0.01, 0.05)
        places = np.arange(-1.8, 1.8, gap)
        return Shape(tuple(_Part(_box(width, 1.9) + place, paint) for place in places))
    if kind == "leaves":
        leaves = []
        for _ in range(rng.integers(6, 20)):
            leaf = _ellipse(rng.uniform(0.04, 0.15), rng.uniform(0.02, 0.06), 12)
            angle = rng.uniform(0, 2 * math.pi)
            swing = make_swing(rng, 0.3)
            leaves.append(_Part(leaf, color(), joint=0.6 * _spot(rng), angle=angle, swing=swing))
        return Shape(tuple(leaves))
    return Shape((_Part(_blob(rng, 0.3) * rng.uniform(0.15, 0.4), color()),))
