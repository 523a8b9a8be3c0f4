"""The text of a compiled program: its instructions in the order of their schedule.

The form is XLA's: `%name = shape opcode(operands), attributes`, in computations; one of them is the entry.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from bertgpt.errors import InputError

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")  # dtype, dimensions, layout
ON_CHIP = re.compile(r"S\([1-9]")  # a memory space of the layout: VMEM and smaller memories, not the device's main one
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional")  # no work
PARTS = ("slice", "dynamic-slice", "gather")  # instructions that read a part of their first operand


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: unique in its computation.
        shape: the result's, as text.
        opcode: such as "fusion".
        arguments: the text between the parentheses: operands, or the number of a parameter.
        attributes: the rest of the line.
        is_root: whether its result is that of the computation.
    """

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool = False

    @property
    def operands(self) -> list[str]:
        """The names of the instructions, of the same computation, whose results it takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 if it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @property
    def callees(self) -> list[str]:
        """The computations that the instruction runs, without those that only combine two values."""
        found = re.findall(r"(?:calls|body|branch_computations)=(?:%?([\w.\-]+)|\{([^}]*)\})", self.attributes)
        names = [name for one, several in found for name in ([one] if one else several.split(", "))]
        if self.opcode == "call":
            names += re.findall(r"to_apply=%?([\w.\-]+)", self.attributes)
        return [name.lstrip("%") for name in names]

    @property
    def target(self) -> str:
        """The function of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """The path of the JAX operation that it comes from; empty if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]  # instructions by name, in order


class Program(NamedTuple):
    """A compiled program: its computations by name, the name of the entry, and the number of devices that run it."""

    computations: dict[str, Computation]
    entry: str
    devices: int

    def scheduled(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, Computation, int]]:
        """Each instruction that runs, its computation, and how often it runs; the bodies of loops in their place."""
        computation = self.computations[name or self.entry]
        for instruction in computation.values():
            if instruction.opcode in ("while", "call", "conditional"):
                for callee in instruction.callees:
                    yield from self.scheduled(callee, times * (self.trips(instruction) or 1))
            else:
                yield instruction, computation, times

    def trips(self, instruction: Instruction) -> int | None:
        """How often a loop runs its body; 1 for other instructions; None: the text does not say.

        JAX's loops over a fixed number count from 0, while the counter is less than a constant.
        """
        if instruction.opcode != "while":
            return 1
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", instruction.attributes)
        computation = self.computations[condition[1]] if condition else {}
        for test in computation.values():
            if test.opcode == "compare" and test.is_root and "direction=LT" in test.attributes:
                limits = [computation[name] for name in test.operands if computation[name].opcode == "constant"]
                return int(limits[0].arguments) if limits else None
        return None

    def group(self, instruction: Instruction) -> int:
        """The number of devices that take part in a collective together.

        Raises:
            InputError: the text gives the groups in a form that is not known here.
        """
        found = re.search(
            r"replica_groups=(\{\{[^}]*\}|\{\}|\[\d+,\d+\]|mesh\[[^\]]*\][^{]*\{[^}]*\})", instruction.attributes
        )
        if found is None:
            if "replica_groups=" in instruction.attributes:
                raise InputError(
                    f"cannot read the groups of devices of {instruction.name}: {instruction.attributes[:200]}"
                )
            return self.devices
        groups = found[1]
        if groups.startswith("mesh"):  # mesh['x'=4,'y'=2] {'x'}: the product of the named axes
            sizes = dict(re.findall(r"'([^']*)'=(\d+)", groups))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']*)'", groups[groups.index("]") :]))
        if groups.startswith("["):  # [number of groups,size]
            return int(groups[1:-1].split(",")[1])
        return groups.count(",") + 1 if groups != "{}" else self.devices

    def body(self, instruction: Instruction) -> Computation:
        """The instructions of a fusion; none for another instruction."""
        return self.computations[instruction.callees[0]] if instruction.opcode == "fusion" else {}


def parse(text: str) -> Program:
    """Parse the text of an optimized program."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and line.startswith("  ") and " = " in line:
            instruction = _instruction(line.strip())
            current[instruction.name] = instruction
    header = text.partition("\n")[0]
    counts = [re.search(rf"{name}=(\d+)", header) for name in ("num_partitions", "replica_count")]
    return Program(computations, entry, math.prod(int(count[1]) if count else 1 for count in counts))


def _instruction(line: str) -> Instruction:
    is_root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = start + _closing(rest[start:])
    return Instruction(name.lstrip("%"), shape, rest[:start], rest[start + 1 : end], rest[end + 1 :], is_root)


def _closing(text: str) -> int:
    """The place of the parenthesis that closes the one at the start."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


class Array(NamedTuple):
    """An array of a shape: its dtype, its bytes, and whether it is in the device's main memory."""

    dtype: str
    size: int
    in_main: bool


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape; padding to the device's tiles is not counted."""
    found = []
    for dtype, dimensions, layout in ARRAY.findall(shape):
        bits = BITS.get(dtype) or int(re.sub(r"^[a-z]*(\d+).*|.*", r"\1", dtype) or 0)
        size = math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
        found.append(Array(dtype, size, not ON_CHIP.search(layout)))
    return found


def in_main(shape: str) -> int:
    """Bytes of the arrays of a shape that are in the device's main memory."""
    return sum(array.size for array in arrays(shape) if array.in_main)


def traffic(program: Program, instruction: Instruction, computation: Computation) -> int:
    """Bytes of the device's main memory that an instruction must at least read and write.

    Of an operand of which a fusion takes only slices, only these count; of a result that is updated in place, only the
    update. Asynchronous copies count at their start.
    """
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "copy-start":  # destination, source, context
        return sum(array.size for array in arrays(instruction.shape)[:2] if array.in_main)
    if instruction.opcode == "slice-start":  # (source), destination, context
        source, destination, *_ = arrays(instruction.shape)
        return destination.size * (source.in_main + destination.in_main)
    body = program.body(instruction)
    read = 0.0
    for number, name in enumerate(instruction.operands):
        read += min(in_main(computation[name].shape), _read_of(body, number))
    if instruction.opcode in PARTS:
        read = min(read, _size(instruction.shape))
    return int(read + min(in_main(instruction.shape), _written(instruction, computation, body)))


def _size(shape: str) -> int:
    return sum(array.size for array in arrays(shape))


def _read_of(body: Computation, number: int) -> float:
    """Bytes that a fusion reads of an operand; infinite if it reads more than slices, or is no fusion."""
    name = next((i.name for i in body.values() if i.opcode == "parameter" and i.arguments == str(number)), None)
    total = 0 if name else math.inf
    for use in body.values():
        operands = use.operands
        if name not in operands or (use.opcode == "dynamic-update-slice" and operands.index(name) == 0):
            continue  # of an array that is updated in place, nothing is read
        if use.opcode not in PARTS or operands.index(name):
            return math.inf
        total += _size(use.shape)
    return total


def _written(instruction: Instruction, computation: Computation, body: Computation) -> float:
    """Bytes that an instruction writes if it updates an array in place; else infinite."""
    if body:
        instruction, computation = next(i for i in body.values() if i.is_root), body
    if instruction.opcode != "dynamic-update-slice":
        return math.inf
    return _size(computation[instruction.operands[1]].shape)
