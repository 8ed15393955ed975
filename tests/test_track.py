"""The functional core: what stays equal however a video is cut, batched, mapped or compiled."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sam2_jax.structs import Frame
from sam2_jax.track import begin, empty_bank, propagate, step, track
from tests import annotations, toy

NUM_FRAMES = 8
jit = functools.partial(jax.jit, static_argnums=0)


@pytest.fixture(scope="module")
def model():
    return toy.model()


def cut(frames: Frame, start: int, stop: int) -> Frame:
    return jax.tree.map(lambda x: x[start:stop], frames)


def start(model, num_objects, frames=None):
    """A bank that has seen frame 0, with a click for each object."""
    frames = toy.clip(NUM_FRAMES) if frames is None else frames
    bank = empty_bank(model.module, num_objects, num_frames=NUM_FRAMES)
    first = jax.tree.map(lambda x: x[0], frames)
    return jit(begin)(model.module, model.params, bank, first, toy.clicks(num_objects))


def close(a, b, tolerance=1e-5):
    """Equal to float32 rounding; memories to the bfloat16 step that rounding may cross."""
    for name in ("masks", "ious", "scores", "pointers"):
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max(), err_msg=name)
    x, y = (np.asarray(p.memories, np.float32) for p in (a, b))
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-2 * np.abs(y).max())


def close_banks(a, b):
    """Memories to the bfloat16 step that rounding may cross, frame indices exactly."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-2 * np.abs(y).max())


def test_chunked_equals_whole(model):
    """In chunks of three frames and one."""
    frames = toy.clip(NUM_FRAMES)
    bank, _ = start(model, 2, frames)
    run = jit(propagate)
    whole_bank, whole = run(model.module, model.params, bank, cut(frames, 1, NUM_FRAMES))
    parts = []
    for i in range(1, NUM_FRAMES, 3):
        bank, part = run(model.module, model.params, bank, cut(frames, i, min(i + 3, NUM_FRAMES)))
        parts.append(part)
    close(jax.tree.map(lambda *x: jnp.concatenate(x), *parts), whole)
    close_banks(bank, whole_bank)


def test_what_travels_is_shaped_as_annotated(model):
    bank, prediction = start(model, 2)
    for value in (toy.clip(2), toy.masks(2), bank, prediction):
        assert annotations.wrong_fields(value) == []
    wrong = prediction.replace(ious=prediction.ious[:1], retention=prediction.scores)
    assert annotations.wrong_fields(wrong) == ["ious", "retention"]


def test_nan_parameters_give_nan_masks(model):
    frames = toy.clip(NUM_FRAMES)
    bank, _ = start(model, 1, frames)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model.params)
    _, answer = jit(propagate)(model.module, broken, bank, cut(frames, 1, 3))
    for found in (answer.masks, answer.ious, answer.scores):
        assert np.isnan(found).all()


def test_track_is_begin_and_propagate(model):
    frames = toy.clip(NUM_FRAMES)
    bank, first = start(model, 2, frames)
    bank, rest = jit(propagate)(model.module, model.params, bank, cut(frames, 1, NUM_FRAMES))
    track_bank, whole = jit(track)(model.module, model.params, frames, toy.clicks(2))
    joined = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), first, rest)
    close(whole, joined)
    chex.assert_trees_all_equal_shapes_and_dtypes(track_bank, bank)
    assert int(bank.num_frames) == int(track_bank.num_frames) == NUM_FRAMES


def test_a_clip_of_one_frame_is_only_begun(model):
    frames = cut(toy.clip(NUM_FRAMES), 0, 1)
    bank, first = start(model, 2, frames)
    track_bank, whole = jit(track)(model.module, model.params, frames, toy.clicks(2))
    close(whole, jax.tree.map(lambda x: x[None], first))
    np.testing.assert_array_equal(track_bank.prompted_frames, bank.prompted_frames)


def test_step_equals_one_frame_of_propagate(model):
    frames = toy.clip(NUM_FRAMES)
    bank, _ = start(model, 2, frames)
    one = jax.tree.map(lambda x: x[1], frames)
    stepped_bank, stepped = jit(step)(model.module, model.params, bank, one)
    scanned_bank, scanned = jit(propagate)(model.module, model.params, bank, cut(frames, 1, 2))
    close(stepped, jax.tree.map(lambda x: x[0], scanned))
    chex.assert_trees_all_equal(stepped_bank.recent_frames, scanned_bank.recent_frames)


def test_padding_changes_nothing(model):
    frames = toy.clip(NUM_FRAMES)
    bank, _ = start(model, 2, frames)
    indices = np.array([*range(1, NUM_FRAMES), -1, -1], np.int32)
    padded = Frame(np.concatenate([frames.image[1:], frames.image[:2]]), indices)
    rest = cut(frames, 1, NUM_FRAMES)
    plain_bank, plain = jit(propagate)(model.module, model.params, bank, rest)
    padded_bank, answer = jit(propagate)(model.module, model.params, bank, padded)
    close_banks(padded_bank, plain_bank)
    close(jax.tree.map(lambda x: x[: NUM_FRAMES - 1], answer), plain)


def test_objects_in_a_batch_equal_single_runs(model):
    frames, prompt = toy.clip(NUM_FRAMES), toy.clicks(2)
    _, together = jit(track)(model.module, model.params, frames, prompt)
    for n in range(2):
        alone_prompt = jax.tree.map(lambda x, n=n: x[n : n + 1], prompt)
        _, alone = jit(track)(model.module, model.params, frames, alone_prompt)
        close(jax.tree.map(lambda x, n=n: x[:, n : n + 1], together), alone)


def test_an_unprompted_object_is_absent_and_leaves_no_trace(model):
    frames = toy.clip(NUM_FRAMES)
    prompt = toy.clicks(2)
    prompt = prompt.replace(labels=np.array([[1, -1, -2, -2], [-1, -1, -2, -2]], np.int32))
    bank, answer = jit(track)(model.module, model.params, frames, prompt)
    assert (np.asarray(answer.masks[1:, 1]) == -1024).all()
    assert (np.asarray(answer.scores[1:, 1]) < 0).all()
    for stored in (bank.prompted_frames, bank.recent_frames, bank.recent_pointer_frames):
        assert (np.asarray(stored[1]) == -1).all()
    assert np.isfinite(np.asarray(answer.masks)).all()
    _, alone = jit(track)(model.module, model.params, frames, jax.tree.map(lambda x: x[:1], prompt))
    close(jax.tree.map(lambda x: x[:, :1], answer), alone)


def test_a_prompt_on_a_known_object_corrects_it_on_top_of_its_memory(model):
    frames = toy.clip(4)
    bank, _ = start(model, 1, frames)
    bank = jax.tree.map(jnp.asarray, bank)
    frame = jax.tree.map(lambda x: x[1], frames)
    corrected, answer = jit(step)(model.module, model.params, bank, frame, toy.clicks(1))
    _, initial = jit(begin)(model.module, model.params, bank, frame, toy.clicks(1))
    assert np.abs(np.asarray(answer.masks - initial.masks)).max() > 1e-3
    # One slot: the newer prompt replaces the older, as the published selection would choose.
    assert np.asarray(corrected.prompted_frames).tolist() == [[1]]
    assert (np.asarray(corrected.recent_frames) == -1).all()


def test_one_trace_for_any_length(model):
    traced = jit(chex.assert_max_traces(propagate, n=1))
    for length in (3, 5, 8):
        frames = toy.clip(length)
        bank = start(model, 2, frames)[0].replace(num_frames=jnp.int32(length))
        for i in range(1, length, 2):
            indices = np.array([i, i + 1 if i + 1 < length else -1], np.int32)
            clip = Frame(frames.image[np.maximum(indices, 0)], indices)
            bank, _ = traced(model.module, model.params, bank, clip)


def test_gradient_through_a_clip_is_finite_and_reaches_every_part(model):
    frames = toy.clip(4)

    def loss(params):
        _, answer = track(model.module, params, frames, toy.clicks(2))
        # The last frame alone: whatever reaches the first has gone through the memory.
        return jnp.square(answer.masks[-1]).mean() + answer.scores[-1].mean()

    gradient = jax.jit(jax.grad(loss))(model.params)
    chex.assert_tree_all_finite(gradient)
    size = lambda tree: float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))
    for part in ("image_encoder", "memory_attention", "memory_encoder", "mask_decoder"):
        assert size(gradient[part]) > 0, part
    assert size(gradient["maskmem_tpos_enc"]) > 0
    assert size(gradient["obj_ptr_proj"]) > 0
    assert size(gradient["no_mem_pos_enc"]) == 0


def test_bytes_held_do_not_depend_on_the_number_of_frames(model):
    sizes = set()
    for length in (2, NUM_FRAMES):
        frames = toy.clip(length)
        bank, _ = start(model, 2, frames)
        bank, _ = jit(propagate)(model.module, model.params, bank, cut(frames, 1, length))
        sizes.add(sum(x.nbytes for x in jax.tree.leaves(bank)))
    assert len(sizes) == 1


def test_a_leading_video_axis_by_vmap_equals_separate_runs(model):
    """Also when the compiler spreads the videos over devices."""
    videos = [toy.clip(NUM_FRAMES, seed=seed) for seed in (0, 1)]
    run = functools.partial(track, model.module)
    stacked = jax.tree.map(lambda *x: np.stack(x), *videos)
    mesh = jax.make_mesh((2,), ("video",), axis_types=(AxisType.Auto,))
    stacked = jax.device_put(stacked, NamedSharding(mesh, PartitionSpec("video")))
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    _, together = jax.jit(jax.vmap(run, (None, 0, None)))(params, stacked, toy.clicks(2))
    assert len(together.masks.sharding.device_set) == 2
    for i, video in enumerate(videos):
        _, alone = jit(track)(model.module, model.params, video, toy.clicks(2))
        close(jax.tree.map(lambda x, i=i: x[i], together), alone, 1e-4)


def test_backwards_equals_forwards_on_the_reversed_video(model):
    """Also the case of a reverse pass without any earlier memory."""
    frames = toy.clip(NUM_FRAMES)
    forwards_bank, first = start(model, 1, frames)
    _, forwards = jit(propagate)(
        model.module, model.params, forwards_bank, cut(frames, 1, NUM_FRAMES)
    )
    mirrored = Frame(frames.image, NUM_FRAMES - 1 - frames.index)
    bank = empty_bank(model.module, 1, num_frames=NUM_FRAMES).replace(direction=jnp.int32(-1))
    bank, again = jit(begin)(
        model.module, model.params, bank, jax.tree.map(lambda x: x[0], mirrored), toy.clicks(1)
    )
    _, backwards = jit(propagate)(model.module, model.params, bank, cut(mirrored, 1, NUM_FRAMES))
    close(again, first)
    close(backwards, forwards)


@pytest.mark.parametrize("size", [32, 96, 160])
def test_any_multiple_of_32_works(size):
    model = toy.model(image_size=size)
    _, answer = jit(track)(model.module, model.params, toy.clip(2, size), toy.clicks(1, size))
    assert answer.masks.shape == (2, 1, size // 4, size // 4)
    chex.assert_tree_all_finite(answer)


def test_bfloat16_agrees_with_float32():
    frames, prompt = toy.clip(4), toy.masks(2)
    exact, rough = (toy.model(dtype=dtype) for dtype in ("float32", "bfloat16"))
    _, expected = jit(track)(exact.module, exact.params, frames, prompt)
    _, answer = jit(track)(rough.module, rough.params, frames, prompt)
    assert answer.masks.dtype == answer.scores.dtype == jnp.float32
    a, b = np.asarray(answer.masks) > 0, np.asarray(expected.masks) > 0
    assert (a & b).sum() / (a | b).sum() > 0.9
    np.testing.assert_allclose(answer.ious, expected.ious, atol=0.05)
