"""What programs for the original call, in which order, and what they do with the results.

In our own words; docs/migrate.md names the programs. Where PyTorch is installed, video results are tensors, as
the programs expect; without it the same lines run on arrays.
"""

import copy
import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from tests.drop_in.conftest import HEIGHT, NUM_FRAMES, SMALL, WIDTH

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="uses tensors: make parity runs it")
POINT, BOX = [14.0, 18.0], [4.0, 6.0, 26.0, 30.0]


def tensor(x):
    """As a program makes it: a tensor where there is PyTorch."""
    if not HAS_TORCH:
        return np.asarray(x)
    import torch

    return torch.tensor(x)


def pack(ids, masks):
    packed = [coco.encode(np.array(m, np.uint8, order="F")) for m in masks]
    return {i: (p["size"], p["counts"].decode()) for i, p in zip(ids, packed, strict=True)}


def test_the_official_demo_server(video_predictor, video_folder, masks):
    sessions = {}
    state = video_predictor.init_state(video_folder, offload_video_to_cpu=False)
    sessions["one"] = {"canceled": False, "state": state}

    def binary(logits):
        return (logits > 0)[:, 0].cpu().numpy()

    t, ids, logits = video_predictor.add_new_points_or_box(
        inference_state=state,
        frame_idx=0,
        obj_id=1,
        points=[POINT],
        labels=[1],
        clear_old_points=True,
        normalize_coords=True,
    )
    assert list(pack(ids, binary(logits))) == [1]
    _, ids, logits = video_predictor.add_new_mask(
        inference_state=state, frame_idx=0, obj_id=2, mask=tensor(masks[1] > 0)
    )
    assert list(pack(ids, binary(logits))) == [1, 2]
    seen = {}
    for reverse in (False, True):
        for t, ids, logits in video_predictor.propagate_in_video(
            inference_state=state,
            start_frame_idx=0,
            max_frame_num_to_track=None,
            reverse=reverse,
        ):
            seen[t] = pack(ids, binary(logits))
    assert sorted(seen) == list(range(NUM_FRAMES))
    _, ids, logits = video_predictor.clear_all_prompts_in_frame(state, 0, 1)
    assert binary(logits).shape == (2, HEIGHT, WIDTH)
    ids, updated = video_predictor.remove_object(state, 1)
    assert ids == [2]
    for _, logits in updated:
        pack(ids, binary(logits))
    live = [
        f"{s['state']['num_frames']} frames, {len(s['state']['obj_ids'])} objects"
        for s in sessions.values()
    ]
    assert live == [f"{NUM_FRAMES} frames, 1 objects"]
    video_predictor.reset_state(state)
    assert sessions.pop("one")["state"]["obj_ids"] == []


def test_vos_inference_all_objects_at_once(video_predictor, video_folder, masks):
    state = video_predictor.init_state(video_path=video_folder, async_loading_frames=False)
    size = state["video_height"], state["video_width"]
    assert size == (HEIGHT, WIDTH)
    for obj, mask in enumerate(masks, 1):
        video_predictor.add_new_mask(inference_state=state, frame_idx=0, obj_id=obj, mask=mask > 0)
    segments = {}
    for t, ids, logits in video_predictor.propagate_in_video(state):
        segments[t] = {obj: (logits[i] > 0).cpu().numpy() for i, obj in enumerate(ids)}
    combined = np.zeros(size, np.uint8)
    for obj in sorted(segments[0], reverse=True):
        combined[segments[0][obj].reshape(size)] = obj
    assert set(np.unique(combined)) == {0, 1, 2}


@needs_torch
def test_vos_inference_one_object_after_the_other(video_predictor, video_folder, masks):
    import torch

    state = video_predictor.init_state(video_path=video_folder)
    scores = torch.full((2, 1, state["video_height"], state["video_width"]), -1024.0)
    for i, mask in enumerate(masks):
        video_predictor.reset_state(state)
        video_predictor.add_new_mask(state, 0, i + 1, mask > 0)
        for t, _, logits in video_predictor.propagate_in_video(
            state, start_frame_idx=0, reverse=False
        ):
            if t == 0:
                scores[i] = torch.from_numpy(logits.cpu().numpy())
    apart = video_predictor._apply_non_overlapping_constraints(scores)
    assert isinstance(apart, torch.Tensor)
    assert not ((apart[0] > 0) & (apart[1] > 0)).any()
    highest = scores.argmax(0, keepdim=True) == torch.arange(2)[:, None, None, None]
    torch.testing.assert_close(apart, torch.where(highest, scores, scores.clamp(max=-10)))


@pytest.mark.parametrize("prompt", ["box", "point", "mask"])
def test_grounded_sam_2_tracking(image_model, video_predictor, video_folder, frames, prompt):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    image_predictor = SAM2ImagePredictor(image_model)
    state = video_predictor.init_state(video_path=video_folder)
    image_predictor.set_image(np.array(Image.fromarray(frames[0]).convert("RGB")))
    boxes = np.array([BOX, [30.0, 4.0, 52.0, 26.0]])
    masks, scores, _ = image_predictor.predict(
        point_coords=None, point_labels=None, box=boxes, multimask_output=False
    )
    assert scores.shape == (2, 1)
    masks = masks.squeeze(1)
    assert masks.dtype == np.float32
    for obj, (mask, box) in enumerate(zip(masks, boxes, strict=True), 1):
        if prompt == "box":
            result = video_predictor.add_new_points_or_box(state, 0, obj, box=box)
        elif prompt == "mask":
            result = video_predictor.add_new_mask(state, frame_idx=0, obj_id=obj, mask=mask)
        else:
            y, x = np.nonzero(mask > 0) if mask.any() else ([10], [10])
            points = np.stack([x[:3], y[:3]], 1).astype(np.float32)
            result = video_predictor.add_new_points_or_box(
                inference_state=state,
                frame_idx=0,
                obj_id=obj,
                points=points,
                labels=np.ones(len(points), np.int32),
            )
        assert result[1] == list(range(1, obj + 1))
    for t, ids, logits in video_predictor.propagate_in_video(state):
        segments = {obj: (logits[i] > 0.0).cpu().numpy() for i, obj in enumerate(ids)}
        joined = np.concatenate(list(segments.values()), axis=0)
        assert joined.shape == (2, HEIGHT, WIDTH), t
        assert joined.dtype == bool


@needs_torch
def test_grounded_sam_2_with_continuous_ids(image_model, video_predictor, video_folder, frames):
    import torch
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    image_predictor = SAM2ImagePredictor(image_model)
    state = video_predictor.init_state(video_path=video_folder)
    image_predictor.set_image(frames[0])
    masks, _, _ = image_predictor.predict(box=np.array([BOX]), multimask_output=False)
    if masks.ndim == 2:
        masks = masks[None]
    known = {1: torch.tensor(masks).to("cpu")[0]}
    for start in (0, 2):
        video_predictor.reset_state(state)
        for obj, mask in known.items():
            video_predictor.add_new_mask(state, start, obj, mask)
        for _, ids, logits in video_predictor.propagate_in_video(
            state, max_frame_num_to_track=2, start_frame_idx=start
        ):
            here = {obj: (logits[i] > 0.0)[0] for i, obj in enumerate(ids)}
            for mask in here.values():
                places = torch.nonzero(mask)
                if places.size(0):
                    assert torch.max(places, dim=0)[0].tolist() <= [HEIGHT - 1, WIDTH - 1]
                picture = torch.zeros(HEIGHT, WIDTH)
                picture[mask == True] = 1  # noqa: E712  (as the program writes it)
        same = known[1].to(torch.float32) * here[1].to(torch.float32)
        assert same.sum() >= 0
        known = copy.deepcopy(here)


def test_label_studio_video(video_predictor, video_folder):
    state = video_predictor.init_state(video_path=video_folder)
    video_predictor.reset_state(state)
    video_predictor.add_new_points(
        inference_state=state,
        frame_idx=0,
        obj_id="region",
        points=np.array([POINT], np.float32),
        labels=np.array([1], np.int32),
    )
    shares = []
    for _, ids, logits in video_predictor.propagate_in_video(
        inference_state=state, start_frame_idx=0, max_frame_num_to_track=3
    ):
        for i, _ in enumerate(ids):
            mask = (logits[i] > 0.0).cpu().numpy().squeeze()
            _, x = np.nonzero(mask)
            shares.append(100 * (x.max() - x.min() + 1) / WIDTH if len(x) else 0.0)
    assert len(shares) == 4


class Loader:
    """Frames as inputs of the model, as a program puts them in the place of `images`."""

    def __init__(self, folder, size):
        self.paths = sorted(Path(folder).glob("*.jpg"))
        self.size, self.read = size, []
        with Image.open(self.paths[0]) as image:
            self.video_width, self.video_height = image.size
        self.is_closed = False

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        assert not self.is_closed
        self.read.append(index)
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").resize((self.size, self.size))
        image = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        image = (image - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]
        return tensor(image)

    def close(self):
        self.is_closed = True


def test_label_studio_interactive_tracking(video_predictor, video_folder):
    def track(state):
        video_predictor.add_new_points(
            inference_state=state,
            frame_idx=1,
            obj_id=0,
            points=np.array([POINT]),
            labels=np.array([1]),
        )
        results = []
        for t, ids, logits in video_predictor.propagate_in_video(
            inference_state=state, start_frame_idx=1, max_frame_num_to_track=10, reverse=False
        ):
            for i, _ in enumerate(ids):
                known = state["output_dict_per_obj"][i]["non_cond_frame_outputs"].get(t)
                score = None if known is None else known.get("object_score_logits")
                mask = (logits[i] > 0.0).cpu().numpy().squeeze()
                results.append((t, None if score is None else float(score.item()), mask))
        return results

    plain = track(video_predictor.init_state(video_folder))
    state = video_predictor.init_state(video_folder, async_loading_frames=True)
    old = state.get("images")
    assert tuple(old.shape) == (NUM_FRAMES, 3, 64, 64)
    loader = Loader(video_folder, video_predictor.image_size)
    state["images"] = loader
    state["num_frames"] = len(loader)
    state["video_height"], state["video_width"] = loader.video_height, loader.video_width
    state["cached_features"] = {}
    lazy = track(state)
    assert set(loader.read) == set(range(1, NUM_FRAMES))
    assert [t for t, _, _ in lazy] == list(range(1, NUM_FRAMES))
    for (t, score, mask), (_, expected, expected_mask) in zip(lazy, plain, strict=True):
        assert (score is None) == (t == 1)
        if score is not None:
            assert score == pytest.approx(expected, abs=1e-3)
        np.testing.assert_array_equal(mask, expected_mask)
    # Letting go.
    video_predictor.reset_state(state)
    loader.close()
    for key in ("images", "cached_features", "output_dict_per_obj", "temp_output_dict_per_obj"):
        value = state.get(key)
        if hasattr(value, "clear"):
            value.clear()
        state.pop(key, None)
    state.clear()
    assert state["obj_ids"] == []


def test_label_studio_interactive_pictures(video_predictor, frames):
    """The image predictor on a video predictor, and embeddings of a cache put back."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    first = SAM2ImagePredictor(video_predictor)
    first.set_image(frames[0])
    cached = {"features": first._features, "original_size": first._orig_hw}
    expected = first.predict(np.array([POINT]), np.array([1]), multimask_output=True)
    later = SAM2ImagePredictor(video_predictor)
    assert not later._is_image_set
    later._features = cached["features"]
    later._orig_hw = cached["original_size"]
    later._is_image_set = True
    found = later.predict(np.array([POINT]), np.array([1]), multimask_output=True)
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_allclose(a, b, atol=1e-4)
    best = found[0][int(np.argmax(found[1]))]
    assert best.astype(np.uint8).shape == (HEIGHT, WIDTH)


def test_label_studio_pictures_and_a_web_page(image_model, frames):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(image_model)
    predictor.set_image(frames[0])
    masks, scores, logits = predictor.predict(
        point_coords=[POINT], point_labels=[1], box=None, multimask_output=True
    )
    order = np.argsort(scores)[::-1]
    masks, scores, logits = masks[order], scores[order], logits[order]
    assert set(np.unique(masks[0].astype(np.uint8))) <= {0, 1}
    assert 0 <= float(scores[0]) <= 1
    # The mask that was found goes back in, with another click.
    masks, _, _ = predictor.predict(
        point_coords=[POINT, [16.0, 20.0]],
        point_labels=[1, 1],
        mask_input=logits[0][None, :, :],
        multimask_output=False,
    )
    shown = masks.squeeze() * 255
    shown[shown > 0] = 255
    assert shown.dtype == np.float32
    assert set(np.unique(shown)) == {0, 255}
    np.subtract(masks[0], masks[0])  # of bools NumPy refuses it


def test_samgeo(video_folder, frames, tmp_path):
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.sam2_image_predictor import SAM2ImagePredictor
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    from sam2_jax import build_sam2, checkpoint

    folder = tmp_path / "model"
    built = build_sam2("sam2_nano", apply_postprocessing=False, **SMALL)
    checkpoint.save(folder, checkpoint.Checkpoint(built.name, built.config, built.params))
    options = {
        "device": "cpu",
        "mode": "eval",
        "hydra_overrides_extra": [],
        "apply_postprocessing": False,
    }
    generator = SAM2AutomaticMaskGenerator.from_pretrained(
        str(folder), points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0, **options
    )
    for found in generator.generate(frames[0]):
        assert found["segmentation"].shape == (HEIGHT, WIDTH)
    predictor = SAM2ImagePredictor.from_pretrained(
        str(folder), mask_threshold=0.0, max_hole_area=0.0, max_sprinkle_area=0.0, **options
    )
    assert not predictor.model.dynamic_multimask_via_stability
    predictor.set_image_batch([frames[0], frames[1]])
    masks, scores, _ = predictor.predict_batch(
        [np.array([[POINT]])] * 2, [np.array([[1]])] * 2, None, None, True, False, True
    )
    assert [m[np.argmax(s)].shape for m, s in zip(masks, scores, strict=True)] == [
        (HEIGHT, WIDTH)
    ] * 2
    video = SAM2VideoPredictor.from_pretrained(str(folder), **options)
    state = video.init_state(video_path=video_folder)
    video.add_new_points_or_box(
        inference_state=state, frame_idx=0, obj_id=1, points=np.array([POINT]), labels=np.array([1])
    )
    segments = {
        t: {obj: (logits[i] > 0.0).cpu().numpy() for i, obj in enumerate(ids)}
        for t, ids, logits in video.propagate_in_video(state)
    }
    assert len(segments) == NUM_FRAMES


def test_samurai(video_folder, frames, tmp_path):
    from sam2.build_sam import build_sam2, build_sam2_video_predictor

    from sam2_jax import checkpoint

    built = build_sam2("sam2_nano", **SMALL)
    folder = tmp_path / "nano"
    checkpoint.save(folder, checkpoint.Checkpoint(built.name, built.config, built.params))
    with pytest.warns(UserWarning, match=r"SAMURAI.*memory_policy='motion'"):
        predictor = build_sam2_video_predictor(
            "configs/samurai/sam2_nano.yaml", folder, device="cuda:0"
        )
    assert predictor.model.config.memory_policy == "motion"
    state = predictor.init_state(video_folder, offload_video_to_cpu=True)
    x, y, w, h = 4, 6, 22, 24
    predictor.add_new_points_or_box(state, box=(x, y, x + w, y + h), frame_idx=0, obj_id=0)
    drawn = frames.copy()
    for t, ids, masks in predictor.propagate_in_video(state):
        for _, mask in zip(ids, masks, strict=True):
            mask = mask[0].cpu().numpy() > 0.0
            where = np.argwhere(mask)
            if len(where):
                y_min, x_min = where.min(axis=0).tolist()
                assert 0 <= y_min < HEIGHT
                assert 0 <= x_min < WIDTH
            drawn[t][mask] = (255, 0, 0)


@needs_torch
def test_the_realtime_tracker_of_a_robot(frames):
    import torch
    from sam2.build_sam import build_sam2_camera_predictor

    predictor = build_sam2_camera_predictor("sam2_nano", None, **SMALL)
    predictor.load_first_frame(frames[0])
    assert not predictor.condition_state["tracking_has_started"]
    box = np.array([[4, 6], [26, 30]], np.float32)
    t, ids, _ = predictor.add_new_prompt(frame_idx=0, obj_id=2, bbox=box)
    assert (t, ids) == (0, [2])
    for frame in frames[1:]:
        ids, logits = predictor.track(frame)
        joined = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
        for i in range(len(ids)):
            mask = (logits[i] > 0.0).permute(1, 2, 0).cpu().numpy().astype(np.uint8) * 255
            joined = np.maximum(joined, mask)
        assert set(np.unique(joined)) <= {0, 255}
    assert isinstance(logits, torch.Tensor)


def test_the_realtime_fork_with_points_and_masks(frames, masks):
    from sam2.build_sam import build_sam2_camera_predictor

    predictor = build_sam2_camera_predictor("sam2_nano", None, **SMALL)
    with pytest.raises(RuntimeError, match="no frame yet"):
        predictor.add_new_prompt(0, 1, points=[POINT], labels=[1])
    predictor.load_first_frame(frames[0])
    predictor.add_new_points(0, 1, points=np.array([POINT]), labels=np.array([1]))
    predictor.add_new_mask(0, 2, masks[1])
    with pytest.raises(ValueError, match="prompt is on frame 3 and the stream is at 0"):
        predictor.add_new_prompt(3, 1, points=[POINT], labels=[1])
    for frame in frames[1:]:
        ids, logits = predictor.track(frame)
        assert ids == [1, 2]
        assert (logits[0] > 0.0).cpu().numpy().shape == (1, HEIGHT, WIDTH)
    predictor.load_first_frame(frames[2])
    assert predictor.frame_idx == 0


def test_comfyui(frames):
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    from sam2_jax.config import resolve_model_name

    assert resolve_model_name("sam2_1_hiera_tiny.yaml") == "sam2.1_hiera_tiny"
    assert resolve_model_name("sam2_1_hiera_base_plus.yaml") == "sam2.1_hiera_base_plus"
    model = build_sam2("sam2_nano", None, device="cpu", **SMALL)
    model.model_name = "sam2_nano.pt"
    assert model.to(device="cpu") is model
    assert model.model_name == "sam2_nano.pt"
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(frames[0])
    masks, _, _ = predictor.predict(
        point_coords=None, point_labels=None, box=tensor(np.float32([BOX])), multimask_output=False
    )
    picture = np.ascontiguousarray(frames[0])
    picture[~(masks[0] > 0)] = 0


def test_e2e_sam2(image_model, video_predictor, frames):
    """A class around the predictor that asks where it is."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(image_model.eval())
    assert str(predictor.device).startswith("cpu")
    assert str(video_predictor.device).startswith("cpu")
    assert predictor.model.image_size == video_predictor.image_size == 64
    predictor.set_image(frames[0])
    masks, scores, _ = predictor.predict(np.array([POINT]), np.array([1]))
    assert masks[scores.argmax()].sum() >= 0
    predictor.reset_predictor()
    assert predictor._features is None
    assert predictor._orig_hw == []


def test_rai(tmp_path, frames):
    """Its own yaml file, by its path, beside a checkpoint."""
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    from sam2_jax import checkpoint

    built = build_sam2("sam2_nano", **SMALL)
    folder = tmp_path / "weights"
    checkpoint.save(folder, checkpoint.Checkpoint(built.name, built.config, built.params))
    with pytest.warns(UserWarning, match="seg_config.yml is not read"):
        model = build_sam2(tmp_path / "seg_config.yml", str(folder), device="cpu")
    assert model.name == "sam2_nano"
    predictor = SAM2ImagePredictor(model)
    predictor.set_image(frames[0])
    masks, _, _ = predictor.predict(box=np.array(BOX), multimask_output=False)
    assert masks.shape == (1, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="Unknown model"):
        build_sam2("configs/seg_config.yml")


def test_sixty_lines_of_fine_tuning_are_told_where_to_go(image_model, frames):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(image_model)
    for part in ("sam_mask_decoder", "sam_prompt_encoder", "load_state_dict", "parameters"):
        assert not hasattr(predictor.model, part)
        with pytest.raises(AttributeError, match=r"docs/training\.md"):
            getattr(predictor.model, part)
    with pytest.raises(NotImplementedError, match="sam2-jax train"):
        predictor.model.train(True)
    predictor.set_image(frames[0])
    points = np.array([[[14, 18]], [[40, 15]], [[25, 33]]])
    masks, scores, _ = predictor.predict(point_coords=points, point_labels=np.ones((3, 1)))
    masks = masks[:, 0].astype(bool)
    order = masks[np.argsort(scores[:, 0])][::-1]
    taken = np.zeros(masks.shape[1:], bool)
    for mask in order:
        mask[mask & taken] = False
        taken[mask] = True
    assert taken.any()


def test_autodistill(image_model, frames):
    """Detections of boxes, one mask each, as bools for a library of detections."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(image_model)
    result = []
    predictor.set_image(frames[0])
    for box in np.array([BOX, [30.0, 4.0, 52.0, 26.0]]):
        masks, scores, _ = predictor.predict(box=box, multimask_output=False)
        result.append(masks[np.argmax(scores)])
    assert np.array(result).astype(bool).shape == (2, HEIGHT, WIDTH)


def test_a_program_runs_unchanged(tmp_path):
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from sam2.build_sam import build_sam2\n"
        "from sam2.utils.amg import rle_to_mask\n"
        "import helper\n"
        "assert __name__ == '__main__'\n"
        "print(sys.argv[1:], helper.WORD)\n"
        "try:\n"
        "    import sam2.modeling.sam2_base\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    (tmp_path / "helper.py").write_text("WORD = 'beside'\n")
    command = [sys.executable, "-m", "sam2_jax.as_sam2", str(program), "--fast", "2"]
    with warnings.catch_warnings():
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "['--fast', '2'] beside"
    assert "sam2_jax.model" in done.stdout
