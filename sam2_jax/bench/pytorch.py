"""What we are compared with: SAM 2 in PyTorch with random weights, the original's and that of transformers.

Nothing else in the package imports torch, and this only inside of functions: it may be missing.
"""

# pyright: reportMissingImports=false
# PyTorch and what builds on it are not installed where types are checked.

import contextlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from sam2_jax.bench.workload import HEIGHT, NOW, WIDTH, memory_tokens, random_images
from sam2_jax.config import ModelConfig

CLIP = 32  # frames that the original tracks in one call


def version(package: str) -> str | None:
    """Returns "torch 2.13.0", or None if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    # The original's source may lie on the path without having been installed.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return package


def transformers_config(config: ModelConfig) -> Any:
    """Returns the `Sam2VideoConfig` of a released SAM 2.1 model."""
    import transformers

    hiera, grid, size = config.hiera, config.grid, config.image_size
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=hiera.embed_dim,
        num_attention_heads=hiera.num_heads,
        image_size=[size, size],
        blocks_per_stage=list(hiera.stages),
        embed_dim_per_stage=list(hiera.widths),
        num_attention_heads_per_stage=[hiera.num_heads * 2**i for i in range(4)],
        window_size_per_stage=list(hiera.window_sizes),
        global_attention_blocks=list(hiera.global_attention_blocks),
        window_positional_embedding_background_size=list(hiera.position_grid),
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=list(hiera.widths[::-1]),
        backbone_feature_sizes=[[k * grid, k * grid] for k in (4, 2, 1)],
    )
    return transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"image_size": size},
        image_size=size,
        memory_attention_rope_feat_sizes=[grid, grid],
    )


def check_attention(model: Any) -> None:
    """Makes sure that no part of a transformers model runs its slow, unfused attention."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    assert {config._attn_implementation for config in configs} == {"sdpa"}


def new_session(pixels: Any, num_frames: int, config: ModelConfig, num_objects: int) -> Any:
    """Returns a session on equal frames, a click for every object on the first.

    Args:
      pixels: (3, S, S) of every frame, in the type and on the device of the model.
      num_frames: of the video.
      config: the model's.
      num_objects: how many are tracked.
    """
    import torch
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    size, device = config.image_size, pixels.device
    session = Sam2VideoInferenceSession(
        pixels.expand(num_frames, -1, -1, -1),
        size,
        size,
        inference_device=device,
        inference_state_device=device,
        video_storage_device=device,
        dtype=pixels.dtype,
    )
    for obj_id in range(num_objects):
        click = {
            "point_coords": torch.full((1, 1, 1, 2), size / (obj_id + 2)),
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        }
        session.add_point_inputs(session.obj_id_to_idx(obj_id), 0, click)
    session.obj_with_new_inputs = list(range(num_objects))
    return session


def full_session(model: Any, pixels: Any, config: ModelConfig, num_objects: int) -> Any:
    """Returns a session at frame `NOW` with every memory in place: copies of those of frame 1.

    Args:
      model: a `Sam2VideoModel`.
      pixels: (3, S, S) of every frame, in the type and on the device of the model.
      config: the same model's.
      num_objects: how many are tracked.
    """
    session = new_session(pixels, NOW + 1, config, num_objects)
    for frame in (0, 1):
        model(inference_session=session, frame_idx=frame)
    for outputs in session.output_dict_per_obj.values():
        tracked = outputs["non_cond_frame_outputs"]
        tracked.update(dict.fromkeys(range(2, NOW), tracked[1]))

    def check(module, args, kwargs):
        assert kwargs["memory"].shape[0] == memory_tokens(config)

    hook = model.memory_attention.register_forward_pre_hook(check, with_kwargs=True)
    model(inference_session=session, frame_idx=NOW)
    hook.remove()  # a compiler would have to look into it
    return session


def transformers_step(
    config: ModelConfig, num_objects: int, is_compiled: bool
) -> Callable[[], None]:
    """Returns a call that tracks one frame with a full memory, on the GPU that torch finds, else the CPU.

    Args:
      config: the model, and the type in which it computes.
      num_objects: how many are tracked.
      is_compiled: `torch.compile` of the parts, those that the original's `vos_optimized` compiles.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    device, dtype = _device(), getattr(torch, config.dtype)
    model = transformers.Sam2VideoModel(transformers_config(config)).eval().to(device, dtype)
    check_attention(model)
    size = config.image_size
    pixels = torch.randn(3, size, size, device=device, dtype=dtype)
    session = full_session(model, pixels, config, num_objects)
    if is_compiled:
        for part in ("vision_encoder", "memory_attention", "memory_encoder", "mask_decoder"):
            setattr(model, part, torch.compile(getattr(model, part), dynamic=False))

    def call():
        session.cache.clear_all()  # holds the features of the call before
        model(inference_session=session, frame_idx=NOW)
        _wait(device)

    return call


@contextlib.contextmanager
def original_clip(name: str, config: ModelConfig, num_objects: int) -> Iterator[Callable[[], None]]:
    """Gives a call that tracks `CLIP` frames with the original's compiled predictor, as its own benchmark does.

    The frames are on the GPU before, and the masks stay there.

    Args:
      name: of a released model.
      config: its image size and type.
      num_objects: how many are tracked.
    """
    import torch
    from sam2.build_sam import build_sam2_video_predictor

    version, size = name.split("_hiera_")
    size = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}[size]
    device = _device()
    predictor = build_sam2_video_predictor(
        f"configs/{version}/{version}_hiera_{size}.yaml",
        device=device,
        hydra_overrides_extra=[f"++model.image_size={config.image_size}"],
        vos_optimized=True,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"),
    ):
        for i, image in enumerate(random_images(CLIP, HEIGHT, WIDTH, 3)):
            Image.fromarray(image).save(Path(folder) / f"{i:05d}.jpg")
        state = predictor.init_state(video_path=folder)
        for n in range(num_objects):
            x, y = WIDTH / (n + 2), HEIGHT / 2
            predictor.add_new_points_or_box(state, 0, n, points=[[x, y]], labels=[1])

        def call():
            for _ in predictor.propagate_in_video(state):
                pass
            _wait(device)

        yield call


def _device() -> Any:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
