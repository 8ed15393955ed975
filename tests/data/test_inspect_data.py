"""The script that draws what is trained on, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
from sam2_jax.experiment import Dataset, Experiment, to_config_dict


def get_config():
    videos = Dataset(num_frames=5, batch_size=2)
    images = Dataset(num_frames=1, count=3)
    datasets = {"drawn videos": videos, "images": images}
    return to_config_dict(Experiment(model_overrides={"image_size": 64}, datasets=datasets))
"""


def test_pictures_of_batches(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, str(ROOT / "scripts" / "inspect_data.py")]
    command += [f"--config={tmp_path / 'config.py'}", f"--out={tmp_path / 'out'}"]
    command += ["--num_batches=1", "--config.datasets.images.batch_size=3"]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "drawn videos: 1000000 videos or images (procedural)" in result.stdout
    assert "images 2x5x64x64x3" in result.stdout
    assert "images: 3 videos or images" in result.stdout
    assert "images 3x1x64x64x3" in result.stdout
    assert result.stdout.count("0 samples replaced") == 2
    assert sorted(os.listdir(tmp_path / "out")) == ["drawn_videos_000.png", "images_000.png"]
    with Image.open(tmp_path / "out" / "drawn_videos_000.png") as picture:
        assert picture.width >= 4 * 64
        assert len(np.unique(np.asarray(picture))) > 50
