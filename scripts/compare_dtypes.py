"""How well tracking in bfloat16 agrees with float32, over drawn scenes.

    python scripts/compare_dtypes.py --scenes=20

Up to three objects a scene are clicked in their middle on the first frame and tracked; the figure is the IoU of
the masks, over all frames and objects.
"""

import argparse

import numpy as np
from scipy import ndimage

from sam2_jax import SAM2VideoPredictor, build_sam2_video_predictor
from sam2_jax.data.annotated import Video
from sam2_jax.data.procedural import drawn_videos
from sam2_jax.evaluate.metrics import iou

_NUM_FRAMES, _MAX_OBJECTS, _SEED = 12, 3, 7


def middle(mask: np.ndarray) -> tuple[int, int]:
    """(H, W) bool -> the pixel (x, y) that is furthest from its edge."""
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return int(x), int(y)


def masks_of(predictor: SAM2VideoPredictor, video: Video) -> np.ndarray:
    """(T, N, H, W) bool masks of the clicked objects."""
    state = predictor.init_state(video.frames)
    for object_id in video.object_ids(0)[:_MAX_OBJECTS]:
        click = [middle(video.masks(0)[object_id])]
        predictor.add_new_points_or_box(state, 0, object_id, click, [1])
    found = predictor.propagate_in_video(state, return_logits=False)
    return np.stack([np.asarray(masks)[:, 0] for _, _, masks in found])


def main() -> None:
    """Prints the agreement of each scene, and their mean."""
    parser = argparse.ArgumentParser(description="How well tracking in bfloat16 agrees.")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--checkpoint", help="default: the bundled model")
    args = parser.parse_args()
    model = None if args.checkpoint else "sam2_nano"
    predictors = [
        build_sam2_video_predictor(model, args.checkpoint, image_size=args.image_size, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    ]
    videos = drawn_videos(_SEED, _NUM_FRAMES, args.image_size, 0, args.scenes, False, ())
    means = []
    for n, video in enumerate(videos):
        masks = [masks_of(predictor, video) for predictor in predictors]
        pairs = zip(*(x.reshape(-1, *x.shape[2:]) for x in masks), strict=True)
        means.append(np.mean([iou(a, b) for a, b in pairs]))
        print(f"scene {n:2}: {means[-1]:.3f}", flush=True)
    print(f"mean {np.mean(means):.3f}, median {np.median(means):.3f}, least {np.min(means):.3f}")


if __name__ == "__main__":
    main()
