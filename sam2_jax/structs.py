"""Pytrees that travel between the parts.

Axes: t frames, n objects, s side of the square input in pixels, q = s/4 that of the masks, h = w = s/16 cells
of the feature map, c channels of the features, m channels of a memory, p points, k prompted slots, r slots for
tracked frames, x slots for their pointers. What `sam2_jax.track` returns for a clip has t in front of all.
"""

from typing import Any, TypeAlias

import jax
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Float32, Int, Int32, Real

Array: TypeAlias = jax.Array | np.ndarray  # on a device or on the host


@struct.dataclass
class Features:
    """What the image encoder makes of frames.

    Attributes:
      embedding: stride-16 map.
      high_res: the stride-4 map with c/8 and the stride-8 map with c/4 channels, already projected for the
        mask decoder; empty if the model has no high-resolution skips.
    """

    embedding: Float[Array, "t h w c"]
    high_res: tuple[Float[Array, "t _ _ _"], ...]


@struct.dataclass
class Frame:
    """One frame of a video, or a clip.

    Attributes:
      image: RGB, uint8 or already normalised float32.
      index: position in the video. -1 marks padding: such a frame changes nothing.
    """

    image: Real[Array, "*t s s 3"]
    index: Int[Array, "*t"]


@struct.dataclass
class Prompt:
    """What a user points at on one frame.

    Attributes:
      points: (x, y) in pixels of the input.
      labels: 1 object, 0 background, 2 and 3 top-left and bottom-right of a box, -1 the
        decoder's own "not a point" token, -2 nothing at all (padding).
      mask_logits: logits of an earlier mask, fed to the prompt encoder; None if no object has one.
      has_mask_logits: which objects have one.
      masks: in [0, 1], taken as the answer; None if no object has one.
      has_mask: which objects have one.
    """

    points: Float32[Array, "n p 2"]
    labels: Int32[Array, "n p"]
    mask_logits: Float32[Array, "n q q"] | None = None
    has_mask_logits: Bool[Array, " n"] | None = None
    masks: Float32[Array, "n s s"] | None = None
    has_mask: Bool[Array, " n"] | None = None

    @property
    def num_points(self) -> Int[Array, " n"]:
        """Points of each object; a box counts as two."""
        return (self.labels >= 0).sum(-1)

    @property
    def is_prompted(self) -> Bool[Array, " n"]:
        """The objects that are prompted at all."""
        given = self.num_points > 0
        for has_one in (self.has_mask_logits, self.has_mask):
            if has_one is not None:
                given = given | has_one
        return given


@struct.dataclass
class Segmentation:
    """What the mask decoder says about one frame, all candidates included.

    Attributes:
      candidates: logits: one mask for clear prompts, three for ambiguous ones.
      candidate_ious: predicted IoU of each.
      is_multimask: whether the prompt asks for the three.
      masks: logits of the chosen one.
      ious: its predicted IoU.
      scores: logit that the object is visible.
      pointers: object pointers.
    """

    candidates: Float32[Array, "n 4 q q"]
    candidate_ious: Float32[Array, "n 4"]
    is_multimask: Bool[Array, " n"]
    masks: Float32[Array, "n q q"]
    ious: Float32[Array, " n"]
    scores: Float32[Array, " n"]
    pointers: Float32[Array, "n c"]


@struct.dataclass
class Prediction:
    """The answer for one frame, and what the bank remembers of it.

    Attributes:
      masks: logits; > 0 is the object.
      ious: predicted IoU.
      scores: object score logit; > 0 is visible.
      pointers: object pointers.
      memories: in the bank's type.
      retention: how long the frame is remembered, see `sam2_jax.model.memory_policy`; meaningless for objects
        that are prompted on it.
      policy: the bank's `policy` after the frame.
    """

    masks: Float32[Array, "n q q"]
    ious: Float32[Array, " n"]
    scores: Float32[Array, " n"]
    pointers: Float32[Array, "n c"]
    memories: Float[Array, "n h w m"]
    retention: Int32[Array, " n"]
    policy: Any = ()


@struct.dataclass
class MemoryBank:
    """All that tracking remembers, in static shapes; nothing grows with the video.

    A frame index of -1 marks an empty slot.

    Attributes:
      prompted_memories: memories of prompted frames.
      prompted_pointers: their object pointers.
      prompted_frames: their frame indices, in the order in which they were prompted.
      recent_memories: memories of tracked frames; r is 6, more under a memory policy that chooses.
      recent_frames: their frame indices.
      recent_pointers: pointers of tracked frames; x is 15, and 16 under the policy "quality".
      recent_pointer_frames: their frame indices.
      num_frames: frames of the video; at least 16 for a stream. Below 16 it scales the time code of the
        pointers.
      direction: 1 when tracking forwards, -1 backwards.
      policy: state of the memory policy, whose leaves all lead with n; () for those without.
    """

    prompted_memories: Float[Array, "n k h w m"]
    prompted_pointers: Float32[Array, "n k c"]
    prompted_frames: Int32[Array, "n k"]
    recent_memories: Float[Array, "n r h w m"]
    recent_frames: Int32[Array, "n r"]
    recent_pointers: Float32[Array, "n x c"]
    recent_pointer_frames: Int32[Array, "n x"]
    num_frames: Int32[Array, ""]
    direction: Int32[Array, ""]
    policy: Any = ()
