import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sam2_jax.data.annotated import Video
from sam2_jax.data.clips import sample_clip
from sam2_jax.data.procedural import drawn_videos, source, textures
from sam2_jax.data.procedural.cutouts import Cutout
from sam2_jax.data.procedural.frames import CANVAS, Look, Thing, render
from sam2_jax.data.procedural.motion import Curve, invert, make_camera


def videos(seed=0, count=40, num_frames=8, size=64):
    return drawn_videos(seed, num_frames, size, count=count)


def read(video, indices):
    """Frames, and their masks by object id."""
    return [video.frames[t] for t in indices], [dict(video.masks(t)) for t in indices]


@pytest.fixture(scope="module")
def drawn():
    """Frames and masks of all frames of 40 videos."""
    return [read(video, range(8)) for video in videos()]


def test_source():
    five = videos(seed=3, count=5, num_frames=6)
    assert len(five) == len(list(five)) == 5
    assert all(isinstance(video, Video) and len(video.frame_names) == 6 for video in five)
    assert len({video.name for video in five}) == 5
    assert len(videos(count=-1)) == 1_000_000
    assert len(videos(count=0)) == 0
    with pytest.raises(IndexError):
        five[5]
    later = drawn_videos(3, 6, 64, first=2, count=2)
    assert [video.name for video in later] == [five[2].name, five[3].name]


def test_source_errors():
    for change in ({"seed": -1}, {"count": -2}, {"num_frames": 0}, {"size": 8}):
        with pytest.raises(ValueError, match="size >= 16 are expected"):
            videos(**change)


def test_frames_are_checked():
    video = videos()[0]
    for read_frame in (video.frames.__getitem__, video.object_ids):
        with pytest.raises(IndexError, match="no frame 8: there are 8 frames"):
            read_frame(8)


@pytest.mark.parametrize("size", [16, 97])
def test_shapes_and_types(size):
    for video in videos(count=8, num_frames=2, size=size):
        frames, masks = read(video, [1, 0])
        assert len(frames) == len(masks) == 2
        for frame, by_id in zip(frames, masks, strict=True):
            assert frame.shape == (size, size, 3)
            assert frame.dtype == np.uint8
            assert all(m.shape == (size, size) and m.dtype == bool for m in by_id.values())


def test_masks_are_the_visible_pixels_of_some_objects(drawn):
    for _, masks in drawn:
        for by_id in masks:
            assert set(by_id) <= {1, 2, 3, 4, 5}
            assert all(mask.any() for mask in by_id.values())
            assert np.sum(list(by_id.values()), axis=0).max() <= 1


def test_objects_are_seen_on_the_first_frame(drawn):
    counts = np.zeros(6, int)
    for video, (_, masks) in zip(videos(), drawn, strict=True):
        ids = video.object_ids(0)
        assert ids == [i for i, mask in masks[0].items() if mask.sum() >= 0.001 * 64**2]
        counts[len(ids)] += 1
    assert counts[0] == 0
    assert (counts[1:] > 0).all()


def test_masks_match_the_picture():
    """One white object on black, without any effects: the picture is the mask."""
    still = Curve(((0.0, ()), (0.0, ())))
    look = Look(still, 1, 0.0, 0.0, 0.0, 0, None, still)
    seen = 0
    for video in videos(seed=1, count=12):
        scene = video.frames.scene
        thing = scene.things[0]
        white = [dataclasses.replace(p, color=(255, 255, 255)) for p in thing.shape.parts]
        thing = Thing(
            object_id=1,
            shape=dataclasses.replace(thing.shape, parts=tuple(white)),
            motion=thing.motion,
            detail=Image.new("L", (64, 64), 128),
            parallax=thing.parallax,
        )
        canvas = Image.new("RGB", scene.canvas.size)
        plain = dataclasses.replace(scene, canvas=canvas, things=[thing], look=look)
        for time in range(3):
            frame, ids = render(plain, time, np.random.default_rng(0))
            np.testing.assert_array_equal((frame >= 128).all(2), ids == 1)
            seen += ids.any()
    assert seen > 20


def test_the_camera_stays_on_the_canvas():
    rng = np.random.default_rng(0)
    for _ in range(50):
        camera = make_camera(rng)
        for time in (0.0, 3.0, 40.0):
            a, b, c, d, e, f = invert(camera.affine(time))
            corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, 1) for y in (0, 1)]
            assert np.abs(np.array(corners) - 0.5).max() <= CANVAS / 2


def test_deterministic_and_independent_of_the_other_frames(drawn):
    frames, masks = drawn[7]
    for indices in ([5], [6, 5, 0], [5, 5]):
        video = pickle.loads(pickle.dumps(videos(count=-1)))[7]
        again, masks_again = read(video, indices)
        for index, frame, by_id in zip(indices, again, masks_again, strict=True):
            np.testing.assert_array_equal(frame, frames[index])
            assert by_id.keys() == masks[index].keys()
            assert all((by_id[i] == masks[index][i]).all() for i in by_id)


def test_lazy(monkeypatch):
    calls = []
    for name in ("make_scene", "render"):
        function = getattr(source, name)
        record = lambda *args, name=name, function=function, **kwargs: (
            calls.append(name) or function(*args, **kwargs)
        )
        monkeypatch.setattr(source, name, record)
    video = videos(count=-1, num_frames=1000)[999_999]
    assert calls == []
    video.object_ids(0)
    video.frames[0]  # a frame and its masks come out of one drawing
    assert calls == ["make_scene", "render"]
    read(video, [500, 3])
    assert calls.count("make_scene") == 1
    assert calls.count("render") <= 5


def test_seeds_and_indices_differ(drawn):
    frames = [frames[0] for frames, _ in drawn] + [v.frames[0] for v in videos(1, count=10)]
    assert len({frame.tobytes() for frame in frames}) == 50


def test_things_move_and_light_and_camera_change(drawn):
    overlaps = []
    for frames, masks in drawn:
        assert any((frame != frames[0]).any() for frame in frames[1:])
        for i in masks[0].keys() & masks[1].keys():
            first, second = masks[0][i], masks[1][i]
            overlaps.append((first & second).sum() / (first | second).sum())
    still, middle, fast = np.percentile(overlaps, [95, 50, 10])
    assert still > 0.9 > middle > 0.6 > fast


def test_objects_disappear_and_come_back(drawn):
    gone = back = 0
    for _, masks in drawn:
        for i in masks[0]:
            is_seen = np.array([i in by_id for by_id in masks])
            gone += not is_seen.all()
            back += (is_seen[1:] & ~is_seen[:-1]).any()
    assert gone >= 5
    assert back >= 3


def test_pictures_vary(drawn):
    frames = np.stack([frames[0] for frames, _ in drawn]).astype(float)
    brightness, contrast = frames.mean((1, 2, 3)), frames.std((1, 2)).mean(1)
    sharpness = np.abs(np.diff(frames, axis=1)).mean((1, 2, 3))
    color = np.abs(frames.mean((1, 2)) - brightness[:, None]).max(1)
    for values, low, high in (
        (brightness, 80, 150),
        (contrast, 30, 50),
        (sharpness, 6, 20),
        (color, 5, 30),
    ):
        assert values.min() < low
        assert values.max() > high


def test_sizes_vary(drawn):
    areas = [mask.mean() for _, masks in drawn for mask in masks[0].values()]
    assert np.percentile(areas, 10) < 0.02
    assert np.percentile(areas, 90) > 0.08


def test_clips_can_be_cut_out_of_long_videos():
    rng = np.random.default_rng(0)
    for video in videos(count=4, num_frames=60, size=32):
        clip = sample_clip(video, 4, 3, rng)
        assert clip.frames.shape == (4, 32, 32, 3)
        assert clip.masks[0].any((1, 2)).all()


def test_plain_videos_show_a_few_shapes_of_one_colour():
    for video in drawn_videos(0, 4, 64, count=20, is_plain=True):
        frames, masks = read(video, range(4))
        assert 1 <= len(masks[0]) <= 3
        ground = frames[0][~np.any(list(masks[0].values()), axis=0)].mean(0)
        for mask in masks[0].values():
            if mask.sum() < 100:  # mostly edge
                continue
            pixels = frames[0][mask]
            assert np.median(np.abs(pixels - np.median(pixels, 0))) < 10
            assert np.abs(np.median(pixels, 0) - ground).max() > 25


def test_textures_cut_from_pictures(tmp_path):
    """Scenes differ where a picture is used, the same each time; its colours are seen, grey gets some."""
    path, grey = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (90, 60), (250, 10, 240)).save(path)
    Image.new("L", (60, 60), 128).save(grey)
    changed = 0
    for pictures in ([path], [grey]):
        with_pictures = drawn_videos(0, 8, 64, count=40, pictures=list(map(str, pictures)))
        for plain, video in zip(videos(), with_pictures, strict=True):
            frame = video.frames[0]
            np.testing.assert_array_equal(frame, video.frames[0])
            changed += (frame != plain.frames[0]).any()
    assert changed > 20
    collection = textures.Collection(textures=(str(path),))
    scheme = textures.make_scheme(np.random.default_rng(3), collection)
    cut = np.asarray(textures._cut(np.random.default_rng(0), 16, scheme), float)
    assert cut.shape == (16, 16, 3)
    assert cut.min((0, 1))[[0, 2]].min() > 3 * cut.max((0, 1))[1]
    scheme = dataclasses.replace(scheme, collection=textures.Collection((str(grey),)))
    assert np.asarray(textures._cut(np.random.default_rng(0), 16, scheme)).shape == (16, 16, 3)


def test_pictures_with_transparent_parts_become_objects(tmp_path):
    """A disc, alone in the folder, is seen as an object in its own colour, the same each time."""
    picture = Image.new("RGBA", (80, 80))
    ImageDraw.Draw(picture).ellipse((0, 0, 79, 79), (250, 10, 240, 255))
    picture.save(tmp_path / "disc.png")
    seen = 0
    for video in drawn_videos(0, 8, 64, count=40, pictures=[str(tmp_path / "disc.png")]):
        (frame,), (masks,) = read(video, [0])
        np.testing.assert_array_equal(frame, video.frames[0])
        for mask in masks.values():
            red, green, blue = np.median(frame[mask], 0).astype(int)
            seen += min(red, blue) > green + 60
    assert seen > 10


@pytest.mark.parametrize("size", [40, 300])
def test_a_cutout_lies_where_its_shape_is(size):
    """A ring of 100 pixels at rest, drawn smaller and larger: its area, its hole, its colour."""
    picture = Image.new("RGBA", (102, 102))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((1, 1, 100, 100), (10, 200, 30, 255))
    draw.ellipse((26, 26, 75, 75), (0, 0, 0, 0))
    at_rest = ((0.0, 1.0, 1.0, 0.0),) * 2
    cutout = Cutout(picture, at_rest)
    radius = size / 2 * 1.02  # of the picture with its border
    affine = (radius, 0.0, size, 0.0, radius, size)
    cover = cutout.cover(0.0, affine, (2 * size, 2 * size))
    alpha, skin = np.asarray(cover.image) / 255, np.asarray(cover.skin())
    assert alpha.sum() == pytest.approx(np.pi * size**2 * 3 / 16, rel=0.03)
    rows, columns = np.nonzero(alpha > 0.5)
    middle = np.array([columns.mean(), rows.mean()]) + 0.5 + cover.corner
    np.testing.assert_allclose(middle, size, atol=0.6)
    assert alpha[tuple(int(size - c) for c in cover.corner[::-1])] == 0
    np.testing.assert_allclose(skin[alpha == 1].mean(0), (10, 200, 30), atol=6)
    assert cutout.cover(0.0, (radius, 0.0, -3.0 * size, 0.0, radius, 0.0), (size, size)) is None
    bent = dataclasses.replace(cutout, bends=((0.0, 1.0, 1.0, 0.0), (0.3, 3.0, 1.0, 0.0)))
    moved = bent.cover(0.0, affine, (2 * size, 2 * size))
    assert moved.corner[1] < cover.corner[1]
    assert (np.asarray(moved.image) / 255).sum() == pytest.approx(alpha.sum(), rel=0.05)
