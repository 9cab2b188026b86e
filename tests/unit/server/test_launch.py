"""What `forge run` needs before the engine process is started is little: the engine takes longest."""

from __future__ import annotations

import subprocess
import sys


def test_nothing_heavy_is_imported_before_the_engine_is_started() -> None:
    code = (
        "import sys, forge.cli, forge.components, forge.models, forge.plugins, forge.server.launch;"
        "forge.plugins.load();"
        "heavy = {'torch', 'numpy', 'tokenizers', 'quart', 'hypercorn', 'jinja2', 'gguf', 'huggingface_hub'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
