"""Tracks two objects through the clip that the repository carries.

    python scripts/demo.py [CHECKPOINT]

Writes an overlay video, palette masks and a contact sheet to `out/demo/`. The masks of the first frame are
given. Released weights are not part of the repository: without a checkpoint the weights are random, and only
the first frame means anything.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sam2_jax.cli import main as sam2_jax
from sam2_jax.data.videos import open_frames

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "demo"
SHOWN = (0, 5, 11, 17, 23)  # frames of the contact sheet


def contact_sheet(video: Path) -> Image.Image:
    """Returns the frames `SHOWN` of a video side by side."""
    with open_frames(video) as frames:
        return Image.fromarray(np.concatenate([frames[t] for t in SHOWN], 1))


def main(argv: list[str]) -> int:
    """Runs the demo; returns its exit status."""
    OUT.mkdir(parents=True, exist_ok=True)
    video, masks = ROOT / "assets" / "demo.mp4", ROOT / "assets" / "demo_masks" / "00000.png"
    overlay, sheet = OUT / "overlay.mp4", OUT / "overlay.png"
    track = ["track", str(video), "--mask", str(masks), "--image-size", "256"]
    track += ["--out", str(overlay), "--masks", str(OUT / "masks")]
    status = sam2_jax(track + (["--checkpoint", argv[0]] if argv else []))
    if status:
        return status
    contact_sheet(overlay).save(sheet)
    print(f"picture: {sheet}")
    if not argv:
        print(
            "\nThese masks come from RANDOM weights: only frame 0, whose masks were given, means anything.\n"
            "With released weights:   make demo CHECKPOINT=sam2.1_hiera_tiny.pt\n"
            "Where to get them:       .venv/bin/sam2-jax convert --download sam2.1_hiera_tiny --output tiny/"
        )
    print(
        "On a video of your own:  .venv/bin/sam2-jax track VIDEO --point X,Y --checkpoint CHECKPOINT"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
