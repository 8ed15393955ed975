"""Product with the kernel of a dense layer, whose gradient is one plain product too.

x (..., C), kernel (C, O)  ->  (..., O)
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from sam2_jax.structs import Array


def dense(
    x: Float[Array, "*b c"], kernel: Float[Array, "c o"], *, implementation: str | None = None
) -> Float[jax.Array, "*b o"]:
    """`x @ kernel`.

    The gradient of `x @ kernel` by the kernel sums over all leading axes of x. If there is more than one, XLA
    transposes an operand in memory first, which on CPU takes two to three times as long as the single matrix
    product used here, also for each clip of a `vmap`.

    Args:
      x: any number of vectors.
      kernel: of the type of x.
      implementation: "reference" or "flat"; None is "flat".

    Raises:
      ValueError: on an unknown implementation.
    """
    if implementation == "reference":
        return x @ kernel
    if implementation not in ("flat", None):
        raise ValueError(f"Unknown implementation {implementation!r}. Known: reference, flat.")
    # Policies of `jax.checkpoint` do not look for products inside functions with a gradient of their own.
    return checkpoint_name(_flat(x, kernel), "dense")


@jax.custom_vjp
def _flat(x, kernel):
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _forward(x, kernel):
    return _flat(x, kernel), (x, kernel)


def _backward(saved, dy):
    x, kernel = saved
    dy = dy.reshape(-1, dy.shape[-1])
    dx = (dy @ kernel.T).reshape(x.shape)
    return dx, x.reshape(-1, x.shape[-1]).T @ dy


_flat.defvjp(_forward, _backward)
