"""Equal layers as one scan, and what the backward pass computes again instead of remembering."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialise(function: Callable, name: str, in_loop: bool = True) -> Callable:
    """Returns a function of arrays with what it remembers for the backward pass limited.

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


def rematerialised(layer: type[nn.Module], name: str) -> type[nn.Module]:
    """The same for a class of modules, whose objects are applied outside of a loop."""
    return layer if name == "none" else nn.remat(layer, policy=_POLICIES[name])


def repeat(
    parent: nn.Module,
    layer: nn.Module,
    names: Sequence[str],
    x: jax.Array,
    call: Callable[..., jax.Array],
    xs: Any = None,
    remat: str = "none",
) -> jax.Array:
    """Applies equal children of a module one after another, as one scan: compiled once, however many.

    Their parameters keep their own names and are stacked for the scan.

    Args:
      parent: the module that has the children.
      layer: one of them, without a parent or a name.
      names: of the children, in order.
      x: what the first takes, and each gives to the next.
      call: `call(layer, x, xs)` applies one of them.
      xs: tree of arrays that lead with the number of children, or None.
      remat: as for `rematerialise`.

    Returns:
      What the last one gives.
    """

    def stack(variables):
        trees = [nn.meta.unbox(variables["params"][name]) for name in names]
        return {"params": {"layer": jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)}}

    def body(layer, x, xs):
        return call(layer, x, xs), None

    if remat != "none":
        body = nn.remat(body, policy=_POLICIES[remat], prevent_cse=False)
    scan = nn.scan(
        body, variable_axes={"params": 0}, split_rngs={"dropout": True}, length=len(names)
    )
    run = lambda _, x, xs: scan(layer.copy(name="layer"), x, xs)[0]
    return nn.map_variables(run, "params", trans_in_fn=stack)(parent, x, xs)
