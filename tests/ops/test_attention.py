"""Every execution of attention against the plain one, and what is chosen where."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam2_jax.ops import attention as ops
from sam2_jax.ops import attention_tpu


def random(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def close(found, expected, dtype="float32"):
    """To the rounding of the type in which weights and values meet."""
    tolerance = 2e-5 if dtype == "float32" else 2e-2
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def on_no_tpu(function):
    return functools.partial(function, interpret=True)


def by_name(monkeypatch, name):
    """The Pallas kernel runs on CPU when it is interpreted."""
    if name == "tpu":
        for kernel in ("attention", "attend_parts"):
            monkeypatch.setattr(attention_tpu, kernel, on_no_tpu(getattr(attention_tpu, kernel)))
    return name


def softmax_attention(q, k, v, mask):
    """(T, D), (S, D), (S, E), (S,) -> (T, E), in float64 and one row at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k[mask], v[mask]))
    rows = []
    for row in q:
        weights = np.exp(k @ row / np.sqrt(q.shape[-1]))
        rows.append(weights @ v / weights.sum())
    return np.stack(rows)


@pytest.mark.parametrize("name", ["reference", None])
@pytest.mark.parametrize(("batch_q", "batch_k"), [(2, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("is_masked", [True, False])
def test_attention_is_a_softmax_over_the_keys_that_are_kept(name, batch_q, batch_k, is_masked):
    q, k, v = random(0, batch_q, 5, 3, 4), random(1, batch_k, 7, 3, 4), random(2, batch_k, 7, 3, 6)
    kept = np.random.default_rng(3).random((batch_k, 7)) > (0.4 if is_masked else -1)
    mask = kept[:, None, None] if is_masked else None
    answer = np.asarray(ops.attention(q, k, v, mask=mask, implementation=name))
    assert answer.shape == (2, 5, 3, 6)
    for b in range(2):
        i, j = b % batch_q, b % batch_k
        for h in range(3):
            expected = softmax_attention(q[i, :, h], k[j, :, h], v[j, :, h], kept[j])
            np.testing.assert_allclose(answer[b, :, h], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["xla", "cpu", "tpu"])
@pytest.mark.parametrize("shape", [(1, 2048, 1, 64, 32), (2, 256, 3, 96, 96)])
def test_executions_of_attention_agree(monkeypatch, name, shape, dtype):
    b, t, heads, d, e = shape
    q, k, v = (random(i, b, t, heads, width, dtype=dtype) for i, width in enumerate((d, d, e)))
    found = ops.attention(q, k, v, implementation=by_name(monkeypatch, name))
    assert found.dtype == v.dtype
    close(found, ops.attention(q, k, v, implementation="reference"), dtype)


@pytest.mark.parametrize("name", ["xla", "cpu", None])
@pytest.mark.parametrize("t", [12, 2048])
def test_keys_that_are_masked_do_not_count(name, t):
    q, k, v = random(0, 1, t, 2, 8), random(1, 3, 600, 2, 8), random(2, 3, 600, 2, 8)
    mask = jnp.arange(600) < jnp.array([600, 7, 1])[:, None]
    attend = functools.partial(ops.attention, mask=mask[:, None, None])
    found = attend(q, k, v, implementation=name)
    close(found, attend(q, k, v, implementation="reference"))
    close(found[2], jnp.broadcast_to(v[2, 0], found[2].shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["xla", "cpu", "tpu", None])
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("t", [128, 2048])
def test_executions_of_parts_agree(monkeypatch, name, is_shared, t, dtype):
    n, r, cells = 3, 4, 128
    q = random(0, 1 if is_shared else n, t, 64, dtype=dtype)
    k, v = random(1, n, r, cells, 64, dtype=dtype), random(2, n, r, cells, 16, dtype=dtype)
    used = jnp.array([[True] * 4, [False] * 4, [False, True, False, True]])
    found = ops.attend_parts(q, k, v, used, implementation=by_name(monkeypatch, name))
    expected = ops.attend_parts(q, k, v, used, implementation="reference")
    assert {x.dtype for x in found} == {jnp.dtype("float32")}
    close(ops.merge(found), ops.merge(expected), dtype)
    assert not np.asarray(ops.merge(found))[1].any(), "nothing was used"
    log_sum = lambda parts: parts[1][0] + jnp.log(parts[2][0])
    close(log_sum(found), log_sum(expected), dtype)


@pytest.mark.parametrize("name", ["xla", "cpu", "tpu"])
def test_what_is_in_unused_slots_is_not_looked_at(monkeypatch, name):
    q, k, v = random(0, 1, 128, 32), random(1, 1, 3, 128, 32), random(2, 1, 3, 128, 16)
    used = jnp.array([[True, False, True]])
    name = by_name(monkeypatch, name)
    expected = ops.merge(ops.attend_parts(q, k, v, used, implementation=name))
    k, v = k.at[0, 1].set(1e4), v.at[0, 1].set(-1e4)
    close(ops.merge(ops.attend_parts(q, k, v, used, implementation=name)), expected)


def test_parts_merge_to_one_softmax():
    q, k, v = random(0, 2, 20, 8), random(1, 2, 3, 5, 8), random(2, 2, 3, 5, 4)
    used = jnp.array([[True, False, True], [False, True, False]])
    cut = lambda x, i: x[:, i : i + 1]
    parts = [ops.attend_parts(q, cut(k, i), cut(v, i), cut(used, i)) for i in range(3)]
    flat = lambda x: x.reshape(2, 15, 1, -1)
    mask = jnp.repeat(used, 5, 1)[:, None, None]
    expected = ops.attention(q[:, :, None], flat(k), flat(v), mask=mask)[:, :, 0]
    close(ops.merge(*parts), expected)


@pytest.mark.parametrize("name", ["xla", "cpu", "tpu"])
def test_gradients_agree(monkeypatch, name):
    q, k, v = random(0, 1, 2048, 1, 32), random(1, 1, 2048, 1, 32), random(2, 1, 2048, 1, 16)

    def loss(name):
        return lambda *args: (ops.attention(*args, implementation=name) ** 2).sum()

    expected = jax.grad(loss("reference"), (0, 1, 2))(q, k, v)
    for found, wanted in zip(
        jax.grad(loss(by_name(monkeypatch, name)), (0, 1, 2))(q, k, v), expected, strict=True
    ):
        close(found, wanted)


@pytest.mark.parametrize("name", ["xla", "cpu", "tpu"])
def test_gradients_of_parts_agree(monkeypatch, name):
    q, k, v = random(0, 1, 2048, 32), random(1, 2, 2, 128, 32), random(2, 2, 2, 128, 16)
    used = jnp.array([[True, True], [False, True]])

    def loss(name):
        parts = lambda *args: ops.attend_parts(*args, used, implementation=name)
        return lambda *args: (ops.merge(parts(*args)) ** 2).sum()

    expected = jax.grad(loss("reference"), (0, 1, 2))(q, k, v)
    for found, wanted in zip(
        jax.grad(loss(by_name(monkeypatch, name)), (0, 1, 2))(q, k, v), expected, strict=True
    ):
        close(found, wanted)


def test_weights_are_dropped_and_the_rest_scaled():
    q, k = jnp.zeros((1, 2048, 1, 8)), jnp.zeros((1, 512, 1, 8))
    found = ops.attention(
        q, k, jnp.ones((1, 512, 1, 1)), dropout=0.25, dropout_key=jax.random.key(0)
    )
    assert np.std(found) > 0.01
    np.testing.assert_allclose(found.mean(), 1, atol=2e-3)


def test_an_unknown_execution_is_named():
    q = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(ValueError, match="implementation is 'flash'; expected None or one of"):
        ops.attention(q, q, q, implementation="flash")


def lowered(platform, dtype):
    """The program of a memory attention of 1024 px, as it is handed to a compiler for a platform."""
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    used = jax.ShapeDtypeStruct((2, 7), bool)
    arguments = (shape(1, 4096, 256), shape(2, 7, 4096, 256), shape(2, 7, 4096, 64), used)
    lowered = jax.jit(ops.attend_parts).trace(*arguments).lower(lowering_platforms=(platform,))
    return lowered.as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_tpu_it_is_one_kernel_and_no_loop(dtype):
    text = lowered("tpu", dtype)
    assert text.count("tpu_custom_call") == 1
    assert "stablehlo.while" not in text


def test_on_a_hopper_it_is_one_call_of_cudnn_and_no_loop():
    text = lowered("cuda", "bfloat16")
    assert text.count("__cudnn$fmhaSoftmax(") + text.count("@__cudnn$fmhaSoftmax") >= 1
    assert "stablehlo.while" not in text


def test_in_float32_a_gpu_scores_in_chunks():
    text = lowered("cuda", "float32")
    assert "cudnn" not in text
    assert "stablehlo.while" in text
