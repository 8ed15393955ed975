"""Checkpoints against PyTorch and transformers themselves."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from sam2_jax.checkpoint import load, names, save
from sam2_jax.checkpoint.torch_file import CheckpointError, read_torch_file, write_torch_file
from sam2_jax.config import RELEASED

PARITY = Path(__file__).parents[1] / "parity"
REFERENCE = runpy.run_path(str(PARITY / "reference_weights.py"))


@pytest.fixture(scope="module")
def tiny():
    return REFERENCE["reference_weights"](PARITY / "names" / "sam2.1_hiera_tiny.tsv")


def assert_same(arrays, tensors):
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.detach()
        found = np.ascontiguousarray(arrays[name])
        assert str(found.dtype) == str(expected.dtype).removeprefix("torch.")
        assert found.shape == tuple(expected.shape) or expected.ndim == 0
        assert (
            found.tobytes() == expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )


def awkward_tensors():
    """Parameters, views that share a storage, and every type."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return {
        "parameter": torch.nn.Parameter(base.t()),
        "view": base[1:3, ::2],
        "column": base[:, 5],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        **{
            str(dtype): base.to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32)
        },
        "int16": torch.arange(3, dtype=torch.int16),
        "int8": torch.arange(-3, 3, dtype=torch.int8),
        "uint8": torch.arange(3, dtype=torch.uint8),
        "bool": base > 0,
    }


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "ema", None])
def test_reads_what_torch_writes(tmp_path, key):
    tensors = awkward_tensors()
    torch.save({key: tensors} if key else tensors, tmp_path / "a.pt")
    assert_same(read_torch_file(tmp_path / "a.pt"), tensors)


def test_reads_training_checkpoints(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    module(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    state = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 7,
        "steps": {"train": 1 << 40, "val": 0},
        "best_meter_values": {"loss": 0.25},
        "shape": torch.Size([2, 3]),
        "time_elapsed": None,
        "best_score": np.float64(0.5),
        "best_step": np.int64(7),
        "dtype": np.dtype("float32"),
    }
    torch.save(state, tmp_path / "a.pt")
    assert_same(read_torch_file(tmp_path / "a.pt"), module.state_dict())


def test_refuses_objects_and_the_legacy_format(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(tmp_path / "module.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6"):
        read_torch_file(tmp_path / "a.pt")


def test_torch_reads_what_is_written(tmp_path):
    tensors = awkward_tensors()
    torch.save(tensors, tmp_path / "a.pt")
    arrays = read_torch_file(tmp_path / "a.pt")
    write_torch_file(tmp_path / "b.pt", arrays)
    for mmap in (False, True):
        read = torch.load(tmp_path / "b.pt", weights_only=True, mmap=mmap)
        assert list(read) == ["model"]
        assert_same(arrays, read["model"])


def test_official_file_there_and_back(tmp_path, tiny):
    tensors = {name: torch.from_numpy(array) for name, array in tiny.items()}
    torch.save({"model": tensors}, tmp_path / "a.pt")
    save(tmp_path / "b.pt", load(tmp_path / "a.pt"))
    read = torch.load(tmp_path / "b.pt", weights_only=True)["model"]
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def video_config(model):
    hiera = RELEASED[model].hiera
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=hiera.embed_dim,
        num_attention_heads=hiera.num_heads,
        blocks_per_stage=list(hiera.stages),
        embed_dim_per_stage=list(hiera.widths),
        num_attention_heads_per_stage=[hiera.num_heads * 2**i for i in range(4)],
        window_size_per_stage=list(hiera.window_sizes),
        global_attention_blocks=list(hiera.global_attention_blocks),
        window_positional_embedding_background_size=list(hiera.position_grid),
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=list(hiera.widths[::-1])
    )
    is_new = RELEASED[model].no_obj_embed_spatial
    return transformers.Sam2VideoConfig(
        vision_config=vision,
        enable_occlusion_spatial_embedding=is_new,
        enable_temporal_pos_encoding_for_object_pointers=is_new,
    )


@pytest.mark.parametrize("model", RELEASED)
def test_hugging_face_names_are_those_of_transformers(model):
    shapes = REFERENCE["read_shapes"](PARITY / "names" / f"{model}.tsv")
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        module = transformers.Sam2VideoModel(video_config(model))
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: array.shape for name, array in names.to_hugging_face(blank).items()}
    assert found == expected


def test_video_model_there_and_back(tmp_path, tiny):
    renamed = names.to_hugging_face(tiny)
    module = transformers.Sam2VideoModel(video_config("sam2.1_hiera_tiny"))
    module.load_state_dict({name: torch.tensor(array) for name, array in renamed.items()})
    module.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.name == "sam2.1_hiera_tiny"
    back = names.to_state_dict(loaded.params, loaded.params)
    assert back.keys() == tiny.keys()
    assert all(np.array_equal(back[name], tiny[name]) for name in tiny)

    save_file(names.to_hugging_face(back), tmp_path / "model.safetensors", {"format": "pt"})
    _, loading = transformers.Sam2VideoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())


def test_image_model_lacks_the_memory_parts(tmp_path, tiny):
    with torch.device("meta"):
        module = transformers.Sam2Model(
            transformers.Sam2Config(vision_config=video_config("sam2.1_hiera_tiny").vision_config)
        )
    renamed = {
        name: torch.tensor(array)
        for name, array in names.to_hugging_face(tiny).items()
        if name in module.state_dict()
    }
    module.load_state_dict(renamed, assign=True)
    module.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="160 missing") as error:
        load(tmp_path, "sam2.1_hiera_tiny")
    assert "unexpected" not in str(error.value)
    memory = ("memory_", "mask_downsample", "obj_ptr", "maskmem", "no_mem_pos_enc", "no_obj")
    missing = str(error.value).partition("missing: ")[2].rstrip(".").split(", ")
    assert all(name.startswith(memory) for name in missing)

    # With the memory parts from elsewhere the file is whole again.
    rest = {name: torch.tensor(tiny[name]) for name in missing}
    image = names.from_hugging_face({name: tensor.numpy() for name, tensor in renamed.items()})
    write_torch_file(tmp_path / "whole.pt", image | {k: v.numpy() for k, v in rest.items()})
    assert len(jax.tree.leaves(load(tmp_path / "whole.pt").params)) == len(tiny)
