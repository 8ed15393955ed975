"""Pytrees that travel between the parts.

Shapes: T frames, N objects, S side of the square input in pixels, H = W = S/16 cells of the feature map,
C channels of the features, M channels of a memory, P points, K prompted slots, R slots for tracked frames.
"""

from typing import Any, TypeAlias

import jax
import numpy as np
from flax import struct

Array: TypeAlias = jax.Array | np.ndarray  # on a device or on the host


@struct.dataclass
class Features:
    """What the image encoder makes of frames.

    Attributes:
      embedding: (B, H, W, C) stride-16 map.
      high_res: the stride-4 and stride-8 maps (B, 4H, 4W, C/8) and (B, 2H, 2W, C/4), already projected
        for the mask decoder; empty if the model has no high-resolution skips.
    """

    embedding: jax.Array
    high_res: tuple[jax.Array, ...]


@struct.dataclass
class Frame:
    """One frame of a video; with a leading T on both leaves, a clip.

    Attributes:
      image: (S, S, 3) RGB, uint8 or already normalised float32.
      index: () int32 position in the video. -1 marks padding: such a frame changes nothing.
    """

    image: jax.Array
    index: jax.Array


@struct.dataclass
class Prompt:
    """What a user points at on one frame.

    Attributes:
      points: (N, P, 2) float32 (x, y) in pixels of the S x S input.
      labels: (N, P) int32: 1 object, 0 background, 2 and 3 top-left and bottom-right of a box, -1 the
        decoder's own "not a point" token, -2 nothing at all (padding).
      mask_logits: (N, S/4, S/4) float32 logits of an earlier mask, fed to the prompt encoder; None if
        no object has one.
      has_mask_logits: (N,) bool, which objects have one.
      masks: (N, S, S) float32 in [0, 1], masks that are the answer themselves; None if no object has one.
      has_mask: (N,) bool, which objects have one.
    """

    points: jax.Array
    labels: jax.Array
    mask_logits: jax.Array | None = None
    has_mask_logits: jax.Array | None = None
    masks: jax.Array | None = None
    has_mask: jax.Array | None = None

    @property
    def num_points(self) -> jax.Array:
        """(N,) int32 points of each object; a box counts as two."""
        return (self.labels >= 0).sum(-1)

    @property
    def is_prompted(self) -> jax.Array:
        """(N,) bool, the objects that are prompted at all."""
        given = self.num_points > 0
        for has_one in (self.has_mask_logits, self.has_mask):
            if has_one is not None:
                given = given | has_one
        return given


@struct.dataclass
class Segmentation:
    """What the mask decoder says about one frame, all candidates included.

    Attributes:
      candidates: (N, 4, S/4, S/4) float32 logits: one mask for clear prompts, three for ambiguous ones.
      candidate_ious: (N, 4) float32 predicted IoU of each.
      is_multimask: (N,) bool, whether the prompt asks for the three.
      masks: (N, S/4, S/4) float32 logits of the chosen one.
      ious: (N,) float32 its predicted IoU.
      scores: (N,) float32 logit that the object is visible.
      pointers: (N, C) float32 object pointers.
    """

    candidates: jax.Array
    candidate_ious: jax.Array
    is_multimask: jax.Array
    masks: jax.Array
    ious: jax.Array
    scores: jax.Array
    pointers: jax.Array


@struct.dataclass
class Prediction:
    """The answer for one frame, and what the bank remembers of it.

    Attributes:
      masks: (N, S/4, S/4) float32 mask logits; > 0 is the object.
      ious: (N,) float32 predicted IoU.
      scores: (N,) float32 object score logit; > 0 is visible.
      pointers: (N, C) float32 object pointers.
      memories: (N, H, W, M) memory in the bank's type.
      retention: (N,) int32 how long the frame is remembered, see `sam2_jax.model.memory_policy`; without
        meaning for objects that are prompted on it.
      policy: the bank's `policy` after the frame.
    """

    masks: jax.Array
    ious: jax.Array
    scores: jax.Array
    pointers: jax.Array
    memories: jax.Array
    retention: jax.Array
    policy: Any = ()


@struct.dataclass
class MemoryBank:
    """All that tracking remembers, in static shapes; nothing grows with the video.

    A frame index of -1 marks an empty slot.

    Attributes:
      prompted_memories: (N, K, H, W, M) memories of prompted frames.
      prompted_pointers: (N, K, C) float32 their object pointers.
      prompted_frames: (N, K) int32 their frame indices, in the order in which they were prompted.
      recent_memories: (N, R, H, W, M) memories of tracked frames; R is 6, more under a memory policy that
        chooses.
      recent_frames: (N, R) int32 their frame indices.
      recent_pointers: (N, 15, C) float32 pointers of tracked frames; 16 under the policy "quality".
      recent_pointer_frames: (N, 15) int32 their frame indices.
      num_frames: () int32 frames of the video; at least 16 for a stream. Below 16 it scales the time code
        of the pointers.
      direction: () int32, 1 when tracking forwards, -1 backwards.
      policy: state of the memory policy, every leaf leads with N; () for those without.
    """

    prompted_memories: jax.Array
    prompted_pointers: jax.Array
    prompted_frames: jax.Array
    recent_memories: jax.Array
    recent_frames: jax.Array
    recent_pointers: jax.Array
    recent_pointer_frames: jax.Array
    num_frames: jax.Array
    direction: jax.Array
    policy: Any = ()
