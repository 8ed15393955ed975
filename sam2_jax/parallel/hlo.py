"""What a compiled program does, read from its text: kernels and communication, in loops as they run.

XLA's own cost analysis counts the body of a loop once, and says nothing of how many kernels a program launches.
Products are counted before compilation: `sam2_jax.train.metrics.count_flops`.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping

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
      collectives: by kind, how often it runs, and the bytes of what the device has put together or has given:
        the result of an all-gather, the operands of all others.
      unknown_loops: loops whose number of turns is not in the text; they count as one turn.
    """

    kernels: int = 0
    cycles: int = 0
    custom_calls: Mapping[str, int] = dataclasses.field(default_factory=dict)
    loops: int = 0
    conditionals: int = 0
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

    Of the branches of a condition, the one with most cycles counts, and among equals that with most kernels.

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
        if opcode.removesuffix("-start") in COLLECTIVES:
            return _collective(instruction, shapes)
        if opcode == "while":
            called = dict(re.findall(r"(condition|body)=%([\w.\-]+)", instruction.attributes))
            turns = _turns(instruction, computations, called["condition"])
            return of(called["body"]).in_a_loop(turns)
        if opcode == "conditional":
            size = lambda branch: (branch.cycles, branch.kernels)
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
            name, shapes, opcode = match.groups()
            instruction = _Instruction(name, shapes, opcode, arguments, attributes)
            computations[current].append(instruction)
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


def _turns(
    loop: _Instruction, computations: Mapping[str, list[_Instruction]], condition: str
) -> int | None:
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


def _bytes(shapes: str) -> float:
    total = 0.0
    for kind, sizes in _SHAPE.findall(shapes):
        digits = re.search(r"\d+", kind)
        count = math.prod(map(int, sizes.split(","))) if sizes else 1
        total += count * (int(digits[0]) / 8 if digits else 1)
    return total
