"""PTX as data: the instructions of one kernel, its parameters and shared memory. For `forge_cuda.testing.emulator`.

https://docs.nvidia.com/cuda/parallel-thread-execution/; only what Triton and NVRTC emit.
"""

from __future__ import annotations

import re

from attrs import frozen

WIDTHS = {"pred": 1, "f16x2": 32, "bf16x2": 32, "bf16": 16} | {
    f"{kind}{bits}": bits for kind in "busf" for bits in (8, 16, 32, 64)
}
"""Bits of each type."""


@frozen
class Instruction:
    """guard: a predicate's name, with "!" before it if negated, or "". parts: the opcode, split at its dots."""

    guard: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.guard and f'@{self.guard} '}{'.'.join(self.parts)} {', '.join(self.operands)}"


@frozen
class Program:
    """A kernel. labels: number of the instruction that each names. parameters: (name, type). threads: of a block.

    shared: offsets of arrays in shared memory by name; shared_bytes: their size together.
    """

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[tuple[str, str], ...]
    threads: int
    shared: dict[str, int]
    shared_bytes: int


def parse(ptx: str, entry: str = "") -> Program:
    """An entry of a module: the one of that name, or the only one."""
    text = re.sub(r"//[^\n]*", "", ptx)
    shared, size = {"global_smem": 0}, 0
    for align, kind, name, count in re.findall(r"\.shared\s+\.align (\d+) \.(\w+) (\w+)\[(\d+)\]", text):
        size = -(-size // int(align)) * int(align)
        shared[name] = size
        size += int(count) * WIDTHS[kind] // 8
    head, _, rest = text[text.index(f".entry {entry}") :].partition("{")
    body = _named(rest[: _end(rest)])
    body = re.sub(r"^\s*\.(loc|file|section|pragma|reg|shared)\b[^\n]*$", "", body, flags=re.MULTILINE)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in re.split(r";|(?<=:)\s*\n", re.sub(r"^\s*(\$\w+):", r"\1:\n", body, flags=re.MULTILINE)):
        line = statement.strip()
        while found := re.match(r"(\$\w+):\s*|[{}]\s*", line):
            if found[1]:
                labels[found[1]] = len(instructions)
            line = line[found.end() :]
        if line and not line.startswith("."):
            instructions.append(_instruction(line))
    return Program(
        tuple(instructions),
        labels,
        tuple((name, kind) for kind, name in re.findall(r"\.param\s+\.(\w+)[^,)]*?\b(\w+_param_\d+)", head)),
        int(re.search(r"\.(?:req|max)ntid (\d+)", head)[1]),  # type: ignore[index]
        shared,
        size,
    )


def _end(text: str) -> int:
    """Where the brace that was opened before the text is closed."""
    depth = 1
    for found in re.finditer(r"[{}]", text):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.start()
    raise ValueError("a brace is missing")


def _named(body: str) -> str:
    """With "%" before the names of registers that inline code declares for itself, as all others have it."""
    for name in set(re.findall(r"\.reg\s+\.\w+\s+([A-Za-z]\w*)<\d+>", body)):
        body = re.sub(rf"(?<![%\w$.]){name}(?=\d+\b)", f"%own_{name}", body)
    return body


def _instruction(line: str) -> Instruction:
    found = re.match(r"(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)$", line, re.DOTALL)
    assert found, line
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", found[3])
    return Instruction(
        found[1] or "", tuple(found[2].replace("::cta", "").split(".")), tuple(x.strip() for x in operands)
    )
