"""Image encoder: Hiera trunk and feature pyramid neck.

image (B, S, S, 3) -> maps of stride 4, 8 and 16 with C channels each
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from sam2_jax.config import ModelConfig
from sam2_jax.model.hiera import Hiera
from sam2_jax.model.layers import Conv
from sam2_jax.structs import Array


class FpnNeck(nn.Module):
    """Projects every trunk map to C channels and adds the deepest to the one above it.

    Only the stride-16 level gets a top-down sum; strides 4 and 8 are lateral projections alone.
    """

    width: int
    dtype: str

    @nn.compact
    def __call__(
        self, maps: list[Float[Array, "b _ _ _"]]
    ) -> list[Float[jax.Array, "b _ _ {self.width}"]]:
        """Takes the trunk's four maps and returns four of stride 4, 8, 16, 32."""
        # Convolution 0 belongs to the deepest map, as in the checkpoints.
        lateral = [
            Conv(self.width, (1, 1), dtype=self.dtype, name=f"convs_{len(maps) - 1 - i}")(x)
            for i, x in enumerate(maps)
        ]
        top_down = lateral[3].repeat(2, axis=1).repeat(2, axis=2)
        return [lateral[0], lateral[1], lateral[2] + top_down, lateral[3]]


class ImageEncoder(nn.Module):
    """Trunk and neck; `remat` and `drop_path_rate` are the trunk's."""

    config: ModelConfig
    remat: str = "none"
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(
        self, image: Float[Array, "b s s 3"], is_training: bool = False
    ) -> list[Float[jax.Array, "b _ _ {self.config.hidden_dim}"]]:
        """Encodes a normalised image as maps of stride 4, 8 and 16."""
        c = self.config
        trunk = Hiera(c.hiera, c.dtype, self.remat, self.drop_path_rate, name="trunk")
        maps = trunk(image.astype(jnp.dtype(c.dtype)), is_training)
        # The deepest level has given its share to the one above and is dropped.
        return FpnNeck(c.hidden_dim, c.dtype, name="neck")(maps)[:3]
