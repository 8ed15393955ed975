"""Segment what is pointed at in pictures: the original's `SAM2ImagePredictor`.

images                 ->  features, one batch for all
prompts of all images  ->  masks (N, C, S/4, S/4), one batch for all  ->  masks in the size of each image
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sam2_jax.build import Model, load_pretrained, model_of
from sam2_jax.config import POSTPROCESSING_IMAGE, ModelConfig
from sam2_jax.files import PartialFile
from sam2_jax.model.sam2 import Sam2
from sam2_jax.module_like import ModuleLike, lets_unknown_pass
from sam2_jax.outputs import as_array, hand_out, to_host
from sam2_jax.predict import postprocessing, preprocessing
from sam2_jax.structs import Features, Prompt

_EMBEDDING_FORMAT = "sam2_jax embedding 2"
# What of the configuration decides an embedding.
_ENCODER_FIELDS = ("hiera", "image_size", "hidden_dim", "dtype", "use_high_res_features_in_sam")


@functools.partial(jax.jit, static_argnums=0)
def encode_images(sam2: Sam2, params: dict, images: jax.Array) -> Features:
    """Features of images (B, S, S, 3), whose embedding looks at no memory."""
    features = sam2.apply({"params": params}, images, method="encode")
    embedding = sam2.apply({"params": params}, features, method="add_no_memory_embedding")
    return features.replace(embedding=embedding)


@functools.partial(jax.jit, static_argnums=(0, 5))
def decode_prompts(
    sam2: Sam2,
    params: dict,
    features: Features,
    image_index: jax.Array,
    prompt: Prompt,
    is_multimask: bool,
) -> tuple[jax.Array, jax.Array]:
    """Masks (N, 3 or 1, S/4, S/4) and IoUs (N, 3 or 1) of prompts on images; object scores are ignored.

    Args:
      sam2: the module.
      params: its parameters.
      features: of B images.
      image_index: (N,) int32, the image that each prompt is about.
      prompt: N prompts.
      is_multimask: three candidates instead of one.
    """
    # One image is shared by all prompts without a copy for each.
    if features.embedding.shape[0] > 1:
        features = jax.tree.map(lambda x: x[image_index], features)
    decoded = sam2.apply(
        {"params": params}, features.embedding, features.high_res, prompt, method="decode"
    )
    if is_multimask:
        return decoded.masks[:, 1:], decoded.ious[:, 1:]
    unstable = sam2.apply({"params": params}, decoded.masks[:, 0], method="is_unstable")
    chosen = jnp.where(unstable, 1 + jnp.argmax(decoded.ious[:, 1:], -1), 0)
    pick = jax.vmap(lambda x, i: x[i][None])
    return pick(decoded.masks, chosen), pick(decoded.ious, chosen)


@contextlib.contextmanager
def _about(what: str) -> Iterator[None]:
    """Errors inside say what they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


@lets_unknown_pass
class SAM2ImagePredictor(ModuleLike):
    """Encodes images once, then answers prompts on them.

    It keeps the images that are set, so that threads need one each; they may share a model.

    Attributes:
      model: the model and its parameters.
      mask_threshold: logits above it are the object.
    """

    def __init__(
        self,
        sam_model: Any,
        mask_threshold: float = 0.0,
        max_hole_area: float | None = None,
        max_sprinkle_area: float | None = None,
        keep_clicked: bool | None = None,
    ):
        """Makes a predictor.

        Args:
          sam_model: from `build_sam2`; or a video predictor, whose weights it shares.
          mask_threshold: logits above it are the object.
          max_hole_area: holes up to this many cells of the S/4 map are filled.
          max_sprinkle_area: specks up to this many cells are removed.
          keep_clicked: of masks that answer clicks alone, keep only what hangs together with one of them. None
            is the model's own choice, here and above: `model.pictures`.

        Raises:
          TypeError: `sam_model` is none.
        """
        self.model = model_of(sam_model)
        own, given = self.model.pictures, lambda x, default: default if x is None else x
        # As in the original, a picture's masks are arrays where a video's are tensors.
        self.outputs = self.model.outputs if sam_model is self.model else "numpy"
        self.mask_threshold = mask_threshold
        self._max_hole_area = given(max_hole_area, own.max_hole_area)
        self._max_sprinkle_area = given(max_sprinkle_area, own.max_sprinkle_area)
        self._keep_clicked = given(keep_clicked, own.keep_clicked)
        self.reset_predictor()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> "SAM2ImagePredictor":
        """Loads a released model by its hub name, or a local folder or file.

        Args:
          model_id: as for `load_pretrained`.
          **kwargs: arguments of this class; all others go to `build_sam2`.
        """
        names = {"mask_threshold", "max_hole_area", "max_sprinkle_area", "keep_clicked"}
        own = names & kwargs.keys()
        options = {name: kwargs.pop(name) for name in own}
        return cls(load_pretrained(model_id, POSTPROCESSING_IMAGE, **kwargs), **options)

    def reset_predictor(self) -> None:
        """Forgets the images."""
        self._encoded: Features | None = None
        self._sizes: list[tuple[int, int]] = []
        self._is_batch = False

    def set_image(self, image: np.ndarray | Image.Image) -> None:
        """Encodes an image for later calls of `predict`.

        Args:
          image: (H, W, 3) RGB; uint8, or float in [0, 1]; or a PIL image.

        Raises:
          ValueError: it is not such an image. The one that was set before stays.
        """
        self._encode([preprocessing.check_image(image)])
        self._is_batch = False

    def set_image_batch(self, image_list: Sequence[np.ndarray | Image.Image]) -> None:
        """Encodes several images, of any sizes, together for later calls of `predict_batch`.

        Args:
          image_list: images as for `set_image`.

        Raises:
          ValueError: there is none, or one is not an image; its position is named. What was set before
            stays.
        """
        images = []
        for i, image in enumerate(image_list):
            with _about(f"Image {i}"):
                images.append(preprocessing.check_image(image))
        if not images:
            raise ValueError("No image was given; expected a list of at least one.")
        self._encode(images)
        self._is_batch = True

    def _encode(self, images: list[np.ndarray]) -> None:
        size = self.model.config.image_size
        inputs = np.stack([preprocessing.image_to_input(image, size) for image in images])
        inputs = preprocessing.pad_rows(inputs, preprocessing.bucket(len(images)))
        self._encoded = encode_images(self.model.module, self.model.params, inputs)
        self._sizes = [image.shape[:2] for image in images]

    # What servers for the original keep of a picture and put back instead of encoding it again.

    @property
    def _is_image_set(self) -> bool:
        return self._encoded is not None

    @_is_image_set.setter
    def _is_image_set(self, value: bool) -> None:
        if not value:
            self.reset_predictor()

    @property
    def _orig_hw(self) -> list[tuple[int, int]]:
        """Height and width of the images."""
        return list(self._sizes)

    @_orig_hw.setter
    def _orig_hw(self, sizes: Sequence[tuple[int, int]]) -> None:
        self._sizes = [(int(height), int(width)) for height, width in sizes]

    @property
    def _features(self) -> dict[str, Any] | None:
        """The encoded images in the original's layout and under its names; None where there are none."""
        if self._encoded is None:
            return None
        features, sizes = self._current()
        maps = [features.embedding, *features.high_res]
        embed, *high_res = [to_host(x[: len(sizes)]).transpose(0, 3, 1, 2) for x in maps]
        return {"image_embed": embed, "high_res_feats": high_res}

    @_features.setter
    def _features(self, features: dict[str, Any] | None) -> None:
        if features is None:
            self._encoded = None
            return
        maps = [features["image_embed"], *features["high_res_feats"]]
        dtype = jnp.dtype(self.model.config.dtype)
        tensors = [np.moveaxis(np.asarray(as_array(x)), 1, -1).astype(dtype) for x in maps]
        found = [x.shape for x in tensors]
        expected = list(_tensor_shapes(self.model.config, len(tensors[0])).values())
        if found != expected:
            raise ValueError(
                f"The features have shapes {found}; expected {expected}, channels second."
            )
        names = ("embedding", "high_res_0", "high_res_1")
        self._encoded = _from_tensors(dict(zip(names, tensors, strict=False)))
        if len(self._sizes) != len(tensors[0]):  # until _orig_hw is set
            self._sizes = [(self.model.config.image_size,) * 2] * len(tensors[0])

    def _current(self) -> tuple[Features, list[tuple[int, int]]]:
        """Features, padded to a bucket of images, and the size of each image."""
        if self._encoded is None:
            raise RuntimeError("No image is set: call set_image(image) before asking about it.")
        return self._encoded, self._sizes

    def get_image_embedding(self) -> Any:
        """Returns the embeddings of the B images in the original's layout, (B, C, S/16, S/16) float32."""
        features, sizes = self._current()
        embedding = features.embedding[: len(sizes)].astype(jnp.float32)
        return hand_out(embedding.transpose(0, 3, 1, 2), self.outputs)

    def save_embedding(self, path: str | os.PathLike) -> None:
        """Saves what `set_image` or `set_image_batch` computed, for `load_embedding`.

        Args:
          path: one safetensors file; it appears whole or not at all.

        Raises:
          RuntimeError: no image is set.
          FileNotFoundError: the folder does not exist.
          OSError: the disk is full.
        """
        from safetensors import SafetensorError
        from safetensors.flax import save_file

        features, sizes = self._current()
        description = _describe(self.model) | {"sizes": json.dumps(sizes)}
        with PartialFile(path).written() as partial:
            try:
                save_file(_to_tensors(features, len(sizes)), partial, description)
            except SafetensorError as error:  # which a full disk is to safetensors
                raise OSError(f"{path} cannot be written: {error}") from error

    def load_embedding(self, path: str | os.PathLike) -> None:
        """Sets the images whose embeddings `save_embedding` wrote, instead of encoding them again.

        Args:
          path: the file.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no such file, is damaged, or belongs to another model, configuration or other
            weights. What was set before stays.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with safe_open(path, framework="flax") as file:
                description = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no file of save_embedding: {error}") from error
        if description.get("format") != _EMBEDDING_FORMAT:
            raise ValueError(f"{path} was not written by save_embedding of this release.")
        for name, here in _describe(self.model).items():
            if description.get(name) != here:
                raise ValueError(
                    f"{path} does not fit the model: {name} is {description.get(name)} in the file and "
                    f"{here} here. Load the model that made it, or set the images again."
                )
        sizes = [tuple(size) for size in json.loads(description["sizes"])]
        expected = _tensor_shapes(self.model.config, len(sizes))
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"{path} is damaged: it holds {found}; expected {expected}.")
        self._encoded, self._sizes = _from_tensors(tensors), sizes

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segments what is pointed at, in the image that is set; of a batch, in the last one.

        Args:
          point_coords: (P, 2) or (N, P, 2) points (x, y) in pixels.
          point_labels: (P,) or (N, P): 1 object, 0 background.
          box: (4,) or (N, 4) boxes x0, y0, x1, y1 in pixels, or (N, 2, 2); they may stick out of the image.
          mask_input: (1, S/4, S/4) or (N, 1, S/4, S/4) logits of an earlier low-resolution mask.
          multimask_output: three candidates instead of one; better for a single ambiguous click.
          return_logits: logits instead of 0 and 1.
          normalize_coords: False means that coordinates are in [0, 1] already.

        Returns:
          masks (C, H, W) float32 of 0 and 1 as in the original (or logits), predicted IoUs (C,), and
          low-resolution logits (C, S/4, S/4) within +-32. C is 3 or 1; unless there is one prompt,
          all have a leading N.

        Raises:
          RuntimeError: no image is set.
          ValueError: shapes that do not fit, or prompts outside of the image.
        """
        _, sizes = self._current()
        prompt = self._prompt(
            sizes[-1], point_coords, point_labels, box, mask_input, normalize_coords
        )
        last = len(sizes) - 1
        return self._answer([prompt], multimask_output, return_logits, first=last)[0]

    def predict_batch(
        self,
        point_coords_batch: Sequence[np.ndarray | None] | None = None,
        point_labels_batch: Sequence[np.ndarray | None] | None = None,
        box_batch: Sequence[np.ndarray | None] | None = None,
        mask_input_batch: Sequence[np.ndarray | None] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Segments what is pointed at in each image of `set_image_batch`, all in one call of the decoder.

        Args:
          point_coords_batch: for each image what `predict` takes, or None.
          point_labels_batch: likewise.
          box_batch: likewise; (0, 4), no boxes at all, gives no masks.
          mask_input_batch: likewise.
          multimask_output: as for `predict`.
          return_logits: as for `predict`.
          normalize_coords: as for `predict`.

        Returns:
          Masks, predicted IoUs and low-resolution logits, each a list with what `predict` returns for each
          image.

        Raises:
          RuntimeError: no image is set.
          ValueError: as for `predict`, with the position of the image; or not one entry for each image.
        """
        _, sizes = self._current()
        columns = []
        for name, batch in (
            ("point_coords_batch", point_coords_batch),
            ("point_labels_batch", point_labels_batch),
            ("box_batch", box_batch),
            ("mask_input_batch", mask_input_batch),
        ):
            column = [None] * len(sizes) if batch is None else list(batch)
            if len(column) != len(sizes):
                raise ValueError(
                    f"{name} has {len(column)} entries for {len(sizes)} images; expected one each, None for "
                    "an image without."
                )
            columns.append(column)
        prompts = []
        for i, (size, *given) in enumerate(zip(sizes, *columns, strict=True)):
            with _about(f"Image {i}"):
                prompts.append(self._prompt(size, *given, is_pixels=normalize_coords))
        masks, ious, low_res = zip(
            *self._answer(prompts, multimask_output, return_logits), strict=True
        )
        return list(masks), list(ious), list(low_res)

    def _prep_prompts(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        mask_logits: Any,
        normalize_coords: bool,
        img_idx: int = -1,
    ) -> tuple[Any, Any, Any, Any]:
        """Prompts as `predict` takes them -> mask logits, points, labels and boxes as `_predict` takes them."""
        height, width = self._current()[1][img_idx]
        size, side = (width, height) if normalize_coords else (1, 1), self.model.config.image_size
        scale = lambda x: np.asarray(as_array(x), np.float32) / size * np.float32(side)
        lead = lambda x, rank: x if x is None or x.ndim == rank else x[None]
        points = None if point_coords is None else lead(scale(point_coords), 3)
        labels = None if point_labels is None else lead(np.asarray(as_array(point_labels)), 2)
        boxes = None if box is None else scale(np.reshape(as_array(box), (-1, 2, 2)))
        logits = None if mask_logits is None else lead(np.asarray(as_array(mask_logits)), 4)
        return logits, points, labels, boxes

    def _predict(
        self,
        point_coords: Any,
        point_labels: Any,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        img_idx: int = -1,
    ) -> tuple[Any, Any, Any]:
        """`predict` with prompts in pixels of the S x S input, under the name by which programs call it.

        Returns:
          Masks (N, C, H, W) bool (or logits), predicted IoUs (N, C), and low-resolution logits; N also if it
          is 1.
        """
        _, sizes = self._current()
        image = range(len(sizes))[img_idx]
        side = np.float32(self.model.config.image_size)
        scale = lambda x: None if x is None else np.asarray(as_array(x), np.float32) / side
        prompt = self._prompt(
            sizes[image], scale(point_coords), point_labels, scale(boxes), mask_input, False
        )
        answer = self._answer([prompt], multimask_output, return_logits, first=image)[0]
        masks, ious, low_res = (x[None] for x in answer) if len(prompt.labels) == 1 else answer
        return (masks if return_logits else masks > 0), ious, low_res

    def _prompt(
        self,
        size: tuple[int, int],
        points: np.ndarray | None,
        labels: np.ndarray | None,
        box: np.ndarray | None,
        mask_input: np.ndarray | None,
        is_pixels: bool,
    ) -> Prompt:
        """Checks the prompts on an image of a size, and scales them to the input."""
        config = self.model.config
        points, labels = preprocessing.join_prompts(points, labels, box)
        preprocessing.check_points(points, labels, *size, is_pixels)
        logits = preprocessing.check_mask_logits(mask_input, config.mask_size)
        n = max(len(points), len(logits)) if len(points) else 0
        if len(points) not in (1, n) or len(logits) not in (0, 1, n):
            raise ValueError(f"{len(logits)} mask inputs do not go with {len(points)} prompts.")
        points = preprocessing.scale_points(points, *size, config.image_size, is_pixels)
        spread = lambda x: np.broadcast_to(x, (n, *x.shape[1:]))
        prompt = preprocessing.pad_points(spread(points), spread(labels))
        return prompt.replace(mask_logits=spread(logits)) if len(logits) else prompt

    def _answer(
        self, prompts: list[Prompt], is_multimask: bool, return_logits: bool, first: int = 0
    ) -> list[tuple[Any, Any, Any]]:
        """Masks, IoUs and low-resolution masks for the prompts on each image from `first` on."""
        counts = [len(prompt.labels) for prompt in prompts]
        image_index = np.repeat(first + np.arange(len(prompts), dtype=np.int32), counts)
        joined = preprocessing.join_padded(prompts)
        low_res, ious = self.decode(joined, image_index, is_multimask)
        if self.outputs == "numpy":
            low_res, ious = np.asarray(low_res), np.asarray(ious)
        cleaned = self.clean(low_res)
        if self._keep_clicked:
            cleaned = postprocessing.unless_empty(cleaned, low_res, self.mask_threshold)
            cells = np.asarray(joined.points) * (low_res.shape[-1] / self.model.config.image_size)
            cleaned = postprocessing.keep_clicked(
                cleaned, cells, joined.labels, self.mask_threshold
            )
        answers = []
        for (height, width), end, n in zip(
            self._sizes[first:], np.cumsum(counts), counts, strict=True
        ):
            own = slice(end - n, end)
            padded = preprocessing.pad_rows(cleaned[own], preprocessing.bucket(n))
            masks = postprocessing.finish_masks(
                padded,
                postprocessing.padded_weights(padded.shape[-2], height),
                postprocessing.padded_weights(padded.shape[-1], width),
                self.mask_threshold,
                return_logits,
            )
            if self.outputs == "numpy":
                masks = np.asarray(masks)
            masks = masks[:n, :, :height, :width]
            limit = postprocessing.LOGIT_LIMIT
            answer = masks.astype(np.float32), ious[own], low_res[own].clip(-limit, limit)
            if n == 1:  # as in the original, a single prompt has no axis of its own
                answer = tuple(x[0] for x in answer)
            answers.append(tuple(hand_out(x, self.outputs) for x in answer))
        return answers

    def decode(
        self, prompt: Prompt, image_index: np.ndarray, is_multimask: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the decoder alone; what the other methods and the mask generator build upon.

        Args:
          prompt: N prompts, padded to a bucket, in pixels of the S x S input.
          image_index: (n,) the image that each prompt is about; those from n on are padding.
          is_multimask: three candidates instead of one.

        Returns:
          Logits (N, C, S/4, S/4), neither clamped nor cleaned, and predicted IoUs (N, C), on the device.

        Raises:
          RuntimeError: no image is set.
        """
        features, _ = self._current()
        index = preprocessing.pad_rows(np.asarray(image_index, np.int32), len(prompt.labels))
        model = self.model
        return decode_prompts(model.module, model.params, features, index, prompt, is_multimask)

    def clean(self, masks: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
        """Fills holes and removes specks of (..., S/4, S/4) logits, as the constructor was told.

        Returns:
          On the host what was there, else on the device.
        """
        cleaned = postprocessing.clean_masks(
            masks,
            self._max_hole_area,
            self._max_sprinkle_area,
            threshold=self.mask_threshold,
            filled=self.mask_threshold + 10.0,
            removed=self.mask_threshold - 10.0,
        )
        return np.asarray(cleaned) if isinstance(masks, np.ndarray) else cleaned


def _describe(model: Model) -> dict[str, str]:
    """What must agree between the model that made an embedding and the one that uses it."""
    config = dataclasses.asdict(model.config)
    return {
        "format": _EMBEDDING_FORMAT,
        "model": model.name,
        "config": json.dumps({name: config[name] for name in _ENCODER_FIELDS}),
        "weights": model.digest,
    }


def _tensor_shapes(config: ModelConfig, num_images: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file of embeddings."""
    b, g, c = num_images, config.grid, config.hidden_dim
    shapes = {"embedding": (b, g, g, c)}
    if config.use_high_res_features_in_sam:
        shapes |= {
            "high_res_0": (b, 4 * g, 4 * g, c // 8),
            "high_res_1": (b, 2 * g, 2 * g, c // 4),
        }
    return shapes


def _to_tensors(features: Features, num_images: int) -> dict[str, jax.Array]:
    named = {f"high_res_{i}": x for i, x in enumerate(features.high_res)}
    return {name: x[:num_images] for name, x in ({"embedding": features.embedding} | named).items()}


def _from_tensors(tensors: dict[str, jax.Array]) -> Features:
    """The inverse of `_to_tensors`, padded to the bucket."""

    def pad(x):
        return jnp.asarray(preprocessing.pad_rows(np.asarray(x), preprocessing.bucket(len(x))))

    high_res = [pad(tensors[name]) for name in sorted(tensors) if name != "embedding"]
    return Features(pad(tensors["embedding"]), tuple(high_res))
