"""Draws what a model will be fed: batches of clips as training reads, changes and prompts them.

    python scripts/inspect_data.py --config=configs/smoke.py --out=batches --num_batches=2

For every dataset its first batches become pictures: the frames of the clips with the masks of their objects and
the first clicks or boxes of the simulated annotator, under the clips' names. Printed is how many videos there
are, what the batches hold, how long they took, and how many samples could not be read.
"""

import os
import re
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image

from sam2_jax.data.contact_sheet import contact_sheet, stack_sheets
from sam2_jax.data.loader import make_loader
from sam2_jax.experiment import Interaction, from_config_dict
from sam2_jax.train.clicks import Plan, draw_plan, first_click, jittered_box
from sam2_jax.train.recipe import model_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "experiment, such as configs/smoke.py")
_OUT = flags.DEFINE_string("out", None, "folder for the pictures", required=True)
_NUM_BATCHES = flags.DEFINE_integer("num_batches", 2, "batches of every dataset", lower_bound=1)


def draw_batch(batch: dict[str, Any], interaction: Interaction, key: jax.Array) -> np.ndarray:
    """Draws the clips of a batch, prompted as one step would prompt them, what is ignored dark."""
    plan_key, key = jax.random.split(key)
    plan = draw_plan(plan_key, batch["images"].shape[1], interaction)
    start = " (starts from masks)" if plan.starts_from_masks else ""
    sheets = []
    ignored = batch.get("ignored", [None] * len(batch["names"]))
    for images, masks, is_object, unknown, name in zip(
        batch["images"], batch["masks"], batch["is_object"], ignored, batch["names"], strict=True
    ):
        key, clip_key = jax.random.split(key)
        masks = masks[:, is_object]
        prompts = first_prompts(clip_key, plan, masks, unknown)
        if unknown is not None:
            images = np.where(unknown[..., None], images // 4, images)
        sheets.append(contact_sheet(images, masks, prompts, name + start))
    return stack_sheets(sheets)


def first_prompts(
    key: jax.Array, plan: Plan, masks: np.ndarray, ignored: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Draws clicks or boxes on the prompted frames of a clip, for `draw_overlay`.

    Args:
        key: random key.
        plan: which frames are prompted, and how.
        masks: (T, O, S, S) bool.
        ignored: (T, S, S) bool, where no clicks go.
    """
    prompts: list[dict[str, Any]] = [{} for _ in masks]
    if plan.starts_from_masks:
        return prompts
    for place in np.flatnonzero(plan.is_initial):
        frame = int(plan.frames[place])
        keys = jax.random.split(jax.random.fold_in(key, frame), masks.shape[1])
        if plan.is_box[place]:
            seen = masks[frame].any((1, 2))  # an absent object has no box that could be drawn
            boxes = [
                jittered_box(k, m) for k, m in zip(keys[seen], masks[frame, seen], strict=True)
            ]
            prompts[frame] = {"boxes": np.array(boxes)}
        else:
            unknown = None if ignored is None else ignored[frame]
            clicks = [first_click(k, m, unknown) for k, m in zip(keys, masks[frame], strict=True)]
            points, labels = zip(*clicks, strict=True)
            prompts[frame] = {"points": np.array(points), "labels": np.array(labels)}
    return prompts


def main(_: list[str]) -> None:
    """Draws and prints what the command line asks for."""
    experiment = from_config_dict(_CONFIG.value.to_dict())
    size = model_config(experiment).image_size
    os.makedirs(_OUT.value, exist_ok=True)
    for name, dataset in experiment.datasets.items():
        print(f"{name}: {len(dataset.open(size))} videos or images ({dataset.kind})")
        loader = make_loader({name: dataset}, size, experiment.seed, num_workers=0)
        for n in range(_NUM_BATCHES.value):
            start = time.perf_counter()
            batch = next(loader)[1]
            seconds = time.perf_counter() - start
            sheet = draw_batch(batch, experiment.interaction, jax.random.key(n))
            path = os.path.join(_OUT.value, f"{re.sub('[^A-Za-z0-9_.-]', '_', name)}_{n:03d}.png")
            Image.fromarray(sheet).save(path)
            is_object = batch["is_object"]
            present = batch["masks"].any((3, 4)).swapaxes(1, 2)[is_object].mean()
            area = batch["masks"].mean((1, 3, 4))[is_object].mean()
            print(
                f"  {path}: images {'x'.join(map(str, batch['images'].shape))}, "
                f"{is_object.sum()} objects, seen on {present:.0%} of the frames, "
                f"{area:.1%} of the image on average, {batch['replaced']} samples replaced, "
                f"waited {seconds:.2f} s"
            )
        loader.close()


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
