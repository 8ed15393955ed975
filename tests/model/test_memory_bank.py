"""The memory bank against a plain restatement of the published rules, on dictionaries."""

import functools
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sam2_jax.model import memory_bank, memory_policy
from sam2_jax.model.retention import ANCHOR, NEVER, ONCE, RECENT
from sam2_jax.predict.history import Entry, ObjectHistory, load_bank
from sam2_jax.predict.store import Store
from sam2_jax.structs import Frame
from sam2_jax.track import begin, empty_bank, propagate
from tests import toy

STORE = Store()


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
        pointer = np.full(config.hidden_dim, t, np.float32)
        return Entry(None, 1.0, 1.0, STORE.keep(pointer), STORE.keep(memory))

    store = ObjectHistory(
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
        memories, pointers = (
            jnp.full((1, *shape), t, jnp.float32) for shape in ((grid, grid, m), (c,))
        )
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
    memories = jnp.full((1, config.grid, config.grid, config.memory_dim), 3.0)
    pointers, true = jnp.full((1, config.hidden_dim), 3.0), jnp.ones(1, bool)
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


def chosen_read(config, prompted, retention, now, direction, num_frames):
    """What SAMURAI, SAM 3 or DAM4SAM attend to, from a list of every frame there ever was."""
    selected = published_selection(prompted, now, config.max_cond_frames_in_attn)
    past = [t for t in retention if (now - t) * direction > 0 and retention[t] != NEVER]
    past = sorted(past, key=lambda t: abs(now - t))
    before = now - direction
    recent = [t for t in past if retention[t] == RECENT]
    anchors = [t for t in past if retention[t] == ANCHOR][:3]
    if config.memory_policy == "distractor":
        in_time = [
            t
            for t in past
            if t in recent or (t == past[0] and (retention[t] == ONCE or t == before))
        ]
        line = ([before] if before in prompted else []) + in_time
    else:
        line = recent if before in recent else [before, *recent]
    anchors = [t for t in anchors if t != before]
    code = config.num_maskmem - 1
    readable = {*past, *(t for t in prompted if t not in selected)}
    room = config.num_maskmem - 1 - len(anchors)
    memories = {(t, code) for t in (*selected, *anchors)}
    memories |= {(t, place) for place, t in enumerate(line[:room]) if t in readable}

    limit = min(num_frames, config.max_obj_ptrs_in_encoder)
    if config.memory_policy != "quality":
        line = [now - direction * distance for distance in range(1, limit)]
    pointers = {(t, (now - t) * direction) for t in selected if (now - t) * direction >= 0}
    pointers |= {(t, place) for place, t in enumerate(line[: limit - 1], 1) if t in readable}
    return memories, {(t, round(d / max(limit - 1, 1), 5)) for t, d in pointers}


def filled(config, t):
    memory = np.full((1, config.grid, config.grid, config.memory_dim), t, np.float32)
    return memory, np.full((1, config.hidden_dim), t, np.float32)


_write = jax.jit(memory_bank.write, static_argnums=0)
_read = jax.jit(memory_bank.read, static_argnums=0)


def put(config, bank, t, kept):
    """Writes a frame; None stands for a prompted one."""
    true, flag = np.ones(1, bool), np.array([kept is None])
    retention = np.array([RECENT if kept is None else kept], np.int32)
    return _write(config, bank, np.int32(t), *filled(config, t), true, flag, retention)


def what_is_read(config, bank, now):
    """Everything that attention sees, in its order."""
    seen = jax.device_get(_read(config, bank, np.int32(now)))
    objects = range(len(seen.slots))
    memories = [(x[n][seen.slot_mask[n]]) for x in (seen.slots, seen.slot_codes) for n in objects]
    pointers = [
        (x[n][seen.pointer_mask[n]]) for x in (seen.pointers, seen.pointer_times) for n in objects
    ]
    return memories, pointers


RETENTION = {
    "quality": [ONCE, RECENT],
    "motion": [ONCE, RECENT],
    "distractor": [NEVER, ONCE, RECENT, ANCHOR],
}


@pytest.mark.parametrize("name", RETENTION)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_chosen_frames_are_those_of_the_papers_and_of_a_bank_from_the_store(name, data):
    limit = data.draw(st.sampled_from([-1, 2]))
    num_frames = data.draw(st.sampled_from([9, 100]))
    direction = data.draw(st.sampled_from([1, -1]))
    config = toy.config(memory_policy=name, max_cond_frames_in_attn=limit, memory_dtype="float32")
    items = data.draw(st.lists(st.sampled_from(RETENTION[name]), min_size=1, max_size=45))
    prompted = data.draw(st.sets(st.integers(0, len(items)), max_size=3))
    items = [None if i in prompted else item for i, item in enumerate([None, *items])]
    frames = [50 + direction * i for i in range(len(items))]
    now = frames[-1] + direction

    bank = memory_bank.empty(config, 1, 4, num_frames).replace(direction=jnp.int32(direction))
    for t, item in zip(frames, items, strict=True):
        bank = put(config, bank, t, item)
    prompted = [t for t, item in zip(frames, items, strict=True) if item is None]
    retention = {t: item for t, item in zip(frames, items, strict=True) if item is not None}
    expected = chosen_read(config, prompted, retention, now, direction, num_frames)
    assert found(config, bank, now) == expected

    def entry(t, kept):
        memory, pointer = filled(config, t)
        return Entry(None, 1.0, 1.0, STORE.keep(pointer[0]), STORE.keep(memory[0]), kept)

    store = ObjectHistory(
        prompted={t: entry(t, RECENT) for t in prompted},
        tracked={t: entry(t, kept) for t, kept in retention.items()},
    )
    # What lies ahead is of another pass.
    store.tracked |= {t: entry(t, RECENT) for t in (now, now + direction)}
    loaded = load_bank(config, [store], now, direction, num_frames)
    chex.assert_trees_all_equal(what_is_read(config, loaded, now), what_is_read(config, bank, now))


def test_anchors_outlast_any_number_of_recent_frames():
    config = toy.config(memory_policy="distractor", memory_dtype="float32")
    bank = memory_bank.empty(config, 1, 1, 100)
    for t, kept in enumerate([None, ANCHOR, RECENT, ANCHOR, *[RECENT] * 40]):
        bank = put(config, bank, t, kept)
    memories, _ = found(config, bank, 44)
    assert memories == {(0, 6), (1, 6), (3, 6), (43, 0), (42, 1), (41, 2), (40, 3)}
    for t in (44, 45):
        bank = put(config, bank, t, ANCHOR)
    assert {t for t, code in found(config, bank, 60)[0] if code == 6} == {0, 3, 44, 45}


@pytest.mark.parametrize("name", RETENTION)
def test_a_frame_that_is_tracked_again_or_becomes_prompted_is_there_once(name):
    config = toy.config(memory_policy=name, memory_dtype="float32")
    bank = memory_bank.empty(config, 1, 2, 100)
    for t, kept in enumerate([None, RECENT, RECENT, ONCE]):
        bank = put(config, bank, t, kept)
    again = put(config, bank, 3, RECENT)
    assert found(config, again, 4)[0] == {(0, 6), (3, 0), (2, 1), (1, 2)}
    prompted = put(config, again, 3, None)
    assert found(config, prompted, 4)[0] == {(0, 6), (3, 6), (2, 1), (1, 2)}


def test_without_a_policy_verdicts_play_no_role():
    config = toy.config(memory_dtype="float32")
    banks = [memory_bank.empty(config, 1)] * 2
    for t in range(9):
        flags = np.ones(1, bool), np.array([t == 0])
        banks[0] = _write(config, banks[0], np.int32(t), *filled(config, t), *flags)
        banks[1] = put(config, banks[1], t, RECENT if t else None)
    chex.assert_trees_all_equal(*banks)
    assert banks[0].policy == ()
    assert banks[0].recent_memories.shape[1] == 6
    assert banks[0].recent_pointers.shape[1] == 15


NUM_FRAMES, PART = 22, 7


@pytest.fixture
def eager_policies(monkeypatch):
    """Thresholds at which the toy model's frames get different retention."""
    thresholds = {"MIN_IOU": 0.627, "MIN_ANCHOR_IOU": 0.36, "STABLE_FRAMES": 4}
    for name, value in (thresholds | {"MAX_ANCHOR_OVERLAP": 1.0}).items():
        monkeypatch.setattr(memory_policy, name, value)


def _entry(answer, n):
    keep = lambda x: STORE.keep(x[n])
    pointer, memory, policy = jax.tree.map(keep, (answer.pointers, answer.memories, answer.policy))
    return Entry(None, 1.0, 1.0, pointer, memory, int(answer.retention[n]), policy)


@pytest.fixture(scope="module")
def prompted_frame():
    """The answer to clicks on the first frame, on which no policy has a say."""
    model = toy.model()
    first = jax.tree.map(lambda x: x[0], toy.clip(1))
    run = jax.jit(functools.partial(begin, model.module))
    return jax.device_get(run(model.params, empty_bank(model.module, 2), first, toy.clicks(2))[1])


@pytest.mark.parametrize("name", RETENTION)
@pytest.mark.usefixtures("eager_policies")
def test_a_reloaded_bank_goes_on_as_if_never_interrupted(name, prompted_frame):
    """Parts of a video, in both directions: bit for bit from the carried bank and from the store's."""
    model = toy.model(memory_policy=name)
    config, images = model.config, toy.clip(NUM_FRAMES).image
    run = jax.jit(functools.partial(propagate, model.module))
    for direction in (1, -1):
        order = list(range(NUM_FRAMES))[::direction]
        stores = [ObjectHistory(prompted={order[0]: _entry(prompted_frame, n)}) for n in range(2)]
        bank, retention = None, set()
        for i in range(1, NUM_FRAMES, PART):
            now, frames = order[i], order[i : i + PART]
            loaded = load_bank(config, stores, now, direction, NUM_FRAMES)
            bank = bank or loaded
            chex.assert_trees_all_equal(
                what_is_read(config, loaded, now), what_is_read(config, bank, now)
            )
            chex.assert_trees_all_equal(loaded.policy, bank.policy)
            part = Frame(images[i : i + PART], np.array(frames, np.int32))
            _, again = run(model.params, loaded, part)
            bank, answers = jax.device_get(run(model.params, bank, part))
            chex.assert_trees_all_equal(jax.device_get(again), answers)
            for k, t in enumerate(frames):
                answer = jax.tree.map(lambda x, k=k: x[k], answers)
                retention |= set(answer.retention.tolist())
                for n, store in enumerate(stores):
                    store.tracked[t] = _entry(answer, n)
        assert len(retention) > 1
