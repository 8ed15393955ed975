"""Whatever is called, in whatever order: a session stays whole."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sam2_jax import SAM2VideoPredictor
from tests import toy
from tests.parity.reference_scene import scene, scene_masks

NUM_FRAMES, HEIGHT, WIDTH = 4, 40, 56
FRAMES = scene(NUM_FRAMES, HEIGHT, WIDTH)
MASKS = scene_masks(NUM_FRAMES, HEIGHT, WIDTH)
IDS = (7, "cup")

CALM = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}

frame_indices = st.integers(0, NUM_FRAMES - 1)
coordinates = st.tuples(st.floats(0, WIDTH, width=32), st.floats(0, HEIGHT, width=32))
clicks = st.lists(st.tuples(coordinates, st.integers(0, 1)), min_size=1, max_size=3)


def arrays(given_clicks):
    points, labels = zip(*given_clicks, strict=True)
    return np.array(points, np.float32), np.array(labels)


@pytest.fixture(scope="module", autouse=True)
def _quick_programs():
    with toy.counted_programs(toy.VIDEO_PROGRAMS):
        yield


MODEL = toy.model()
PREDICTOR = SAM2VideoPredictor(MODEL, 2)


def contents(state):
    """All that a session holds, for comparison."""
    entry = lambda e: (
        e.mask.get().tobytes(),
        e.iou,
        e.score,
        e.memory and e.memory.get().tobytes(),
    )
    return [
        (
            obj,
            {t: (p.tolist(), x.tolist()) for t, (p, x) in store.points.items()},
            {t: mask.tobytes() for t, mask in store.masks.items()},
            {t: entry(e) for t, e in store.prompted.items()},
            {t: entry(e) for t, e in store.tracked.items()},
            {t: (entry(e), flag) for t, (e, flag) in store.pending.items()},
            store.directions,
        )
        for obj, store in state.objects.items()
    ]


class Session(RuleBasedStateMachine):
    """Public calls on one session, sensible and not."""

    @initialize()
    def start(self):
        self.state, self.ids, self.running = PREDICTOR.init_state(FRAMES), [], None

    def check(self, answer, frame):
        found, ids, masks = answer
        assert (found, ids) == (frame, self.state.obj_ids)
        assert masks.shape == (len(ids), 1, HEIGHT, WIDTH)
        assert np.isfinite(masks).all()

    def know(self, obj):
        if obj not in self.ids:
            self.ids.append(obj)

    @rule(frame=frame_indices, obj=st.sampled_from(IDS), clicked=clicks, clear=st.booleans())
    def click(self, frame, obj, clicked, clear):
        self.check(
            PREDICTOR.add_new_points_or_box(
                self.state, frame, obj, *arrays(clicked), clear_old_points=clear
            ),
            frame,
        )
        self.know(obj)

    @rule(frame=frame_indices, obj=st.sampled_from(IDS), which=st.integers(0, 1))
    def mask(self, frame, obj, which):
        self.check(PREDICTOR.add_new_mask(self.state, frame, obj, MASKS[frame, which]), frame)
        self.know(obj)

    @precondition(lambda self: self.ids)
    @rule(frame=frame_indices, data=st.data())
    def clear(self, frame, data):
        obj = data.draw(st.sampled_from(self.ids))
        self.check(PREDICTOR.clear_all_prompts_in_frame(self.state, frame, obj), frame)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def remove(self, data):
        obj = data.draw(st.sampled_from(self.ids))
        self.ids.remove(obj)
        assert PREDICTOR.remove_object(self.state, obj, strict=True)[0] == self.ids

    @rule()
    def reset(self):
        PREDICTOR.reset_state(self.state)
        self.ids = []

    @rule(start=st.none() | frame_indices, count=st.none() | st.integers(0, 3), back=st.booleans())
    def track(self, start, count, back):
        if not any(store.conditioning_frames() for store in self.state.objects.values()):
            with pytest.raises(RuntimeError, match="No object has a prompt"):
                PREDICTOR.propagate_in_video(self.state, start, count, back)
            return
        for answer in PREDICTOR.propagate_in_video(self.state, start, count, back):
            self.check(answer, answer[0])

    @rule()
    def start_a_pass_and_leave_it(self):
        if any(store.conditioning_frames() for store in self.state.objects.values()):
            self.running = PREDICTOR.propagate_in_video(self.state)

    @precondition(lambda self: self.running)
    @rule()
    def go_on(self):
        answer = next(self.running, None)
        if answer is not None:
            self.check(answer, answer[0])

    @rule(
        call=st.sampled_from(
            [
                lambda p, s: p.add_new_points_or_box(s, 9, 7, [[1, 1]], [1]),
                lambda p, s: p.add_new_points_or_box(s, -1, 7, [[1, 1]], [1]),
                lambda p, s: p.add_new_points_or_box(s, 0, -7, [[1, 1]], [1]),
                lambda p, s: p.add_new_points_or_box(s, 0, 7),
                lambda p, s: p.add_new_points_or_box(s, 0, 7, [[1, 1]], [1, 1]),
                lambda p, s: p.add_new_points_or_box(s, 0, 7, [[1, np.nan]], [1]),
                lambda p, s: p.add_new_points_or_box(s, 0, 7, [[1, HEIGHT + 1]], [1]),
                lambda p, s: p.add_new_points_or_box(s, 0, 7, [[1, 1]], [5]),
                lambda p, s: p.add_new_points_or_box(s, 0, 7, box=[9, 9, np.nan, 1]),
                lambda p, s: p.add_new_mask(s, 0, "new", np.zeros((4, 4))),
                lambda p, s: p.add_new_mask(s, 0, 7, np.ones((4, 4, 3))),
                lambda p, s: p.clear_all_prompts_in_frame(s, 0, "nobody"),
                lambda p, s: p.remove_object(s, "nobody", strict=True),
                lambda p, s: p.get_scores(s, 4),
            ]
        )
    )
    def nonsense(self, call):
        before = contents(self.state)
        with pytest.raises(ValueError, match=r"."):
            call(PREDICTOR, self.state)
        assert contents(self.state) == before

    @invariant()
    def is_whole(self):
        assert self.state.obj_ids == self.ids
        for store in self.state.objects.values():
            assert not set(store.prompted) & set(store.tracked)
            for entry in (*store.prompted.values(), *store.tracked.values()):
                assert np.isfinite(entry.mask.get()).all()
                assert np.isfinite(np.float32(entry.memory.get())).all()

    def teardown(self):
        """Every object that is left can be tracked over the whole video."""
        if any(store.conditioning_frames() for store in self.state.objects.values()):
            found = [t for t, _, _ in PREDICTOR.propagate_in_video(self.state, 0)]
            assert found == list(range(NUM_FRAMES))


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=25, stateful_step_count=12, **CALM)


@settings(max_examples=8, **CALM)
@given(data=st.data())
def test_any_order_of_the_same_prompts_gives_the_same_masks(data):
    """Of points in a call, of objects, and of frames; not of calls on one frame, which build on each other."""
    prompts = [
        (frame, obj, data.draw(clicks, label=f"clicks on {obj} in frame {frame}"))
        for frame, obj in itertools.product((0, 2), IDS)
    ]
    found = []
    for order in (prompts, data.draw(st.permutations(prompts), label="order")):
        state = PREDICTOR.init_state(FRAMES)
        for n, (frame, obj, given_clicks) in enumerate(order):
            shuffled = given_clicks[:: -1 if n % 2 else 1]
            PREDICTOR.add_new_points_or_box(state, frame, obj, *arrays(shuffled))
        rows = [state.obj_ids.index(obj) for obj in IDS]
        masks = [masks[rows] for _, _, masks in PREDICTOR.propagate_in_video(state)]
        found.append(np.stack(masks))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-3 * np.abs(found[0]).max())
