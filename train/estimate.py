"""Time, memory traffic and collectives of a compiled program, from its text; nothing is measured."""

import re
from collections import Counter
from typing import NamedTuple

from . import flops, hlo
from .hlo import Computation, Instruction, Program
from .targets import Target

NO_WORK = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "Sharding")
START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"  # in libtpu's fusions
LAYER = re.compile(r"block_\d+")


class Collective(NamedTuple):
    """An exchange between devices.

    Attributes:
        kind: such as "all-reduce".
        dtype: of its arrays.
        size: bytes of the whole arrays: of the sum, or of what is gathered or scattered.
        devices: number of devices that take part.
        is_async: whether the schedule has a start and an end, so that other work may stand between them.
    """

    kind: str
    dtype: str
    size: int
    devices: int
    is_async: bool = False

    def seconds(self, link: float) -> float:
        """The least time in a ring of devices, each of which sends `link` bytes per second, to both sides together.

        The parts of an all-to-all pass a quarter of the ring on average, and each device on the way sends them on.
        """
        share = (self.devices - 1) / self.devices
        passes = {
            "all-reduce": 2 * share,
            "collective-permute": 1.0,
            "all-to-all": max(share, self.devices / 4),
        }.get(self.kind, share)
        return passes * self.size / link


class Estimate(NamedTuple):
    """The parts of a step's time, in seconds; the step takes at least `floor`.

    Attributes:
        compute: the compiler's own estimates.
        other: work of which the compiler has no estimate: bytes / bandwidth, of a kernel at least FLOPs / peak.
        collectives: exchanges that no other work hides.
        floor: bytes that the main memory must move, over its bandwidth.
        largest: the parts of the model that take most, with the time of each.
    """

    compute: float
    other: float
    collectives: float
    floor: float
    largest: list[tuple[str, float]]

    @property
    def step(self) -> float:
        """The time of the whole step."""
        return max(self.compute + self.other + self.collectives, self.floor)


def collectives(program: Program) -> Counter[Collective]:
    """The collectives of a program, with how often each kind of them runs."""
    found: Counter[Collective] = Counter()
    for instruction, computation, times in program.scheduled():
        if collective := _collective(program, instruction, computation):
            found[collective] += times
    return found


class Link:
    """The collectives under way on the link between devices: the seconds that each still needs, the oldest first."""

    def __init__(self) -> None:
        self.left: dict[str, float] = {}

    def advance(self, seconds: float) -> None:
        """Let the collectives run while the device does other work."""
        for name, left in self.left.items():
            done = min(left, seconds)
            self.left[name], seconds = left - done, seconds - done

    def wait(self, name: str) -> float:
        """Wait for a collective, and for those that are older; return the seconds. 0 if it is not under way."""
        if name not in self.left:
            return 0.0
        names = list(self.left)
        return sum(self.left.pop(older) for older in names[: names.index(name) + 1])


def estimate(program: Program, target: Target) -> Estimate:
    """The estimated time of a program on a device whose compiler estimates cycles.

    Collectives run one after the other. Work that is scheduled between the start and the end of one hides as much of it
    as the work takes.
    """
    compute = other = exposed = moved = 0.0
    parts: dict[str, float] = {}
    link = Link()
    for instruction, computation, times in program.scheduled():
        traffic = hlo.traffic(program, instruction, computation)
        collective, ended = _collective(program, instruction, computation), _ended(program, instruction)
        cycles = instruction.cycles / target.clock
        unknown = 0.0 if cycles or collective or ended else _least(instruction, traffic, target)
        link.advance(cycles + unknown)
        if collective:
            link.left[instruction.name] = collective.seconds(target.link)
            ended = None if collective.is_async else instruction.name
        waited = link.wait(ended) if ended else 0.0
        moved, compute = moved + times * traffic, compute + times * cycles
        other, exposed = other + times * unknown, exposed + times * waited
        part = _part(instruction, collective)
        parts[part] = parts.get(part, 0.0) + times * (cycles + unknown + waited)
    largest = sorted(parts.items(), key=lambda item: -item[1])[:5]
    return Estimate(compute, other, exposed, moved / target.bandwidth, largest)


def _collective(program: Program, instruction: Instruction, computation: Computation) -> Collective | None:
    """The collective that an instruction starts or runs; None: it does not."""
    body = program.body(instruction)
    if body:
        targets = {i.target for i in body.values()}
        inner = next((i for i in body.values() if i.opcode in hlo.COLLECTIVES), None)
        if inner is None or DONE in targets or "async_collective_fusion" in instruction.attributes:
            return None
        scattered = inner.opcode == "all-reduce" and any(i.opcode == "dynamic-slice" for i in body.values())
        found = _describe(program, inner, body, START in targets)
        return found._replace(kind="reduce-scatter") if scattered else found
    kind = instruction.opcode.removesuffix("-start")
    if kind == "async":
        inside = program.computations[instruction.callees[0]]
        wrapped = next((i for i in inside.values() if i.opcode in hlo.COLLECTIVES), None)
        return _describe(program, wrapped, inside, True) if wrapped else None
    if kind not in hlo.COLLECTIVES:
        return None
    is_async = kind != instruction.opcode and '"is_sync":true' not in instruction.attributes
    return _describe(program, instruction, computation, is_async)


def _describe(program: Program, instruction: Instruction, computation: Computation, is_async: bool) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    devices = 2 if kind == "collective-permute" else program.group(instruction)
    given = [array for name in instruction.operands for array in hlo.arrays(computation[name].shape)]
    size = sum(array.size for array in given) * (devices if kind == "all-gather" else 1)
    return Collective(kind, "+".join(sorted({array.dtype for array in given})), size, devices, is_async)


def _ended(program: Program, instruction: Instruction) -> str | None:
    """The name of the instruction that started the collective which ends here; None: none ends."""
    if any(i.target == DONE for i in program.body(instruction).values()):
        return instruction.name.replace("-done", "-start")
    if instruction.opcode.endswith("-done") and instruction.operands:
        return instruction.operands[0]
    return None


def _least(instruction: Instruction, traffic: int, target: Target) -> float:
    """The least time of an instruction without an estimate: of its traffic, and of the FLOPs that a kernel states.

    Asynchronous copies are 0: they run beside other work, and `Estimate.floor` counts them.
    """
    if instruction.opcode in ("copy-start", "slice-start") or instruction.target in NO_WORK:
        return 0.0
    stated = re.search(r'"flops":"?(\d+)', instruction.attributes) if instruction.opcode == "custom-call" else None
    return max(int(stated[1]) / (flops.peak(target.kind) or 1) if stated else 0.0, traffic / target.bandwidth)


def _part(instruction: Instruction, collective: Collective | None) -> str:
    """The part of the model that an instruction belongs to; the layers of a model are one part."""
    if collective:
        return f"{collective.kind} of {collective.dtype}"
    path = re.sub(r"jit\(\w+\)/|shard_map/|jvp\(\)/", "", instruction.source)
    return LAYER.sub("block_*", path) or instruction.opcode
