"""What a compiled program does, read from its text: kernels, products, communication, in loops as they run.

XLA's own cost analysis counts the body of a loop once, and says nothing of how many kernels a program launches.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# Instructions that name, wait for, or look at what others have computed: nothing is launched.
_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_CONTROL = {"async-start", "call", "conditional", "while"}  # what they call is counted instead


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one execution on one device.

    Attributes:
      kernels: instructions that the device is given one by one; a fusion is one.
      cycles: the TPU compiler's estimate for them; 0 of other compilers, which estimate none.
      custom_calls: by target, how often it is called.
      loops: that stand in the program; one in a loop counts once.
      conditionals: conditions that are decided.
      flops: of matrix products and convolutions; a multiplication and an addition are two. Those inside of
        custom calls are not in the text.
      collectives: by kind, how often it runs, and the bytes of what the device has put together or has given:
        the result of an all-gather, the operands of all others.
      unknown_loops: loops whose number of turns is not in the text; they count as one turn.
    """

    kernels: int = 0
    cycles: int = 0
    custom_calls: Mapping[str, int] = dataclasses.field(default_factory=dict)
    loops: int = 0
    conditionals: int = 0
    flops: float = 0.0
    collectives: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        collectives = dict(self.collectives)
        for kind, (count, size) in other.collectives.items():
            before = collectives.get(kind, (0, 0))
            collectives[kind] = (before[0] + count, before[1] + size)
        calls = collections.Counter(self.custom_calls) + collections.Counter(other.custom_calls)
        return Cost(
            kernels=self.kernels + other.kernels,
            cycles=self.cycles + other.cycles,
            custom_calls=dict(calls),
            loops=self.loops + other.loops,
            conditionals=self.conditionals + other.conditionals,
            flops=self.flops + other.flops,
            collectives=collectives,
            unknown_loops=self.unknown_loops + other.unknown_loops,
        )

    def in_a_loop(self, turns: int | None) -> "Cost":
        """The cost of a loop of this body; None is a number of turns that is not known."""
        n = 1 if turns is None else turns
        return Cost(
            kernels=n * self.kernels,
            cycles=n * self.cycles,
            custom_calls={target: n * count for target, count in self.custom_calls.items()},
            loops=self.loops + 1,
            conditionals=n * self.conditionals,
            flops=n * self.flops,
            collectives={
                kind: (n * count, n * size) for kind, (count, size) in self.collectives.items()
            },
            unknown_loops=self.unknown_loops + (turns is None),
        )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shapes: str  # of the result, as text
    opcode: str
    arguments: str  # between the parentheses
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)


_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def cost(text: str) -> Cost:
    """Returns the cost of a compiled program.

    Of the branches of a condition, the one with most products counts, and among equals that with most kernels.

    Args:
      text: from `jax.stages.Compiled.as_text`.
    """
    computations, entry = _parse(text)

    @functools.cache
    def of(name: str) -> Cost:
        total = sum(map(of_kernel, computations[name]), Cost())
        for inner in _with_fusions(computations, name):
            body = computations[inner]
            shapes = {i.name: i.shapes for i in body}
            # A collective that runs beside other fusions stands in all of them; one starts it.
            starts = any("AsyncCollectiveStart" in i.attributes for i in body)
            for instruction in body:
                if starts or "chain_id" not in instruction.attributes:
                    total += of_work(instruction, shapes)
        return total

    def of_kernel(instruction):
        opcode = instruction.opcode
        if opcode in _FREE | _CONTROL or opcode.endswith("-done"):
            return Cost()
        cycles = re.search(r'"estimated_cycles":"?(\d+)', instruction.attributes)
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        calls = {target[1]: 1} if target and opcode == "custom-call" else {}
        return Cost(1, int(cycles[1]) if cycles else 0, calls)

    def of_work(instruction, shapes):
        opcode = instruction.opcode
        if opcode in ("convolution", "dot"):
            return Cost(flops=_product_flops(instruction, shapes))
        if opcode.removesuffix("-start") in COLLECTIVES:
            return _collective(instruction, shapes)
        if opcode == "while":
            called = dict(re.findall(r"(condition|body)=%([\w.\-]+)", instruction.attributes))
            turns = _turns(instruction, computations, called["condition"])
            return of(called["body"]).in_a_loop(turns)
        if opcode == "conditional":
            size = lambda branch: (branch.flops, branch.kernels)
            return max(map(of, _called(instruction)), key=size) + Cost(conditionals=1)
        if opcode in ("call", "async-start"):
            return sum(map(of, _called(instruction)), Cost())
        return Cost()

    return of(entry)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of every computation by name, and the name of the one that runs."""
    computations: dict[str, list[_Instruction]] = collections.defaultdict(list)
    current = entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[1]
            computations[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif match := _INSTRUCTION.match(line):
            arguments, _, attributes = line[match.end() :].partition(")")
            computations[current].append(_Instruction(*match.groups(), arguments, attributes))
    return computations, entry


def _called(instruction: _Instruction) -> list[str]:
    lists = re.findall(
        r"(?:calls|to_apply|branch_computations|true_computation|false_computation)="
        r"\{?((?:%[\w.\-]+(?:, )?)+)",
        instruction.attributes,
    )
    return [name for names in lists for name in re.findall(r"%([\w.\-]+)", names)]


def _with_fusions(computations, name):
    """The computation and those that are fused into it."""
    yield name
    for instruction in computations[name]:
        if instruction.opcode in ("fusion", "fusion-start"):
            for called in _called(instruction):
                yield from _with_fusions(computations, called)


def _turns(loop, computations, condition: str) -> int | None:
    """How often a loop runs: what the compiler noted, or the one constant that its counter is compared with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    bodies = [computations[inner] for inner in _with_fusions(computations, condition)]
    numbers = [i.arguments for body in bodies for i in body if i.opcode == "constant"]
    return int(numbers[0]) if len(numbers) == 1 and numbers[0].isdigit() else None


def _collective(instruction: _Instruction, shapes: Mapping[str, str]) -> Cost:
    kind = instruction.opcode.removesuffix("-start")
    given = sum(_bytes(shapes[name]) for name in instruction.operands)
    size = given
    if kind == "all-gather":
        size = _bytes(instruction.shapes)
        if kind != instruction.opcode:  # the result of a start repeats its operands
            size -= given
    return Cost(collectives={kind: (1, size)})


def _arrays(shapes: str) -> list[tuple[str, tuple[int, ...]]]:
    """Types and sizes of the arrays in the text of a shape."""
    return [
        (kind, tuple(map(int, sizes.split(","))) if sizes else ())
        for kind, sizes in _SHAPE.findall(shapes)
    ]


def _bytes(shapes: str) -> float:
    total = 0.0
    for kind, sizes in _arrays(shapes):
        digits = re.search(r"\d+", kind)
        total += math.prod(sizes) * (int(digits[0]) / 8 if digits else 1)
    return total


def _product_flops(instruction: _Instruction, shapes: Mapping[str, str]) -> float:
    (_, result), *_ = _arrays(instruction.shapes)
    left, right = (_arrays(shapes[name])[0][1] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        sizes = [left[int(axis)] for axis in contracted[1].split(",") if axis] if contracted else []
        return 2.0 * math.prod(result) * math.prod(sizes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    size = lambda axis, names, sizes: sizes[names.index(axis)]
    flops = 2.0 * size("b", labels[3], result) * size("f", labels[3], result)
    flops *= size("i", labels[2], right)
    window = _window(instruction.attributes)
    for axis in sorted(set(labels[3]) - set("bf")):
        setting = {key: values[int(axis)] for key, values in window.items()}
        flops *= _overlaps(
            size(axis, labels[1], left),
            size(axis, labels[2], right),
            size(axis, labels[3], result),
            stride=int(setting.get("stride", 1)),
            before=int(setting.get("pad", "0_0").partition("_")[0]),
            spread=int(setting.get("lhs_dilate", 1)),
            reach=int(setting.get("rhs_dilate", 1)),
        )
    return flops


def _window(attributes: str) -> dict[str, list[str]]:
    """{"size": ["3", "3"], "pad": ["1_1", "1_1"]} of `window={size=3x3 pad=1_1x1_1}`."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = [field.partition("=") for field in found[1].split()] if found else []
    return {key: values.split("x") for key, _, values in fields}


def _overlaps(
    left: int, right: int, result: int, stride: int, before: int, spread: int, reach: int
) -> int:
    """Pairs of a result and a kernel position that meet an input along one axis of a convolution.

    TPUs compute batched products as convolutions of which most positions meet nothing.

    Args:
      left: positions of the input.
      right: positions of the kernel.
      result: positions of the result.
      stride: of the kernel between results.
      before: padding of the input.
      spread: distance of input positions.
      reach: distance of kernel positions.
    """
    start = np.arange(result) * stride - before
    if reach == 1:
        first = np.maximum(-(-start // spread), 0)
        last = np.minimum((start + right - 1) // spread, left - 1)
    else:  # the compiler never spreads both
        first = np.maximum(-(start // reach), 0)
        last = np.minimum((left - 1 - start) // reach, right - 1)
    return int(np.maximum(last - first + 1, 0).sum())
