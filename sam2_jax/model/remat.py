"""Rematerialisation by name: what the backward pass computes again instead of remembering."""

from collections.abc import Callable

import jax

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialise(function: Callable, name: str, in_loop: bool = True) -> Callable:
    """Returns the function with what it remembers for the backward pass limited.

    Args:
      function: of arrays only.
      name: "none" remembers all, "dots" the results of matrix products without a batch axis, "full" only
        the arguments.
      in_loop: whether it is the body of a scan; only outside of one the compiler has to be kept from merging
        the second computation with the first.
    """
    if name == "none":
        return function
    return jax.checkpoint(function, prevent_cse=not in_loop, policy=_POLICIES[name])
