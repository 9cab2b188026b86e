"""The server process reads text without loading a tensor library."""

from __future__ import annotations

import subprocess
import sys


def test_text_needs_no_torch() -> None:
    code = (
        "import sys, forge.text.tokenizer, forge.text.detokenizer, forge.text.template;"
        "print(sorted({'torch', 'transformers', 'sentencepiece'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
