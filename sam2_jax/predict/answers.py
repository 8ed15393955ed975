"""Answers of a video session: what the model says to a prompt, and what a frame's masks are in video pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam2_jax.build import Model
from sam2_jax.config import Sam2Config
from sam2_jax.model.sam2 import NO_OBJECT, Sam2
from sam2_jax.predict import transforms
from sam2_jax.predict.session import Entry, InferenceState, ObjectStore, load_bank
from sam2_jax.structs import Features, MemoryBank, Prompt, Segmentation
from sam2_jax.track import encode

_HOLE_LOGIT = 0.1

_jit = functools.partial(jax.jit, static_argnums=0)
_encode = _jit(encode)


@_jit
def _answer_first(sam2: Sam2, params: dict, features: Features, prompt: Prompt) -> Segmentation:
    embedding = sam2.apply({"params": params}, features, method="forget")
    return sam2.apply({"params": params}, embedding, features, prompt, method="segment")


@_jit
def _answer_again(
    sam2: Sam2, params: dict, bank: MemoryBank, features: Features, index: jax.Array, prompt: Prompt
) -> Segmentation:
    embedding = sam2.apply({"params": params}, bank, features, index, method="recall")
    return sam2.apply({"params": params}, embedding, features, prompt, False, method="segment")


@_jit
def _remember(sam2: Sam2, params: dict, features: Features, masks: jax.Array, scores: jax.Array):
    is_prompted = jnp.ones(scores.shape, bool)
    return sam2.apply({"params": params}, features, masks, scores, is_prompted, method="remember")


def _features(model: Model, state: InferenceState, frame: int) -> Features:
    def make():
        image = transforms.frame_to_input(state.frames[frame], model.config.image_size)
        return _encode(model.module, model.params, image[None])

    return state.features.get_or_make(frame, make)


def with_points(
    config: Sam2Config, store: ObjectStore, frame: int, points: np.ndarray, labels: np.ndarray
) -> Prompt:
    """The prompt of points (P, 2) and labels (P,) on a frame; the mask that is there is fed back with them."""
    prompt = transforms.pad_points(points[None], labels[None])
    before = store.answer(frame)
    logits = before.mask if before else np.zeros((config.mask_size, config.mask_size), np.float32)
    return prompt.replace(
        mask_logits=np.clip(logits, -transforms.LOGIT_LIMIT, transforms.LOGIT_LIMIT)[None],
        has_mask_logits=np.array([before is not None]),
    )


def with_mask(mask: np.ndarray) -> Prompt:
    """The prompt of a mask (S, S)."""
    prompt = transforms.pad_points(np.zeros((1, 1, 2)), np.full((1, 1), -1))
    return prompt.replace(masks=mask[None], has_mask=np.ones(1, bool))


def answer(
    model: Model, state: InferenceState, frame: int, store: ObjectStore, prompt: Prompt
) -> tuple[Entry, bool]:
    """Answers a prompt of one object; nothing is stored.

    Returns:
      The answer, whose memory is encoded before the next pass, and whether the frame will be a conditioning
      one.
    """
    config, module, params = model.config, model.module, model.params
    features = _features(model, state, frame)
    is_initial = frame not in store.passes
    if is_initial or prompt.masks is not None:
        said = _answer_first(module, params, features, prompt)
    else:
        length = state.code_length(config)
        bank = load_bank(config, [store], frame, store.passes[frame], length)
        said = _answer_again(module, params, bank, features, np.int32(frame), prompt)
    entry = new_entry(config, state, jax.tree.map(lambda x: np.asarray(x[0]), said))
    return entry, is_initial or config.add_all_frames_to_correct_as_cond


def new_entry(config: Sam2Config, state: InferenceState, said, memory=None) -> Entry:
    """Moves what the model said of one object to the session's vault, small holes of its mask filled."""
    mask = transforms.clean_masks(said.masks, config.fill_hole_area, 0, filled=_HOLE_LOGIT)
    return Entry(
        kept_mask=state.vault.keep(mask),
        iou=float(said.ious),
        score=float(said.scores),
        pointer=said.pointers,
        kept_memory=None if memory is None else state.vault.keep(memory),
    )


def remember_prompts(model: Model, state: InferenceState) -> None:
    """Encodes memories of the frames prompted since the last pass, and makes them part of what is known."""
    config = model.config
    for frame in sorted({t for store in state.objects.values() for t in store.pending}):
        stores = [store for store in state.objects.values() if frame in store.pending]
        entries = [store.pending[frame][0] for store in stores]
        padded = entries + entries[:1] * (transforms.bucket(len(entries)) - len(entries))
        memories = _remember(
            model.module,
            model.params,
            _features(model, state, frame),
            np.stack([entry.mask for entry in padded]),
            np.array([entry.score for entry in padded], np.float32),
        )
        for entry, memory in zip(entries, np.asarray(memories), strict=False):
            entry.kept_memory = state.vault.keep(memory)
    for store in state.objects.values():
        for frame, (entry, is_conditioning) in store.pending.items():
            if config.clear_non_cond_mem_around_input:
                store.forget_tracked_around(frame, config.memory_window)
            if is_conditioning:
                store.prompted[frame] = entry
                store.tracked.pop(frame, None)
            elif frame not in store.prompted:
                store.tracked[frame] = entry
        store.pending.clear()


def video_masks(config: Sam2Config, state: InferenceState, frame: int) -> np.ndarray:
    """(N, 1, H, W) logits of all objects; far below zero for one without any answer on the frame."""
    height, width = state.frames.height, state.frames.width
    answers = [store.answer(frame) for store in state.objects.values()]
    if not answers:
        return np.zeros((0, 1, height, width), np.float32)
    nothing = np.full((config.mask_size, config.mask_size), NO_OBJECT, np.float32)
    masks = [found.mask if found else nothing for found in answers]
    padded = masks + [nothing] * (transforms.bucket(len(masks)) - len(masks))
    resized = transforms.resize_masks(np.stack(padded)[:, None], height, width)
    resized = np.asarray(resized)[: len(answers)]
    return _keep_winner(resized) if config.non_overlap_masks else resized


def _keep_winner(masks: np.ndarray) -> np.ndarray:
    """Non-overlap: at every pixel of (N, 1, H, W) logits only the strongest object stays above -10."""
    winner = np.arange(len(masks))[:, None, None, None] == masks.argmax(0)
    return np.where(winner, masks, np.minimum(masks, -10.0))
