"""How things and the camera move: smooth curves, and the affine maps that they give."""

import cmath
import dataclasses
import math
from collections.abc import Sequence

from sam2_jax.data.procedural.sampling import Rng, chances, log_uniform

Affine = tuple[float, float, float, float, float, float]  # x' = a x + b y + c, y' = d x + e y + f


def make_affine(matrix: complex, ratio: float, shift: Sequence[float]) -> Affine:
    """Stretches by `ratio` along x and its inverse along y, then turns and scales, then shifts."""
    c, s = matrix.real, matrix.imag
    return (c * ratio, -s / ratio, shift[0], s * ratio, c / ratio, shift[1])


def compose(outer: Affine, inner: Affine) -> Affine:
    """Returns the map that applies `inner`, then `outer`."""
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


def invert(affine: Affine) -> Affine:
    """Returns the map back."""
    a, b, c, d, e, f = affine
    det = a * e - b * d
    p, q, s, t = e / det, -b / det, -d / det, a / det
    return (p, q, -p * c - q * f, s, t, -s * c - t * f)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A smooth path that is 0 at time 0: for every axis a drift and waves of height, rate, phase."""

    axes: tuple[tuple[float, tuple[tuple[float, float, float], ...]], ...]

    def __call__(self, time: float) -> list[float]:
        """Returns the place on every axis at a time."""
        return [
            drift * time + sum(h * (math.sin(r * time + p) - math.sin(p)) for h, r, p in waves)
            for drift, waves in self.axes
        ]


def make_curve(rng: Rng, axes: int, height: float, rate: float, drift: float = 0.0) -> Curve:
    """Draws a path whose waves have about this height and rate, and that drifts by up to `drift`."""

    def wave(order: int) -> tuple[float, float, float]:
        phase = rng.uniform(0, 2 * math.pi)
        return height * rng.normal() / order, rate * order * rng.uniform(0.4, 1.4), phase

    return Curve(tuple((rng.uniform(-drift, drift), (wave(1), wave(2))) for _ in range(axes)))


@dataclasses.dataclass(frozen=True)
class Motion:
    """How a shape lies in the world at every time."""

    start: tuple[float, float]
    radius: float  # of one unit
    angle: float
    path: Curve  # of the position
    turn: Curve
    growth: Curve  # log of the radius
    ratio: Curve  # log of the ratio of its axes
    away: tuple[float, float] = (0.0, 0.0)  # where it goes in between
    away_at: float = 0.0  # the middle of that
    away_half: float = 1.0  # half of how long it takes

    def affine(self, time: float) -> Affine:
        """Returns the map from the shape's coordinates to the world's."""
        share = self._share_away(time) - self._share_away(0.0)
        x, y = (
            _fold(s + p + share * a)
            for s, p, a in zip(self.start, self.path(time), self.away, strict=True)
        )
        size = min(max(self.growth(time)[0], -1.1), 1.3)
        ratio = min(max(self.ratio(time)[0], -0.6), 0.6)
        matrix = cmath.rect(self.radius * math.exp(size), self.angle + self.turn(time)[0])
        return make_affine(matrix, math.exp(ratio), (x, y))

    def _share_away(self, time: float) -> float:
        return math.cos(math.pi / 2 * min(abs(time - self.away_at) / self.away_half, 1.0)) ** 2


def _fold(position: float) -> float:
    """Turns paths round that would lead far out of the picture."""
    low, width = -0.35, 1.7
    distance = (position - low) % (2 * width)
    return low + min(distance, 2 * width - distance)


def make_motion(rng: Rng, radius: float, pace: float, num_frames: int) -> Motion:
    """Draws a motion; a pace of 0 is rest and 1 is fast."""
    speed = pace * log_uniform(rng, 0.004, 0.05)
    rate = log_uniform(rng, 0.05, 0.5)
    drifts, spins, leaves, nears = chances(rng, 0.5, 0.2, 0.25, 0.3)
    height = min(speed / rate, 0.4) * (0.3 if drifts else 0.8)
    swell = log_uniform(rng, 0.05, 0.4)
    length = max(num_frames, 6)
    away = cmath.rect(rng.uniform(0.5, 1.1) * (leaves and pace > 0), rng.uniform(0, 2 * math.pi))
    return Motion(
        start=tuple(rng.uniform(0.15, 0.85, 2).tolist()),
        radius=radius,
        angle=rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else rng.normal(0, 0.2),
        path=make_curve(rng, 2, height, rate, speed * drifts),
        turn=make_curve(rng, 1, 0.15 * pace, rate, pace * (0.15 if spins else 0.02)),
        growth=make_curve(rng, 1, 0.15 * pace, swell, 0.04 if nears and pace else 0.02 * pace),
        ratio=make_curve(rng, 1, 0.15 * pace, swell, 0.02 * pace),
        away=(away.real, away.imag),
        away_at=length * rng.uniform(0.3, 0.8),
        away_half=length * rng.uniform(0.2, 0.6),
    )


@dataclasses.dataclass(frozen=True)
class Camera:
    """Pan, zoom and roll."""

    path: Curve
    zoom: Curve
    roll: Curve

    def affine(self, time: float, parallax: float = 1.0) -> Affine:
        """Returns the map from the world to the picture, 0..1 both; parallax 0 is no motion."""
        zoom = math.exp(min(max(parallax * self.zoom(time)[0], -0.1), 0.6))
        roll = min(max(parallax * self.roll(time)[0], -0.2), 0.2)
        x, y = (-min(max(parallax * p, -0.25), 0.25) for p in self.path(time))
        turned = make_affine(cmath.rect(zoom, roll), 1.0, (0.5, 0.5))
        return compose(turned, (1.0, 0.0, x - 0.5, 0.0, 1.0, y - 0.5))


def make_camera(rng: Rng) -> Camera:
    """Draws a camera's motion, which may be none."""
    shakes, moves, zooms, grows, rolls = chances(rng, 0.2, 0.75, 0.5, 0.3, 0.4)
    pan = log_uniform(rng, 0.001, 0.05) * moves
    rate = rng.uniform(0.8, 2.5) if shakes else log_uniform(rng, 0.03, 0.4)
    return Camera(
        make_curve(rng, 2, 0.01 if shakes else min(pan / rate, 0.15), rate, pan * 0.7),
        make_curve(rng, 1, 0.06 * zooms, 0.2, 0.015 * grows),
        make_curve(rng, 1, 0.04 * rolls, 0.2),
    )
