import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from sam2_jax.config import SessionOptions
from sam2_jax.data.annotated import Video
from sam2_jax.data.masks import (
    davis_palette,
    read_labels,
    read_object_mask,
    write_object_masks,
    write_palette_png,
)
from sam2_jax.evaluate import vos
from sam2_jax.evaluate.layouts import open_masks, open_videos
from sam2_jax.evaluate.metrics import iou
from sam2_jax.predict.video import SAM2VideoPredictor
from tests import toy
from tests.evaluate import drawn


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    with toy.counted_programs(toy.VIDEO_PROGRAMS):
        yield


CHUNK = 3  # so that an object may appear in the middle of one


@pytest.fixture(scope="module")
def model():
    return toy.model()


@pytest.fixture(scope="module")
def predictor(model):
    """One whose objects do not overlap."""
    other = dataclasses.replace(model, session=SessionOptions(non_overlap_masks=True))
    return SAM2VideoPredictor(other, CHUNK)


def stems(count=drawn.NUM_FRAMES):
    return [f"{t:05d}" for t in range(count)]


def opened(root, name, masks=None):
    """A video with its masks."""
    masks = open_masks(str(masks or root)).open(name)
    return open_videos(str(root)).open(name).with_masks(masks)


def logits_alone(model, frames, start, object_id):
    """(T, H, W) logits of an object that is tracked in a session of its own, far below 0 before."""
    alone = SAM2VideoPredictor(model, CHUNK)
    state = alone.init_state(frames)
    alone.add_new_mask(state, start, 1, drawn.labels(start, (0, 2)) == object_id)
    logits = np.full((drawn.NUM_FRAMES, drawn.HEIGHT, drawn.WIDTH), -1024, np.float32)
    for t, _, found in alone.propagate_in_video(state):
        logits[t] = found[0, 0]
    return logits


def test_objects_that_appear_later_are_as_if_tracked_alone(tmp_path, model, predictor):
    """As the original does it: each in a session of its own, the strongest one wins."""
    drawn.davis(tmp_path, ["bear"], first=(0, 2))
    options = vos.Options(later_objects=True)
    with opened(tmp_path, "bear") as video:
        expected = np.stack([logits_alone(model, video.frames, s, i) for i, s in ((1, 0), (2, 2))])
        found = list(vos.track(predictor, [video], options))
    assert [(v, t, ids) for v, t, ids, _ in found] == [(0, t, [1, 2]) for t in range(5)]
    wins = expected.argmax(0) == np.arange(2)[:, None, None, None]
    clear = np.abs(expected).min(0) > 1e-2  # float noise decides nothing there
    clear &= np.abs(expected[0] - expected[1]) > 1e-2
    for _, t, _, mask in found:
        np.testing.assert_array_equal(mask[:, clear[t]], ((expected > 0) & wins)[:, t][:, clear[t]])
    assert clear.mean() > 0.9


def test_objects_that_appear_later_need_the_option(tmp_path):
    drawn.write_masks(tmp_path / "a", first=(0, 2))
    masks = open_masks(str(tmp_path)).open("a")
    assert vos.plan_prompts(masks, vos.Options()) == {0: {1: [0]}}
    with pytest.raises(ValueError, match="object 2 of a has its first mask on frame 00002, not on"):
        vos.plan_prompts(masks, vos.Options(use_all_masks=True))
    later = vos.Options(later_objects=True)
    assert vos.plan_prompts(masks, later) == {0: {1: [0]}, 2: {2: [2]}}
    every = vos.Options(later_objects=True, use_all_masks=True)
    assert vos.plan_prompts(masks, every) == {
        0: {1: [0, 1, 2, 3, 4]},
        2: {2: [2, 3, 4]},
    }


def test_all_masks_may_prompt(tmp_path, predictor):
    """Also those of an object that starts later, ahead of the frame that is tracked."""
    drawn.davis(tmp_path, ["a"], first=(0, 2))
    options = vos.Options(use_all_masks=True, later_objects=True)
    with opened(tmp_path, "a") as video:
        for _, t, ids, found in vos.track(predictor, [video], options):
            for object_id, mask in zip(ids, found, strict=True):
                target = drawn.labels(t, (0, 2)) == object_id
                assert iou(mask, target) > 0.7


def test_masks_that_do_not_fit_the_video_are_errors(tmp_path, predictor):
    frames = Video("a", stems())
    plan = lambda: vos.plan_prompts(
        frames.with_masks(open_masks(str(tmp_path)).open("a")), vos.Options()
    )
    drawn.write_masks(tmp_path / "a", lambda ids, t: ids * 0)
    with pytest.raises(ValueError, match="the masks of a on frame 00000 are empty: there is no ob"):
        plan()
    (tmp_path / "a" / "00000.png").unlink()
    with pytest.raises(
        ValueError, match=r"a has no mask of its first frame, 00000; .* --track-obj"
    ):
        plan()
    other = Video("a", ["x"]).with_masks(open_masks(str(tmp_path)).open("a"))
    with pytest.raises(ValueError, match="no mask of a belongs to one of its frames, which are x"):
        vos.plan_prompts(other, vos.Options())
    write_palette_png(tmp_path / "a" / "00000.png", drawn.labels(0)[:20])
    drawn.write_video(tmp_path / "frames" / "a")
    with (
        opened(tmp_path / "frames", "a", masks=tmp_path) as video,
        pytest.raises(ValueError, match="00000 of a are 56x20, but the frames are 56x40"),
    ):
        next(vos.track(predictor, [video], vos.Options()))


def read(folder):
    found = {}
    for place, _, files in os.walk(folder):
        for file in sorted(files):
            with Image.open(os.path.join(place, file)) as image:
                found[os.path.relpath(os.path.join(place, file), folder)] = np.asarray(image)
                assert image.mode == "P"
                palette = np.array(image.getpalette()).reshape(-1, 3)
                np.testing.assert_array_equal(palette, davis_palette()[: len(palette)])
    return found


def test_masks_are_written_and_the_work_goes_on_where_it_stopped(tmp_path, predictor):
    """Also: three videos at once over the devices give what each gives alone."""
    root, names = drawn.davis(tmp_path / "davis", ["a", "b", "c"]), ["a", "b", "c"]
    videos, masks, out = open_videos(str(root)), open_masks(str(root)), str(tmp_path / "out")
    counted, settings, options = [], {"model": "toy"}, vos.Options(num_frames=4)
    assert vos.missing(out, names, settings) == names
    run = lambda some: vos.predict(
        predictor, videos, masks, some, out, options, lambda: counted.append(1)
    )
    run(["b"])
    assert len(counted) == 4
    (tmp_path / "out" / ".a.partial").mkdir()  # as an interruption leaves it
    assert vos.missing(out, names, settings) == ["a", "c"]
    run(["a", "c"])
    assert vos.missing(out, names, settings) == []
    assert sorted(os.listdir(out)) == ["a", "b", "c", vos.SETTINGS]
    found = {name: read(tmp_path / "out" / name) for name in names}
    assert list(found["a"]) == [f"{stem}.png" for stem in stems(4)]
    for name, ids in found["b"].items():
        assert ids.shape == (drawn.HEIGHT, drawn.WIDTH)
        assert set(np.unique(ids)) <= {0, 1, 2}
        for other in "ac":  # the same video under another name
            assert (found[other][name] == ids).mean() > 0.999
    first = found["a"]["00000.png"]
    assert ((first == 1) & (drawn.labels(0) == 1)).sum() > 0.7 * (drawn.labels(0) == 1).sum()
    with pytest.raises(ValueError, match="made with model 'toy', now 'other'; name another folder"):
        vos.missing(out, names, {"model": "other"})
    os.remove(tmp_path / "out" / vos.SETTINGS)
    with pytest.raises(ValueError, match="not made by this command"):
        vos.missing(out, names, settings)


def test_ids_of_16_bits_stay_what_they_are(tmp_path, predictor):
    root = drawn.davis(tmp_path, ["a"], change=lambda ids, t: ids.astype(np.uint16) * 1001)
    videos, masks, out = open_videos(str(root)), open_masks(str(root)), str(tmp_path / "out")
    vos.predict(predictor, videos, masks, ["a"], out, vos.Options(num_frames=2))
    first, second = (read_labels(os.path.join(out, "a", f"0000{t}.png")) for t in (0, 1))
    assert first.dtype == second.dtype == np.uint16
    assert np.unique(first).tolist() == [0, 1001, 2002]
    assert set(np.unique(second)) <= {0, 1001, 2002}


def test_folders_of_objects_are_written_as_the_official_tool_does(tmp_path, model):
    drawn.write_video(tmp_path / "frames" / "a")
    drawn.write_objects(tmp_path / "masks" / "a", first=(0, 2))
    videos, masks = open_videos(str(tmp_path / "frames")), open_masks(str(tmp_path / "masks"))
    options = vos.Options(later_objects=True, object_folders=True, num_frames=3)
    predictor, out = SAM2VideoPredictor(model, CHUNK), str(tmp_path / "out")
    vos.predict(predictor, videos, masks, ["a"], out, options)
    found = read(tmp_path / "out" / "a")
    expected = [os.path.join(i, f"{stem}.png") for i in ("001", "002") for stem in stems(3)]
    assert sorted(found) == expected
    assert all(set(np.unique(mask)) <= {0, 1} for mask in found.values())
    assert not found[os.path.join("002", "00001.png")].any()
    assert read_object_mask(tmp_path / "out" / "a" / "002" / "00002.png").any()


@pytest.mark.parametrize("options", [{}, {"use_all_masks": True}, {"later_objects": True}])
def test_an_object_whose_first_mask_is_empty_is_written(tmp_path, model, options):
    """As SA-V has them; so is one that is never there, or evaluators refuse the whole."""
    drawn.write_video(tmp_path / "frames" / "a")
    drawn.write_objects(tmp_path / "masks" / "a", first=(0, 2))
    (tmp_path / "masks" / "a" / "003").mkdir()
    blank = np.zeros((1, drawn.HEIGHT, drawn.WIDTH), bool)
    write_object_masks(tmp_path / "masks" / "a", 0, [3], blank)
    videos, masks = open_videos(str(tmp_path / "frames")), open_masks(str(tmp_path / "masks"))
    accepting = dataclasses.replace(model, session=SessionOptions(allow_empty_masks=True))
    vos.predict(
        SAM2VideoPredictor(accepting, CHUNK),
        videos,
        masks,
        ["a"],
        str(tmp_path / "out"),
        vos.Options(object_folders=True, **options),
    )
    found = read(tmp_path / "out" / "a")
    expected = [os.path.join(i, f"{stem}.png") for i in ("001", "002", "003") for stem in stems()]
    assert sorted(found) == expected
    assert not found[os.path.join("002", "00000.png")].any()
    if options:  # prompted where it appears
        assert found[os.path.join("002", "00002.png")].any()


@pytest.mark.parametrize("prompt", ["box", "1-click", "3-click"])
def test_boxes_and_clicks_come_from_the_masks(tmp_path, predictor, prompt):
    drawn.davis(tmp_path, ["a"])
    with opened(tmp_path, "a") as video:
        states = []
        keep = lambda *args, **kwargs: states.append(original(*args, **kwargs)) or states[-1]
        original, predictor.init_state = predictor.init_state, keep
        try:
            next(vos.track(predictor, [video], vos.Options(prompt=prompt)))
        finally:
            del predictor.init_state
    labels = {i: store.points[0][1].tolist() for i, store in states[0].objects.items()}
    assert list(labels) == [1, 2]
    if prompt == "box":
        assert labels[1] == [2, 3]
        expected = np.array([[4, 2], [20, 16]]) * toy.SIZE / [drawn.WIDTH, drawn.HEIGHT]
        np.testing.assert_allclose(states[0].objects[1].points[0][0], expected, rtol=1e-6)
    else:
        assert labels[1][0] == 1
        assert len(labels[1]) == int(prompt[0])
