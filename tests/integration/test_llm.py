"""`LLM`, the engine in-process: what its users call, from one thread and from many."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forge import LLM
from forge.errors import ConfigError, EngineUnavailable, InvalidRequest, ModelSourceError

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def llm(tiny_path: Path) -> Iterator[LLM]:
    with LLM(tiny_path, threads=1, num_blocks=400) as llm:
        yield llm
        llm.engine.check()


@pytest.mark.model
def test_the_default_model_knows_the_capital_of_france(smollm2_path: Path) -> None:
    with LLM() as llm:
        assert "Paris" in llm.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0).text


def test_chat_generate_and_stream_agree(llm: LLM) -> None:
    fields = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    whole = llm.chat(HELLO, **fields)
    assert len(whole.choices[0].token_ids) == 20
    assert whole.choices[0].finish_reason == "length"
    deltas = list(llm.stream(HELLO, **fields))
    assert "".join(delta.text for delta in deltas) == whole.text
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert llm.generate(text, **fields).text == whole.text
    assert llm.generate([llm.tokenizer.encode(text)], **fields)[0].text == whole.text


def test_a_batch_answers_in_the_order_of_its_prompts(llm: LLM) -> None:
    prompts = [f"number {i}" for i in range(12)]
    fields = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    batch = llm.generate(prompts, **fields)
    assert [output.text for output in batch] == [llm.generate(prompt, **fields).text for prompt in prompts]
    chats = llm.chat([HELLO, HELLO], **fields)
    assert chats[0].text == chats[1].text


def test_seeds_choices_and_log_probabilities_come_back(llm: LLM) -> None:
    fields = {"seed": 5, "n": 3, "logprobs": True, "top_logprobs": 2, "max_tokens": 6, "ignore_eos": True}
    first, second = llm.chat(HELLO, **fields), llm.chat(HELLO, **fields)
    assert [c.token_ids for c in first.choices] == [c.token_ids for c in second.choices]
    assert len({tuple(c.token_ids) for c in first.choices}) == 3
    assert [len(c.logprobs or ()) for c in first.choices] == [6, 6, 6]
    assert first.choices[0].usage is not None


def test_leaving_a_stream_early_frees_its_blocks(llm: LLM) -> None:
    for delta in llm.stream(HELLO, max_tokens=400, ignore_eos=True):
        if delta.text:
            break
    llm.chat(HELLO, max_tokens=2)
    llm.engine.check()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 100_000}, "100"),
        ({"tools": [{}]}, "tools"),
        ({"temprature": 0}, "temprature"),
        ({"stream": True}, "stream"),
    ],
)
def test_wrong_fields_are_refused_as_over_http_and_nothing_stays_behind(
    llm: LLM, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        llm.chat(HELLO, **fields)
    with pytest.raises(InvalidRequest, match=words):
        llm.chat([HELLO, HELLO, HELLO], **fields)
    assert llm.chat(HELLO, max_tokens=2, ignore_eos=True).choices[0].finish_reason == "length"
    llm.engine.check()


def test_many_threads_share_one_engine(llm: LLM) -> None:
    wanted = llm.chat(HELLO, temperature=0, max_tokens=10).text
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(llm.chat, HELLO, temperature=0, max_tokens=10) for _ in range(64)]
        assert {future.result().text for future in futures} == {wanted}


def test_closing_ends_what_runs_with_an_error_and_refuses_the_rest(tiny_path: Path) -> None:
    llm = LLM(tiny_path, threads=1, num_blocks=100)
    stream = llm.stream(HELLO, max_tokens=400, ignore_eos=True)
    next(stream)
    threading.Thread(target=llm.close).start()
    with pytest.raises(EngineUnavailable, match="closed"):
        list(stream)
    with pytest.raises(EngineUnavailable, match="closed"):
        llm.chat(HELLO)


def test_what_cannot_be_loaded_says_why(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"nothing\.gguf"):
        LLM(tmp_path / "nothing.gguf")
    with pytest.raises(ConfigError, match="max_model_len"):
        LLM(tiny_path, max_modellen=5)
    with pytest.raises(ConfigError, match="512"):
        LLM(tiny_path, max_model_len=9999)


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.chat("hello"),
        lambda llm: llm.chat(["hi"]),
        lambda llm: llm.chat(None),
        lambda llm: llm.generate(None),
        lambda llm: llm.generate([1, 2, 3]),
        lambda llm: llm.generate(b"x"),
        lambda llm: llm.stream(None),
        lambda llm: llm.stream([None]),
    ],
)
def test_arguments_of_the_wrong_type_are_refused_like_wrong_fields(llm: LLM, call: Callable[[LLM], object]) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        call(llm)


def test_more_prompts_than_may_wait_are_fed_in_turn(tiny_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "forge.toml"
    config.write_text("[scheduler]\nmax_queue = 3\nmax_batch_size = 2\n")
    with LLM(tiny_path, config=config, threads=1, num_blocks=100) as llm:
        outputs = llm.generate([[5, 6, i] for i in range(3, 43)], max_tokens=2, ignore_eos=True)
        assert [output.prompt_token_ids[2] for output in outputs] == list(range(3, 43))
        assert all(len(output.choices[0].token_ids) == 2 for output in outputs)


def test_an_empty_text_begins_with_the_start_token_as_over_http(llm: LLM) -> None:
    assert llm.generate("", max_tokens=1).prompt_token_ids == [llm.tokenizer.bos_token_id]
    stream = llm.stream([5, 6, 7], max_tokens=3, ignore_eos=True)
    assert sum(len(delta.token_ids) for delta in stream) == 3


def test_leaving_python_in_the_middle_of_an_answer_is_a_clean_exit(tiny_path: Path) -> None:
    script = f"""
from forge import LLM
llm = LLM({str(tiny_path)!r}, backend="torch", threads=1, num_blocks=64)
stream = llm.stream("a", max_tokens=400, ignore_eos=True)
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
