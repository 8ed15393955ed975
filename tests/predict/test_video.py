"""The session: what stays, what goes, and in which order, whatever is clicked and wherever it is tracked."""

import dataclasses
import gc
import threading
import time
import zipfile

import jax
import numpy as np
import pytest

from sam2_jax import SAM2VideoPredictor, SessionOptions
from sam2_jax.data import videos
from sam2_jax.data.masks import decode_rle, read_mask_png
from sam2_jax.data.results import PaletteFolder, RleResults
from sam2_jax.predict import postprocessing, propagation
from sam2_jax.predict.store import Store
from tests import toy
from tests.parity.reference_scene import scene, scene_masks

NUM_FRAMES, HEIGHT, WIDTH = 8, 40, 56
FRAMES = scene(20, HEIGHT, WIDTH)
SHORT = FRAMES[:NUM_FRAMES]
CLICKS = np.array([[14.0, 18.0], [40.0, 15.0], [25.0, 33.0]])
CHUNK = 3  # frames a call: a pass has whole chunks and a rest
SIZE = toy.SIZE // 4  # of a low-resolution mask


@pytest.fixture(scope="module")
def model():
    return toy.model()


@pytest.fixture(scope="module", autouse=True)
def traces():
    """How often each compiled function of the predictor was traced."""
    with toy.counted_programs(toy.VIDEO_PROGRAMS) as counts:
        yield counts


@pytest.fixture(scope="module")
def predictor(model):
    return SAM2VideoPredictor(model, CHUNK)


def switched(model, **switches):
    """A predictor with other host-side switches, of which the compiled programs know nothing."""
    other = dataclasses.replace(model, session=SessionOptions(**switches))
    return SAM2VideoPredictor(other, CHUNK)


def click(predictor, state, frame=0, obj=1, at=0, label=1, **kwargs):
    return predictor.add_new_points_or_box(
        state, frame, obj, CLICKS[at : at + 1], [label], **kwargs
    )


def run(predictor, state, *args, **kwargs):
    """{frame: masks (N, 1, H, W)}"""
    return {t: masks for t, _, masks in predictor.propagate_in_video(state, *args, **kwargs)}


def stack(masks):
    return np.stack([masks[t] for t in sorted(masks)])


def close(a, b, tolerance=1e-4):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def differ(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3


@pytest.fixture(scope="module")
def one_pass(predictor):
    """Masks of object 1, clicked on frame 0 and tracked forwards."""
    state = predictor.init_state(SHORT)
    click(predictor, state)
    return run(predictor, state)


def test_a_click_answers_with_all_objects_on_its_frame(predictor):
    state = predictor.init_state(SHORT)
    frame, ids, first = click(predictor, state, 2, "cat")
    assert (frame, ids) == (2, ["cat"])
    assert first.shape == (1, 1, HEIGHT, WIDTH)
    assert first.dtype == np.float32
    frame, ids, both = click(predictor, state, 2, 7, at=1)
    assert (frame, ids) == (2, ["cat", 7])
    assert both.shape == (2, 1, HEIGHT, WIDTH)
    close(both[:1], first, 1e-6)
    assert differ(both[0], both[1])


def test_a_pass_yields_every_frame_from_the_first_prompted_one(predictor):
    state = predictor.init_state(SHORT)
    _, _, answer = click(predictor, state, 2)
    results = list(predictor.propagate_in_video(state))
    assert [t for t, _, _ in results] == list(range(2, NUM_FRAMES))
    for _, ids, masks in results:
        assert ids == [1]
        assert masks.shape == (1, 1, HEIGHT, WIDTH)
        assert masks.dtype == np.float32
        assert np.isfinite(masks).all()
    np.testing.assert_array_equal(results[0][2], answer)
    assert differ(results[1][2], results[2][2])


@pytest.mark.parametrize(
    ("start", "count", "reverse", "frames"),
    [
        (None, None, False, [2, 3, 4, 5, 6, 7]),
        (None, 2, False, [2, 3, 4]),
        (4, 0, False, [4]),
        (5, 99, False, [5, 6, 7]),
        (0, 1, False, [0, 1]),
        (None, None, True, [2, 1, 0]),
        (6, 2, True, [6, 5, 4]),
        (1, 99, True, [1, 0]),
        (0, None, True, []),
    ],
)
def test_start_and_count_are_inclusive(predictor, start, count, reverse, frames):
    state = predictor.init_state(SHORT)
    click(predictor, state, 2)
    assert list(run(predictor, state, start, count, reverse)) == frames


def test_without_any_prompt_there_is_nothing_to_track(predictor):
    state = predictor.init_state(SHORT)
    with pytest.raises(RuntimeError, match="prompt"):
        predictor.propagate_in_video(state)


@pytest.mark.parametrize("frame", [-1, NUM_FRAMES])
def test_a_frame_outside_of_the_video_is_refused(predictor, frame):
    state = predictor.init_state(SHORT)
    for ask in (
        lambda: click(predictor, state, frame),
        lambda: predictor.add_new_mask(state, frame, 1, np.ones((HEIGHT, WIDTH))),
    ):
        with pytest.raises(ValueError, match=f"no frame {frame}; the video has frames 0 to 7"):
            ask()
    assert state.obj_ids == []
    click(predictor, state)
    with pytest.raises(ValueError, match=f"no frame {frame}"):
        predictor.propagate_in_video(state, frame)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "No prompt"),
        ({"box": [1, 2, 3, 4], "clear_old_points": False}, "clear_old_points=True"),
        ({"points": [[1, 2]]}, "together"),
        ({"box": [[1, 2, 3, 4]] * 2}, "2 prompts were given for object 1"),
    ],
)
def test_impossible_prompts_are_refused_and_start_no_object(predictor, prompt, message):
    state = predictor.init_state(SHORT)
    with pytest.raises(ValueError, match=message):
        predictor.add_new_points_or_box(state, 0, 1, **prompt)
    with pytest.raises(ValueError, match=r"\(1, 40, 56\); expected \(height, width\)"):
        predictor.add_new_mask(state, 0, 1, np.ones((1, HEIGHT, WIDTH)))
    assert state.obj_ids == []


def test_an_object_without_output_on_a_frame_is_far_below_zero(predictor):
    state = predictor.init_state(SHORT)
    click(predictor, state, 0, 1)
    _, ids, masks = click(predictor, state, 3, 2, at=1)
    assert ids == [1, 2]
    assert (masks[0] == -1024).all()
    assert (masks[1] > -1000).any()


def test_points_add_up_only_when_asked_to(predictor):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    click(predictor, state, at=1, label=0, clear_old_points=False)
    points, labels = state.objects[1].points[0]
    expected = CLICKS[:2] / [WIDTH, HEIGHT] * toy.SIZE
    np.testing.assert_allclose(points, expected, rtol=1e-6)
    assert labels.tolist() == [1, 0]
    click(predictor, state, at=2)
    assert state.objects[1].points[0][1].tolist() == [1]


def test_a_mask_replaces_points_and_points_a_mask(predictor):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    mask = scene_masks(1, HEIGHT, WIDTH)[0, 0]
    _, _, answer = predictor.add_new_mask(state, 0, 1, mask)
    assert not state.objects[1].points
    agreement = ((answer[0, 0] > 0) & mask).sum() / ((answer[0, 0] > 0) | mask).sum()
    assert agreement > 0.8
    click(predictor, state)
    assert not state.objects[1].masks


def test_coordinates_may_be_parts_of_one(predictor):
    answers = []
    for points, is_pixels in ((CLICKS[:1], True), (CLICKS[:1] / [WIDTH, HEIGHT], False)):
        state = predictor.init_state(SHORT)
        answers.append(
            predictor.add_new_points_or_box(state, 0, 1, points, [1], normalize_coords=is_pixels)[2]
        )
    close(*answers)


def test_corrections_on_tracked_frames_are_kept(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    run(predictor, state)
    corrected = {t: click(predictor, state, t, at=1, label=0)[2] for t in (3, 5)}
    again = run(predictor, state)
    for t, answer in corrected.items():
        assert differ(answer, one_pass[t])
        np.testing.assert_array_equal(again[t], answer)
    assert sorted(state.objects[1].prompted) == [0, 3, 5]
    assert sorted(state.objects[1].tracked) == [1, 2, 4, 6, 7]
    for t in range(4, NUM_FRAMES):
        assert differ(again[t], one_pass[t])


def test_a_correction_is_lost_as_in_the_original_if_asked_for(model, one_pass):
    predictor = switched(model, add_all_frames_to_correct_as_cond=False)
    state = predictor.init_state(SHORT)
    click(predictor, state)
    run(predictor, state)
    _, _, corrected = click(predictor, state, 3, at=1, label=0)
    assert differ(corrected, one_pass[3])
    np.testing.assert_array_equal(stack(run(predictor, state)), stack(one_pass))
    assert sorted(state.objects[1].prompted) == [0]


def test_a_click_on_a_tracked_frame_reads_the_memory(predictor, one_pass):
    state = predictor.init_state(SHORT)
    _, _, fresh = click(predictor, state, 4)
    state = predictor.init_state(SHORT)
    click(predictor, state)
    run(predictor, state)
    _, _, answer = click(predictor, state, 4)
    assert differ(answer, fresh)
    assert differ(answer, one_pass[4])


def test_a_new_object_may_come_after_tracking(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    run(predictor, state)
    click(predictor, state, 2, 2, at=1)
    _, ids, masks = click(predictor, state, 2, 3, at=2)
    assert ids == [1, 2, 3]
    close(masks[0], one_pass[2][0])  # what was tracked is still there
    together = run(predictor, state)
    assert list(together) == list(range(NUM_FRAMES))
    close(stack(together)[:, 0], stack(one_pass)[:, 0])
    np.testing.assert_array_equal(together[2][1:], masks[1:])
    assert np.isfinite(stack(together)).all()


@pytest.mark.parametrize(("prompted", "start", "reverse"), [(4, 0, False), (2, 6, True)])
def test_frames_before_the_first_prompt_can_be_tracked(predictor, prompted, start, reverse):
    state = predictor.init_state(SHORT)
    _, _, answer = click(predictor, state, prompted)
    masks = run(predictor, state, start, None, reverse)
    assert set(masks) == set(range(start, -1, -1) if reverse else range(NUM_FRAMES))
    assert np.isfinite(stack(masks)).all()
    assert (masks[start] > -1000).any()
    np.testing.assert_array_equal(masks[prompted], answer)


def test_a_video_of_one_frame_can_be_clicked_again(predictor):
    state = predictor.init_state(FRAMES[:1])
    click(predictor, state)
    assert list(run(predictor, state)) == [0]
    _, _, answer = click(predictor, state, at=1)
    assert np.isfinite(answer).all()
    assert (answer > -1000).any()
    np.testing.assert_array_equal(run(predictor, state)[0], answer)


def test_an_empty_mask_means_that_the_object_is_absent(predictor, model):
    state = predictor.init_state(SHORT)
    click(predictor, state, 2)
    _, _, answer = predictor.add_new_mask(state, 0, 1, np.zeros((HEIGHT, WIDTH), bool))
    np.testing.assert_allclose(answer, -10, rtol=1e-5)
    entry = state.objects[1].latest(0)
    assert entry.score == -10
    np.testing.assert_array_equal(entry.pointer.get(), np.asarray(model.params["no_obj_ptr"][0]))
    masks = run(predictor, state)
    np.testing.assert_array_equal(masks[0], answer)
    assert np.isfinite(stack(masks)).all()


def test_an_empty_mask_alone_is_nothing_to_track(predictor):
    state = predictor.init_state(SHORT)
    with pytest.raises(ValueError, match="object 1 is empty"):
        predictor.add_new_mask(state, 0, 1, np.zeros((HEIGHT, WIDTH), bool))
    assert state.obj_ids == []


def test_many_frames_may_be_prompted(predictor, one_pass):
    state = predictor.init_state(SHORT)
    answers = {t: click(predictor, state, t, at=t % 3)[2] for t in (5, 0, 3)}
    masks = run(predictor, state)
    assert list(masks) == list(range(NUM_FRAMES))
    for t, answer in answers.items():
        np.testing.assert_array_equal(masks[t], answer)
    assert list(state.objects[1].prompted) == [5, 0, 3]
    assert differ(masks[7], one_pass[7])


def test_objects_together_equal_each_alone(predictor):
    state = predictor.init_state(SHORT)
    for n in range(3):
        click(predictor, state, 0, n, at=n)
    together = stack(run(predictor, state))
    assert together.shape == (NUM_FRAMES, 3, 1, HEIGHT, WIDTH)
    for n in range(3):
        state = predictor.init_state(SHORT)
        click(predictor, state, 0, n, at=n)
        close(together[:, n], stack(run(predictor, state))[:, 0])
    assert differ(together[:, 0], together[:, 1])


@pytest.mark.parametrize("chunk", [1, 8])
def test_the_chunk_changes_nothing(model, one_pass, chunk):
    predictor = SAM2VideoPredictor(model, chunk)
    state = predictor.init_state(SHORT)
    click(predictor, state)
    close(stack(run(predictor, state)), stack(one_pass), 1e-5)


def test_a_pass_keeps_only_what_it_is_told_to(predictor):
    masks = {}
    for keep in (None, 2):
        state = predictor.init_state(FRAMES, keep_frames=keep)
        click(predictor, state)
        masks[keep] = stack(run(predictor, state))
        kept = sorted(state.objects[1].tracked)
        assert kept == (list(range(1, 20)) if keep is None else [1, 2, 17, 18, 19])
    np.testing.assert_array_equal(masks[2], masks[None])


def test_the_device_holds_no_more_at_the_end_than_at_the_start(predictor):
    state = predictor.init_state(FRAMES, keep_frames=2)
    click(predictor, state)
    held = {}
    for t, _, _ in predictor.propagate_in_video(state):
        time.sleep(0.05)  # the reader is ahead, and the next chunk is launched before this one ends
        if t % CHUNK == 1:  # a frame of each chunk
            gc.collect()
            held[t] = sum(x.nbytes for x in jax.live_arrays())
    assert len(held) == 7
    assert held[7] == held[10] == held[13] == max(held.values())


def test_only_the_strongest_object_may_be_left_at_a_pixel(model, predictor):
    exclusive = switched(model, non_overlap_masks=True)
    answers = []
    for each in (predictor, exclusive):
        state = each.init_state(SHORT)
        for n in range(3):
            click(each, state, 0, n, at=n)
        answers.append(stack(run(each, state, None, 2)))
    plain, answer = answers
    winner = plain.argmax(1)
    for n in range(3):
        np.testing.assert_array_equal(answer[:, n][winner == n], plain[:, n][winner == n])
        assert (answer[:, n][winner != n] <= -10).all()
    assert ((plain > 0).sum(1) > 1).any()
    assert ((answer > 0).sum(1) <= 1).all()


def test_memories_around_a_click_can_be_dropped(model, predictor):
    tails = []
    for each in (predictor, switched(model, clear_non_cond_mem_around_input=True)):
        state = each.init_state(SHORT)
        click(each, state)
        run(each, state)
        click(each, state, 5, at=1)
        click(each, state, 6, at=2)
        tails.append(stack(run(each, state, 5)))
    assert np.isfinite(tails[1]).all()
    np.testing.assert_array_equal(tails[0][:2], tails[1][:2])  # the clicks were answered before
    assert differ(tails[0][2:], tails[1][2:])


def test_small_holes_are_filled_in_what_is_shown(model, one_pass):
    filling = switched(model, fill_hole_area=SIZE * SIZE)
    state = filling.init_state(SHORT)
    _, _, answer = click(filling, state)
    assert (one_pass[0] < 0).any()
    assert (answer > 0).all()


def test_a_pass_can_be_left_and_taken_up_again(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    masks = {}
    for t, _, answer in predictor.propagate_in_video(state):
        masks[t] = answer
        if t == 2:
            break
    assert sorted(state.objects[1].tracked) == [1, 2]
    masks |= run(predictor, state, 3)
    close(stack(masks), stack(one_pass), 1e-5)


def test_a_pass_backwards_reads_what_was_tracked_forwards(predictor):
    masks = []
    for is_tracked in (False, True):
        state = predictor.init_state(SHORT)
        click(predictor, state, 3)
        if is_tracked:
            run(predictor, state)
        masks.append(run(predictor, state, 5, None, True))
    assert list(masks[0]) == list(masks[1]) == [5, 4, 3, 2, 1, 0]
    assert differ(masks[0][5], masks[1][5])
    np.testing.assert_array_equal(masks[0][3], masks[1][3])


def test_nothing_is_compiled_again_inside_a_bucket(predictor, traces):
    def session(num_frames, num_objects, num_points):
        state = predictor.init_state(FRAMES[:num_frames])
        points = np.tile(CLICKS, (3, 1))[:num_points]
        for obj in range(num_objects):
            predictor.add_new_points_or_box(state, 0, obj, points, np.ones(num_points))
        run(predictor, state)
        predictor.add_new_points_or_box(state, 1, 0, points, np.ones(num_points))

    session(3, 3, 1)
    before = dict(traces)
    session(12, 4, 2)
    session(8, 3, 3)
    assert dict(traces) == before
    assert len(before) == 6


def test_a_pass_over_a_prompted_frame_drops_the_memories_around_it(model):
    each = switched(model, clear_non_cond_mem_around_input=True)
    last = {}
    for is_cut in (False, True):
        state = each.init_state(SHORT)
        click(each, state)
        click(each, state, 3, at=1)
        if is_cut:  # the second pass starts from the store, where frames 1 and 2 are gone
            run(each, state, max_frame_num_to_track=3)
            last[is_cut] = run(each, state, start_frame_idx=4)[4]
        else:
            last[is_cut] = run(each, state)[4]
    close(last[False], last[True], 1e-5)


def test_clearing_the_only_prompt_leaves_an_object_without_a_mask(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    click(predictor, state, 0, 2, at=1)
    together = run(predictor, state)
    frame, ids, answer = predictor.clear_all_prompts_in_frame(state, 0, 2)
    assert (frame, ids) == (0, [1, 2])
    assert (answer[1] == -1024).all()
    again = run(predictor, state)
    close(stack(again)[:, 0], stack(one_pass)[:, 0])
    assert (stack(again)[:, 1] == -1024).all()
    click(predictor, state, 0, 2, at=1)
    close(stack(run(predictor, state)), stack(together))


def test_clearing_every_prompt_leaves_nothing_to_track(predictor):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    assert predictor.clear_all_prompts_in_frame(state, 0, 1, need_output=False) is None
    with pytest.raises(RuntimeError, match="prompt"):
        predictor.propagate_in_video(state)
    with pytest.raises(ValueError, match=r"no object 5; the session has \[1\]"):
        predictor.clear_all_prompts_in_frame(state, 0, 5)


def test_a_cleared_frame_is_tracked_again(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    run(predictor, state)
    _, _, corrected = click(predictor, state, 3, at=1, label=0)
    run(predictor, state)
    _, _, kept = predictor.clear_all_prompts_in_frame(state, 3, 1)
    np.testing.assert_array_equal(kept, corrected)  # until the next pass
    assert sorted(state.objects[1].prompted) == [0]
    assert 3 not in state.objects[1].directions
    np.testing.assert_array_equal(stack(run(predictor, state)), stack(one_pass))


def test_a_prompt_is_taken_back_before_it_was_tracked(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    click(predictor, state, 5, at=2)
    _, _, answer = predictor.clear_all_prompts_in_frame(state, 5, 1)
    assert (answer == -1024).all()
    np.testing.assert_array_equal(stack(run(predictor, state)), stack(one_pass))


def test_a_removed_object_leaves_the_others_as_they_were(predictor, one_pass):
    state = predictor.init_state(SHORT)
    for n, obj in enumerate(("cat", 1, 9)):
        click(predictor, state, 0, obj, at=(n + 2) % 3)
    click(predictor, state, 2, "cat", at=1)
    run(predictor, state)
    ids, changed = predictor.remove_object(state, "cat")
    assert ids == state.obj_ids == [1, 9]
    assert [t for t, _ in changed] == [0, 2]
    assert all(masks.shape == (2, 1, HEIGHT, WIDTH) for _, masks in changed)
    close(changed[1][1][0], one_pass[2][0])
    predictor.remove_object(state, 9, need_output=False)
    close(stack(run(predictor, state)), stack(one_pass))
    assert predictor.remove_object(state, 1) == ([], [])
    assert predictor.remove_object(state, 1) == ([], [])
    with pytest.raises(ValueError, match="no object 1"):
        predictor.remove_object(state, 1, strict=True)


def test_a_reset_session_starts_anew(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state, 3, at=1)
    run(predictor, state)
    predictor.reset_state(state)
    assert state.obj_ids == []
    click(predictor, state)
    np.testing.assert_array_equal(stack(run(predictor, state)), stack(one_pass))


def test_scores_are_there_for_every_frame_and_object(predictor):
    state = predictor.init_state(SHORT)
    click(predictor, state)
    click(predictor, state, 3, 2, at=1)
    scores, ious = predictor.get_scores(state, 0)
    assert scores.shape == ious.shape == (2,)
    assert np.isnan([scores[1], ious[1]]).all()
    for t, _, masks in predictor.propagate_in_video(state):
        scores, ious = predictor.get_scores(state, t)
        assert np.isfinite(scores).all()
        assert ((ious >= 0) & (ious <= 1)).all()
        np.testing.assert_array_equal(scores > 0, (masks > -1024).any((1, 2, 3)))
    assert predictor.get_scores(predictor.init_state(SHORT), 0)[0].shape == (0,)


def test_what_is_clicked_during_a_pass_counts_from_the_next_frame(predictor, model, one_pass):
    expected = predictor.init_state(SHORT)
    click(predictor, expected)
    run(predictor, expected, 0, 2)
    click(predictor, expected, 2, at=1)
    click(predictor, expected, 2, 5, at=2)
    rest = run(predictor, expected, 3)
    for chunk in (1, 8):
        each = SAM2VideoPredictor(model, chunk)
        state = each.init_state(SHORT)
        click(each, state)
        masks = {}
        for t, _, answer in each.propagate_in_video(state):
            masks[t] = answer
            if t == 2:
                click(each, state, 2, at=1)
                click(each, state, 2, 5, at=2)
        assert list(masks) == list(range(NUM_FRAMES))
        close(masks[2], one_pass[2], 1e-5)
        for t in rest:
            close(masks[t], rest[t], 1e-5)


def test_an_object_may_be_removed_during_a_pass(predictor, one_pass):
    state = predictor.init_state(SHORT)
    click(predictor, state, 0, 2, at=1)
    click(predictor, state)
    shapes = []
    for t, ids, masks in predictor.propagate_in_video(state):
        shapes.append(len(masks))
        assert len(ids) == len(masks)
        close(masks[-1], one_pass[t][0])
        if t == 3:
            predictor.remove_object(state, 2)
    assert shapes == [2] * 4 + [1] * 4


def test_frames_may_come_from_an_iterator(predictor, one_pass):
    pulled = []

    def camera():
        for t, frame in enumerate(SHORT):
            pulled.append(t)
            yield frame

    state = predictor.init_state(camera())
    click(predictor, state)
    np.testing.assert_array_equal(stack(run(predictor, state)), stack(one_pass))
    assert pulled == list(range(NUM_FRAMES))
    with pytest.raises(ValueError, match="no frame 8"):
        click(predictor, state, 8)


class Damaged(videos.FrameList):
    """Frames of which one cannot be decoded."""

    def _read(self, index):
        if index == 4:
            raise ValueError("frame 4 of film.mp4 cannot be decoded")
        return super()._read(index)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_damaged_frame_is_named_and_the_rest_is_kept(model, one_pass, chunk):
    each = SAM2VideoPredictor(model, chunk)
    state = each.init_state(Damaged(SHORT))
    click(each, state)
    masks = {}
    results = each.propagate_in_video(state)
    with pytest.raises(ValueError, match="frame 4 of film"):
        masks.update((t, answer) for t, _, answer in results)
    assert list(masks) == [0, 1, 2, 3]
    for t, answer in masks.items():
        close(answer, one_pass[t], 1e-5)
    with pytest.raises(ValueError, match="frame 4 of film"):
        click(each, state, 4, 2)
    assert state.obj_ids == [1]
    assert list(run(each, state, 5)) == [5, 6, 7]


def test_masks_may_be_kept_as_run_lengths(predictor, one_pass):
    results = RleResults()
    state = predictor.init_state(SHORT, results=results)
    click(predictor, state)
    run(predictor, state)
    assert list(results) == list(range(NUM_FRAMES))
    for t, masks in one_pass.items():
        np.testing.assert_array_equal(decode_rle(results[t][1]), masks[0, 0] > 0)


def test_masks_may_be_written_to_a_folder_whose_disk_is_full(predictor, one_pass, tmp_path):
    class Full:
        def write(self, frame_idx, obj_ids, masks):
            if frame_idx == 3:
                raise OSError(28, "No space left on device")

    state = predictor.init_state(SHORT, results=Full())
    click(predictor, state)
    with pytest.raises(OSError, match="No space left"):
        run(predictor, state)
    state.results = PaletteFolder(tmp_path)  # the session is whole and goes on elsewhere
    masks = run(predictor, state, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{t:05d}.png" for t in range(3, 8)]
    for t in masks:
        close(masks[t], one_pass[t], 1e-5)
        ids = read_mask_png(tmp_path / f"{t:05d}.png")
        np.testing.assert_array_equal(ids == 1, one_pass[t][0, 0] > 0)


@pytest.mark.parametrize("limit", [0, 3_000])
def test_answers_spill_to_disk_and_change_nothing(predictor, tmp_path, limit):
    masks = []
    for options in ({}, {"memory_limit": limit, "spill_folder": tmp_path}):
        state = predictor.init_state(SHORT, **options)
        click(predictor, state)
        run(predictor, state)
        click(predictor, state, 4, at=1, label=0)
        masks.append(stack(run(predictor, state, 6, None, True)))
    assert any(tmp_path.rglob("*.npy"))
    assert state.store.num_bytes <= limit
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("obj_id", [-1, 1.5, None, "", True, (1,)])
def test_object_ids_are_whole_numbers_or_texts(predictor, obj_id):
    state = predictor.init_state(SHORT)
    with pytest.raises(ValueError, match="object id is"):
        click(predictor, state, 0, obj_id)
    with pytest.raises(ValueError, match="object id is"):
        predictor.add_new_mask(state, 0, obj_id, np.ones((HEIGHT, WIDTH)))
    assert state.obj_ids == []
    click(predictor, state, 0, np.int64(3))
    click(predictor, state, 0, 3, clear_old_points=False)
    assert state.obj_ids == [3]


@pytest.mark.parametrize("count", [1, 3, 9])
def test_several_videos_at_once_equal_each_alone(predictor, count):
    def states():
        for v in range(count):
            state = predictor.init_state(FRAMES[v : v + 4 + v % 3])
            for obj in range(1 + v % 2):
                click(predictor, state, v % 2, obj, at=v % 3)
            yield state

    found = [{} for _ in range(count)]
    for v, t, ids, masks in predictor.propagate_in_videos(list(states())):
        assert len(ids) == len(masks) == 1 + v % 2
        found[v][t] = masks
    for v, state in enumerate(states()):
        alone = run(predictor, state)
        assert list(found[v]) == list(alone)
        close(stack(found[v]), stack(alone), 1e-5)


def test_videos_are_spread_over_the_devices(predictor, model):
    states = [predictor.init_state(FRAMES[v : v + 6]) for v in range(3)]
    for state in states:
        click(predictor, state)
    spread = set()
    for _ in predictor.propagate_in_videos(states):
        spread |= {len(x.devices()) for x in jax.live_arrays() if x.shape[:2] == (3, 1)}
    assert max(spread) == min(3, jax.local_device_count()) > 1


def test_videos_go_their_own_ways_when_one_is_clicked_on(predictor):
    states = [predictor.init_state(SHORT) for _ in range(2)]
    for state in states:
        click(predictor, state)
    found = [{}, {}]
    for v, t, _, masks in predictor.propagate_in_videos(states):
        found[v][t] = masks
        if (v, t) == (1, 3):
            click(predictor, states[1], 3, 2, at=1)
    assert [list(masks) for masks in found] == [list(range(NUM_FRAMES))] * 2
    assert [len(found[1][t]) for t in range(NUM_FRAMES)] == [1] * 4 + [2] * 4
    close(stack(found[0])[:, 0], np.stack([found[1][t][0] for t in range(NUM_FRAMES)]), 1e-5)
    with pytest.raises(ValueError, match="none twice"):
        predictor.propagate_in_videos([states[0]] * 2)


@pytest.mark.parametrize("policy", ["motion", "distractor"])
def test_videos_with_different_numbers_of_objects_share_a_policy_with_state(policy):
    """One object beside three: the banks, and the policy's state in them, have the same shapes."""
    each = SAM2VideoPredictor(toy.model(memory_policy=policy), CHUNK)

    def opened(v):
        state = each.init_state(FRAMES[:5])
        for n in range(1 + 2 * v):
            click(each, state, 0, n, at=n)
        return state

    found = [{}, {}]
    for v, t, _, masks in each.propagate_in_videos([opened(0), opened(1)]):
        found[v][t] = masks
    for v in range(2):
        close(stack(found[v]), stack(run(each, opened(v))), 1e-5)


@pytest.mark.parametrize("policy", ["quality", "motion", "distractor"])
def test_a_session_follows_its_memory_policy(policy, tmp_path):
    """Loaded anew, thinned out, or taken up from a file, the bank is the one that tracking carries along."""
    each = SAM2VideoPredictor(toy.model(memory_policy=policy), CHUNK)
    found = []
    for keep_frames in (None, 2):
        state = each.init_state(FRAMES, keep_frames=keep_frames)
        click(each, state)
        found.append(stack(run(each, state)))
    np.testing.assert_array_equal(*found)
    state = each.init_state(FRAMES)
    click(each, state)
    masks = run(each, state, None, 10)
    each.save_state(state, tmp_path / "session.zip")
    masks |= run(each, each.load_state(tmp_path / "session.zip", FRAMES), 11)
    close(stack(masks), found[0], 1e-5)


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_masks_alone_are_where_logits_are_positive(model, is_exclusive):
    """Of objects that are tracked, prompted in the middle, and without any prompt."""
    each = switched(model, non_overlap_masks=is_exclusive)
    found = []
    for return_logits in (True, False):
        results = RleResults()
        state = each.init_state(SHORT, results=results)
        for n in range(3):
            click(each, state, 0, n, at=n)
        click(each, state, 4, 1, at=2)
        each.clear_all_prompts_in_frame(state, 0, 2)
        for reverse in (False, True):
            found.append(run(each, state, 6 * reverse, 6, reverse, return_logits=return_logits))
        assert list(results) == list(range(NUM_FRAMES - 1))
        for t, masks in found[-1].items():  # which were written last
            for n, mask in enumerate(masks[:, 0] > 0):
                np.testing.assert_array_equal(decode_rle(results[t][n]), mask)
    for logits, masks in zip(found[:2], found[2:], strict=True):
        assert stack(masks).dtype == bool
        np.testing.assert_array_equal(stack(masks), stack(logits) > 0)


def test_masks_alone_of_several_videos(predictor):
    found = []
    for return_logits in (True, False):
        states = [predictor.init_state(FRAMES[v : v + 5]) for v in range(3)]
        for v, state in enumerate(states):
            click(predictor, state, at=v)
        results = predictor.propagate_in_videos(states, return_logits=return_logits)
        found.append({(v, t): masks for v, t, _, masks in results})
    logits, masks = found
    assert len(masks) == 15
    assert stack(masks).dtype == bool
    np.testing.assert_array_equal(stack(masks), stack(logits) > 0)


@pytest.mark.parametrize(
    ("device_limit", "limit"), [(1 << 30, 0), (20_000, 1 << 30), (4_000, 9_000)]
)
def test_answers_may_stay_on_the_device(predictor, tmp_path, device_limit, limit):
    found = []
    for store in (Store(), Store(limit, tmp_path, device_limit)):
        state = predictor.init_state(SHORT)
        state.store = store
        click(predictor, state)
        click(predictor, state, 0, 2, at=1)
        run(predictor, state)
        click(predictor, state, 4, at=1, label=0)
        found.append(stack(run(predictor, state, 6, None, True)))
        predictor.save_state(state, tmp_path / "session.zip")
        with zipfile.ZipFile(tmp_path / "session.zip") as archive:
            found.append({name: archive.read(name) for name in archive.namelist()})
        assert 0 <= store.num_device_bytes <= store.device_limit
    assert (store.num_device_bytes > 0) == (device_limit > 0)
    np.testing.assert_array_equal(found[0], found[2])
    assert found[1] == found[3]


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "reader"]


@pytest.mark.parametrize("how", ["to its end", "closed", "dropped", "damaged", "broken off"])
def test_a_pass_leaves_no_thread(model, how):
    each = SAM2VideoPredictor(model, 1)
    state = each.init_state(Damaged(SHORT) if how == "damaged" else SHORT)
    click(each, state)
    results = each.propagate_in_video(state)
    assert not reader_threads()
    next(results)
    assert reader_threads()
    if how == "to its end":
        list(results)
    elif how == "closed":
        results.close()
    elif how == "damaged":
        with pytest.raises(ValueError, match="frame 4 of film"):
            list(results)
    elif how == "broken off":
        state.results = RleResults()
        state.results.write = None
        with pytest.raises(TypeError):
            next(results)
    del results
    gc.collect()
    end = time.monotonic() + 30
    while reader_threads():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_next_chunk_is_launched_before_the_masks_of_the_last_are_read(model, monkeypatch):
    each, events = SAM2VideoPredictor(model, 2), []
    launch, read = propagation._propagate, postprocessing.VideoMasks.get

    def launched(*args):
        events.append("launch")
        return launch(*args)

    def fetched(self):
        events.append("read")
        return read(self)

    state = each.init_state(SHORT)
    click(each, state)
    list(each.propagate_in_video(state, max_frame_num_to_track=1))
    monkeypatch.setattr(propagation, "_propagate", launched)
    monkeypatch.setattr(postprocessing.VideoMasks, "get", fetched)
    for _ in each.propagate_in_video(state, 1, 5):
        time.sleep(0.2)  # for the reader
    assert events[0] == "launch"
    assert events[-4:] == ["launch", "read", "read", "read"] or events[-4:] == ["read"] * 4
    assert events.count("launch") == 3
    assert events.count("read") == 6


def test_what_is_not_a_number_is_said(model):
    params = jax.tree.map(np.array, model.params)
    for leaf in jax.tree.leaves(params["memory_attention"]):
        leaf[...] = np.nan
    each = SAM2VideoPredictor(dataclasses.replace(model, params=params), 2)
    state = each.init_state(SHORT)
    click(each, state)
    with pytest.warns(RuntimeWarning, match="Frame 1: the model.s output is not a number"):
        run(each, state, None, 1, return_logits=False)
    assert np.isnan(each.get_scores(state, 1)).all()
