"""JAX as people run it: its switches, threads, forks, and pictures of many sizes."""

import concurrent.futures
import os
import signal
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.predict import image, mask_generator, postprocessing
from sam2_jax.predict.image import SAM2ImagePredictor
from sam2_jax.predict.mask_generator import SAM2AutomaticMaskGenerator
from sam2_jax.track import begin, empty_bank, step
from tests import toy


@pytest.fixture(scope="module")
def model():
    return toy.model()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def programs(model):
    """Types of what the programs under the predictors return; nothing is run."""
    module, params, shape = model.module, model.params, jax.eval_shape
    images, clicks, masks = toy.clip(1).image, toy.clicks(2), toy.masks(2)
    frame = jax.tree.map(lambda x: x[0], toy.clip(1))
    features = shape(lambda x: image.encode_images(module, params, x), np.float32(images))
    logits = np.zeros((2, 3, 16, 16), np.float32)
    weights = postprocessing.padded_weights(16, 40), postprocessing.padded_weights(16, 50)
    bank = empty_bank(module, 2)
    yield shape(
        lambda f: image.decode_prompts(module, params, f, np.zeros(2, np.int32), clicks, False),
        features,
    )
    yield shape(lambda b: begin(module, params, b, frame, masks), bank)
    yield shape(lambda b: step(module, params, b, frame, clicks), bank)
    yield shape(lambda x: postprocessing.finish_masks(x, *weights, 0.0, False), logits)
    yield shape(lambda x: postprocessing._show(x, 0, 2, *weights, True, False, True), logits)
    yield shape(lambda x: mask_generator._clean(x, np.ones(3, bool), 9), logits[0])
    yield shape(
        lambda x: mask_generator._measure(x, np.ones(3, bool), *weights, 0.0, 1.0), logits[0]
    )


def test_programs_are_the_same_under_the_strict_switches_and_in_64_bits(model):
    types = lambda: [(x.shape, x.dtype) for x in jax.tree.leaves(list(programs(model)))]
    expected = types()
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        found = types()
    floats = lambda leaves: [leaf for leaf in leaves if jnp.issubdtype(leaf[1], jnp.floating)]
    assert floats(found) == floats(expected)
    assert [shape for shape, _ in found] == [shape for shape, _ in expected]


def test_nan_checks_and_single_operations(model):
    """`jax_debug_nans` and `jax_disable_jit` on, one picture."""
    answers = []
    for is_on in (False, True):
        with jax.debug_nans(is_on), jax.disable_jit(is_on):
            predictor = SAM2ImagePredictor(model)
            predictor.set_image(picture(40, 50))
            answers.append(predictor.predict([[9, 9]], [1], return_logits=True)[2])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)


def ask(model, seed):
    predictor = SAM2ImagePredictor(model)
    found = []
    for each in range(seed, seed + 4):
        predictor.set_image(picture(40, 50, each))
        found.append(predictor.predict([[20 + seed, 20]], [1])[2])
    return np.stack(found)


def test_threads_share_a_model(model):
    expected = [ask(model, seed) for seed in (0, 9)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for found, alone in zip(pool.map(lambda s: ask(model, s), (0, 9)), expected, strict=True):
            np.testing.assert_array_equal(found, alone)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_says_so_and_does_not_hang(model):
    assert model.module is model.module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python and JAX warn of any fork
        child = os.fork()
    if child == 0:
        try:
            SAM2ImagePredictor(model).set_image(picture(40, 50))
            os._exit(1)
        except RuntimeError as error:
            os._exit(0 if "was forked" in str(error) and "spawn" in str(error) else 2)
        finally:
            os._exit(3)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


def test_thirty_sizes_of_pictures_are_few_programs(model):
    own = [(mask_generator, "_measure", ()), (mask_generator, "_binarise", ())]
    sizes = np.random.default_rng(0).integers(100, 512, (30, 2))
    with toy.counted_programs(toy.IMAGE_PROGRAMS + own) as counts:
        predictor = SAM2ImagePredictor(model)
        generator = SAM2AutomaticMaskGenerator(
            model, points_per_side=1, pred_iou_thresh=0, stability_score_thresh=0
        )
        for height, width in sizes.tolist():
            predictor.set_image(picture(height, width))
            masks, *_ = predictor.predict([[50, 50]], [1])
            assert masks.shape == (3, height, width)
            for found in generator.generate(picture(height, width)):
                assert found["segmentation"].shape == (height, width)
    assert counts["encode_images"] == 1
    assert counts["decode_prompts"] <= 2
    assert max(counts.values()) <= 4, counts
