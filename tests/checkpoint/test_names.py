import numpy as np
import pytest

from sam2_jax.checkpoint import names
from sam2_jax.config import RELEASED


def blank(shapes):
    """Tensors without memory: every element is the same zero."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def nest(leaves):
    tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def toy():
    """Official tensors of every layout, with the parameters that they become."""
    rng = np.random.default_rng(0)
    linear, conv, up, table, point = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((3, 2), (4, 3, 2, 1), (5, 4, 3, 2), (1, 4, 3, 2), (1, 4))
    )
    scale, bias = np.arange(3, dtype=np.float32), np.arange(2, dtype=np.float32)
    official = {
        "obj_ptr_proj.layers.0.weight": linear,
        "image_encoder.neck.convs.2.conv.weight": conv,
        "sam_mask_decoder.output_upscaling.3.weight": up,
        "image_encoder.trunk.pos_embed": table,
        "sam_prompt_encoder.point_embeddings.3.weight": point,
        "memory_encoder.fuser.layers.1.norm.weight": scale,
        "memory_encoder.fuser.layers.1.norm.bias": bias,
        "memory_encoder.fuser.layers.1.gamma": scale,
    }
    params = {
        "obj_ptr_proj": {"layers_0": {"kernel": linear.T}},
        "image_encoder": {
            "neck": {"convs_2": {"kernel": np.einsum("oihw->hwio", conv)}},
            "trunk": {"pos_embed": np.einsum("nchw->nhwc", table)},
        },
        "mask_decoder": {"output_upscaling_3": {"kernel": np.einsum("iohw->hwio", up)}},
        "prompt_encoder": {"point_embeddings_3": point},
        "memory_encoder": {"fuser_1": {"norm": {"scale": scale, "bias": bias}, "gamma": scale}},
    }
    return official, params


def flatten(tree):
    return dict(names._leaves(tree))


@pytest.mark.parametrize("model", RELEASED)
def test_every_official_name_and_shape_goes_there_and_back(model, shapes):
    official = shapes(model)
    paths = {name: names.flax_path(name, len(shape)) for name, shape in official.items()}
    assert len(set(paths.values())) == len(official)
    assert {names.official_name(path): name for name, path in paths.items()} == {
        name: name for name in official
    }


def test_paths_are_the_agreed_ones():
    agreed = {
        ("memory_encoder.fuser.layers.0.dwconv.weight", 4): "memory_encoder/fuser_0/dwconv/kernel",
        ("image_encoder.trunk.patch_embed.proj.bias", 1): "image_encoder/trunk/patch_embed/bias",
        ("image_encoder.trunk.blocks.10.mlp.layers.1.weight", 2): (
            "image_encoder/trunk/blocks_10/mlp/layers_1/kernel"
        ),
        ("sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.bias", 1): (
            "mask_decoder/output_hypernetworks_mlps_0/layers_2/bias"
        ),
        ("sam_prompt_encoder.not_a_point_embed.weight", 2): "prompt_encoder/not_a_point_embed",
        ("memory_encoder.mask_downsampler.encoder.10.weight", 1): (
            "memory_encoder/mask_downsampler/encoder_10/scale"
        ),
        ("maskmem_tpos_enc", 4): "maskmem_tpos_enc",
    }
    assert {key: names.flax_path(*key) for key in agreed} == agreed


def test_values_move_to_their_axes_and_back():
    official, params = toy()
    moved = flatten(names.to_params(official, params))
    assert moved.keys() == flatten(params).keys()
    for path, array in flatten(params).items():
        np.testing.assert_array_equal(moved[path], array)
        assert moved[path].flags.c_contiguous
        assert moved[path].flags.owndata
    back = names.to_state_dict(params, params)
    assert list(back) == sorted(official)
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array)


def test_half_precision_is_widened():
    official, params = toy()
    halves = {name: array.astype(np.float16) for name, array in official.items()}
    for array in flatten(names.to_params(halves, params)).values():
        assert array.dtype == np.float32


def test_one_error_names_every_problem():
    official, params = toy()
    table = official.pop("image_encoder.trunk.pos_embed")
    official["extra"] = table
    official["obj_ptr_proj.layers.0.weight"] = np.zeros((9, 9), np.float32)
    gamma = "memory_encoder.fuser.layers.1.gamma"
    official[gamma] = official[gamma].astype(np.int64)
    with pytest.raises(ValueError, match="do not fit") as error:
        names.to_params(official, params)
    for part in (
        "1 missing: image_encoder.trunk.pos_embed",
        "1 unexpected: extra",
        "1 wrong shape: obj_ptr_proj.layers.0.weight (9, 9) instead of (3, 2)",
        f"1 wrong type: {gamma} int64",
    ):
        assert part in str(error.value)


def test_parameters_are_checked_too():
    _, params = toy()
    with pytest.raises(ValueError, match=r"1 missing: obj_ptr_proj\.layers\.0\.weight"):
        names.to_state_dict({k: v for k, v in params.items() if k != "obj_ptr_proj"}, params)


@pytest.mark.parametrize("model", RELEASED)
def test_recognises_every_model(model, shapes):
    assert names.recognise(shapes(model)) == model


@pytest.mark.parametrize("shapes_", [{}, {"image_encoder.trunk.pos_embed": (96,)}, {"a": (1,)}])
def test_unknown_models_list_the_known_ones(shapes_):
    with pytest.raises(ValueError, match=r"sam2\.1_hiera_large"):
        names.recognise(shapes_)


@pytest.mark.parametrize("model", RELEASED)
def test_hugging_face_names_go_there_and_back(model, shapes):
    official = blank(shapes(model))
    renamed = names.to_hugging_face(official)
    assert names.is_hugging_face(renamed)
    assert not names.is_hugging_face(official)
    # The four point embeddings become one tensor, the position table is stored twice.
    assert len(renamed) == len(official) - 3 + 1
    back = names.from_hugging_face(renamed)
    assert {name: array.shape for name, array in back.items()} == shapes(model)


def test_hugging_face_values(tiny):
    renamed = names.to_hugging_face(tiny)
    point = "sam_prompt_encoder.point_embeddings.2.weight"
    np.testing.assert_array_equal(renamed["prompt_encoder.point_embed.weight"][2:3], tiny[point])
    back = names.from_hugging_face(renamed)
    assert all(np.array_equal(back[name], tiny[name]) for name in tiny)


def test_hugging_face_position_tables_must_agree(shapes):
    renamed = names.to_hugging_face(blank(shapes("sam2_hiera_tiny")))
    copy = "shared_image_embedding.positional_embedding"
    with pytest.raises(ValueError, match="differ"):
        names.from_hugging_face(renamed | {copy: np.ones((2, 128), np.float32)})
    renamed.pop("prompt_encoder.shared_embedding.positional_embedding")
    assert len(names.from_hugging_face(renamed)) == len(shapes("sam2_hiera_tiny"))
