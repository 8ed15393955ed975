"""SAM 2: one frame in, one prediction out, memory carried explicitly.

    `condition_on_memory` (memory attention)
    -> `segment` (prompt encoder, mask decoder)
    -> `encode_memory` (memory encoder)

`Sam2.__call__(bank, features, index, prompt) -> (bank, prediction)` is the three in a row and the body of
the scan in `sam2_jax.track`. Nothing here loops over time.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import ArrayLike, Bool, Float, Float32, Int, Real

from sam2_jax.config import POSTPROCESSING_VIDEO, ModelConfig
from sam2_jax.model import encodings, memory_bank, memory_policy
from sam2_jax.model.image_encoder import ImageEncoder
from sam2_jax.model.layers import MLP, Conv, Dense, draw_params, normal
from sam2_jax.model.mask_decoder import Decoded, MaskDecoder
from sam2_jax.model.memory_attention import MemoryAttention
from sam2_jax.model.memory_encoder import MemoryEncoder
from sam2_jax.model.prompt_encoder import PromptEncoder
from sam2_jax.ops.resize import downsample_antialiased, upsample_4x
from sam2_jax.structs import Array, Features, MemoryBank, Prediction, Prompt, Segmentation

NO_OBJECT = -1024.0  # mask logit everywhere if the object is judged absent
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def normalise(image: Real[Array, "*b 3"]) -> Float32[Array, "*b 3"]:
    """Normalises uint8 RGB as ImageNet; float input is taken as normalised."""
    if image.dtype != jnp.uint8:
        return image.astype(jnp.float32)
    x = image.astype(jnp.float32) / 255
    return (x - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)


def no_prompt(num_objects: int) -> Prompt:
    """The prompt of a frame without prompts."""
    return Prompt(
        jnp.zeros((num_objects, 2, 2), jnp.float32), jnp.full((num_objects, 2), -1, jnp.int32)
    )


def asks_for_three(
    config: ModelConfig,
    num_points: Int[Array, "*n"],
    is_initial: Bool[Array, "*n"] | Bool[ArrayLike, ""],
) -> Bool[jax.Array, "*n"]:
    """Tells which prompts are ambiguous: those of few points; a box counts as two."""
    return (
        config.multimask_output_in_sam
        & (is_initial | jnp.asarray(config.multimask_output_for_tracking))
        & (num_points >= config.multimask_min_pt_num)
        & (num_points <= config.multimask_max_pt_num)
    )


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """Lets arrays of other ranks and types meet, which programs may have forbidden for their own code."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


class Sam2(nn.Module):
    """The model; every method takes and returns arrays and pytrees only.

    Attributes:
      config: what it computes.
      remat: what the backward pass computes again; see `repeat.rematerialise`.
      drop_path_rate: of the last block of the trunk, while it trains.
      memory_attention_dropout: while it trains.
    """

    config: ModelConfig
    remat: str = "none"
    drop_path_rate: float = 0.0
    memory_attention_dropout: float = 0.0

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """As Flax's, by the usual rules of promotion whatever the user's are."""
        with usual_promotion():
            return super().apply(*args, **kwargs)

    def setup(self) -> None:
        """Creates the parts."""
        config = self.config
        c, m, dtype = config.hidden_dim, config.memory_dim, config.dtype
        small = lambda name, *shape: self.param(name, normal(0.02), shape)
        self.image_encoder = ImageEncoder(config, self.remat, self.drop_path_rate)
        self.memory_attention = MemoryAttention(config, self.memory_attention_dropout, self.remat)
        self.memory_encoder = MemoryEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

        self.maskmem_tpos_enc = small("maskmem_tpos_enc", config.num_maskmem, 1, 1, m)
        self.no_mem_embed = small("no_mem_embed", 1, 1, c)
        self.no_mem_pos_enc = small("no_mem_pos_enc", 1, 1, c)  # in every checkpoint, never read
        if config.pred_obj_scores and config.use_obj_ptrs_in_encoder:
            self.no_obj_ptr = small("no_obj_ptr", 1, c)
        if config.no_obj_embed_spatial:
            self.no_obj_embed_spatial = small("no_obj_embed_spatial", 1, m)
        if config.use_obj_ptrs_in_encoder:
            self.mask_downsample = Conv(1, (4, 4), 4)
            is_mlp = config.use_mlp_for_obj_ptr_proj
            self.obj_ptr_proj = MLP((c, c, c), dtype=dtype) if is_mlp else Dense(c, dtype)
            if config.proj_tpos_enc_in_obj_ptrs:
                self.obj_ptr_tpos_proj = Dense(m)

    def encode(self, images: Real[Array, "b s s 3"], is_training: bool = False) -> Features:
        """Encodes images, uint8 RGB or normalised float32."""
        maps = self.image_encoder(normalise(images), is_training)
        return Features(maps[2], self.mask_decoder.project_high_res(maps))

    def add_no_memory_embedding(self, features: Features) -> Float[jax.Array, "b h w c"]:
        """Embedding of a frame that looks at no memory: an image, or the first prompted frame."""
        return features.embedding + self.no_mem_embed[:, :, None].astype(features.embedding.dtype)

    def condition_on_memory(
        self,
        bank: MemoryBank,
        features: Features,
        index: Int[ArrayLike, ""],
        is_training: bool = False,
    ) -> Float[jax.Array, "n h w c"]:
        """Conditions a frame on what each object's bank remembers.

        Args:
          bank: of N objects.
          features: of one frame, leading axis 1.
          index: position of the frame in the video.
          is_training: applies dropout (random stream "dropout").
        """
        config = self.config
        _, h, w, c = features.embedding.shape
        n, m = bank.prompted_frames.shape[0], config.memory_dim
        if config.num_maskmem == 0:
            return jnp.broadcast_to(features.embedding, (n, h, w, c))

        seen = memory_bank.read(config, bank, index)
        slots = seen.slots.reshape(n, -1, h * w, m)
        place = encodings.sine_2d(h, w, m).reshape(h * w, m)
        time = self.maskmem_tpos_enc[:, 0, 0][seen.slot_codes]
        pointers = seen.pointers.reshape(n, -1, m)  # a pointer is cut into C / M tokens
        pointer_mask = jnp.repeat(seen.pointer_mask, c // m, 1)
        x = self.memory_attention(
            features.embedding.reshape(1, h * w, c),
            encodings.sine_2d(h, w, c).reshape(h * w, c),
            slots,
            place + time[:, :, None],
            seen.slot_mask,
            pointers,
            self._pointer_positions(seen.pointer_times),
            pointer_mask & config.use_obj_ptrs_in_encoder,
            is_training,
        )
        return x.reshape(n, h, w, c)

    recall = condition_on_memory  # its earlier name, which tools that compile it alone call

    def _pointer_positions(self, times):
        """(N, X) -> (N, X * C / M, M)."""
        config = self.config
        n, x = times.shape
        m, pieces = config.memory_dim, config.hidden_dim // config.memory_dim
        if not (config.use_obj_ptrs_in_encoder and config.add_tpos_enc_to_obj_ptrs):
            return jnp.zeros((n, x * pieces, m), jnp.float32)
        if config.proj_tpos_enc_in_obj_ptrs:
            codes = self.obj_ptr_tpos_proj(encodings.sine_1d(times, config.hidden_dim))
        else:
            codes = encodings.sine_1d(times, m)
        return jnp.repeat(codes, pieces, 1)

    def decode(
        self,
        embedding: Float[Array, "_ h w c"],
        high_res: tuple[Float[Array, "_ _ _ _"], ...],
        prompt: Prompt,
    ) -> Decoded:
        """Runs prompt encoder and mask decoder: every candidate, nothing chosen.

        Args:
          embedding: of the frame, leading axis N or 1.
          high_res: as in `Features`, leading axis N or 1.
          prompt: of N objects.
        """
        tokens, token_mask, dense = self.prompt_encoder(prompt)
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder(embedding, positions, tokens, token_mask, dense, high_res)

    def is_unstable(self, single: Float[Array, "n q q"]) -> Bool[jax.Array, " n"]:
        """Tells where the logits of the single mask depend on the threshold: take the best of three."""
        config = self.config
        if not config.dynamic_multimask_via_stability:
            return jnp.zeros(single.shape[0], bool)
        delta = config.dynamic_multimask_stability_delta
        inner = (single > delta).sum((1, 2))
        outer = (single > -delta).sum((1, 2))
        stability = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0)
        return stability < config.dynamic_multimask_stability_thresh

    def segment(
        self,
        embedding: Float[Array, "_ h w c"],
        features: Features,
        prompt: Prompt,
        is_initial: Bool[Array, " n"] | Bool[ArrayLike, ""] = True,
    ) -> Segmentation:
        """Turns a conditioned frame and a prompt into masks (paper section 4, "Mask decoder").

        Args:
          embedding: from `condition_on_memory` or `add_no_memory_embedding`, leading axis N or 1.
          features: of the frame, leading axis 1.
          prompt: of N objects.
          is_initial: whether the frame is the first prompted one.

        Returns:
          `Segmentation` of N objects.
        """
        config = self.config
        if prompt.masks is not None and not config.use_mask_input_as_output_without_sam:
            prompt = prompt.replace(
                mask_logits=downsample_antialiased(prompt.masks, config.mask_size),
                has_mask_logits=prompt.has_mask,
            )
        segmentation = self._segment_by_decoder(embedding, features, prompt, is_initial)
        masks, has_mask = prompt.masks, prompt.has_mask
        if masks is None or has_mask is None or not config.use_mask_input_as_output_without_sam:
            return segmentation
        given = self.segment_by_mask(features, masks)

        def choose(given, segmentation):
            is_given = has_mask.reshape(-1, *[1] * (segmentation.ndim - 1))
            return jnp.where(is_given, given, segmentation)

        return jax.tree.map(choose, given, segmentation)

    def _segment_by_decoder(self, embedding, features, prompt, is_initial):
        config = self.config
        decoded = self.decode(embedding, features.high_res, prompt)
        is_multimask = asks_for_three(config, prompt.num_points, is_initial)
        best = 1 + jnp.argmax(decoded.ious[:, 1:], -1)
        chosen = jnp.where(is_multimask | self.is_unstable(decoded.masks[:, 0]), best, 0)
        token = jnp.where(is_multimask & config.use_multimask_token_for_obj_ptr, best, 0)
        pick = jax.vmap(lambda x, i: x[i])

        masks = decoded.masks
        if config.pred_obj_scores:
            is_visible = ~(decoded.scores <= 0)  # what is no number shall be seen
            masks = jnp.where(is_visible[:, None, None, None], masks, NO_OBJECT)
        return Segmentation(
            candidates=masks,
            candidate_ious=decoded.ious,
            is_multimask=is_multimask,
            masks=pick(masks, chosen),
            ious=pick(decoded.ious, chosen),
            scores=decoded.scores,
            pointers=self._pointer(pick(decoded.tokens, token), decoded.scores),
        )

    def _pointer(self, token, scores):
        """(N, C) mask token -> (N, C) float32 object pointer; the learned one for absent objects."""
        config = self.config
        if not config.use_obj_ptrs_in_encoder:
            return jnp.zeros(token.shape, jnp.float32)
        pointer = self.obj_ptr_proj(token).astype(jnp.float32)
        if config.soft_no_obj_ptr:
            visible = jax.nn.sigmoid(scores)
        else:
            visible = (scores > 0).astype(jnp.float32)
        return self._or_absent(pointer, visible)

    def _or_absent(self, pointer, visible):
        if not self.config.pred_obj_scores:
            return pointer
        visible = visible[:, None]
        if self.config.fixed_no_obj_ptr:
            pointer = visible * pointer
        return pointer + (1 - visible) * self.no_obj_ptr

    def segment_by_mask(self, features: Features, masks: Float[Array, "n s s"]) -> Segmentation:
        """Takes given masks as the answer; the decoder only makes the pointer.

        Args:
          features: of the frame, leading axis 1.
          masks: in [0, 1].
        """
        config = self.config
        n = masks.shape[0]
        low_res = downsample_antialiased(20.0 * masks - 10.0, config.mask_size)
        visible = (masks > 0).any((1, 2)).astype(jnp.float32)
        pointers = jnp.zeros((n, config.hidden_dim), jnp.float32)
        if config.use_obj_ptrs_in_encoder:
            logits = self.mask_downsample(masks[..., None])[..., 0]
            prompt = no_prompt(n).replace(mask_logits=logits, has_mask_logits=jnp.ones(n, bool))
            decoded = self.decode(features.embedding, features.high_res, prompt)
            pointers = self._pointer(decoded.tokens[:, 0], decoded.scores)
            # Absence is judged twice, by the decoder and by the mask, as in the original.
            pointers = self._or_absent(pointers, visible)
        return Segmentation(
            candidates=jnp.repeat(low_res[:, None], 4, 1),
            candidate_ious=jnp.ones((n, 4), jnp.float32),
            is_multimask=jnp.zeros(n, bool),
            masks=low_res,
            ious=jnp.ones(n, jnp.float32),
            scores=20.0 * visible - 10.0,
            pointers=pointers,
        )

    def encode_memory(
        self,
        features: Features,
        masks: Float[Array, "n q q"],
        scores: Float[Array, " n"],
        is_prompted: Bool[Array, " n"],
    ) -> Float[jax.Array, "n h w m"]:
        """Encodes memories (paper section 4, "Memory encoder").

        Args:
          features: raw features of the frame, leading axis 1.
          masks: mask logits, of side S/4 or S.
          scores: object score logits.
          is_prompted: whether the mask answers a prompt.

        Returns:
          Memories in the bank's type.
        """
        config = self.config
        masks = masks.astype(jnp.float32)
        if masks.shape[-1] != config.image_size:
            masks = upsample_4x(masks)
        probabilities = jax.nn.sigmoid(masks)
        if config.binarize_mask_from_pts_for_mem_enc:
            binary = (masks > 0).astype(jnp.float32)
            probabilities = jnp.where(is_prompted[:, None, None], binary, probabilities)
        scale, bias = config.sigmoid_scale_for_mem_enc, config.sigmoid_bias_for_mem_enc
        memories = self.memory_encoder(features.embedding, probabilities * scale + bias)
        if config.no_obj_embed_spatial:
            absent = (scores <= 0)[:, None, None, None]
            embed = self.no_obj_embed_spatial[:, None, None].astype(memories.dtype)
            memories = jnp.where(absent, memories + embed, memories)
        return memories.astype(config.memory_dtype)

    def begin(
        self, bank: MemoryBank, features: Features, index: Int[ArrayLike, ""], prompt: Prompt
    ) -> tuple[MemoryBank, Prediction]:
        """Takes a first prompted frame: no memory is read, the prompted objects remember it.

        Args and result as for `__call__`.
        """
        segmentation = self.segment(self.add_no_memory_embedding(features), features, prompt)
        return self._conclude(
            bank, features, index, segmentation, prompt.is_prompted, prompt.is_prompted
        )

    def __call__(
        self,
        bank: MemoryBank,
        features: Features,
        index: Int[ArrayLike, ""],
        prompt: Prompt | None = None,
    ) -> tuple[MemoryBank, Prediction]:
        """Takes one frame of the video.

        Args:
          bank: of N objects.
          features: of one frame, leading axis 1.
          index: position of the frame in the video.
          prompt: of N objects; None on a frame without prompts. A prompt on an object that the bank does
            not know yet is answered without memory, any other on top of what is remembered.

        Returns:
          The bank with this frame in it, and the prediction. An object that was never prompted is absent.
        """
        is_known = (bank.prompted_frames >= 0).any(1)
        embedding = self.condition_on_memory(bank, features, index)
        is_prompted = jnp.zeros(is_known.shape, bool)
        if prompt is not None:
            is_prompted = prompt.is_prompted
            starts = (is_prompted & ~is_known)[:, None, None, None]
            embedding = jnp.where(starts, self.add_no_memory_embedding(features), embedding)
        is_initial = is_prompted & ~is_known
        segmentation = self.segment(
            embedding, features, prompt or no_prompt(len(is_known)), is_initial
        )
        return self._conclude(
            bank, features, index, segmentation, is_known | is_prompted, is_prompted
        )

    def _conclude(self, bank, features, index, segmentation, is_known, is_prompted):
        masks = jnp.where(is_known[:, None, None], segmentation.masks, NO_OBJECT)
        scores = jnp.where(is_known, segmentation.scores, -10.0)
        memories = self.encode_memory(features, masks, scores, is_prompted)
        is_taken = is_known & (index >= 0)  # padding of a clip changes nothing
        is_tracked = is_taken & ~is_prompted & ~(bank.prompted_frames == index).any(1)
        policy, retention = memory_policy.update(
            self.config,
            bank.policy,
            index,
            segmentation.replace(masks=masks, scores=scores),
            is_tracked,
        )
        prediction = Prediction(
            masks, segmentation.ious, scores, segmentation.pointers, memories, retention, policy
        )
        bank = memory_bank.write(
            self.config,
            bank,
            index,
            memories,
            segmentation.pointers,
            is_taken,
            is_prompted,
            retention,
        ).replace(policy=policy)
        return bank, prediction


def _touch_every_parameter(sam2: Sam2, image: jax.Array) -> jax.Array:
    """Takes a prompt on one frame and remembers it on the next, which uses every parameter."""
    size, mask_size = sam2.config.image_size, sam2.config.mask_size
    prompt = no_prompt(1).replace(
        mask_logits=jnp.zeros((1, mask_size, mask_size), jnp.float32),
        has_mask_logits=jnp.ones(1, bool),
        masks=jnp.zeros((1, size, size), jnp.float32),
        has_mask=jnp.ones(1, bool),
    )
    features = sam2.encode(image)
    bank, _ = sam2.begin(memory_bank.empty(sam2.config, 1), features, jnp.int32(0), prompt)
    return sam2.condition_on_memory(bank, features, jnp.int32(1))


def _drawn_params(config: ModelConfig) -> dict:
    """Shapes of the parameters, and how each is drawn."""
    # Models of 256 px and more differ in nothing of it, nor do compute types and what builders switch on.
    return _trace_params(
        config.replace(
            image_size=min(config.image_size, 256),
            dtype="float32",
            **dict.fromkeys(POSTPROCESSING_VIDEO, False),
        )
    )


@functools.lru_cache(maxsize=32)
def _trace_params(config: ModelConfig) -> dict:
    """It takes seconds, and everything that loads or checks weights asks."""
    image = jnp.zeros((1, config.image_size, config.image_size, 3), jnp.float32)
    init = lambda key: Sam2(config).init(key, image, method=_touch_every_parameter)["params"]
    with usual_promotion():
        return jax.eval_shape(init, jax.random.key(0))


def param_shapes(config: ModelConfig) -> dict:
    """Returns the shapes and types of the parameters, as nested dicts of `jax.ShapeDtypeStruct`."""
    return nn.meta.unbox(_drawn_params(config))


def init_params(config: ModelConfig, key: jax.Array) -> dict:
    """Returns random parameters with the original's initial distribution (PyTorch's defaults).

    Two differ: the frequencies of the position encoding in models smaller than 256 px (`PromptEncoder`), and
    biases in the cross-attention to memories (`memory_attention.RotaryAttention`).

    Args:
      config: sizes.
      key: random key.

    Returns:
      Nested dicts of float32 arrays on the host.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return draw_params(rng, _drawn_params(config))


# Modules that compute in float32 whatever the compute type is.
_IN_FLOAT32 = ("mask_downsample", "obj_ptr_tpos_proj")


def in_compute_type(config: ModelConfig, params: dict) -> dict:
    """Returns parameters with the kernels of layers in the type in which they meet what they multiply.

    That changes no result, since layers cast them, and halves what a step reads of them.

    Args:
      config: names the compute type.
      params: nested dicts of float32 arrays.
    """

    def cast(path, x):
        first, last = path[0].key, path[-1].key
        is_cast = last == "kernel" and first not in _IN_FLOAT32
        return x.astype(config.dtype) if is_cast else x

    return jax.tree_util.tree_map_with_path(cast, params)
