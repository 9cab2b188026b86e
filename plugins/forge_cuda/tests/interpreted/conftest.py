"""Sets Triton's interpreter up, before any kernel is imported."""

from __future__ import annotations

from forge_cuda.interpreter import prepare

prepare()
