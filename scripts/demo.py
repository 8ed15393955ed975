"""Tracks two objects through the clip that the repository carries, and scores the masks against the true ones.

    python scripts/demo.py [CHECKPOINT]

Writes an overlay video, palette masks, the scores and a contact sheet to `out/demo/`. The masks of the first
frame are given. Without a checkpoint it uses the model that comes with the package.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sam2_jax.cli import main as sam2_jax
from sam2_jax.data.videos import open_frames

ROOT = Path(__file__).resolve().parents[1]
VIDEO, TRUTH = ROOT / "assets" / "demo.mp4", ROOT / "assets" / "demo_masks"
OUT = ROOT / "out" / "demo"
SHOWN = (0, 5, 11, 17, 23)  # frames of the contact sheet


def contact_sheet(video: Path) -> Image.Image:
    """Returns the frames `SHOWN` of a video side by side."""
    with open_frames(video) as frames:
        return Image.fromarray(np.concatenate([frames[t] for t in SHOWN], 1))


def main(argv: list[str]) -> int:
    """Runs the demo; returns its exit status."""
    masks, overlay, sheet = OUT / "masks", OUT / "overlay.mp4", OUT / "overlay.png"
    masks.mkdir(parents=True, exist_ok=True)
    track = [
        "track",
        str(VIDEO),
        "--mask",
        str(TRUTH / "demo" / "00000.png"),
        "--image-size",
        "256",
    ]
    track += ["--out", str(overlay), "--masks", str(masks / "demo")]
    score = ["evaluate", "score", "--truth", str(TRUTH), "--predictions", str(masks)]
    score += ["--out", str(OUT / "scores")]
    status = sam2_jax(track + (["--checkpoint", argv[0]] if argv else [])) or sam2_jax(score)
    if status:
        return status
    contact_sheet(overlay).save(sheet)
    print(f"picture: {sheet}\n")
    run = ".venv/bin/sam2-jax"
    print(f"Try next, on a video of your own:  {run} track VIDEO --point X,Y --out overlay.mp4")
    print(f"in the browser:                    {run} serve")
    print(
        f"with released weights:             {run} convert --download sam2.1_hiera_tiny --output tiny"
    )
    print("                                   make demo CHECKPOINT=tiny")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
