"""`sam2-jax image`: segments what is pointed at in a picture."""

import argparse
from pathlib import Path

import numpy as np

from sam2_jax.commands.common import add_model, build, drawn_prompts, object_ids
from sam2_jax.commands.outputs import PICTURES, File, check_outputs
from sam2_jax.commands.prompts import add_prompts, arrays, group_prompts

HELP = "Segment what is pointed at in a picture."
EXAMPLES = """example:
  sam2-jax image truck.jpg --point 500,375 --out truck.png --checkpoint sam2.1_hiera_tiny.pt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "image", help="picture file, whose pixels count as they are stored: EXIF does not turn it"
    )
    add_prompts(parser)
    parser.add_argument("--out", "--output", help="overlay picture (default: <image>_overlay.png)")
    parser.add_argument("--masks", metavar="FILE.png", help="palette PNG of the objects")
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from PIL import Image

    from sam2_jax import SAM2ImagePredictor, build_sam2
    from sam2_jax.data.masks import pack_masks, write_palette_png
    from sam2_jax.data.media import read_image
    from sam2_jax.data.overlay import draw_overlay

    out = Path(args.out or f"{Path(args.image).stem}_overlay.png")
    outputs = [File("--out", out, PICTURES)]
    if args.masks:
        outputs.append(File("--masks", args.masks, (".png",)))
    check_outputs(outputs, [args.image])
    image = read_image(args.image)
    groups = group_prompts(args.prompts, *image.shape[:2])
    for _, frame in groups:
        if frame:
            raise ValueError(f"there is no frame {frame} in a picture: leave out @{frame}")
    if any(group["mask"] for group in groups.values()):
        raise ValueError("a mask can only prompt a video; prompt a picture with --point and --box")
    ids = object_ids(groups, args.masks)

    predictor = SAM2ImagePredictor(build(args, build_sam2))
    predictor.set_image(image)
    masks = []
    for obj in ids:
        prompt = arrays(groups[obj, 0])
        is_ambiguous = prompt["box"] is None and len(prompt["points"]) == 1
        candidates, ious, _ = predictor.predict(
            prompt["points"], prompt["labels"], prompt["box"], multimask_output=is_ambiguous
        )
        best = int(np.argmax(ious))
        masks.append(candidates[best] > 0)
        share = 100 * masks[-1].mean()
        print(f"object {obj}: predicted IoU {ious[best]:.3f}, {share:.1f} % of the picture")
    overlay = draw_overlay(image, np.stack(masks), ids, **drawn_prompts(groups, 0))
    Image.fromarray(overlay).save(out)
    print(f"overlay: {out}")
    if args.masks:
        write_palette_png(args.masks, pack_masks(np.stack(masks), ids))
        print(f"masks:   {args.masks}")
