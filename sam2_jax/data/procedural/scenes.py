"""Scenes made up from random numbers."""

import cmath
import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from sam2_jax.data.procedural.cutouts import Cutout, make_cutout
from sam2_jax.data.procedural.frames import CANVAS, TILE, Look, Scene, Thing, paste, visible_areas
from sam2_jax.data.procedural.motion import make_affine, make_camera, make_curve, make_motion
from sam2_jax.data.procedural.sampling import Rng, chances, log_uniform
from sam2_jax.data.procedural.shapes import FINER, Shape, make_occluder, make_shape, make_simple
from sam2_jax.data.procedural.textures import (
    Collection,
    Scheme,
    make_detail,
    make_noise,
    make_scheme,
    make_texture,
    to_grey,
)

MIN_AREA = 0.001  # of the picture; a clip does not start with an object of which less is seen


def make_scene(rng: Rng, num_frames: int, size: int, collection: Collection) -> Scene:
    """Draws a scene with at least one object that is seen on the first frame, nearly always."""
    scheme, camera = make_scheme(rng, collection), make_camera(rng)
    for _ in range(20):  # until an object is seen on the first frame, nearly always the first time
        things = _make_things(rng, scheme, num_frames, size)
        if max(visible_areas(things, camera, 0.0, size)[1:]) >= 4 * MIN_AREA * size**2:
            break
    canvas = make_texture(rng, int(size * CANVAS), scheme)
    if rng.random() < 0.55:
        _scatter(rng, canvas, [thing.shape for thing in things], scheme)
    if rng.random() < 0.15:
        canvas = canvas.filter(ImageFilter.BoxBlur(size * rng.uniform(0.005, 0.03)))
    # So fine that its nearest pixel will do, which is ten times faster than to interpolate.
    side = FINER * canvas.width
    canvas = canvas.resize((side, side), Image.Resampling.BILINEAR)
    return Scene(size, canvas, camera, things, _make_look(rng, size))


def make_plain_scene(rng: Rng, num_frames: int, size: int) -> Scene:
    """Draws a few large shapes of one colour each over a smooth background."""
    colors = [rng.uniform(20, 235, 3)]  # of the background, then of the shapes, all far apart
    for _ in range(rng.integers(1, 4)):
        others = rng.uniform(0, 255, (50, 3))
        distances = np.linalg.norm(others[:, None] - np.array(colors), axis=2).min(1)
        colors.append(others[rng.choice(np.flatnonzero(distances >= np.median(distances)))])
    pace = log_uniform(rng, 0.12, 0.5)
    things = []
    for i, color in enumerate(colors[1:], 1):
        shape = Shape(tuple(make_simple(rng, lambda c=color: tuple(c.astype(int).tolist()))[:1]))
        motion = make_motion(rng, rng.uniform(0.15, 0.3), pace, num_frames)
        things.append(Thing(i, shape, motion, Image.new("L", (size, size), 128), 0.0))
    side = int(size * CANVAS)
    shade = 15 * make_noise(rng, side, 2.5)
    canvas = np.clip(colors[0] + shade[..., None], 0, 255).astype(np.uint8)
    canvas = Image.fromarray(canvas).resize((FINER * side, FINER * side))
    look = Look(
        make_curve(rng, 2, 0.0, 0.1),
        1,
        0.0,
        0.0,
        rng.uniform(0, 5),
        0,
        None,
        make_curve(rng, 2, 0, 1),
    )
    return Scene(size, canvas, make_camera(rng), things, look)


def _make_things(rng: Rng, scheme: Scheme, num_frames: int, size: int) -> list[Thing]:
    """Draws 1 to 5 annotated objects, and perhaps others among and in front of them."""
    annotated = 1 + int(5 * rng.random() ** 1.5)
    count = annotated + (int(rng.integers(1, 3)) if rng.random() < 0.3 else 0)
    pace = log_uniform(rng, 0.12, 1.2)
    shadow = (0.0, 0.0)
    if rng.random() < 0.3:
        shadow = tuple(rng.uniform(-0.15, 0.15, 2).tolist())
    things: list[Thing] = []
    for index in range(count):
        radius = log_uniform(rng, *((0.11, 0.5) if count < 3 else (0.09, 0.28)))
        is_still = rng.random() < 0.15
        side = max(size // 2, int(radius * TILE * size))
        is_skin = rng.random() < (0.4 if scheme.collection.textures else 0.25)
        detail = make_texture(rng, side, scheme) if is_skin else make_detail(rng, side)
        thing = Thing(
            object_id=index + 1 if index < annotated else 0,
            shape=_make_any_shape(rng, scheme, has_color=detail.mode == "L"),
            motion=make_motion(rng, radius, 0.0 if is_still else pace, num_frames),
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
        motion = make_motion(
            rng, rng.uniform(0.6, 0.9), pace * 0.3 * (rng.random() < 0.5), num_frames
        )
        motion = dataclasses.replace(motion, angle=rng.normal(0, 0.2))
        shape = make_occluder(rng, scheme.rgb)
        things.append(Thing(0, shape, motion, make_detail(rng, size), rng.uniform(1, 1.6)))
    return things


def _make_any_shape(rng: Rng, scheme: Scheme, has_color: bool) -> Shape | Cutout:
    """Draws a shape or takes a cutout, grey if it gets its colours elsewhere."""
    if scheme.collection.cutouts and rng.random() < 0.55:
        return make_cutout(rng, scheme, has_color)
    return make_shape(rng, scheme.rgb if has_color else lambda: (128, 128, 128))


def _relate(rng: Rng, thing: Thing, other: Thing) -> Thing:
    """Makes a thing look like another one, or move along with it."""
    if rng.random() < 0.3:
        aside = rng.normal(0, 0.7 * other.motion.radius, 2)
        start = tuple((other.motion.start + aside).tolist())
        motion = dataclasses.replace(other.motion, start=start, radius=thing.motion.radius)
        return dataclasses.replace(thing, motion=motion, parallax=other.parallax)
    radius = other.motion.radius * (1.0 if rng.random() < 0.5 else rng.uniform(0.7, 1.4))
    motion = dataclasses.replace(thing.motion, radius=radius)
    return dataclasses.replace(thing, shape=other.shape, detail=other.detail, motion=motion)


def _scatter(rng: Rng, canvas: Image.Image, shapes: list[Shape | Cutout], scheme: Scheme) -> None:
    """Paints things that never move onto the canvas, some of them with the shapes of objects."""
    detail = make_detail(rng, canvas.width // 4)
    for _ in range(rng.integers(2, 10)):
        shape = shapes[rng.integers(len(shapes))]
        if rng.random() < 0.6:
            is_solid = rng.random() < 0.8
            shape = (
                _make_any_shape(rng, scheme, True) if is_solid else make_occluder(rng, scheme.rgb)
            )
        matrix = cmath.rect(canvas.width * log_uniform(rng, 0.03, 0.15), rng.normal(0, 0.4))
        affine = make_affine(matrix, 1.0, rng.uniform(0, canvas.width, 2).tolist())
        paste(canvas, shape, 0.0, affine, detail)


def _make_look(rng: Rng, size: int) -> Look:
    changes, lit, moves, blurs, noisy, packed = chances(rng, 0.35, 0.25, 0.15, 0.2, 0.4, 0.3)
    light = None
    if lit:
        light = to_grey(make_noise(rng, 64, 2.5) * rng.uniform(10, 45) + rng.uniform(150, 220))
    return Look(
        exposure=make_curve(rng, 2, 0.15 * changes, log_uniform(rng, 0.05, 0.6), 0.01 * changes),
        instants=3 if moves else 1,
        shutter=rng.uniform(0.3, 0.9),
        blur=blurs * size * rng.uniform(0.002, 0.008),
        noise=noisy * rng.uniform(1, 10),
        quality=int(packed * rng.integers(15, 90)),
        light=light,
        light_path=make_curve(rng, 2, 4.0, 0.15),
    )
