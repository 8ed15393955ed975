"""`sam2-jax everything`: all masks of a picture, without any prompt."""

import argparse
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from sam2_jax.commands.common import add_model, build
from sam2_jax.commands.outputs import Folder, check_outputs
from sam2_jax.config import PICTURE_OPTIONS

HELP = "Segment everything in a picture."
EXAMPLES = """example:
  sam2-jax everything photo.jpg --out masks/ --checkpoint sam2.1_hiera_tiny.pt
  sam2-jax everything photo.jpg --out masks/ --points-per-side 64 --crop-n-layers 1 --pred-iou-thresh 0.7

files in the folder:
  overlay.png  all masks over the picture
  masks.json   COCO run lengths, boxes and scores
  masks.csv    the same as a table, without the masks"""

# Options of `everything`: arguments of SAM2AutomaticMaskGenerator, whose defaults apply.
GENERATOR_OPTIONS = (
    ("points_per_side", int, "clicks along a side of the picture (default 32)"),
    ("points_per_batch", int, "clicks decoded at once (default 64)"),
    (
        "pred_iou_thresh",
        float,
        "lowest predicted IoU of a mask (default 0.8, of sam2_nano {pred_iou_thresh}; 0 keeps all)",
    ),
    (
        "stability_score_thresh",
        float,
        "lowest stability of a mask (default 0.95, of sam2_nano {stability_score_thresh}; 0 keeps all)",
    ),
    (
        "stability_score_offset",
        float,
        "shift of the threshold that measures stability (default 1)",
    ),
    ("mask_threshold", float, "logits above it are the object (default 0)"),
    ("box_nms_thresh", float, "highest IoU of the boxes of two masks (default 0.7)"),
    ("crop_n_layers", int, "layers of crops to segment as well (default 0)"),
    ("crop_nms_thresh", float, "as --box-nms-thresh, between crops (default 0.7)"),
    ("crop_overlap_ratio", float, "overlap of the first layer's crops (default 0.341)"),
    (
        "crop_n_points_downscale_factor",
        int,
        "clicks along a side, divided by this for each layer (default 1)",
    ),
    (
        "min_mask_region_area",
        int,
        "cells of a hole or speck that is removed (default 0, of sam2_nano {min_mask_region_area})",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "image", help="picture file, whose pixels count as they are stored: EXIF does not turn it"
    )
    parser.add_argument("--out", "--output", metavar="DIR", help="folder (default: <image>_masks)")
    add_model(parser)
    own = dataclasses.asdict(PICTURE_OPTIONS["sam2_nano"])
    for name, type, help in GENERATOR_OPTIONS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type, metavar="N", help=help.format(**own))
    parser.add_argument(
        "--use-m2m", action="store_true", help="refine every mask by decoding it once more"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from PIL import Image
    from tqdm import tqdm

    from sam2_jax import SAM2AutomaticMaskGenerator, build_sam2
    from sam2_jax.data.masks import decode_rle
    from sam2_jax.data.media import read_image
    from sam2_jax.data.overlay import draw_overlay

    out = Path(args.out or f"{Path(args.image).stem}_masks")
    check_outputs([Folder("--out", out, ("overlay.png", "masks.json", "masks.csv"))], [args.image])
    image = read_image(args.image)
    options = {name: getattr(args, name) for name, *_ in GENERATOR_OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}

    generator = SAM2AutomaticMaskGenerator(
        build(args, build_sam2), output_mode="coco_rle", use_m2m=args.use_m2m, **options
    )
    total = sum(4**layer * len(grid) for layer, grid in enumerate(generator.point_grids))
    with tqdm(total=total, desc="segment everything", unit="click") as bar:
        found = generator.generate(image, progress=bar.update)
    for i, annotation in enumerate(found):
        annotation["id"] = i + 1
    # One mask at a time: all those of a large picture would be gigabytes.
    overlay, is_covered = image, np.zeros(image.shape[:2], bool)
    for annotation in sorted(found, key=lambda annotation: -annotation["area"]):
        mask = decode_rle(annotation["segmentation"])
        overlay = draw_overlay(overlay, mask[None], [annotation["id"]])
        is_covered |= mask

    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(overlay).save(out / "overlay.png")
    _write_annotations(out, args.image, image.shape[:2], found)
    if found:
        covered = 100 * is_covered.mean()
        print(f"masks: {len(found)}, covering {covered:.1f} % of the picture")
    else:
        print(
            "0 masks were found: lower --pred-iou-thresh or --stability-score-thresh, or raise "
            "--points-per-side"
        )
    print(f"written: {out / 'overlay.png'}, {out / 'masks.json'}, {out / 'masks.csv'}")


def _write_annotations(
    folder: Path, image: str, size: tuple[int, int], annotations: list[dict[str, Any]]
) -> None:
    """Writes masks.json, {image, height, width, annotations}, and masks.csv, a row for each annotation."""
    document = {
        "image": Path(image).name,
        "height": size[0],
        "width": size[1],
        "annotations": annotations,
    }
    (folder / "masks.json").write_text(json.dumps(document))
    with open(folder / "masks.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        box, point = ("x", "y", "width", "height"), ("point_x", "point_y")
        table.writerow(["id", "area", *box, "predicted_iou", "stability_score", *point])
        for a in annotations:
            scores = [f"{a[name]:.4f}" for name in ("predicted_iou", "stability_score")]
            point = [round(v, 2) for v in a["point_coords"][0]]
            table.writerow([a["id"], a["area"], *a["bbox"], *scores, *point])
