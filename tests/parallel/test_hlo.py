"""Costs read from compiled programs, against what the program is known to do."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sam2_jax import experiment
from sam2_jax.parallel import hlo
from sam2_jax.parallel.mesh import make_mesh


def cost_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.cost(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_loop_of_unknown_length_is_told():
    def function(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 7, lambda x: x @ w, x)

    assert cost_of(function, (64, 64), (64, 64)).unknown_loops == 1


def test_communication_counts_times_and_bytes():
    mesh = make_mesh(experiment.Mesh(1, 8, 1))
    cut = NamedSharding(mesh, PartitionSpec("fsdp"))

    @functools.partial(jax.jit, in_shardings=cut)
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=cut.spec, out_specs=cut.spec, check_vma=False
    )
    def function(x):
        def turn(total, _):
            return total + jnp.sin(jax.lax.all_gather(total[:1], "fsdp")).sum(0), None

        total, _ = jax.lax.scan(turn, x, length=3)
        return jax.lax.psum_scatter(jnp.repeat(total, 8, 0), "fsdp", tiled=True)

    text = function.lower(jax.ShapeDtypeStruct((32, 5), jnp.float32)).compile().as_text()
    found = hlo.cost(text).collectives
    assert found == {"all-gather": (3, 3 * 8 * 5 * 4), "reduce-scatter": (1, 32 * 5 * 4)}


def test_parts_of_an_asynchronous_collective_count_once():
    """As the TPU compiler prints one that runs while two fusions do."""
    gather = (
        "%g.{0} = bf16[64,8]{{1,0}} all-gather(%p.{0}), channel_id=1, dimensions={{0}}, "
        'frontend_attributes={{chain_id="4"}}'
    )
    piece = """%fused.{0} (p.{0}: bf16[8,8]) -> bf16[64,8] {{
  %p.{0} = bf16[8,8]{{1,0}} parameter(0)
  GATHER
  ROOT %r.{0} = bf16[64,8]{{1,0}} custom-call(%g.{0}), custom_call_target="{1}"
}}

"""
    names = ("AsyncCollectiveStart", "Beside", "AsyncCollectiveDone")
    pieces = [
        piece.format(i, name).replace("GATHER", gather.format(i)) for i, name in enumerate(names)
    ]
    calls = [
        f"  %f.{i} = bf16[64,8]{{1,0}} fusion(%x), kind=kCustom, calls=%fused.{i}" for i in range(3)
    ]
    entry = ["ENTRY %main (x: bf16[8,8]) -> bf16[64,8] {", "  %x = bf16[8,8]{1,0} parameter(0)"]
    text = "".join(pieces) + "\n".join([*entry, *calls, "}"])
    assert hlo.cost(text).collectives == {"all-gather": (1, 64 * 8 * 2)}


PROGRAM = """HloModule jit_f

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %e = f32[8]{0} exponential(%p)
  ROOT %n = f32[8]{0} negate(%e)
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"70"}
  %k = f32[8]{0} custom-call(%f), custom_call_target="attention", backend_config={"estimated_cycles":"900"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %k)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%few (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
}

%many (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %c = f32[8]{0} copy(%f)
}

ENTRY %main (a: (s32[], f32[8]), b: pred[]) -> f32[8] {
  %a = (s32[], f32[8]{0}) parameter(0)
  %b = pred[] parameter(1)
  %w = (s32[], f32[8]{0}) while(%a), condition=%condition, body=%body
  %x = f32[8]{0} get-tuple-element(%w), index=1
  ROOT %o = f32[8]{0} conditional(%b, %x, %x), true_computation=%few, false_computation=%many
}
"""


def test_kernels_are_what_the_device_is_given():
    cost = hlo.cost(PROGRAM)
    in_the_loop, in_the_larger_branch = 5 * 2, 2
    assert cost.kernels == in_the_loop + in_the_larger_branch
    assert cost.cycles == 5 * (70 + 900)
    assert cost.custom_calls == {"attention": 5}
    assert (cost.loops, cost.conditionals, cost.unknown_loops) == (1, 1, 0)


def test_a_compiled_loop_launches_its_kernels_every_turn():
    def function(x):
        turn = lambda x, _: (jnp.cumsum(x[::-1]), None)
        return jax.lax.scan(turn, x, length=7)[0]

    once, often = (cost_of(f, (64,)) for f in (lambda x: jnp.cumsum(x[::-1]), function))
    assert once.loops == 0
    assert often.loops == 1
    assert often.kernels >= 7 * once.kernels > 0


def test_conditions_in_a_loop_are_decided_every_turn():
    def function(x):
        turn = lambda x, _: (jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x.T), None)
        return jax.lax.scan(turn, x, length=3)[0]

    assert cost_of(function, (64, 64)).conditionals == 3
