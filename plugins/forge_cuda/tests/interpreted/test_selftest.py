"""What ``python -m forge_cuda.selftest`` says and returns, with few cases; all of them run in the other tests."""

from __future__ import annotations

import pytest
import torch
from forge_cuda import selftest
from forge_cuda.testing import cases, draws, steps
from forge_cuda.testing.cases import Case

pytestmark = pytest.mark.quick


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm in every dtype, one draw."""
    norm = next(case for case in cases.cases() if case.name == "norm after a sum, of some rows")
    draw = next(draws.sampling_cases())
    monkeypatch.setattr(cases, "cases", lambda: [norm])
    monkeypatch.setattr(draws, "sampling_cases", lambda: [draw])
    monkeypatch.setattr(steps, "step_cases", list)


@pytest.mark.usefixtures("few")
def test_every_dtype_is_tried_and_draws_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--interpret"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("ok")] == ["float32", "float32", "float16", "bfloat16"]
    assert sum("draws of" in line for line in lines) == 1
    assert lines[-2] == "all passed"
    assert "compute-sanitizer" in lines[-1]


def test_a_wrong_kernel_fails_the_test(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Case("wrong", lambda backend: (torch.ones(2), torch.tensor([1.0, 2.0])))
    monkeypatch.setattr(cases, "cases", lambda: [wrong])
    monkeypatch.setattr(draws, "sampling_cases", list)
    monkeypatch.setattr(steps, "step_cases", list)
    assert selftest.main(["--interpret"]) == 1
    out = capsys.readouterr().out
    assert "error 5.0e-01 of 2e-05  FAILED" in out
    assert "3 failed" in out


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        assert selftest.main(["--device", "99"]) == 2
        assert "there is no GPU 99" in capsys.readouterr().err
        return
    assert selftest.main([]) == 2
    assert "backend 'cuda':" in capsys.readouterr().err
