"""The model against transformers' Sam2Model and Sam2VideoModel, an independent port.

Same weights. Inputs are prepared by this project, so that only the models are compared.
Limits are those of the golden files.
"""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from sam2_jax.checkpoint import names
from sam2_jax.config import POSTPROCESSING_IMAGE, POSTPROCESSING_VIDEO
from sam2_jax.model.image_encoder import ImageEncoder
from sam2_jax.model.sam2 import normalise
from sam2_jax.predict import preprocessing
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.predict.video import SAM2VideoPredictor
from tests.parity.golden import reference_model, weights
from tests.parity.reference_scene import scene
from tests.parity_torch.test_convert import video_config

SIZE = 256
NUM_FRAMES = 4
HEIGHT, WIDTH = 240, 320  # of the scene
FRAMES = scene(NUM_FRAMES)
CLICK = np.array([[96.0, 112.0]], np.float32)
BOX = np.array([190.0, 60.0, 262.0, 150.0], np.float32)

EXACT = 1e-5  # of the largest value of a tensor
OUTLIERS = 1e-2  # share of tracked logits that may be further than 1e-2 of the largest
IOU = 5e-3  # 1 - mask IoU
SCORE = 2e-2  # absolute


def hugging_face(model, presence_bias, size=SIZE):
    """(Sam2Model, Sam2VideoModel) with reference weights."""
    grid = size // 16
    config = video_config(model)
    config.image_size = size
    config.memory_attention_rope_feat_sizes = [grid, grid]
    config.prompt_encoder_config.image_size = size
    config.vision_config.backbone_config.image_size = [size, size]
    config.vision_config.backbone_feature_sizes = [[k * grid, k * grid] for k in (4, 2, 1)]
    tensors = {
        name: torch.tensor(array)
        for name, array in names.to_hugging_face(weights(model, presence_bias)).items()
    }
    video = transformers.Sam2VideoModel(config).eval()
    video.load_state_dict(tensors)
    image = transformers.Sam2Model(
        transformers.Sam2Config(
            vision_config=config.vision_config,
            prompt_encoder_config=transformers.Sam2PromptEncoderConfig(image_size=size),
        )
    ).eval()
    image.load_state_dict({name: tensors[name] for name in image.state_dict()})
    return image, video


def relative(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def to_input_pixels(points, size=SIZE):
    return points.reshape(-1, 2) * np.array([size / WIDTH, size / HEIGHT], np.float32)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def both_image_models(size):
    """Our predictor with frame 0 set, transformers' model, and the input of both."""
    ours = SAM2ImagePredictor(
        reference_model("sam2.1_hiera_tiny", 1.0, image_size=size, **POSTPROCESSING_IMAGE)
    )
    ours.set_image(FRAMES[0])
    theirs, _ = hugging_face("sam2.1_hiera_tiny", 1.0, size)
    return ours, theirs, preprocessing.image_to_input(FRAMES[0], size)[None]


@pytest.fixture(scope="module")
def image_models():
    return both_image_models(SIZE)


def test_image_encoder(image_models):
    predictor, theirs, image = image_models
    params = predictor.model.params["image_encoder"]
    encoder = ImageEncoder(predictor.model.config)
    ours = jax.jit(encoder.apply)({"params": params}, image)
    pixels = torch.tensor(nchw(image))
    with torch.inference_mode():
        maps = theirs.vision_encoder(pixels).fpn_hidden_states
        high_res_0, high_res_1, embedding = theirs.get_image_embeddings(pixels)
    assert len(maps) == 3
    for i, their_map in enumerate(maps):
        assert relative(nchw(ours[i]), their_map) < EXACT, f"level {i}"
    features = predictor._encoded
    for our_map, their_map in (
        (features.high_res[0], high_res_0),
        (features.high_res[1], high_res_1),
        (features.embedding, embedding),
    ):
        assert relative(nchw(our_map), their_map) < EXACT


@pytest.mark.parametrize("is_multimask", [True, False])
@pytest.mark.parametrize("kind", ["click", "box"])
def test_image_prediction(image_models, kind, is_multimask):
    predictor, theirs, image = image_models
    if kind == "click":
        ours = {"point_coords": CLICK, "point_labels": np.array([1])}
        prompt = {
            "input_points": torch.tensor(to_input_pixels(CLICK))[None, None],
            "input_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        }
    else:
        ours = {"box": BOX}
        prompt = {"input_boxes": torch.tensor(to_input_pixels(BOX)).reshape(1, 1, 4)}
    _, ious, low_res = predictor.predict(**ours, multimask_output=is_multimask)
    with torch.inference_mode():
        answer = theirs(torch.tensor(nchw(image)), **prompt, multimask_output=is_multimask)
    # The original's predictor hands out clamped logits, transformers' model the raw ones.
    assert relative(low_res, answer.pred_masks[0, 0].clamp(-32, 32)) < EXACT
    assert relative(ious, answer.iou_scores[0, 0]) < EXACT


@pytest.mark.parametrize("size", [512, 768])
def test_other_image_sizes(size):
    predictor, theirs, image = both_image_models(size)
    _, ious, low_res = predictor.predict(CLICK, np.array([1]))
    pixels = torch.tensor(nchw(image))
    with torch.inference_mode():
        *_, embedding = theirs.get_image_embeddings(pixels)
        answer = theirs(
            pixels,
            input_points=torch.tensor(to_input_pixels(CLICK, size))[None, None],
            input_labels=torch.ones(1, 1, 1, dtype=torch.int32),
        )
    assert relative(predictor.get_image_embedding(), embedding) < EXACT
    assert relative(low_res, answer.pred_masks[0, 0].clamp(-32, 32)) < EXACT
    assert relative(ious, answer.iou_scores[0, 0]) < EXACT


@pytest.mark.parametrize(
    ("model", "presence_bias"),
    [("sam2.1_hiera_tiny", 1.0), ("sam2_hiera_tiny", 1.0), ("sam2.1_hiera_tiny", -1.0)],
    ids=["sam2.1", "sam2", "sam2.1-absent"],
)
def test_video(model, presence_bias):
    # transformers fills holes outside of its model, so none are filled here.
    flags = {"image_size": SIZE, **POSTPROCESSING_VIDEO}
    predictor = SAM2VideoPredictor(reference_model(model, presence_bias, **flags))
    # transformers remembers a mask prompt as it was given, the original after a round trip through
    # the low-resolution logits. Straight edges between two cells survive that; corners would not.
    mask = np.zeros((SIZE, SIZE), np.float32)
    mask[64:160] = 1
    state = predictor.init_state(FRAMES)
    predictor.add_new_points_or_box(state, 0, 1, CLICK, np.array([1]))
    predictor.add_new_points_or_box(state, 0, 2, box=BOX)
    predictor.add_new_mask(state, 0, 3, mask)
    for _ in predictor.propagate_in_video(state):
        pass

    _, theirs = hugging_face(model, presence_bias)
    # For the pointer of a mask prompt transformers takes the best of three mask tokens, since that
    # is the default of this method; the original takes the token of the single mask.
    decode = theirs._single_frame_forward
    theirs._single_frame_forward = functools.wraps(decode)(
        lambda *args, multimask_output=False, **kwargs: decode(
            *args, multimask_output=multimask_output, **kwargs
        )
    )
    clip = np.stack([preprocessing.frame_to_input(frame, SIZE) for frame in FRAMES])
    session = Sam2VideoInferenceSession(
        torch.tensor(nchw(normalise(clip))), HEIGHT, WIDTH, dtype=torch.float32
    )
    for obj_id, points, labels in ((1, CLICK, [1]), (2, BOX, [2, 3])):
        inputs = {
            "point_coords": torch.tensor(to_input_pixels(points))[None, None],
            "point_labels": torch.tensor(labels, dtype=torch.int32)[None, None],
        }
        session.add_point_inputs(session.obj_id_to_idx(obj_id), 0, inputs)
    session.add_mask_inputs(session.obj_id_to_idx(3), 0, torch.tensor(mask)[None, None])
    session.obj_with_new_inputs = [1, 2, 3]

    for t in range(NUM_FRAMES):
        answer = theirs(inference_session=session, frame_idx=t)
        for n, obj_id in enumerate((1, 2, 3)):
            ours = state.objects[obj_id].latest(t)
            our_logits = ours.mask.get()
            logits = answer.pred_masks[n, 0].numpy()
            place = f"frame {t}, object {obj_id}"
            union = ((our_logits > 0) | (logits > 0)).sum()
            both = ((our_logits > 0) & (logits > 0)).sum()
            assert union - both <= IOU * union, place
            far = np.abs(our_logits - logits) > 1e-2 * np.abs(logits).max()
            assert far.mean() <= OUTLIERS, place
            score = float(answer.object_score_logits.reshape(-1)[n])
            assert abs(ours.score - score) <= SCORE, place
