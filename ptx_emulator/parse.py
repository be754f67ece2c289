# SPDX-License-Identifier: Apache-2.0
"""PTX text to a `Kernel`: parameters, registers, labels and a flat list of instructions. No meaning yet."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import PTXError

STATEMENT = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([\w.:]+)\s*(.*)$", re.S)
LABEL = re.compile(r"([$\w]+):\s*")
LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
IGNORED = re.compile(r"\.(loc|file|pragma)\b")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
ARRAY = re.compile(r"\.(local|shared)\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]")


@dataclass(frozen=True)
class Instruction:
    """`@!%p1 ld.global.v2.b32 {%r1, %r2}, [%rd1+8];`"""

    opcode: str  # "ld"
    modifiers: tuple[str, ...]  # ("global", "v2", "b32")
    operands: tuple[str, ...]  # ("{%r1, %r2}", "[%rd1+8]")
    guard: str | None  # "%p1": it is executed where this predicate holds
    negated: bool  # where it does not hold
    text: str
    source: str  # "kernel.py:57", the line it was compiled from
    pointers: frozenset[str] = frozenset()  # parameters its address can come from; none: nobody knows

    @property
    def name(self) -> str:
        return ".".join((self.opcode, *self.modifiers))

    @property
    def type(self) -> str:
        return self.modifiers[-1] if self.modifiers else ""

    def one_of(self, *names: str) -> str | None:
        """The modifier among `names`, if there is one."""
        return next((name for name in names if name in self.modifiers), None)


@dataclass
class Kernel:
    name: str
    threads: int  # of a CTA
    parameters: list[tuple[str, str, bool]] = field(default_factory=list)  # name, type, is it a pointer
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> index of the next instruction
    symbols: dict[str, int] = field(default_factory=dict)  # shared and local arrays -> byte offset
    shared_bytes: int = 0  # declared with a size
    local_bytes: int = 0  # of a thread
    tables: dict[str, bytes] = field(default_factory=dict)  # constant arrays in global memory


def split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    if not any(bracket in text for bracket in "{[("):
        return [part.strip() for part in text.split(",")] if text else []
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def elements(operand: str) -> list[str]:
    """`{%r1, %r2}` to two operands, `%r1` to one."""
    return split(operand.strip()[1:-1]) if operand.startswith("{") else [operand]


def register_of(address: str) -> str:
    """`[%rd1+16]` to `%rd1`, and a register to itself."""
    return address.strip("[] ").partition("+")[0].strip()


def offset_of(address: str) -> int:
    text = address.strip("[] ").partition("+")[2].strip()
    try:
        return int(text or "0", 0)
    except ValueError:
        raise PTXError(f"offset {text!r} of an address") from None


def parse(text: str) -> Kernel:
    """The one kernel of a module."""
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text))
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    head = re.search(r"\.visible\s+\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", text, re.S)
    if head is None:
        raise PTXError("no kernel (.visible .entry) in this PTX")
    kernel = Kernel(head[1], _threads(head[3]))
    for parameter in split(head[2]):
        type_ = re.search(r"\.param\s+\.(\w+)", parameter)[1]
        kernel.parameters.append((parameter.split()[-1], type_, ".ptr" in parameter))
    _module_variables(kernel, text[: head.start()])
    _body(kernel, text[head.end() : _closing(text, head.end())], files)
    return kernel


def _threads(directives: str) -> int:
    found = re.search(r"\.(?:req|max)ntid\s+([\d, ]+)", directives)
    threads = 1
    for size in re.findall(r"\d+", found[1]) if found else ["128"]:
        threads *= int(size)
    return threads


def _module_variables(kernel: Kernel, text: str) -> None:
    for symbol in re.findall(r"\.extern\s+\.shared[^;]*?([\w$]+)\[\]", text):
        kernel.symbols[symbol] = 0
    table = r"\.global\s+\.align\s+\d+\s+\.[bu](\d+)\s+([\w$]+)\[\d+\]\s*=\s*\{([^}]*)\}"
    for bits, symbol, values in re.findall(table, text):
        size = int(bits) // 8
        kernel.tables[symbol] = b"".join(int(value, 0).to_bytes(size, "little") for value in split(values))


def _closing(text: str, place: int) -> int:
    """Where the brace closes that opened just before `place`."""
    depth = 1
    for brace in re.compile("[{}]").finditer(text, place):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.start()
    raise PTXError("the kernel does not end")


def _body(kernel: Kernel, text: str, files: dict[str, str]) -> None:
    source = statement = ""
    for line in text.splitlines():
        line = line.strip()
        if location := LOCATION.match(line):
            source = f"{files.get(location[1], '').split('/')[-1]}:{location[2]}"
        if not line or IGNORED.match(line):
            continue
        *finished, rest = line.split(";")
        for part in finished:
            _statement(kernel, _enter(kernel, f"{statement} {part}".strip()), source)
            statement = ""
        statement = _enter(kernel, f"{statement} {rest}".strip())


def _enter(kernel: Kernel, text: str) -> str:
    """What follows the labels, and the braces of scopes, that a statement begins with."""
    while text:
        if label := LABEL.match(text):
            kernel.labels[label[1]] = len(kernel.instructions)
            text = text[label.end() :]
        elif text[0] in "{}":
            text = text[1:].strip()
        else:
            break
    return text


def _statement(kernel: Kernel, text: str, source: str) -> None:
    if not text:
        return
    if declared := REGISTERS.match(text):
        for name in split(declared[2]):
            many = re.match(r"(%?[\w$]+)<(\d+)>", name)
            names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
            for name in names:
                if kernel.registers.setdefault(name, declared[1]) != declared[1]:
                    raise PTXError(f"register {name} has different types in different scopes")
    elif array := ARRAY.match(text):
        place = f"{array[1]}_bytes"
        aligned = -(-getattr(kernel, place) // int(array[2])) * int(array[2])
        kernel.symbols[array[3]] = aligned
        setattr(kernel, place, aligned + int(array[4]))
    elif text[0] != ".":
        negated, guard, name, operands = STATEMENT.match(text).groups()
        opcode, *modifiers = name.replace("::cta", "").split(".")
        kernel.instructions.append(
            Instruction(opcode, tuple(modifiers), tuple(split(operands)), guard, negated == "!", text, source)
        )
