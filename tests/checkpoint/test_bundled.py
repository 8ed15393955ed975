import numpy as np
import pytest

from sam2_jax import build_sam2, get_config
from sam2_jax.checkpoint import bundled


def test_it_is_what_is_built_by_default(caplog):
    model = build_sam2()
    assert model.name == bundled.NAME
    (said,) = caplog.messages
    assert "sam2_nano" in said
    assert "convert --download" in said


@pytest.mark.parametrize("spelling", [None, bundled.NAME])
def test_it_has_the_config_of_its_name(spelling):
    model = build_sam2(spelling, apply_postprocessing=False)
    assert (model.name, model.config) == (bundled.NAME, get_config(bundled.NAME))
    assert model.config.image_size == 256


def test_an_empty_path_is_not_taken_for_no_checkpoint():
    with pytest.raises((ValueError, OSError)):
        build_sam2(checkpoint="")


def test_it_is_small_and_half_precision():
    from safetensors.numpy import load_file

    assert bundled.WEIGHTS.stat().st_size <= 10e6
    assert {x.dtype for x in load_file(bundled.WEIGHTS).values()} == {np.dtype(np.float16)}


def test_a_damaged_file_is_not_used(tmp_path, monkeypatch):
    damaged = bytearray(bundled.WEIGHTS.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "weights").write_bytes(damaged)
    monkeypatch.setattr(bundled, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(ValueError, match="installation is damaged"):
        build_sam2()
