import colorsys
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from sam2_jax.data import augment
from sam2_jax.data.clips import Clip
from sam2_jax.experiment import Augment

NONE = Augment(flip=0.0)
PUBLISHED = Augment(
    degrees=25,
    shear=20,
    brightness=0.1,
    contrast=0.03,
    saturation=0.03,
    gray=0.05,
    frame_brightness=0.1,
    frame_contrast=0.05,
    frame_saturation=0.05,
    mosaic=0.15,
)


def clip_of(masks):
    """A clip whose frames are white on the objects and black elsewhere."""
    frames = np.repeat(masks.any(1)[..., None], 3, -1).astype(np.uint8) * 255
    return Clip("clip", frames, masks)


def square(height=40, width=60, num_frames=3, top=12, left=20, side=10):
    masks = np.zeros((num_frames, 1, height, width), bool)
    masks[:, 0, top : top + side, left : left + side] = True
    return masks


def apply(clip, config, size, seed=0):
    return augment.augment_clip(clip, config, size, np.random.default_rng(seed))


def test_nothing_is_changed_unless_asked():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    clip = Clip("clip", frames, rng.random((2, 3, 32, 32)) < 0.5)
    same = apply(clip, NONE, 32)
    np.testing.assert_array_equal(same.frames, clip.frames)
    np.testing.assert_array_equal(same.masks, clip.masks)
    assert same.name == "clip"


@pytest.mark.parametrize("seed", range(4))
def test_what_is_ignored_moves_like_a_mask_and_gaps_are_known(seed):
    masks = np.concatenate([square(), square(top=5, left=40)], 1)
    everything = dataclasses.replace(
        PUBLISHED, crop=(0.6, 1.0), vertical_flip=0.5, quarter_turn=0.5, mosaic=0.5, mosaic_flip=0.5
    )
    clip = clip_of(masks[:, :1])
    known = apply(clip, everything, 48, seed)
    moved = apply(dataclasses.replace(clip, ignored=masks[:, 1]), everything, 48, seed)
    as_object = apply(dataclasses.replace(clip, masks=masks), everything, 48, seed)
    np.testing.assert_array_equal(moved.masks, known.masks)
    np.testing.assert_array_equal(moved.frames, known.frames)
    np.testing.assert_array_equal(moved.ignored, as_object.masks[:, 1])
    assert moved.ignored.any()
    assert known.ignored is None


def test_flip():
    clip = clip_of(square(40, 40))
    flipped = apply(clip, Augment(flip=1.0), 40)
    np.testing.assert_array_equal(flipped.frames, clip.frames[:, :, ::-1])
    np.testing.assert_array_equal(flipped.masks, clip.masks[..., ::-1])
    shares = [apply(clip, Augment(flip=0.3), 40, s).masks[0, 0, 15, 25] for s in range(200)]
    assert 0.2 < np.mean([not share for share in shares]) < 0.4


@settings(max_examples=60, deadline=None)
@given(
    masks=arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=40)),
    size=st.sampled_from([4, 16, 33]),
)
def test_masks_are_resized_as_published(masks, size):
    """Antialiased, and more than half of a pixel makes it foreground."""
    resized = augment.resize_clip(clip_of(masks[None, None]), size, size).masks[0, 0]
    exact = Image.fromarray(masks.astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    exact = np.asarray(exact)
    clear = np.abs(exact - 0.5) > 0.005  # Pillow rounds to 8 bits
    np.testing.assert_array_equal(resized[clear], exact[clear] > 0.5)


def test_vertical_flip():
    clip = clip_of(square(40, 40))
    flipped = apply(clip, dataclasses.replace(NONE, vertical_flip=1.0), 40)
    np.testing.assert_array_equal(flipped.frames, clip.frames[:, ::-1])
    np.testing.assert_array_equal(flipped.masks, clip.masks[:, :, ::-1])


def test_quarter_turns():
    """Frames of other proportions are turned before they are stretched, so that no pixel is lost."""
    clip = clip_of(square(40, 80, top=0, left=0, side=20))
    config = dataclasses.replace(NONE, quarter_turn=1.0)
    corners = set()
    for seed in range(20):
        turned = apply(clip, config, 40, seed)
        assert turned.masks[0].sum() == 20 * 10
        np.testing.assert_array_equal(turned.frames[..., 0] > 127, turned.masks[:, 0])
        corners.add(tuple(turned.masks[0, 0][[0, 0, -1, -1], [0, -1, 0, -1]]))
    assert len(corners) == 3
    assert (True, False, False, False) not in corners
    assert apply(clip, dataclasses.replace(config, quarter_turn=1e-9), 40).masks[0, 0, 0, 0]


def test_crop():
    """A window of a quarter of the area has half the sides; whatever is in it is enlarged alike."""
    columns = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None], (2, 60, 40, 3))
    masks = square(60, 40, 2, top=24, left=14, side=12)
    clip = Clip("clip", columns, masks)
    for place, left, top in (((0, 0), 0, 0), ((1, 1), 20, 30), ((0.5, 0.25), 5, 15)):
        cut = augment.crop_clip(clip, 0.25, place)
        np.testing.assert_array_equal(cut.frames, columns[:, top : top + 30, left : left + 20])
        np.testing.assert_array_equal(cut.masks, masks[..., top : top + 30, left : left + 20])
    config = dataclasses.replace(NONE, crop=(0.25, 0.5))
    windows = np.array([apply(clip, config, 80, s).frames[0, 0, [0, -1], 0] for s in range(80)])
    sides = np.diff(windows.astype(int))[:, 0] + 1
    assert sides.min() <= 21
    assert sides.max() >= 27
    assert np.ptp(windows[:, 0]) > 12


def test_a_crop_loses_no_object():
    clip = clip_of(square(40, 40, top=0, left=0, side=4))
    assert augment.crop_clip(clip, 0.25, (1, 1)) is clip
    assert augment.crop_clip(clip, 0.25, (0, 0)) is not clip


def test_half_a_pixel_is_background():
    masks = np.zeros((1, 2, 16, 16), bool)
    masks[0, 0, :, :7] = True
    masks[0, 1, :, :8] = True
    resized = augment.resize_clip(clip_of(masks), 8, 8).masks[0]
    assert resized[0, 4].tolist() == [True, True, True, False, False, False, False, False]
    assert resized[1, 4].tolist() == [True] * 4 + [False] * 4


def test_frames_are_stretched():
    clip = augment.resize_clip(clip_of(square(40, 60)), 20, 20)
    assert clip.frames.shape == (3, 20, 20, 3)
    assert clip.masks.shape == (3, 1, 20, 20)
    rows, columns = np.nonzero(clip.masks[0, 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 10, 7, 9)


def test_quarter_turn():
    masks = np.zeros((1, 2, 64, 64), bool)
    masks[0, 0, 8:24, 32:40] = True
    masks[0, 1, 40:56, 8:16] = True
    clip = clip_of(masks)
    turned = augment.map_clip(clip, augment.affine_matrix(90, 0, 1))
    np.testing.assert_array_equal(turned.masks, np.rot90(masks, -1, (2, 3)))  # clockwise
    np.testing.assert_allclose(turned.frames, np.rot90(clip.frames, -1, (1, 2)), atol=1)


@pytest.mark.parametrize("seed", range(4))
def test_clips_are_turned_alike_before_and_after_resizing(seed):
    clip = clip_of(square(64, 96, 1, top=16, left=30, side=24))
    config = Augment(flip=0, degrees=40, shear=30, scale=(0.8, 1.2))
    after = apply(clip, config, 64, seed)  # fewer pixels than the clip has
    before = augment.resize_clip(apply(clip, config, 128, seed), 64, 64)
    both = (after.masks & before.masks).sum()
    assert both > 0.93 * (after.masks | before.masks).sum()
    assert np.abs(after.frames.astype(int) - before.frames).mean() < 4
    assert (after.masks ^ augment.resize_clip(clip, 64, 64).masks).sum() > 50


def test_affine_matrices():
    turn = augment.affine_matrix(90, 0, 1)
    np.testing.assert_allclose(turn @ [1, 0, 1], [0, 1, 1], atol=1e-12)  # right becomes down
    lean = augment.affine_matrix(0, 45, 1)
    np.testing.assert_allclose(lean @ [1, 0, 1], [1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(lean @ [0, -1, 1], [1, -1, 1], atol=1e-12)  # the top moves right
    np.testing.assert_allclose(augment.affine_matrix(0, 0, 2), np.diag([2, 2, 1]))
    # The shift comes last, as in torchvision.
    np.testing.assert_allclose(augment.affine_matrix(90, 0, 2, (5, 7)) @ [1, 0, 1], [5, 9, 1])


def test_what_is_left_free_is_filled():
    clip = augment.map_clip(clip_of(square()), augment.affine_matrix(45, 0, 1))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert tuple(clip.frames[(0, *corner)]) == augment.FILL
        assert not clip.masks[(0, 0, *corner)]


def test_zoom():
    clip = clip_of(square(40, 40, top=15, left=15, side=10))
    twice = apply(clip, dataclasses.replace(NONE, scale=(2.0, 2.0)), 40)
    assert twice.masks.sum() == 4 * clip.masks.sum()


def test_translation():
    """Parts of the width and the height, uniform and of both signs, before the resize or after it."""
    clip = clip_of(square(40, 80, 1, top=15, left=35, side=10))
    config = dataclasses.replace(NONE, translate=(0.25, 0.2))
    for size in (64, 40):
        centres = [
            np.argwhere(apply(clip, config, size, s).masks[0, 0]).mean(0) for s in range(100)
        ]
        shifts = (np.array(centres) + 0.5) / size - 0.5
        np.testing.assert_allclose(shifts.max(0), (0.2, 0.25), atol=0.03)
        np.testing.assert_allclose(shifts.min(0), (-0.2, -0.25), atol=0.03)
        assert np.abs(shifts.mean(0)).max() < 0.04
        only_x = dataclasses.replace(NONE, translate=(0.25, 0.0))
        rows = np.argwhere(apply(clip, only_x, size, 1).masks[0, 0])[:, 0]
        np.testing.assert_allclose((rows.mean() + 0.5) / size, 0.5)


@pytest.mark.parametrize(
    "strength",
    [
        {"frame_degrees": 60.0},
        {"frame_shear": 45.0},
        {"frame_scale": (0.5, 2.0)},
        {"frame_translate": (0.3, 0.3)},
    ],
)
def test_every_frame_has_geometry_of_its_own(strength):
    clip = clip_of(square(96, 96, 4, top=36, left=36, side=24))
    apart = apply(clip, dataclasses.replace(NONE, **strength), 96)
    assert len({mask.tobytes() for mask in apart.masks}) == 4
    for frame, mask in zip(apart.frames[..., 0], apart.masks[:, 0], strict=True):
        assert ((frame > 160) ^ mask).sum() < 0.2 * mask.sum()
    alike = {name.removeprefix("frame_"): value for name, value in strength.items()}
    alike = apply(clip, dataclasses.replace(NONE, **alike), 96)
    assert (alike.masks == alike.masks[:1]).all()
    assert (alike.masks != clip.masks).any()


def test_geometry_of_frames_follows_that_of_the_clip():
    clip = clip_of(square(40, 40, 1, top=15, left=15, side=10))
    twice = dataclasses.replace(NONE, scale=(2.0, 2.0), frame_scale=(0.5, 0.5))
    np.testing.assert_array_equal(apply(clip, twice, 40).masks, clip.masks)


def test_only_the_first_frame_keeps_its_objects():
    """The original draws all frames anew or none: an object that leaves the first undoes the others' maps."""
    clip = clip_of(square(40, 40, 2, top=15, left=15, side=6))
    away, stay = augment.affine_matrix(0, 0, 1, (30, 0)), np.eye(3)
    assert augment.map_clip(clip, np.stack([away, stay])) is clip
    moved = augment.map_clip(clip, np.stack([stay, away]))
    assert moved.masks.any((1, 2, 3)).tolist() == [True, False]


def test_no_object_of_the_first_frame_leaves():
    masks = square(40, 40, top=0, left=0, side=3)
    clip = clip_of(masks)
    same = augment.map_clip(clip, augment.affine_matrix(45, 0, 1))
    assert same is clip
    # An object that only a later frame shows may leave.
    masks = np.concatenate([square(40, 40, top=15, left=15, side=8), masks], 1)
    masks[0, 1] = False
    turned = augment.map_clip(clip_of(masks), augment.affine_matrix(45, 0, 1))
    assert turned.masks[:, 0].any()
    assert not turned.masks[:, 1].any()


def test_many_overlapping_objects_stay_apart():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 19, 16, 16)) < 0.3
    clip = clip_of(masks)
    turned = augment.map_clip(clip, augment.affine_matrix(180, 0, 1))
    np.testing.assert_array_equal(turned.masks, masks[..., ::-1, ::-1])


@pytest.mark.parametrize("grid", [(2, 2), (1, 3), (3, 2)])
@pytest.mark.parametrize("size", [60, 61])
def test_mosaic(grid, size):
    """Cell (y, x) spans y * S // rows to (y + 1) * S // rows, and so on, as in the original."""
    rows, columns = grid
    clip = clip_of(square(size, size, top=18, left=6, side=24))
    is_flipped = np.zeros(grid, bool)
    is_flipped[-1, -1] = True
    for cell in range(rows * columns):
        result = augment.mosaic_clip(clip, cell, is_flipped)
        assert result.frames.shape == clip.frames.shape
        for n in range(rows * columns):
            y, x = divmod(n, columns)
            place = (
                slice(y * size // rows, (y + 1) * size // rows),
                slice(x * size // columns, (x + 1) * size // columns),
            )
            frames = result.frames[:, *place]
            small = augment.resize_clip(clip, *frames.shape[1:3])
            step = -1 if is_flipped[y, x] else 1
            np.testing.assert_array_equal(frames, small.frames[:, :, ::step])
            masks = result.masks[:, :, *place]
            np.testing.assert_array_equal(masks, small.masks[..., ::step] & (n == cell))
    tiny = clip_of(square(size, size, side=1))
    assert augment.mosaic_clip(tiny, 0, is_flipped) is tiny  # it would vanish


def test_mosaics_are_drawn():
    clip = clip_of(square(48, 48, top=8, left=4, side=24))
    config = dataclasses.replace(NONE, mosaic=1.0, mosaic_grid=(3, 2))
    results = [apply(clip, config, 48, seed) for seed in range(60)]
    centres = {tuple(np.argwhere(r.masks[0, 0]).mean(0) // (16, 24)) for r in results}
    assert len(centres) == 6
    assert (results[0].frames[:, :, :24] == results[0].frames[:, :, 24:]).all()
    flipped = apply(clip, dataclasses.replace(config, mosaic_flip=1.0), 48)
    np.testing.assert_array_equal(flipped.frames[:, :16, :24], results[0].frames[:, :16, 23::-1])
    some = [apply(clip, dataclasses.replace(config, mosaic_flip=0.5), 48, s) for s in range(10)]
    cells = [
        x.frames[0, y : y + 16, x0 : x0 + 24] for x in some for y in (0, 16, 32) for x0 in (0, 24)
    ]
    is_flipped = [(cell == flipped.frames[0, :16, :24]).all() for cell in cells]
    assert 15 < sum(is_flipped) < 45


def test_colors():
    frame = np.random.default_rng(0).integers(60, 200, (24, 24, 3), np.uint8)
    exact = frame.astype(float)
    grey = (exact @ augment.LUMA)[..., None]
    change = lambda *steps: augment.change_colors(frame, list(steps)).astype(float)
    np.testing.assert_allclose(change((1.1, 1, 1)), 1.1 * exact, atol=1)
    np.testing.assert_allclose(
        change((1, 1.2, 1)), 1.2 * exact - 0.2 * (exact.mean((0, 1)) @ augment.LUMA), atol=1.2
    )
    np.testing.assert_allclose(change((1, 1, 0.7)), 0.7 * exact + 0.3 * grey, atol=1)
    np.testing.assert_allclose(change((1, 1, 0)), np.repeat(grey, 3, -1), atol=1)
    # Steps follow each other.
    once = augment.change_colors(frame, [(1.05, 0.9, 0.8)])
    twice = augment.change_colors(once, [(0.9, 1.1, 1.2)])
    np.testing.assert_allclose(change((1.05, 0.9, 0.8), (0.9, 1.1, 1.2)), twice, atol=3)


def test_hue():
    """Hues go round the circle of HSV, as torchvision turns them; value and saturation stay."""
    colors = np.random.default_rng(0).integers(0, 256, (200, 3)).astype(np.uint8)
    for turns in (0.1, -0.3, 0.5):
        shifted = augment.shift_hue(colors[None], turns)[0] / 255
        for color, found in zip(colors / 255, shifted, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*color)
            expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
            # Pillow has 255 hues, each 6 / 255 of the difference of two channels apart.
            np.testing.assert_allclose(found, expected, atol=0.05)
    primary = np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]])
    thirds = augment.shift_hue(primary, 1 / 3)
    assert thirds.tolist() == [[[0, 255, 0], [0, 0, 255], [255, 0, 0], [90, 90, 90]]]


def test_bright_colors_are_clipped():
    frame = np.array([[[250, 250, 250], [0, 0, 0]]], np.uint8)
    assert augment.change_colors(frame, [(1.5, 1, 1)]).tolist() == [[[255] * 3, [0] * 3]]


def test_colors_of_clip_and_frames():
    frames = np.full((4, 16, 16, 3), (90, 120, 150), np.uint8)
    clip = Clip("clip", frames, np.ones((4, 1, 16, 16), bool))
    consistent = apply(clip, Augment(flip=0, brightness=0.5), 16, seed=3).frames
    assert (consistent == consistent[0]).all()
    assert not (consistent == frames).all()
    anew = apply(clip, Augment(flip=0, frame_brightness=0.5), 16, seed=3).frames
    assert len({frame[0, 0, 0] for frame in anew}) == 4
    turned = apply(clip, Augment(flip=0, hue=0.3), 16, seed=3).frames
    assert (turned == turned[0]).all()
    assert not (turned == frames).all()
    anew = apply(clip, Augment(flip=0, frame_hue=0.3), 16, seed=3).frames
    assert len({tuple(frame[0, 0]) for frame in anew}) == 4
    grey = apply(clip, Augment(flip=0, gray=1.0, frame_brightness=0.1, hue=0.5), 16).frames
    assert (grey == grey[..., :1]).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    size=st.sampled_from([16, 48, 64]),
)
def test_frames_and_masks_move_together(seed, height, width, size):
    """A white object on black stays where its mask is, whatever is drawn, and is the same for all frames."""
    clip = clip_of(square(height, width, top=height // 4, left=width // 3, side=8))
    config = dataclasses.replace(
        PUBLISHED,
        mosaic=0.0,
        scale=(0.8, 1.25),
        translate=(0.1, 0.1),
        vertical_flip=0.5,
        quarter_turn=0.5,
    )
    result = apply(clip, config, size, seed)
    again = apply(clip, config, size, seed)
    np.testing.assert_array_equal(result.frames, again.frames)
    np.testing.assert_array_equal(result.masks, again.masks)
    assert result.frames.shape == (3, size, size, 3)
    assert (result.masks == result.masks[:1]).all()
    seen = result.frames[0].min(-1) > 160
    inside = result.masks[0, 0]
    if inside.any():
        # About a pixel along the contour: interpolation blurs it, and jitter moves the threshold.
        assert (seen ^ inside).sum() <= 4 * 8 * size / min(height, width) + 6


@pytest.mark.parametrize("name", ["crop", "scale", "frame_scale"])
def test_ranges_that_are_the_wrong_way_round(name):
    with pytest.raises(
        ValueError, match=rf"{name} is \(0\.9, 0\.5\); the smaller number comes first"
    ):
        Augment(**{name: (0.9, 0.5)})
