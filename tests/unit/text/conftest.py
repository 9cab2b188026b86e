"""A multilingual corpus, and vocabularies trained on it on the spot, in the form that GGUF files have them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from forge.interfaces.loader import TokenizerSource
from forge.text.tokenizer import Tokenizer, build_tokenizer

Metadata = dict[str, Any]

LANGUAGES = [
    "The quick brown fox jumps over the lazy dog. It's what they've said; we'll see, I'd say: DON'T you'RE She'S",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – straße STRASSE ẞ ſ'ſ",
    "Voilà l'été, où j'ai goûté à l'œuvre: «ça va?»; Ærøskøbing; Þórður; İstanbul ığdır; ĳsselmeer",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ЁЛКА ёлка",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΣΊΣΥΦΟΣ σίσυφος",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ١٢٣٤٥٦ ۱۲۳",
    "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה שָׁלוֹם",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण १२३४५ क्षत्रिय",
    "நான் தமிழ் பேசுகிறேன் ௧௨௩ শুভ নববর্ষ ১২৩ ไทยไม่มีช่องว่าง ๑๒๓ ភាសាខ្មែរ မြန်မာ ཨོཾ་མ་ཎི",
    "我能吞下玻璃而不伤身体。「你好,世界!」１２３４５６ 一二三四五 㐀 𠀀𠮷",
    "いろはにほへと ちりぬるを カタカナ ｶﾀｶﾅ ー々〆ヶ 日本語テキスト",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㄱㄴㄷ 힣",
    "ქართული ენა Հայերեն ለምሳሌ ᏣᎳᎩ ᚠᚢᚦ 𐍈𐌰 𝒜𝓫𝔠 ℝℤ Ⅷ ½ ² ₃ ①",
]
EMOJI = ["👩🏽‍💻👨‍👩‍👧‍👦 🏳️‍🌈🇩🇪🇯🇵 ❤️ ✌🏿 1️⃣ #️⃣ ☕︎☕️ 🫠", "😀😀😀😃 ok👍ok 👍🏻👍🏼👍🏽👍🏾👍🏿"]
MARKS = [
    "e\u0301 é A\u030a Å n\u0303 q\u0307\u0323 q\u0323\u0307 \u0301 \u0301\u0301abc",
    "Z̷̡̛͔a̵͎͝l̴g̷o̶ \u0e33 \u1112\u1161\u11ab",
]
CONTROLS = [
    "a\x00b\x00\x00 \x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x1b[0m\x7f\x80\x85\x9f",
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u2066 \ufffd \ufffe \U0010ffff \ue000 \u180e\u2028\u2029",
]
NUMBERS = ["0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-9 v1.2.3 ٣٫١٤ ²³ a1b22c333d4444 10% $5 €7 ¥8"]
SPACES = [
    *(" ", "  ", "   ", " a", "  a", "a ", "a  ", "a  b", "a   b    c", "\t", "\ta", "a\t\tb", " \t x", "", "\r"),
    *("\n", "\n\n", "a\nb", "a\n\n\nb", "a \n b", "a\r\nb\r\n\r\nc", "\n \n  \n", "   \n\t  x"),
    *("\u00a0x\u2003y\u3000z", "def f(x):\n    return x\n", "    if a:\n\t\tb  # c\n\n\n"),
]
SYMBOLS = [
    "!!! ??? ... --- ___ === <<>> {[()]} @#$%^&*~`|\\ a.b,c;d:e ''\"\" </tag> http://a.b/c?d=e&f=g#h",
    "camelCase PascalCase SNAKE_CASE kebab-case HTTPServer iOS eBay ÉCOLEécole ДОМдом a/b//c /\n/ x\n/y",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'LL it''s o'clock rock'n'roll ’s ʼs",
    "▁ ▁▁a _▁_ <0x0A> Ġ Ċ Ã© <s> </s> <unk> [INST] <|end|> <|im_start|> <tool> <tool",
]
LONG = [
    "a" * 3000,
    "A" * 3000,
    "ab" * 1500,
    " " * 3000,
    " " * 3000 + "x",
    "\n" * 3000,
    "7" * 3000,
    "!" * 3000,
    "字" * 1000,
]
CORPUS = [*LANGUAGES, *EMOJI, *MARKS, *CONTROLS, *NUMBERS, *SPACES, *SYMBOLS, *LONG]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Texts that tokenizers get wrong."""
    return CORPUS


def build(metadata: Metadata) -> Tokenizer:
    return build_tokenizer(TokenizerSource("gguf", metadata))


@pytest.fixture(scope="session")
def from_gguf() -> Callable[[Metadata], Tokenizer]:
    """A tokenizer from GGUF metadata."""
    return build


@pytest.fixture(scope="session")
def byte_level_metadata() -> Metadata:
    """A byte-level BPE vocabulary, with two control tokens and one that's user-defined, as GGUF metadata."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([*LANGUAGES * 4, *SPACES * 3, *SYMBOLS * 3, *EMOJI * 3, *NUMBERS * 3], trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=lambda text: int(model["vocab"][text]))
    extra = [("<|end|>", 3), ("<s>", 3), ("<tool>", 4)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *(text for text, _ in extra)],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [kind for _, kind in extra],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": len(tokens),
        "tokenizer.ggml.bos_token_id": len(tokens) + 1,
    }


@pytest.fixture(scope="session")
def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    """A BPE model with byte fallback, as Llama 2's was trained."""
    model = io.BytesIO()
    sentences = [*LANGUAGES * 4, *SYMBOLS * 4, *(text.replace("\n", " ") for text in SPACES if text.strip())]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=1100,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="session")
def sentencepiece_metadata(sentencepiece_model: sentencepiece.SentencePieceProcessor) -> Metadata:
    """That model as GGUF metadata, as llama.cpp's converter writes it."""
    processor = sentencepiece_model
    kinds = [(processor.IsUnknown, 2), (processor.IsControl, 3), (processor.IsUnused, 5), (processor.IsByte, 6)]
    ids = range(processor.GetPieceSize())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.IdToPiece(token) for token in ids],
        "tokenizer.ggml.scores": [processor.GetScore(token) for token in ids],
        "tokenizer.ggml.token_type": [next((kind for test, kind in kinds if test(token)), 1) for token in ids],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> Metadata:
    """The real model's metadata, read by the gguf package."""
    reader = gguf.GGUFReader(smollm2_path)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: Metadata) -> Tokenizer:
    """The real model's tokenizer."""
    return build(smollm2_metadata)
