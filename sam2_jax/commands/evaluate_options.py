"""Options of `sam2-jax evaluate`. Those of the original's tool also have its names."""

import argparse
from collections.abc import Callable

from sam2_jax.commands.common import add_model
from sam2_jax.evaluate.interactive import PROTOCOLS
from sam2_jax.evaluate.score import CONVENTIONS
from sam2_jax.evaluate.vos import PROMPTS

_EXAMPLES = {
    "vos": """
  sam2-jax evaluate vos --videos DAVIS --masks DAVIS --video-list DAVIS/ImageSets/2017/val.txt --out davis_out
  sam2-jax evaluate vos --videos sav_val --masks sav_val --out sav_out --checkpoint sam2.1_hiera_tiny.pt""",
    "score": """
  sam2-jax evaluate score --target DAVIS --predictions davis_out --convention davis""",
    "interactive": """
  sam2-jax evaluate interactive --videos DAVIS --masks DAVIS --out clicks --checkpoint tiny/""",
    "images": """
  sam2-jax evaluate images --images val2017 --annotations instances.json --out coco_out --checkpoint tiny/""",
}
EXAMPLES = f"""examples:{"".join(_EXAMPLES.values())}

docs/evaluation.md has a command for every published benchmark."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the kinds of evaluation with their options."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="kind")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return kinds.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"examples:{_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_score(add("score", "Score predicted masks of videos: J, F and J&F.").add_argument)
    _add_vos(add("vos", "Track the objects of first-frame masks through videos; write PNGs."))
    _add_interactive(add("interactive", "Let a simulated annotator correct tracked objects."))
    _add_images(add("images", "Segment objects in images by simulated clicks and by boxes."))


def _add_score(add: Callable) -> None:
    add(
        "--target",
        "--truth",
        required=True,
        metavar="DIR",
        help="true masks: a folder per video, or a benchmark's folder",
    )
    add("--predictions", required=True, metavar="DIR", help="predicted masks, likewise")
    add("--convention", choices=CONVENTIONS, default="sav", help="rules of scoring (default: sav)")
    add(
        "--out",
        "--output",
        metavar="DIR",
        help="folder of results.csv, .json and .html (default: the predictions)",
    )
    add(
        "--videos",
        metavar="DIR",
        help="frames for the pictures of results.html (default: the target's)",
    )
    add("--video-list", metavar="FILE", help="text file that names the videos to score")
    add("--num-frames", type=int, metavar="N", help="only the first N frames of every video")
    add(
        "--strict",
        action="store_true",
        help="a video of the target without predictions is an error",
    )
    add(
        "--do-not-skip-first-and-last-frame",
        dest="keep_ends",
        action="store_true",
        help="score the first and the last annotated frame as well",
    )
    add(
        "--train-meta",
        metavar="FILE",
        help="YouTube-VOS: meta.json of the training set, whose categories are the seen ones "
        "(default: ../train/meta.json beside the target)",
    )
    _add_split(add)


def _add_split(add: Callable) -> None:
    add(
        "--split",
        default="validation",
        help="split of a dataset given as tfds:NAME (default: validation)",
    )


def _add_videos(add: Callable) -> None:
    add(
        "--videos",
        "--base_video_dir",
        required=True,
        metavar="DIR",
        help="a folder of frames or an mp4 per video, a benchmark's folder, or tfds:NAME",
    )
    add(
        "--masks",
        "--input_mask_dir",
        required=True,
        metavar="DIR",
        help="masks: a folder per video, a benchmark's folder, or tfds:NAME",
    )
    add(
        "--out",
        "--output",
        "--output_mask_dir",
        required=True,
        metavar="DIR",
        help="folder of the results",
    )
    add("--video-list", "--video_list_file", metavar="FILE", help="text file that names the videos")
    add("--num-frames", type=int, metavar="N", help="only the first N frames of every video")
    _add_split(add)


def _add_vos(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_videos(add)
    add(
        "--prompt",
        choices=PROMPTS,
        default="mask",
        help="what to prompt with, derived from a mask (default: mask)",
    )
    add(
        "--score-threshold",
        "--score_thresh",
        type=float,
        default=0.0,
        help="logits above it are the object (default: 0)",
    )
    add(
        "--use-all-masks",
        "--use_all_masks",
        action="store_true",
        help="prompt on all frames that have masks, not only on the first one",
    )
    add(
        "--per-obj-png-file",
        "--per_obj_png_file",
        action="store_true",
        help="write a folder of PNGs for every object (default: as the masks are)",
    )
    add(
        "--track-object-appearing-later-in-video",
        "--track_object_appearing_later_in_video",
        dest="later_objects",
        action="store_true",
        help="start an object that appears later at its first mask",
    )
    add(
        "--apply-postprocessing",
        "--apply_postprocessing",
        action="store_true",
        help="fill small holes; published scores are without this",
    )
    add_model(parser)
    hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    add("--sam2_cfg", dest="model", **hidden)
    add("--sam2_checkpoint", dest="checkpoint", **hidden)
    add("--use_vos_optimized_video_predictor", action="store_true", **hidden)  # always compiled


def _add_interactive(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_videos(add)
    add(
        "--protocol",
        choices=(*PROTOCOLS, "both"),
        default="both",
        help="correct the worst frame and track anew, or correct while watching once (default: both)",
    )
    add("--rounds", type=int, default=8, help="most frames that get clicks (default: 8)")
    add("--clicks", type=int, default=3, help="clicks on each of them (default: 3)")
    add(
        "--threshold",
        type=float,
        default=0.75,
        help="online: frames of lower IoU get clicks (default: 0.75)",
    )
    add_model(parser)


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of images")
    add(
        "--annotations",
        metavar="PATH",
        help="JSON of COCO; folder of label PNGs; folder of JSONs of SA-1B (default: --images)",
    )
    add("--out", "--output", required=True, metavar="DIR", help="folder of the results")
    add("--num-images", type=int, metavar="N", help="only the first N images")
    add_model(parser)
