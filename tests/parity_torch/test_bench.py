"""The device benchmark beside PyTorch, on a CPU with the smallest size that both have."""

import pytest

from sam2_jax.bench import runner


def test_both_sides_are_timed():
    settings = {"models": ["sam2.1_hiera_tiny"], "objects": [2], "image_size": 64}
    (record,) = runner.run(["pytorch"], settings, {"pytorch": 300})
    assert record["ok"], record
    (row,) = record["rows"]
    assert row["case"] == "sam2.1_hiera_tiny, 64 px, 2 objects, transformers"
    assert row["times as fast"] == pytest.approx(row["ms"] / row["ms here"], rel=0.02)


def test_a_model_that_pytorch_does_not_have_is_refused():
    settings = {"models": ["sam2_nano"], "image_size": 64}
    (record,) = runner.run(["pytorch"], settings, {"pytorch": 60})
    assert "PyTorch has no sam2_nano; take another model" in record["error"]
