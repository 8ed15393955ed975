"""Equal layers as one scan, and what the backward pass computes again instead of remembering."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("dense"),  # see `ops.dense`
    ),
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

    Their parameters keep their own names and are stacked for the scan. Those that come in a box
    (`flax.linen.meta`) are taken out where they are used, and again in the backward pass: a box may hold the
    part of a parameter that this device has, and gather the whole when it is opened.

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
    is_alone = len(names) == 1
    unboxed = nn.map_variables(call, "params", trans_in_fn=nn.meta.unbox)

    def body(layer, x, xs):
        return unboxed(layer, x, xs), None

    if remat != "none":
        body = nn.remat(body, policy=_POLICIES[remat], prevent_cse=is_alone)
    if is_alone:
        return body(layer.copy(name=names[0]), x, jax.tree.map(lambda x: x[0], xs))[0]

    def stack(variables):
        trees = [variables["params"][name] for name in names]
        leaves = zip(*map(jax.tree.leaves, trees), strict=True)
        return {"params": {"layer": jax.tree.structure(trees[0]).unflatten(map(jnp.stack, leaves))}}

    scan = nn.scan(
        body, variable_axes={"params": 0}, split_rngs={"dropout": True}, length=len(names)
    )
    run = lambda _, x, xs: scan(layer.copy(name="layer"), x, xs)[0]
    return nn.map_variables(run, "params", trans_in_fn=stack)(parent, x, xs)
