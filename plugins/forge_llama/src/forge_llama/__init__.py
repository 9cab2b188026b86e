"""Registers the Llama family, one component for each architecture name that GGUF files and config.json files use.

Imports no tensor library: `forge_llama.model` is imported when a checkpoint of the family is loaded.
"""

from __future__ import annotations

from forge import Component, hookimpl

ARCHITECTURES = {
    "llama": "Llama 2 to 3.2, TinyLlama, SmolLM2, and Mistral in GGUF files",
    "mistral": "Mistral, with its sliding window",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3 (dense)",
}


@hookimpl
def forge_models() -> list[Component]:
    """One class serves them all: what differs is in the checkpoint's metadata."""
    return [
        Component(name=name, factory="forge_llama.model:LlamaModel", summary=summary)
        for name, summary in ARCHITECTURES.items()
    ]
