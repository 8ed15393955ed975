"""Costs read from compiled programs, against what the program is known to do."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sam2_jax import experiment
from sam2_jax.parallel import hlo
from sam2_jax.parallel.mesh import make_mesh


def cost_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.cost(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_loop_counts_as_often_as_it_runs():
    def function(x, w):
        turn = lambda x, _: (jnp.tanh(x @ w), None)
        outer = lambda x, _: (jax.lax.scan(turn, x, length=3)[0] + 1, None)
        return jax.lax.scan(outer, x, length=5)[0]

    cost = cost_of(function, (64, 32), (32, 32))
    assert cost.flops == 15 * 2 * 64 * 32 * 32
    assert cost.unknown_loops == 0


def test_a_loop_of_unknown_length_is_told():
    def function(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 7, lambda x: x @ w, x)

    cost = cost_of(function, (64, 64), (64, 64))
    assert cost.flops == 2 * 64**3
    assert cost.unknown_loops == 1


def test_the_larger_branch_counts():
    def function(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert cost_of(function, (64, 64), (64, 64)).flops == 2 * 2 * 64**3


def convolution(attributes, left, right, result):
    """A program of one convolution, as the compiler prints it."""
    show = lambda sizes: f"f32[{','.join(map(str, sizes))}]{{1,0}}"
    return f"""HloModule jit_f

ENTRY %main.1 (a: {show(left)}, b: {show(right)}) -> {show(result)} {{
  %a = {show(left)} parameter(0)
  %b = {show(right)} parameter(1)
  ROOT %c.2 = {show(result)} convolution(%a, %b), window={{{attributes}}}, metadata={{op_name="f"}}
}}
"""


def positions(left, right, result, stride, before, spread, reach):
    """How many pairs of result and kernel meet an input, one by one."""
    pairs = ((o, k) for o in range(result) for k in range(right))
    at = [o * stride + k * reach - before for o, k in pairs]
    return sum(0 <= p <= (left - 1) * spread and p % spread == 0 for p in at)


@pytest.mark.parametrize(
    ("window", "left", "right", "result"),
    [
        ({}, 9, 1, 9),
        ({"before": 1}, 9, 3, 9),
        ({"before": 1, "stride": 2}, 9, 3, 5),
        ({"before": 2, "spread": 3}, 4, 3, 12),
        ({"before": 4, "reach": 4}, 12, 3, 12),
        # A product of a batch of 5: every result meets one position of the kernel.
        ({"stride": 4, "spread": 5}, 5, 5, 5),
    ],
)
def test_only_kernel_positions_that_meet_an_input_count(window, left, right, result):
    setting = {"stride": 1, "before": 0, "spread": 1, "reach": 1} | window
    text = convolution(
        f"size={right}x1 stride={setting['stride']}x1 pad={setting['before']}_0x0_0 "
        f"lhs_dilate={setting['spread']}x1 rhs_dilate={setting['reach']}x1}}, "
        "dim_labels=b01f_01io->b01f, extra={",
        (2, left, 1, 3),
        (right, 1, 3, 4),
        (2, result, 1, 4),
    )
    met = positions(left, right, result, **setting)
    assert hlo.cost(text).flops == 2 * 2 * 3 * 4 * met


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


def test_every_product_of_a_batch_counts():
    cost = cost_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (6, 16, 24), (6, 24, 40))
    assert cost.flops == 2 * 6 * 16 * 24 * 40


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
