"""What a scene is, and how a frame of it is drawn."""

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageChops, ImageFilter
from scipy import special

from sam2_jax.data.procedural.cutouts import Cutout
from sam2_jax.data.procedural.motion import Affine, Camera, Curve, Motion, compose, invert
from sam2_jax.data.procedural.sampling import Rng
from sam2_jax.data.procedural.shapes import FINER, Cover, Shape
from sam2_jax.data.procedural.textures import brighten, to_rgb

CANVAS = 1.875  # side of the background's canvas; the camera never sees beyond
TILE = 4.0  # side of an object's texture, in the object's units


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape with its motion and its look."""

    object_id: int  # 0 is not annotated
    shape: Shape | Cutout
    motion: Motion
    detail: Image.Image
    parallax: float  # 0 follows the picture, 1 the background
    roundness: float = 0.0  # how dark it gets towards its edge
    shadow: tuple[float, float] = (0.0, 0.0)  # where it falls; (0, 0) is none

    def affine(self, camera: Camera, time: float, size: int) -> Affine:
        """Returns the map from the shape's coordinates to pixels."""
        affine = self.motion.affine(time)
        if self.parallax:
            affine = compose(camera.affine(time, self.parallax), affine)
        return tuple(size * v for v in affine)


@dataclasses.dataclass(frozen=True)
class Look:
    """What happens between the scene and the picture."""

    exposure: Curve  # log gain; how warm the light is
    instants: int  # that a frame averages, for motion blur
    shutter: float  # time between the first and the last of them
    blur: float  # pixels
    noise: float  # grey levels
    quality: int  # of JPEG; 0 is none
    light: Image.Image | None  # brightness over twice the picture's side
    light_path: Curve


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that is seen in a video."""

    size: int
    canvas: Image.Image
    camera: Camera
    things: list[Thing]  # the hindmost first
    look: Look


def render(scene: Scene, index: int, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
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
        image = ImageChops.multiply(image, to_rgb(light))
    gain, warmth = look.exposure(time)
    if gain or warmth:
        logs = np.clip([gain + 0.2 * warmth, gain, gain - 0.2 * warmth], -0.6, 0.5)
        image = brighten(image, np.exp(logs))
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


def _draw_instant(scene: Scene, time: float, ids: Image.Image | None) -> Image.Image:
    """Draws the scene at a time, and into `ids`, if any, which object each pixel shows."""
    size, camera = scene.size, scene.camera
    a, b, c, d, e, f = invert(camera.affine(time))
    margin, scale = (CANVAS - 1) / 2, FINER * size
    affine = (FINER * a, FINER * b, scale * (c + margin))
    affine += (FINER * d, FINER * e, scale * (f + margin))
    image = scene.canvas.transform((size, size), Image.Transform.AFFINE, affine)
    for thing in scene.things:
        affine = thing.affine(camera, time, size)
        cover = paste(image, thing.shape, time, affine, thing.detail, thing.roundness, thing.shadow)
        if ids is not None:
            _mark(ids, cover, thing.object_id)
    return image


def visible_areas(things: list[Thing], camera: Camera, time: float, size: int) -> list[int]:
    """Counts the pixels that show each object, by id from 0, the background."""
    ids = Image.new("L", (size, size))
    for thing in things:
        affine = thing.affine(camera, time, size)
        _mark(ids, thing.shape.cover(time, affine, ids.size), thing.object_id)
    return ids.histogram()


def _mark(ids: Image.Image, cover: Cover | None, object_id: int) -> None:
    """Sets the pixels that are covered for the most part."""
    if cover is not None:
        is_covered = cover.image.convert("1", dither=Image.Dither.NONE)
        ids.paste(object_id, cover.corner, is_covered)


def paste(
    image: Image.Image,
    shape: Shape | Cutout,
    time: float,
    affine: Affine,
    detail: Image.Image,
    roundness: float = 0.0,
    shadow: tuple[float, float] = (0.0, 0.0),
) -> Cover | None:
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
    scale = detail.width / TILE
    a, b, c, d, e, f = (scale * v for v in invert(affine))
    middle = detail.width / 2
    back = (a, b, a * left + b * top + c + middle, d, e, d * left + e * top + f + middle)
    texture = detail.transform(
        skin.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor="#808080"
    )
    skin = ImageChops.add(skin, to_rgb(texture), 1, -128)
    if roundness:
        unit = math.sqrt(abs(affine[0] * affine[4] - affine[1] * affine[3]))
        soft = cover.image.filter(ImageFilter.BoxBlur(unit / 5))
        soft = soft.point([int(255 - roundness * (255 - v)) for v in range(256)])
        skin = ImageChops.multiply(skin, to_rgb(soft))
    image.paste(skin, cover.corner, cover.image)
    return cover
