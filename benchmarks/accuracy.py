"""How far the CPU backend's answers are from float32 arithmetic on the same weights: `accuracy.py MODEL.gguf`.

Texts of several kinds are scored position by position with the plain torch backend in float32 and with forge-cpu: the
difference of the log-probability of the token that float32 finds most probable (mean and largest over all positions)
and how often the most probable token is another one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from forge_cpu import CpuOptions
from forge_cpu.backend import CpuBackend
from forge_cpu.native import extension
from forge_llama.model import LlamaModel
from texts import TEXTS

from forge.builtin.gguf import GGUFLoader
from forge.builtin.torch_backend import TorchBackend
from forge.interfaces.backend import Backend
from forge.interfaces.loader import Checkpoint
from forge.testing.stack import Run, ScoredSequence
from forge.text.tokenizer import build_tokenizer

Floats = npt.NDArray[np.float32]

CASES = {
    "16 bits": CpuOptions(activation_bits=16),
    "auto": CpuOptions(activation_bits="auto"),
    "8 bits": CpuOptions(activation_bits=8),
}


def log_probabilities(checkpoint: Checkpoint, backend: Backend, prompts: list[list[int]]) -> list[Floats]:
    """[positions, vocabulary] for each prompt, each computed in one step."""
    model = LlamaModel(checkpoint, backend)
    found = []
    for prompt in prompts:
        hidden = Run(backend, model, [ScoredSequence(0, prompt)]).step((0, 0, len(prompt)))
        logits = torch.cat([rows.float() for rows in model.logits(hidden)])
        found.append(logits.log_softmax(-1).numpy())
    return found


def report(name: str, wanted: list[Floats], found: list[Floats]) -> None:
    """One line a text and one for all."""
    rows = []
    for a, b in zip(wanted, found, strict=True):
        top = a.argmax(-1)[:, None]
        difference = np.abs(np.take_along_axis(a, top, -1) - np.take_along_axis(b, top, -1))[:, 0]
        rows.append((difference, b.argmax(-1) != top[:, 0]))
    labels = [*TEXTS, "all"]
    rows.append((np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])))
    print(f"\n{name}: {'tokens':>14} {'mean':>8} {'largest':>8} {'other top token':>16}")
    for label, (difference, other) in zip(labels, rows, strict=True):
        print(f"{label:>12} {len(other):>10} {difference.mean():>8.4f} {difference.max():>8.3f} {other.mean():>15.1%}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file of the Llama family")
    parser.add_argument("--isa", default="auto", help="instruction set; the best that runs here unless given")
    options = parser.parse_args()
    native = extension()
    if native is None:
        raise SystemExit("forge-cpu was installed without its native kernels")
    checkpoint = GGUFLoader().open(options.model)
    tokenizer = build_tokenizer(checkpoint.tokenizer)
    prompts = [tokenizer.encode(text, add_special=False) for text in TEXTS.values()]
    wanted = log_probabilities(checkpoint, TorchBackend(), prompts)
    for name, case in CASES.items():
        backend = CpuBackend(native, options=CpuOptions(options.isa, case.activation_bits))
        report(name, wanted, log_probabilities(checkpoint, backend, prompts))


if __name__ == "__main__":
    main()
