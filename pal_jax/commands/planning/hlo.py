"""Bytes that a compiled program moves and receives, read off its optimised HLO text, with every turn of its loops.

XLA's own cost analysis counts the body of a loop once, however often it runs; a decoder is a loop over its layers.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's64': 8, 'u64': 8, 'f64': 8}  # else 4
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# The kind of what a TPU receives from other slices, which the compiler writes as a transfer by the hosts.
BETWEEN_SLICES = 'between slices'
WORK = {'fusion', 'convolution', 'dot', 'custom-call', 'while'}
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all'}
ARRAY = re.compile(r'([a-z]+[0-9]*)\[([0-9,]*)\](\{[^}]*\})?')
HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
LINE = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = (.*)$')
OPCODE = re.compile(r'(?:^|[\s)}])([a-z][a-z\-]*)\(')
ON_CHIP = re.compile(r'S\([1-9]')  # memory spaces other than the large one
NAMES = re.compile(r'%([\w.\-]+)')
CALLED = {
    'while': re.compile(r'body=(%?[\w.\-]+)'),
    'call': re.compile(r'to_apply=(%?[\w.\-]+)'),
    'conditional': re.compile(r'(?:branch_computations|true_computation)=(\{[^}]*\}|.*false_computation=%?[\w.\-]+)'),
}


class Instruction(NamedTuple):
    """One instruction of HLO. `size` is the bytes of its output in the large memory, `largest` those of one array."""

    name: str
    opcode: str
    size: int
    largest: int
    arguments: str
    operands: tuple[str, ...]
    rest: str


Computation = list[Instruction]
Module = Mapping[str, Computation]


class Traffic(NamedTuple):
    """The traffic of one run of a module on one device."""

    moved: float  # bytes between the chip and its memory
    collectives: Mapping[str, float]  # bytes received, by kind
    started: int  # collectives in the text that run beside other work ...
    overlapped: int  # ... and for which there is such work
    waiting: int  # collectives that nothing runs beside
    kernels: int  # instructions that a GPU is handed one by one
    # Of the bytes received, those over the network: within groups of several hosts, by the number of a host's members,
    # and for a TPU from other slices, as by one.
    between: Mapping[int, float]


def traffic(text: str, host: int = 0) -> Traffic:
    """The traffic of a module, given as HLO text, when it runs once on one device.

    A host has `host` devices with numbers that follow each other; 0 stands for all devices.
    """
    module, entry = parse(text)
    received: dict[str, float] = dict.fromkeys((*COLLECTIVES, BETWEEN_SLICES), 0.0)
    between: dict[int, float] = collections.defaultdict(float)
    moved, started, overlapped, waiting, kernels = 0.0, 0, 0, 0, 0
    for name, times in run_counts(module, entry).items():
        body = module[name]
        sizes = {instruction.name: instruction.size for instruction in body}
        moved += times * sum(_moved(module, sizes, instruction) for instruction in body)
        for kind, size, collective in _received(module, body):
            received[kind] += times * size
            if members := 1 if kind == BETWEEN_SLICES else _members_of_a_host(collective, host):
                between[members] += times * size
        pairs = [
            _has_work_beside(module, body, at) for at, instruction in enumerate(body) if _starts(module, instruction)
        ]
        started, overlapped = started + len(pairs), overlapped + sum(pairs)
        waiting += sum(instruction.opcode in COLLECTIVES for instruction in body)
        kernels += times * sum(_launches(instruction) for instruction in body)
    by_kind = {kind: size for kind, size in received.items() if size}
    return Traffic(moved, by_kind, started, overlapped, waiting, kernels, dict(between))


def parse(text: str) -> tuple[Module, str]:
    """The computations of a module by name, and the name of its entry."""
    module: dict[str, Computation] = {}
    entry, current = '', []
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = module.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line_parts := LINE.match(line):
            current.append(_instruction(line_parts[2], line_parts[3]))
    return module, entry


def _instruction(name: str, text: str) -> Instruction:
    """An instruction from the text behind its name and '='."""
    opcode = OPCODE.search(text)
    if not opcode:
        return Instruction(name, '', 0, 0, '', (), text)
    shape, (inside, attributes) = text[: opcode.start(1)], _inside(text[opcode.end() :])
    sizes = [_size(*array) for array in ARRAY.findall(shape)]
    far = sum(_size(*array) for array in ARRAY.findall(shape) if not ON_CHIP.search(array[2]))
    return Instruction(name, opcode[1], far, max([0, *sizes]), inside, tuple(NAMES.findall(inside)), attributes)


def _inside(text: str) -> tuple[str, str]:
    """The text before the bracket that closes an open one, and the text after it."""
    depth = 1
    for at, letter in enumerate(text):
        depth += (letter == '(') - (letter == ')')
        if not depth:
            return text[:at], text[at + 1 :]
    return text, ''


def _size(dtype: str, sizes: str, layout: str) -> int:
    """Bytes of an array, from the three groups of `ARRAY`."""
    del layout
    return BYTES.get(dtype, 4) * math.prod(int(size) for size in sizes.split(',') if size)


# --- loops ----------------------------------------------------------------------------------------------------------


def run_counts(module: Module, entry: str) -> dict[str, int]:
    """The number of runs of each computation by name. Both branches of a condition count; insides of fusions do not."""
    times: dict[str, int] = {}
    pending = [(entry, 1)]
    while pending:
        name, count = pending.pop()
        times[name] = times.get(name, 0) + count
        for instruction in module[name]:
            if called := CALLED[instruction.opcode].search(instruction.rest) if instruction.opcode in CALLED else None:
                inner = count * trip_count(module, instruction) if instruction.opcode == 'while' else count
                pending += [(callee, inner) for callee in NAMES.findall(called[1]) if callee in module]
    return times


def trip_count(module: Module, loop: Instruction) -> int:
    """The number of turns of a loop: the compiler's count, or else the constant that its condition compares with."""
    if count := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(count[1])
    condition = re.search(r'condition=%?([\w.\-]+)', loop.rest)
    body = module.get(condition[1], []) if condition else []
    # A loop whose condition has no constant counts as one turn.
    return max(
        [
            1,
            *(
                int(instruction.arguments)
                for instruction in body
                if instruction.opcode == 'constant' and instruction.arguments.isdigit()
            ),
        ]
    )


def _launches(instruction: Instruction) -> bool:
    """True for an instruction that runs on the device by itself: no name for memory, and no wait for another one."""
    return instruction.opcode not in FREE and not instruction.opcode.endswith('-done')


# --- bytes ----------------------------------------------------------------------------------------------------------


def _moved(module: Module, sizes: Mapping[str, int], instruction: Instruction) -> int:
    """Bytes that an instruction reads and writes."""
    if instruction.opcode in FREE:
        return 0
    reads = [sizes.get(operand, 0) for operand in instruction.operands]
    match instruction.opcode:
        case 'fusion':
            return _fusion_bytes(module.get(_fused(instruction), []), reads, instruction.size)
        # An instruction that slices an operand reads the slice alone, and one that updates an operand in place the part
        # that changes.
        case 'dynamic-slice' | 'gather':
            return 2 * instruction.size
        case 'dynamic-update-slice':
            return 2 * reads[1]
        case 'scatter' if len(reads) == 3:
            return reads[1] + 2 * reads[2]
    return sum(reads) + instruction.size


def _fusion_bytes(body: Computation, reads: list[int], written: int) -> int:
    """Bytes that a fusion reads and writes."""
    sizes = {instruction.name: instruction.size for instruction in body}
    total = 0
    for parameter in (instruction for instruction in body if instruction.opcode == 'parameter'):
        size = reads[int(parameter.arguments)]
        users = [instruction for instruction in body if parameter.name in instruction.operands]
        parts = [_part(parameter.name, instruction, sizes) for instruction in users]
        # An operand that is sliced counts as its slices.
        total += sum(part for part, _ in parts if part) if users and all(part for part, _ in parts) else size
        # An operand that is updated in place counts, with the output that it becomes, as the part that changes.
        written -= size if any(in_place for _, in_place in parts) else 0
    return total + max(written, 0)


def _part(name: str, user: Instruction, sizes: Mapping[str, int]) -> tuple[int | None, bool]:
    """Bytes of an operand that an instruction reads, None for all of them, and True where it updates them in place."""
    if user.opcode in ('dynamic-slice', 'gather') and user.operands[0] == name:
        return user.size, False
    if user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
        return sizes.get(user.operands[1], 0), True
    if user.opcode == 'scatter' and len(user.operands) == 3 and user.operands[0] == name:
        return sizes.get(user.operands[2], 0), True
    return None, False


def _fused(fusion: Instruction) -> str:
    """The name of the computation that a fusion runs, '' for another instruction."""
    called = re.search(r'calls=%?([\w.\-]+)', fusion.rest)
    return called[1] if called else ''


# --- collectives ----------------------------------------------------------------------------------------------------


def _received(module: Module, body: Computation) -> Iterator[tuple[str, int, Instruction]]:
    """Kind, received bytes and instruction of each collective of a computation and of its fusions."""
    channels = set()
    fused = [_fused(instruction) for instruction in body if instruction.opcode == 'fusion']
    inside = [(name, inner) for name in fused for inner in module.get(name, [])]
    for name, instruction in [*(('', instruction) for instruction in body), *inside]:
        kind = instruction.opcode.removesuffix('-start')
        channel = re.search(r'channel_id=(\d+)', instruction.rest)
        if kind == 'recv' and 'is_host_transfer=true' in instruction.rest:
            yield BETWEEN_SLICES, instruction.largest, instruction
        # The start, middle and end of an asynchronous collective have one channel and count once.
        if kind in COLLECTIVES and (key := channel[1] if channel else instruction.name) not in channels:
            channels.add(key)
            # A TPU's reduce-scatter is a fusion of an all-reduce and a slice of it.
            if name.startswith('all-reduce-scatter'):
                yield 'reduce-scatter', instruction.largest, instruction
            else:
                # An all-reduce reduces and then gathers; a reduce-scatter's output is one of as many parts as its group
                # has members.
                times = {'all-reduce': 2, 'reduce-scatter': len(_group(instruction))}.get(kind, 1)
                yield kind, times * instruction.largest, instruction


def _group(collective: Instruction) -> list[int]:
    """The numbers of the devices in the first group of a collective, or in the first pair of a permutation."""
    # Groups as a range of numbers in a shape, transposed or not.
    if groups := re.search(r'replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', collective.rest):
        sizes, order = (_numbers(part or '') for part in groups.group(2, 3))
        numbers = np.arange(math.prod(sizes)).reshape(sizes)
        return numbers.transpose(order or None).reshape(-1)[: int(groups[1])].tolist()
    # Groups or pairs as lists of numbers.
    if groups := re.search(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}', collective.rest):
        return _numbers(groups[1])
    # Groups as axes of a mesh with names.
    if groups := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', collective.rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", groups[1])}
        names = re.findall(r"'(\w+)'", groups[2])
        numbers = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
        return numbers[tuple(slice(None) if name in names else 0 for name in sizes)].reshape(-1).tolist()
    return [0]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(',') if number]


def _members_of_a_host(collective: Instruction, host: int) -> int:
    """The devices of one host in a group of a collective; 0 where a group lies within one."""
    members = collections.Counter(number // host if host else 0 for number in _group(collective))
    return max(members.values()) if len(members) > 1 else 0


def _starts(module: Module, instruction: Instruction) -> bool:
    """True where an instruction starts a collective that runs beside other work."""
    asynchronous = instruction.opcode.endswith('-start') and instruction.opcode.removesuffix('-start') in (
        *COLLECTIVES,
        'async',
    )
    return asynchronous or instruction.opcode == 'recv' or _holds(module, instruction, 'AsyncCollectiveStart')


def _holds(module: Module, instruction: Instruction, target: str) -> bool:
    """True for a fusion with an instruction that names `target`."""
    return instruction.opcode == 'fusion' and any(target in inner.rest for inner in module.get(_fused(instruction), []))


def _has_work_beside(module: Module, body: Computation, at: int) -> bool:
    """True where an instruction that computes stands between the start of a transfer, at `at`, and its end."""
    # The transfer may be handed on under other names before its end.
    handed_on, work = {body[at].name}, False
    for instruction in body[at + 1 :]:
        if handed_on.intersection(instruction.operands):
            if instruction.opcode.endswith('-done') or _holds(module, instruction, 'AsyncCollectiveDone'):
                return work
            handed_on.add(instruction.name)
        work = work or (instruction.opcode in WORK and not _starts(module, instruction))
    return work
