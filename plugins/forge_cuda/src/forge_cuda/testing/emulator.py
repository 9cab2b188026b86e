"""Runs the PTX that Triton emits for compute capability 8.0, a block at a time: each register is a vector over threads.

Threads at the lowest instruction go first, so that branches come together again. Memory is that of
`forge_cuda.testing.memory`: stray accesses, missing barriers and copies that weren't waited for are errors. Only
instructions that the kernels have; others are a `NotImplementedError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from forge_cuda.interpreter import widen
from forge_cuda.testing.arithmetic import BINARY, ROUNDINGS, UNARY, UNSIGNED, compare, convert, dtype
from forge_cuda.testing.compiler import Compile
from forge_cuda.testing.memory import Global, Shared, Vector
from forge_cuda.testing.ptx import WIDTHS, Instruction, Program, parse


class Block:
    """One block of a grid."""

    def __init__(
        self, program: Program, place: Sequence[int], grid: Sequence[int], memory: Global, arguments: Sequence[int],
        shared: int,
    ) -> None:  # fmt: skip
        self.program, self.memory = program, memory
        self.count = program.threads
        self.registers: dict[str, Vector] = {}
        self.shared = Shared(max(shared, program.shared_bytes))
        thread = np.arange(self.count, dtype=np.uint64)
        self.registers.update({"%tid.x": thread, "%tid.y": 0 * thread, "%tid.z": 0 * thread, "%laneid": thread % 32})
        for axis, own, extent in zip("xyz", place, grid):
            self.registers[f"%ctaid.{axis}"] = np.full(self.count, own, np.uint64)
            self.registers[f"%nctaid.{axis}"] = np.full(self.count, extent, np.uint64)
        self.parameters = {name: value for (name, _), value in zip(program.parameters, [*arguments, 0, 0])}
        self.warps = np.arange(self.count) // 32
        self.copies: list[list[tuple[Vector, Vector, Vector]]] = [[]]

    def run(self) -> None:
        """To the end of all threads."""
        at = np.zeros(self.count, np.int64)
        ended, waiting = np.zeros(self.count, bool), np.zeros(self.count, bool)
        while not ended.all():
            ready = ~ended & ~waiting
            if not ready.any():
                waiting[:] = False
                self.shared.barrier()
                continue
            place = at[ready].min()
            here = ready & (at == place)
            step = self.program.instructions[place]
            active = here
            if step.guard:
                predicate = self.read(step.guard.lstrip("!"), "pred")
                active = here & (~predicate if step.guard[0] == "!" else predicate)
            at[here] = place + 1
            match step.parts[0]:
                case "bra":
                    at[active] = self.program.labels[step.operands[0]]
                case "ret" | "exit":
                    ended |= active
                case "bar":
                    waiting |= active
                case _ if active.any():
                    try:
                        self.execute(step, active)
                    except (KeyError, IndexError) as error:
                        raise NotImplementedError(f"{step}: {error!r}") from error

    # -- operands

    def read(self, name: str, kind: str) -> Vector:
        """An operand's value in all threads."""
        if kind == "pred":
            if name[0] != "%":
                return np.full(self.count, int(name, 0) != 0)
            return self.registers.setdefault(name, np.zeros(self.count, np.uint64)).astype(bool)
        bits = UNSIGNED[WIDTHS[kind]]
        if name[0] == "%":
            value = self.registers.setdefault(name, np.zeros(self.count, np.uint64))
        else:
            if name in self.program.shared:
                number = self.program.shared[name]
            else:
                number = int(name[2:], 16) if name[:2].lower() in ("0f", "0d") else int(name.rstrip("U"), 0)
            value = np.full(self.count, number & (1 << 64) - 1, np.uint64)
        return value.astype(bits).view(dtype(kind))

    def write(self, name: str, value: Vector, active: Vector) -> None:
        """A register in the active threads."""
        value = np.ascontiguousarray(value)
        bits = value.astype(np.uint64) if value.dtype == bool else value.view(UNSIGNED[8 * value.itemsize])
        self.registers.setdefault(name, np.zeros(self.count, np.uint64))[active] = bits[active]

    def address(self, operand: str, kind: str) -> Vector:
        """Of a memory operand, int64."""
        base, _, offset = operand.strip("[] ").partition("+")
        return self.read(base.strip(), kind).astype(np.int64) + (int(offset, 0) if offset else 0)

    # -- instructions

    def execute(self, step: Instruction, active: Vector) -> None:
        """One instruction in the active threads."""
        name, kind, operands = step.parts[0], step.parts[-1], step.operands
        special = getattr(self, f"do_{name}", None)
        if special is not None:
            special(step, active)
            return
        if kind == "pred":
            values = [self.read(operand, "pred") for operand in operands[1:]]
            self.write(operands[0], BINARY[name](*values) if len(values) == 2 else ~values[0], active)
            return
        if kind in ("bf16", "bf16x2", "f16x2"):  # which `read` gives as bits
            raise NotImplementedError(str(step))
        with np.errstate(all="ignore"):
            values = [self.read(operand, kind) for operand in operands[1:]]
            operation = UNARY[name] if len(values) == 1 else BINARY[name]
            if "NaN" in step.parts:  # else the number of a pair counts
                operation = {"min": np.minimum, "max": np.maximum}[name]
            result = operation(*values)
        self.write(operands[0], result.astype(dtype(kind)), active)

    def do_mov(self, step: Instruction, active: Vector) -> None:
        kind, (to, source) = step.parts[-1], step.operands
        if to[0] == "{" or source[0] == "{":
            names = [name.strip() for name in (to if to[0] == "{" else source).strip("{}").split(",")]
            width = WIDTHS[kind] // len(names)
            if to[0] == "{":
                whole = self.read(source, kind).astype(np.uint64)
                for i, part in enumerate(names):
                    self.write(part, (whole >> np.uint64(i * width)).astype(UNSIGNED[width]), active)
                return
            parts = [
                self.read(part, f"b{width}").astype(np.uint64) << np.uint64(i * width) for i, part in enumerate(names)
            ]
            self.write(to, np.bitwise_or.reduce(parts).astype(UNSIGNED[WIDTHS[kind]]), active)
            return
        self.write(to, self.read(source, kind), active)

    do_cvta = do_mov

    def do_ld(self, step: Instruction, active: Vector) -> None:
        kind, (to, source) = step.parts[-1], step.operands
        if step.parts[1] == "param":
            value = np.full(self.count, self.parameters[source.strip("[] ")], np.uint64)
            self.write(to, value.astype(UNSIGNED[WIDTHS[kind]]), active)
            return
        names = [name.strip() for name in to.strip("{}").split(",")]
        width, shared = WIDTHS[kind] // 8, "shared" in step.parts
        addresses, count = self.address(source, "u32" if shared else "u64")[active], width * len(names)
        data = self.shared.load(addresses, count, self.warps[active]) if shared else self.memory.load(addresses, count)
        for i, name in enumerate(names):
            value = np.zeros(self.count, UNSIGNED[8 * width])
            value[active] = np.ascontiguousarray(data[:, i * width : (i + 1) * width]).view(value.dtype)[:, 0]
            self.write(name, value.view(np.int8).astype(np.int16) if kind == "s8" else value, active)

    def do_st(self, step: Instruction, active: Vector) -> None:
        kind, (target, source) = step.parts[-1], step.operands
        names = [name.strip() for name in source.strip("{}").split(",")]
        bits = UNSIGNED[WIDTHS[kind]]
        parts = [self.read(name, f"b{WIDTHS[kind]}").astype(bits)[active][:, None].view(np.uint8) for name in names]
        data = np.concatenate(parts, axis=1)
        if "shared" in step.parts:
            self.shared.store(self.address(target, "u32")[active], data, self.warps[active])
        else:
            self.memory.store(self.address(target, "u64")[active], data)

    def do_cp(self, step: Instruction, active: Vector) -> None:
        if "commit_group" in step.parts or "wait_group" in step.parts:
            if not active.all():
                raise NotImplementedError(f"{step} in some threads only")
            if "commit_group" in step.parts:
                self.copies.append([])
                return
            while len(self.copies) - 1 > int(step.operands[0], 0):
                for copy in self.copies.pop(0):
                    self.shared.arrive(*copy)
            return
        count, warps = int(step.operands[2], 0), self.warps[active]
        places = self.shared.announce(self.address(step.operands[0], "u32")[active], count, warps)
        size = self.read(step.operands[3], "u32")[active] if len(step.operands) > 3 else np.full(len(places), count)
        data = np.zeros((len(places), count), np.uint8)
        if (size > 0).any():
            data[size > 0] = self.memory.load(self.address(step.operands[1], "u64")[active][size > 0], count)
        self.copies[-1].append((places, data, warps))

    def do_setp(self, step: Instruction, active: Vector) -> None:
        kind, (to, first, second, *more) = step.parts[-1], step.operands
        result = compare(step.parts[1], self.read(first, kind), self.read(second, kind))
        if more:  # setp.lt.and: with another predicate
            result = BINARY[step.parts[2]](result, self.read(more[0], "pred"))
        self.write(to, result, active)

    def do_selp(self, step: Instruction, active: Vector) -> None:
        kind, (to, a, b, predicate) = step.parts[-1], step.operands
        self.write(to, np.where(self.read(predicate, "pred"), self.read(a, kind), self.read(b, kind)), active)

    def do_cvt(self, step: Instruction, active: Vector) -> None:
        (to, *sources), (target, source) = step.operands, step.parts[-2:]
        if target in ("bf16x2", "f16x2"):
            halves = [convert(self.read(name, "f32"), "f32", target[:-2]) for name in sources]
            high, low = (half.view(np.uint16).astype(np.uint32) for half in halves)
            self.write(to, high << np.uint32(16) | low, active)
            return
        rounding = next((part for part in step.parts if part in ROUNDINGS), "")
        result = convert(self.read(sources[0], source), source, target, rounding)
        # No register has 8 bits: signed numbers are extended.
        self.write(to, result.astype(np.int16) if target == "s8" else result, active)

    def do_fma(self, step: Instruction, active: Vector) -> None:
        kind, (to, *sources) = step.parts[-1], step.operands
        if kind not in ("f16", "f32", "f64"):
            raise NotImplementedError(str(step))
        a, b, c = (self.read(source, kind).astype(np.float64) for source in sources)
        self.write(to, (a * b + c).astype(dtype(kind)), active)

    def do_mad(self, step: Instruction, active: Vector) -> None:
        self._multiply(step, active)

    def do_mul(self, step: Instruction, active: Vector) -> None:
        self._multiply(step, active)

    def _multiply(self, step: Instruction, active: Vector) -> None:
        kind, (to, a, b, *added) = step.parts[-1], step.operands
        with np.errstate(all="ignore"):
            x, y = self.read(a, kind), self.read(b, kind)
            if "wide" in step.parts:
                kind = kind[0] + str(2 * WIDTHS[kind])
                x, y = x.astype(dtype(kind)), y.astype(dtype(kind))
            result = x * y
            for name in added:
                result = result + self.read(name, kind)
        self.write(to, result.astype(dtype(kind)), active)

    def do_shl(self, step: Instruction, active: Vector) -> None:
        self._shift(step, active)

    def do_shr(self, step: Instruction, active: Vector) -> None:
        self._shift(step, active)

    def _shift(self, step: Instruction, active: Vector) -> None:
        kind, (to, source, by) = step.parts[-1], step.operands
        value, count = self.read(source, kind), self.read(by, "u32")
        within = np.minimum(count, WIDTHS[kind] - 1).astype(value.dtype)
        shifted = value << within if step.parts[0] == "shl" else value >> within
        beyond = np.where(value < 0, -1, 0).astype(value.dtype) if step.parts[0] == "shr" else np.zeros_like(value)
        self.write(to, np.where(count < WIDTHS[kind], shifted, beyond), active)

    def do_bfe(self, step: Instruction, active: Vector) -> None:
        kind, (to, source, first, length) = step.parts[-1], step.operands
        low, bits = int(first, 0), int(length, 0)
        value = self.read(source, kind) << dtype(kind)(WIDTHS[kind] - low - bits)
        self.write(to, value >> dtype(kind)(WIDTHS[kind] - bits), active)

    def do_prmt(self, step: Instruction, active: Vector) -> None:
        a, b, control = (self.read(name, "u32") for name in step.operands[1:4])
        data = np.concatenate([x[:, None].view(np.uint8) for x in (a.copy(), b.copy())], axis=1)
        out = np.empty((self.count, 4), np.uint8)
        for i in range(4):
            choice = control >> np.uint32(4 * i) & np.uint32(15)
            byte = data[np.arange(self.count), choice & 7]
            out[:, i] = np.where(choice & 8, np.where(byte & 128, 255, 0), byte)
        self.write(step.operands[0], out.view(np.uint32)[:, 0], active)

    def do_shfl(self, step: Instruction, active: Vector) -> None:
        to, source, by, clamp = step.operands[:4]
        lane, offset = np.arange(self.count) % 32, self.read(by, "s32")
        match step.parts[2]:
            case "bfly":
                other = lane ^ offset
            case "up":
                other = lane - offset
            case "down":
                other = lane + offset
            case "idx":
                other = offset
            case _:
                raise NotImplementedError(str(step))
        if (self.read(clamp, "b32")[active] != (0 if step.parts[2] == "up" else 31)).any():
            raise NotImplementedError(str(step))
        inside = (other >= 0) & (other < 32)
        origin = np.arange(self.count) - lane + np.where(inside, other, lane)
        if not active[origin[active]].all():
            raise NotImplementedError(f"{step} from a thread that doesn't take part")
        value, predicate = self.read(source, "b32")[origin], to.partition("|")[2]
        self.write(to.split("|")[0], value, active)
        if predicate:
            self.write(predicate, inside, active)

    def do_redux(self, step: Instruction, active: Vector) -> None:
        kind, (to, source) = step.parts[-1], step.operands[:2]
        values, whole = self.read(source, kind).reshape(-1, 32), active.reshape(-1, 32)
        if (whole.any(1) != whole.all(1)).any():
            raise NotImplementedError(f"{step} in some threads only")
        result = BINARY[step.parts[2]].reduce(values, axis=1, dtype=values.dtype)
        self.write(to, np.repeat(result, 32), active)

    def do_dp4a(self, step: Instruction, active: Vector) -> None:
        to, *sources = step.operands
        a, b = (
            self.read(name, "b32").copy().view({"s32": np.int8, "u32": np.uint8}[kind]).reshape(-1, 4).astype(np.int32)
            for name, kind in zip(sources, step.parts[1:])
        )
        self.write(to, (a * b).sum(1, dtype=np.int32) + self.read(sources[2], "s32"), active)

    def do_popc(self, step: Instruction, active: Vector) -> None:
        value = np.ascontiguousarray(self.read(step.operands[1], step.parts[-1]))
        bits = np.unpackbits(value.view(np.uint8).reshape(self.count, -1), axis=1)
        self.write(step.operands[0], bits.sum(1, dtype=np.uint32), active)

    def do_ldmatrix(self, step: Instruction, active: Vector) -> None:
        if not active.all():
            raise NotImplementedError(f"{step} in some threads only")
        names = [name.strip() for name in step.operands[0].strip("{}").split(",")]
        rows = self.address(step.operands[1], "u32").reshape(-1, 32)
        for i, name in enumerate(names):
            lanes = rows[:, 8 * i : 8 * i + 8].reshape(-1)
            data = self.shared.load(lanes, 16, np.repeat(np.arange(len(rows)), 8))
            matrix = data.view(np.uint16).reshape(-1, 8, 8)
            matrix = np.ascontiguousarray(matrix.transpose(0, 2, 1) if "trans" in step.parts else matrix)
            self.write(name, matrix.view(np.uint32).reshape(-1), active)

    def do_mma(self, step: Instruction, active: Vector) -> None:
        """m16n8k16: fragments as the PTX manual draws them, each lane with pairs of neighbours in a row."""
        if step.parts[3] != "m16n8k16" or not active.all():
            raise NotImplementedError(str(step))
        names = [[name.strip() for name in operand.strip("{}").split(",")] for operand in step.operands]

        def pairs(name: str) -> Vector:
            bits = self.read(name, "u32").copy().view(np.uint16)
            values = widen(bits) if step.parts[7] == "bf16" else bits.view(np.float16).astype(np.float32)
            return np.asarray(values.reshape(-1, 8, 8))

        warps = self.count // 32
        a, b, c = (np.empty((warps, *shape), np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
        for i, name in enumerate(names[1]):
            a[:, 8 * (i % 2) : 8 * (i % 2) + 8, 8 * (i // 2) : 8 * (i // 2) + 8] = pairs(name)
        for i, name in enumerate(names[2]):
            b[:, 8 * i : 8 * i + 8] = pairs(name).transpose(0, 2, 1)
        for i, name in enumerate(names[3]):
            c[:, 8 * (i // 2) : 8 * (i // 2) + 8, i % 2 :: 2] = self.read(name, "f32").reshape(warps, 8, 4)
        with np.errstate(all="ignore"):
            result = a @ b + c
        for i, name in enumerate(names[0]):
            part = result[:, 8 * (i // 2) : 8 * (i // 2) + 8, i % 2 :: 2]
            self.write(name, np.ascontiguousarray(part).reshape(-1), active)


class Emulate(Compile):
    """A launcher that compiles for compute capability 8.0 and runs what came out. edit: changes the PTX beforehand."""

    def __init__(self, edit: Any = None) -> None:
        super().__init__(80)
        self.edit = edit

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        super().__call__(kernel, grid, *args, **meta)
        compiled = self.kernels[-1]
        ptx = compiled.asm["ptx"] if self.edit is None else self.edit(compiled.asm["ptx"])
        program = parse(ptx)
        # Triton compiles an integer argument of 1 into the kernel and takes it from the parameters.
        passed = [x for x in args if not (type(x) is int and x == 1)]
        memory = Global([x for x in passed if isinstance(x, torch.Tensor)])
        arguments = [_bits(x) for x in passed]
        whole = (*grid, 1, 1)[:3]
        for place in np.ndindex(*whole):
            Block(program, place, whole, memory, arguments, compiled.metadata.shared).run()


def _bits(argument: Any) -> int:
    if isinstance(argument, torch.Tensor):
        return int(argument.data_ptr())
    return int(np.float32(argument).view(np.uint32)) if isinstance(argument, float) else int(argument) & (1 << 64) - 1
