"""Small connected components of masks, on the device and for whole batches at once.

    logits (..., h, w)  ->  holes and sprinkles, (..., h, w) bool each  ->  cleaned logits (..., h, w)

Pixels are connected to their eight neighbours, as in the original.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float

from sam2_jax.structs import Array

_WORD = jnp.uint32
_LARGEST_FLOOD = 8  # what videos ask for; the program grows with the square


def clean_masks(
    masks: Float[Array, "*b h w"],
    max_hole_area: float,
    max_sprinkle_area: float,
    *,
    threshold: Float[ArrayLike, ""] = 0.0,
    filled: Float[ArrayLike, ""],
    removed: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "*b h w"]:
    """Fills small holes and removes small sprinkles of mask logits.

    NaN is neither foreground nor background, and stays.

    Args:
      masks: logits.
      max_hole_area: background components of at most this many pixels get the logit `filled`; 0 is off.
        Static.
      max_sprinkle_area: foreground components of at most this many pixels get `removed`; 0 is off. Static.
      threshold: logits above it are foreground.
      filled: see above.
      removed: see above.

    Returns:
      Masks of the same shape and type; the argument itself if both areas are 0.
    """
    cleaned = masks
    if max_hole_area > 0:
        holes = small_components(masks <= threshold, max_hole_area)
        cleaned = jnp.where(holes, jnp.asarray(filled, masks.dtype), cleaned)
    if max_sprinkle_area > 0:  # of the mask as it was: a hole that is filled does not join its ring
        sprinkles = small_components(masks > threshold, max_sprinkle_area)
        cleaned = jnp.where(sprinkles, jnp.asarray(removed, masks.dtype), cleaned)
    return cleaned


def small_components(inside: Bool[Array, "*b h w"], max_area: float) -> Bool[jax.Array, "*b h w"]:
    """Finds the pixels that belong to small 8-connected components.

    Up to 8 pixels it is elementwise arithmetic, without any loop, gather or scatter. Above that, all
    components are labelled, in a loop of some ten rounds.

    Args:
      inside: leading axes are separate pictures.
      max_area: pixels of the largest component that counts as small; static. Below 1, none is small.

    Returns:
      Those pixels of `inside` whose component has at most `max_area` pixels.
    """
    max_area = int(min(max_area, inside.shape[-2] * inside.shape[-1]))
    if max_area < 1 or not inside.size:
        return jnp.zeros_like(inside)
    if max_area <= _LARGEST_FLOOD:
        sizes = _flood_sizes(inside, max_area)
    else:
        sizes = _component_sizes(inside)
    return inside & (sizes <= max_area)


def connected_to(inside: jax.Array, seeds: jax.Array) -> jax.Array:
    """Finds the 8-connected components that hold a seed.

    Args:
      inside: (..., h, w) bool; leading axes are separate pictures.
      seeds: (..., h, w) bool; those that are not inside count for nothing.

    Returns:
      (..., h, w) bool, the pixels of these components.
    """
    own = inside.reshape(-1, *inside.shape[-2:])

    def grow(state):
        reached, _ = state
        wide = reached | _shift(reached, 1, 0) | _shift(reached, -1, 0)
        wide = own & (wide | _shift(wide, 0, 1) | _shift(wide, 0, -1))
        return wide, (wide != reached).any()

    start = own & jnp.broadcast_to(seeds, inside.shape).reshape(own.shape)
    return jax.lax.while_loop(lambda state: state[1], grow, (start, start.any()))[0].reshape(
        inside.shape
    )


def _flood_sizes(inside: jax.Array, radius: int) -> jax.Array:
    """(..., h, w) bool -> (..., h, w) number of pixels that at most `radius` steps inside reach from each.

    A component of more than `radius` pixels has more than `radius` of them in that reach of any of its
    pixels, so that this tells whether it has. The reach is a picture of (2 * radius + 1)**2 pixels around
    each pixel, a word a row.
    """
    height, width = inside.shape[-2:]
    padding = [(0, 0)] * (inside.ndim - 2) + [(radius, radius)] * 2
    bits = jnp.pad(inside, padding).astype(_WORD)
    across = range(2 * radius + 1)
    words = _any(bits[..., i : i + width] << i for i in across)
    rows = [words[..., i : i + height, :] for i in across]
    reached = [rows[radius] & _WORD(1 << radius)]
    for step in range(1, radius + 1):
        spread = [x | x << 1 | x >> 1 for x in reached]
        reached = [
            row & _any(spread[max(i - 2, 0) : i + 1])
            for i, row in enumerate(rows[radius - step : radius + step + 1])
        ]
    return sum(jax.lax.population_count(x) for x in reached)


def _any(words: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.bitwise_or, words)


def _component_sizes(inside: jax.Array) -> jax.Array:
    """(..., h, w) bool -> (..., h, w) int32 number of pixels of each pixel's component.

    What is labelled are blocks of 2 x 2 pixels, which are always connected: a quarter of the labels.
    """
    height, width = inside.shape[-2:]
    pictures = inside.reshape(-1, height, width)
    pictures = jnp.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2)))
    corners = [pictures[:, y::2, x::2] for y in (0, 1) for x in (0, 1)]
    top_left, top_right, bottom_left, bottom_right = corners

    forth = {
        (0, 1): (top_right | bottom_right) & _shift(top_left | bottom_left, 0, 1),
        (1, 0): (bottom_left | bottom_right) & _shift(top_left | top_right, 1, 0),
        (1, 1): bottom_right & _shift(top_left, 1, 1),
        (1, -1): bottom_left & _shift(top_right, 1, -1),
    }
    back = {(-dy, -dx): _shift(linked, -dy, -dx) for (dy, dx), linked in forth.items()}
    links = forth | back

    own = jnp.arange(top_left.size, dtype=jnp.int32).reshape(top_left.shape)

    def hook(state):
        # A label is a block of the same component. A block, and the block that it is labelled with, take
        # the largest label of the neighbours' labels; without change, neighbours have the same one.
        old, _ = state
        ahead = old.ravel()[old]
        largest = old
        for (dy, dx), linked in links.items():
            largest = jnp.where(linked, jnp.maximum(largest, _shift(ahead, dy, dx)), largest)
        new = largest.ravel().at[old].max(largest)
        new = jnp.maximum(new, new[new]).reshape(old.shape)
        return new, (new != old).any()

    labels, _ = jax.lax.while_loop(lambda state: state[1], hook, (own, jnp.bool_(True)))
    counts = sum(corner.astype(jnp.int32) for corner in corners)
    sizes = jnp.zeros(own.size, jnp.int32).at[labels].add(counts)[labels]
    sizes = sizes.repeat(2, 1).repeat(2, 2)[:, :height, :width]
    return sizes.reshape(inside.shape)


def _shift(x: jax.Array, dy: int, dx: int) -> jax.Array:
    """(n, h, w): what lies dy below and dx to the right of each; 0 outside."""
    _, height, width = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
