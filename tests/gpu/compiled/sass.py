"""The instructions that a warp runs along the fast path of a compiled kernel (SASS of sm_90).

What is assumed: divisions, roots and shuffles take no slow path (nothing that calls is on the way); of two ways
on, that is taken which loads, stores and computes more special functions, and of equal ones the shorter; a
feature's index, which alone is loaded 64 bits at a time in float32, is not read; and each loop runs as often as
it is told to.
"""

import re
import subprocess
from functools import cache
from typing import NamedTuple

import triton

_LINE = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);"
    r"[^\n]*\n\s*/\* 0x(?P<control>[0-9a-f]{16}) \*/"
)


class Instruction(NamedTuple):
    address: int
    predicate: str | None
    opcode: str
    operands: str
    control: int  # the upper half of its code: what it waits for, and how long the next one waits

    def target(self):
        """The address that a branch goes to."""
        return int(re.findall(r"0x[0-9a-f]+", self.operands)[-1], 16)

    def is_(self, *names):
        return self.opcode.split(".")[0] in names

    def bytes(self):
        """What one thread of it moves; 0 where it does not touch memory."""
        if not self.is_("LDG", "STG", "LDGSTS", "LDS", "STS", "LD", "ST", "LDL", "STL"):
            return 0
        return next((int(w) // 8 for w in self.opcode.split(".") if w in ("64", "128")), self._narrow())

    def _narrow(self):
        words = self.opcode.split(".")
        return 1 if {"U8", "S8"} & {*words} else 2 if {"U16", "S16"} & {*words} else 4


def kernels(binary, names, architecture="sm_90a"):
    """{mangled name: [Instruction, …]} of some kernels of an object file."""
    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-arch", architecture, "-fun", ",".join(names), binary]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)[1:]
    return {name: _parsed(code) for name, code in zip(parts[::2], parts[1::2])}


def _parsed(code):
    found = (match.groupdict() for match in _LINE.finditer(code))
    return [
        Instruction(int(f["address"], 16), f["predicate"], f["opcode"], f["operands"], int(f["control"], 16))
        for f in found
    ]


class Graph:
    """Of a kernel's code: its blocks, their successors, and its loops from the outermost in."""

    def __init__(self, code):
        self.code = code
        places = {instruction.address: i for i, instruction in enumerate(code)}
        branches = [i for i in code if i.is_("BRA") and ".DIV" not in i.opcode]
        starts = {0, *(places[i.target()] for i in branches)}
        starts |= {places[i.address] + 1 for i in code if i.is_("BRA", "EXIT", "CALL", "RET", "BRX")}
        starts = sorted(s for s in starts if s < len(code))
        self.ends = dict(zip(starts, [*starts[1:], len(code)]))
        self.next = {start: self._successors(self.code[end - 1], end, places) for start, end in self.ends.items()}
        self.reached = self._reached()
        self.loops = self._loops()

    def _successors(self, last, end, places):
        after = [end] if end < len(self.code) else []
        always = last.predicate is None
        if last.is_("BRX", "BRXU"):
            raise ValueError("a jump table: no path through it is known")
        if last.is_("BRA") and ".DIV" not in last.opcode:
            # A branch on a uniform predicate names it as an operand.
            always = always and not re.match(r"(\.U)?\s*!?U?P\d", last.operands)
            return [places[last.target()]] if always else [places[last.target()], *after]
        if last.is_("EXIT", "RET"):
            return [None] if always else [None, *after]
        return [] if last.is_("CALL") else after

    def _reached(self):
        found, left = set(), [0]
        while left:
            block = left.pop()
            if block is not None and block not in found:
                found.add(block)
                left += self.next[block]
        # Whatever leads nowhere but to a call is no way.
        before = {block: {p for p in found if block in self.next[p]} for block in [*found, None]}
        ending, left = set(), [None]
        while left:
            for block in before[left.pop()] - ending:
                ending.add(block)
                left.append(block)
        return ending

    def _loops(self):
        """{header: blocks}, by address."""
        order, state = [], {}

        def visit(start):
            stack = [(start, iter(self.next[start]))]
            state[start] = 1
            while stack:
                block, ahead = stack[-1]
                for after in ahead:
                    if after not in self.reached:
                        continue
                    if state.get(after) == 1:
                        order.append((block, after))
                    elif after not in state:
                        state[after] = 1
                        stack.append((after, iter(self.next[after])))
                        break
                else:
                    state[block] = 2
                    stack.pop()

        visit(0)
        loops = {}
        for latch, header in order:
            body, left = loops.setdefault(header, {header}), [latch]
            while left:
                block = left.pop()
                if block not in body:
                    body.add(block)
                    left += [p for p in self.reached if block in self.next[p]]
        return dict(sorted(loops.items()))

    def block(self, start):
        return self.code[start : self.ends[start]]


def worth(code):
    """By which the fast one of two paths is known."""
    useful = sum(
        i.is_("MUFU", "FFMA", "STG", "SHFL") or i.is_("LDG", "LDGSTS", "LDS", "STS") and ".64" not in i.opcode
        for i in code
    )
    return useful, -len(code)


class Path(NamedTuple):
    worth: tuple
    code: tuple  # of Instructions, and of (times, code) for loops

    def then(self, other):
        return Path((self.worth[0] + other.worth[0], self.worth[1] + other.worth[1]), self.code + other.code)


def product(code):
    """[Instruction, …] of the loop that multiplies: of those with no other inside, that most of which is FFMA."""
    places = {instruction.address: i for i, instruction in enumerate(code)}
    ends = [(places[i.target()], places[i.address]) for i in code if i.is_("BRA") and i.target() < i.address]
    inner = [(first, last) for first, last in ends if not any(first <= f and l < last for f, l in ends)]
    loops = [code[first : last + 1] for first, last in inner]
    return max(loops, key=lambda loop: sum(i.is_("FFMA") for i in loop) / len(loop))


def fast_path(graph, trips):
    """[Instruction, …] that a warp runs, where the loops, in the order of their addresses, run `trips` times."""
    if len(trips) != len(graph.loops):
        raise ValueError(f"{len(graph.loops)} loops, of which {len(trips)} are told how often they run")
    times = dict(zip(graph.loops, trips))

    def inner(header, within):
        """The loops inside of one, or of all, that lie in no other of them."""
        inside = {h: body for h, body in graph.loops.items() if h != header and body <= within and h in within}
        return {h: b for h, b in inside.items() if not any(b < other for other in inside.values())}

    def best(start, within, goals, header):
        """The best path from a block to one of the goals, which itself is on it unless it is outside."""
        loops = inner(header, within)

        @cache
        def onward(block):
            if block is None:
                return Path((0, 0), ())
            if block in loops and block != header:
                body = repeated(block)
                exits = {n for b in loops[block] for n in graph.next[b] if n not in loops[block]}
            else:
                code = tuple(graph.block(block))
                body, exits = Path(worth(code), code), set(graph.next[block])
            if block in goals or goals & loops.get(block, set()):
                return body
            ways = [onward(n) for n in exits if n is None and None in goals or n in within and n != header]
            ways = [way for way in ways if way is not None]
            return body.then(max(ways, key=lambda way: way.worth)) if ways else None

        return onward(start)

    @cache
    def repeated(header):
        body = graph.loops[header]
        latches = frozenset(b for b in body if header in graph.next[b])
        once = best(header, body, latches, header)
        return Path(tuple(times[header] * w for w in once.worth), once.code * times[header])

    return list(best(0, frozenset(graph.reached), frozenset([None]), None).code)
