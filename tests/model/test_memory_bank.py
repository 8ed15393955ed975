"""The memory bank against a plain restatement of the published rules, on dictionaries."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sam2_jax.model import memory_bank
from sam2_jax.predict.session import Entry, ObjectStore, load_bank
from tests import toy


def published_selection(prompted, now, limit):
    """The nearest before, the nearest at or after, then by distance."""
    if limit == -1 or len(prompted) <= limit:
        return list(prompted)
    selected = []
    before = [t for t in prompted if t < now]
    after = [t for t in prompted if t >= now]
    selected += [max(before)] if before else []
    selected += [min(after)] if after else []
    rest = [t for t in prompted if t not in selected]
    return selected + sorted(rest, key=lambda t: abs(t - now))[: limit - len(selected)]


def published_read(config, prompted, tracked, now, direction, num_frames):
    """({(frame, code)}, {(frame, time)}) that the original attends to."""
    selected = published_selection(prompted, now, config.max_cond_frames_in_attn)
    others = {t for t in prompted if t not in selected} | set(tracked)
    memories = {(t, config.num_maskmem - 1) for t in selected}
    r = config.memory_temporal_stride_for_eval
    for distance in range(1, config.num_maskmem):
        if distance == 1:
            t = now - direction
        elif direction == 1:
            t = (now - 2) // r * r - (distance - 2) * r
        else:
            t = math.ceil((now + 2) / r) * r + (distance - 2) * r
        if t in others:
            memories.add((t, distance - 1))
    limit = min(num_frames, config.max_obj_ptrs_in_encoder)
    pointers = set()
    for t in selected:
        past = (now - t) * direction
        if past >= 0 or not config.only_obj_ptrs_in_the_past_for_eval:
            signed = config.use_signed_tpos_enc_to_obj_ptrs
            pointers.add((t, past if signed else abs(past)))
    for distance in range(1, limit):
        t = now - direction * distance
        if 0 <= t < num_frames and t in others:
            pointers.add((t, distance))
    return memories, {(t, round(d / max(limit - 1, 1), 5)) for t, d in pointers}


def bank_of(config, prompted, tracked, now, direction, num_frames):
    """A bank whose memories and pointers are filled with their frame index."""

    def entry(t):
        memory = np.full((config.grid, config.grid, config.memory_dim), t, np.float32)
        return Entry(None, 1.0, 1.0, np.full(config.hidden_dim, t, np.float32), memory)

    store = ObjectStore(
        prompted={t: entry(t) for t in prompted}, tracked={t: entry(t) for t in tracked}
    )
    return load_bank(config, [store], now, direction, num_frames)


def found(config, bank, now):
    seen = jax.device_get(jax.jit(memory_bank.read, static_argnums=0)(config, bank, now))
    frames = seen.slots[0, :, 0, 0, 0].astype(int)
    memories = {
        (int(t), int(c))
        for t, c, m in zip(frames, seen.slot_codes[0], seen.slot_mask[0], strict=True)
        if m
    }
    frames = seen.pointers[0, :, 0].astype(int)
    pointers = {
        (int(t), round(float(d), 5))
        for t, d, m in zip(frames, seen.pointer_times[0], seen.pointer_mask[0], strict=True)
        if m
    }
    return memories, pointers


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    st.sets(st.integers(0, 29), min_size=1, max_size=4),
    st.sets(st.integers(0, 29), max_size=30),
    st.integers(0, 29),
    st.sampled_from([1, -1]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([-1, 2, 3]),
    st.booleans(),
)
def test_reads_what_the_original_reads(prompted, tracked, now, direction, stride, limit, is_signed):
    config = toy.config(
        memory_temporal_stride_for_eval=stride,
        max_cond_frames_in_attn=limit,
        use_signed_tpos_enc_to_obj_ptrs=is_signed,
        memory_dtype="float32",
    )
    prompted, tracked = sorted(prompted), sorted(tracked - prompted)
    bank = bank_of(config, prompted, tracked, now, direction, 30)
    expected = published_read(config, prompted, tracked, now, direction, 30)
    assert found(config, bank, now) == expected


@pytest.mark.parametrize("num_frames", [1, 2, 5, 15, 16, 40])
def test_pointer_times_are_scaled_by_the_length_of_short_videos(num_frames):
    config = toy.config(memory_dtype="float32")
    now = num_frames - 1
    bank = bank_of(config, [0], range(1, now), now, 1, num_frames)
    expected = published_read(config, [0], range(1, now), now, 1, num_frames)
    assert found(config, bank, now) == expected


def test_signed_and_unsigned_pointer_times_agree_on_the_past():
    """In evaluation only pointers of the past are read, so the sign has nothing to tell."""
    results = []
    for is_signed in (True, False):
        config = toy.config(use_signed_tpos_enc_to_obj_ptrs=is_signed, memory_dtype="float32")
        results.append(found(config, bank_of(config, [0, 9], [3, 4, 5], 6, 1, 30), 6))
    assert results[0] == results[1]


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(st.integers(1, 3), st.lists(st.booleans(), min_size=4, max_size=14))
def test_writing_in_time_equals_loading_from_the_store(stride, is_prompted):
    """Frame after frame, with more prompted frames than slots, against dictionaries of everything."""
    config = toy.config(memory_temporal_stride_for_eval=stride, memory_dtype="float32")
    slots = 2
    is_prompted = [True, *is_prompted]
    write = jax.jit(memory_bank.write, static_argnums=0)
    bank = memory_bank.empty(config, 1, slots, 30)
    prompted = []
    for t, prompted_now in enumerate(is_prompted):
        grid, m, c = config.grid, config.memory_dim, config.hidden_dim
        memories, pointers = jnp.full((1, grid, grid, m), t), jnp.full((1, c), t)
        flag = jnp.array([prompted_now])
        bank = write(config, bank, t, memories, pointers, jnp.ones(1, bool), flag)
        prompted += [t] if prompted_now else []
    now = len(is_prompted)
    # Going forwards, the published rule for two slots keeps the two newest.
    kept = prompted[-slots:]
    tracked = [t for t in range(now) if not is_prompted[t]]
    assert found(config, bank, now) == published_read(config, kept, tracked, now, 1, 30)


def test_a_tracked_frame_that_becomes_prompted_leaves_the_ring():
    config = toy.config(memory_dtype="float32")
    bank = bank_of(config, [0], [1, 2, 3], 4, 1, 30)
    bank = jax.tree.map(jnp.asarray, bank).replace(
        prompted_frames=jnp.array([[0, -1]]),
        prompted_memories=jnp.pad(bank.prompted_memories, ((0, 0), (0, 1)) + ((0, 0),) * 3),
        prompted_pointers=jnp.pad(bank.prompted_pointers, ((0, 0), (0, 1), (0, 0))),
    )
    memories = jnp.full((1, config.grid, config.grid, config.memory_dim), 3)
    pointers, true = jnp.full((1, config.hidden_dim), 3), jnp.ones(1, bool)
    bank = memory_bank.write(config, bank, jnp.int32(3), memories, pointers, true, true)
    memories, pointers = found(config, bank, 4)
    assert memories == {(0, 6), (3, 6), (2, 1), (1, 2)}
    assert {t for t, _ in pointers} == {0, 1, 2, 3}


def test_a_prompted_frame_is_never_written_as_a_tracked_one():
    config = toy.config(memory_dtype="float32")
    bank = jax.tree.map(jnp.asarray, bank_of(config, [5], [], 5, 1, 30))
    memories = jnp.zeros((1, config.grid, config.grid, config.memory_dim))
    false, true = jnp.zeros(1, bool), jnp.ones(1, bool)
    after = memory_bank.write(
        config, bank, jnp.int32(5), memories, jnp.zeros((1, config.hidden_dim)), true, false
    )
    assert (np.asarray(after.recent_frames) == -1).all()
    assert found(config, after, 6)[0] == {(5, 6)}
