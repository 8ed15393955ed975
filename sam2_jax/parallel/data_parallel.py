"""Data parallelism: gradients of clips that are spread over devices."""

from collections.abc import Callable
from typing import Any, Self

import jax
from flax import linen as nn
from flax import struct
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from sam2_jax.experiment import Rules
from sam2_jax.parallel.mesh import BATCH_AXES
from sam2_jax.parallel.rules import shardings


@struct.dataclass
class Shard(nn.meta.AxisMetadata):
    """This device's part of a parameter, which is gathered when the box is opened (`flax.linen.meta.unbox`).

    The gradient of what was in the box is added up over `fsdp`, and leaves in the same parts.

    Attributes:
      value: the part.
      axis: that is cut over `fsdp`, in the parameter of one layer, though others be stacked with it.
    """

    value: Any
    axis: int = struct.field(pytree_node=False)

    def unbox(self) -> jax.Array:
        """The whole parameter."""
        return jax.lax.all_gather(self.value, "fsdp", axis=self.axis, tiled=True)

    def replace_boxed(self, value: Any) -> Self:
        """Another part."""
        return self.replace(value=value)

    def add_axis(self, index: int, params: dict) -> Self:
        """As it is, see `axis`."""
        return self

    remove_axis = add_axis


def over_clips(
    mesh: Mesh,
    rules: Rules,
    gradient: Callable,
    stays_cut: Callable[[str], bool] = lambda path: False,
) -> Callable:
    """Has every device compute the gradient of its own clips, and adds them up once.

    That is at the end, but for parameters that stay cut: there it is where the gradient arises.

    Left to itself, the compiler may cut activations the way kernels are cut, and adds up gradients wherever
    they arise: in compute type, in every turn of every loop.

    Args:
      mesh: from `sam2_jax.parallel.mesh.make_mesh`. Inside, the axis `model` is still the compiler's.
      rules: how parameters are cut; see `Experiment.sharding`.
      gradient: maps (trained, frozen, clips, shared) to (gradient, sums). It sees parameters and `shared`
        whole, and of `clips` what this device has along the leading axis. Its results are sums over those:
        a gradient like `trained`, and arrays that become equal everywhere.
      stays_cut: tells by path which parameters it sees as a `Shard` instead, where they are cut. They are
        never whole all at once if it opens one layer's after another's, as `sam2_jax.model.repeat` does.

    Returns:
      The function of all clips, to be used in a compiled one. Parameters come in the shards of
      `rules.shardings`, and the gradient leaves in them.
    """
    if mesh.shape["model"] == mesh.size:  # every device has all clips, and nothing is to be added
        return gradient

    def total(trained, frozen, clips, shared):
        axes = _cut_axes(mesh, rules, trained), _cut_axes(mesh, rules, frozen)

        def see(keys, x, axis):
            path = jax.tree_util.keystr(keys[1:], simple=True, separator="/")
            if axis < 0:
                return x
            return Shard(x, axis) if stays_cut(path) else Shard(x, axis).unbox()

        def of_this_device(trained, frozen, clips, shared):
            seen = jax.tree_util.tree_map_with_path(see, (trained, frozen), axes)
            own, sums = gradient(*seen, clips, shared)
            return _add_up(mesh, own, axes[0]), jax.lax.psum(sums, BATCH_AXES)

        trained_spec, frozen_spec = jax.tree.map(_spec, axes)
        return jax.shard_map(
            of_this_device,
            mesh=mesh,
            in_specs=(trained_spec, frozen_spec, PartitionSpec(BATCH_AXES), PartitionSpec()),
            out_specs=(trained_spec, PartitionSpec()),
            axis_names=set(BATCH_AXES),
            check_vma=False,  # it would want every constant of every loop marked
        )(trained, frozen, clips, shared)

    return total


def _cut_axes(mesh: Mesh, rules: Rules, params: Any) -> Any:
    """The axis of every parameter that is cut over `fsdp`, -1 where none is."""
    is_cut = mesh.shape["fsdp"] > 1
    find = lambda spec: spec.index("fsdp") if is_cut and "fsdp" in spec else -1
    return jax.tree.map(lambda sharding: find(tuple(sharding.spec)), shardings(mesh, rules, params))


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec() if axis < 0 else PartitionSpec(*[None] * axis, "fsdp")


def _add_up(mesh: Mesh, gradient: Any, axes: Any) -> Any:
    """Sums over the devices, in the shards that `axes` tells."""
    axes, structure = jax.tree.flatten(axes)
    leaves = structure.flatten_up_to(gradient)
    cut = [_scatter(x, axis) for x, axis in zip(leaves, axes, strict=True) if axis >= 0]
    whole = [x for x, axis in zip(leaves, axes, strict=True) if axis < 0]
    if mesh.devices.flat[0].platform == "cpu" and mesh.shape["model"] == 1:
        # Between processes a sum takes milliseconds, however small (docs/reports/performance_log.md).
        vector, restore = ravel_pytree(whole)
        whole = restore(jax.lax.psum(vector, BATCH_AXES))
    else:
        whole = jax.lax.psum(whole, BATCH_AXES)
    cut, whole = iter(cut), iter(whole)
    return structure.unflatten([next(cut if axis >= 0 else whole) for axis in axes])


def _scatter(x: jax.Array | Shard, axis: int) -> jax.Array:
    if isinstance(x, Shard):
        return jax.lax.psum(x.value, "data")
    part = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=axis, tiled=True)
    return jax.lax.psum(part, "data")
