"""What a compiled program does, read off its optimised HLO text: bytes it moves and sends, loops counted.

XLA's own cost analysis counts the body of a loop once, however often it runs; a decoder is a loop over its layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's64': 8, 'u64': 8, 'f64': 8}  # else 4
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
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
    """`size` is the bytes of its output that lie in the large memory, `largest` those of its largest array."""

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
    """Of one run, on one device."""

    moved: float  # bytes between the chip and its memory
    collectives: Mapping[str, float]  # bytes received, by kind
    started: int  # collectives in the text that run beside other work ...
    overlapped: int  # ... and for which there is such work
    waiting: int  # collectives that nothing runs beside


def traffic(text: str) -> Traffic:
    """What a module does when it runs once."""
    module, entry = parse(text)
    received: dict[str, float] = dict.fromkeys(COLLECTIVES, 0.0)
    moved, started, overlapped, waiting = 0.0, 0, 0, 0
    for name, times in run_counts(module, entry).items():
        body = module[name]
        sizes = {each.name: each.size for each in body}
        moved += times * sum(_moved(module, sizes, each) for each in body)
        for kind, size in _received(module, body):
            received[kind] += times * size
        pairs = [_has_work_beside(module, body, at) for at, each in enumerate(body) if _starts(module, each)]
        started, overlapped = started + len(pairs), overlapped + sum(pairs)
        waiting += sum(each.opcode in COLLECTIVES for each in body)
    return Traffic(moved, {kind: size for kind, size in received.items() if size}, started, overlapped, waiting)


def parse(text: str) -> tuple[Module, str]:
    """The computations of a module by name, and the name of its entry."""
    module: dict[str, Computation] = {}
    entry, current = '', []
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = module.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := LINE.match(line):
            current.append(_instruction(found[2], found[3]))
    return module, entry


def _instruction(name: str, text: str) -> Instruction:
    found = OPCODE.search(text)
    if not found:
        return Instruction(name, '', 0, 0, '', (), text)
    shape, (inside, rest) = text[: found.start(1)], _inside(text[found.end() :])
    sizes = [_size(*array) for array in ARRAY.findall(shape)]
    far = sum(_size(*array) for array in ARRAY.findall(shape) if not ON_CHIP.search(array[2]))
    return Instruction(name, found[1], far, max([0, *sizes]), inside, tuple(NAMES.findall(inside)), rest)


def _inside(text: str) -> tuple[str, str]:
    """What stands before the bracket that closes an open one, and after it."""
    depth = 1
    for at, letter in enumerate(text):
        depth += (letter == '(') - (letter == ')')
        if not depth:
            return text[:at], text[at + 1 :]
    return text, ''


def _size(dtype: str, sizes: str, layout: str) -> int:
    del layout
    return BYTES.get(dtype, 4) * math.prod(int(size) for size in sizes.split(',') if size)


# --- loops ----------------------------------------------------------------------------------------------------------


def run_counts(module: Module, entry: str) -> dict[str, int]:
    """How often each computation runs, those inside fusions aside. Both branches of a condition count."""
    times: dict[str, int] = {}
    pending = [(entry, 1)]
    while pending:
        name, count = pending.pop()
        times[name] = times.get(name, 0) + count
        for each in module[name]:
            if found := CALLED[each.opcode].search(each.rest) if each.opcode in CALLED else None:
                inner = count * trip_count(module, each) if each.opcode == 'while' else count
                pending += [(other, inner) for other in NAMES.findall(found[1]) if other in module]
    return times


def trip_count(module: Module, loop: Instruction) -> int:
    """How often a loop runs: what the compiler knows, or the constant that its condition compares with."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r'condition=%?([\w.\-]+)', loop.rest)
    body = module.get(condition[1], []) if condition else []
    return max([1, *(int(each.arguments) for each in body if each.opcode == 'constant' and each.arguments.isdigit())])


# --- bytes ----------------------------------------------------------------------------------------------------------


def _moved(module: Module, sizes: Mapping[str, int], each: Instruction) -> int:
    """Bytes that an instruction reads and writes. One that takes a slice of an operand reads the slice."""
    if each.opcode in FREE:
        return 0
    reads = [sizes.get(operand, 0) for operand in each.operands]
    match each.opcode:
        case 'fusion':
            return _fusion_bytes(module.get(_fused(each), []), reads, each.size)
        case 'dynamic-slice' | 'gather':
            return 2 * each.size
        case 'dynamic-update-slice':
            return 2 * reads[1]
    return sum(reads) + each.size


def _fusion_bytes(body: Computation, reads: list[int], written: int) -> int:
    """Operands of which slices are taken count as these; one that is updated in place, and the output it is, as what
    changes."""
    sizes = {each.name: each.size for each in body}
    total = 0
    for parameter in (each for each in body if each.opcode == 'parameter'):
        size = reads[int(parameter.arguments)]
        users = [each for each in body if parameter.name in each.operands]
        parts = [_part(parameter.name, each, sizes) for each in users]
        total += sum(part for part, _ in parts if part) if users and all(part for part, _ in parts) else size
        written -= size if any(in_place for _, in_place in parts) else 0
    return total + max(written, 0)


def _part(name: str, user: Instruction, sizes: Mapping[str, int]) -> tuple[int | None, bool]:
    """Bytes of an operand that a user of it touches, None for all of it, and whether it writes them there."""
    if user.opcode in ('dynamic-slice', 'gather') and user.operands[0] == name:
        return user.size, False
    if user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
        return sizes.get(user.operands[1], 0), True
    return None, False


def _fused(each: Instruction) -> str:
    found = re.search(r'calls=%?([\w.\-]+)', each.rest)
    return found[1] if found else ''


# --- collectives ----------------------------------------------------------------------------------------------------


def _received(module: Module, body: Computation) -> Iterator[tuple[str, int]]:
    """Kind and bytes of each collective of a computation, those inside its fusions too: the start, middle and end of
    an asynchronous one have one channel. A TPU's reduce-scatter is a fusion of an all-reduce and a slice of it."""
    seen = set()
    fused = [_fused(each) for each in body if each.opcode == 'fusion']
    inside = [(name, other) for name in fused for other in module.get(name, [])]
    for name, each in [*(('', each) for each in body), *inside]:
        kind = each.opcode.removesuffix('-start')
        channel = re.search(r'channel_id=(\d+)', each.rest)
        if kind in COLLECTIVES and (key := channel[1] if channel else each.name) not in seen:
            seen.add(key)
            if name.startswith('all-reduce-scatter'):
                yield 'reduce-scatter', each.largest
            else:
                yield kind, each.largest * {'all-reduce': 2, 'reduce-scatter': _group(each)}.get(kind, 1)


def _group(each: Instruction) -> int:
    """Devices that take part in a collective."""
    if found := re.search(r'replica_groups=\[\d+,(\d+)\]', each.rest):
        return int(found[1])
    if found := re.search(r'replica_groups=\{\{([\d,]+)\}', each.rest):
        return found[1].count(',') + 1
    if found := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', each.rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    return 1


def _starts(module: Module, each: Instruction) -> bool:
    asynchronous = each.opcode.endswith('-start') and each.opcode.removesuffix('-start') in (*COLLECTIVES, 'async')
    return asynchronous or _holds(module, each, 'AsyncCollectiveStart')


def _holds(module: Module, each: Instruction, target: str) -> bool:
    return each.opcode == 'fusion' and any(target in inner.rest for inner in module.get(_fused(each), []))


def _has_work_beside(module: Module, body: Computation, at: int) -> bool:
    """Whether anything that computes stands between the start of a transfer and its end."""
    handed_on, work = {body[at].name}, False
    for each in body[at + 1 :]:
        if handed_on.intersection(each.operands):
            if each.opcode.endswith('-done') or _holds(module, each, 'AsyncCollectiveDone'):
                return work
            handed_on.add(each.name)
        work = work or (each.opcode in WORK and not _starts(module, each))
    return work
