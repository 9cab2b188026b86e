"""The pre-tokenizers that GGUF files name in ``tokenizer.ggml.pre``: how text is cut before byte-level BPE.

For `forge.text.gguf_vocabulary`. Names and patterns: llama.cpp's src/llama-vocab.cpp, and the tokenizer.json files that
these models were published with, whose original pattern is preferred where llama.cpp had to rewrite one for its own
regular expressions. A name that isn't here is refused, since a wrong cut gives wrong ids without any other sign.
"""

from __future__ import annotations

from attrs import evolve, frozen
from tokenizers import Regex, normalizers, pre_tokenizers

from forge.errors import UnsupportedModel

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _tiktoken(digits: str) -> str:
    """The pattern of OpenAI's cl100k_base and its descendants, which differ in how they cut numbers."""
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(suffix: str, digits: str) -> str:
    """The pattern of o200k_base and Tekken, which also cuts words where lower case turns to upper case."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{suffix}"
    return rf"{word}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@frozen
class PreTokenizer:
    """How one family of byte-level BPE tokenizers prepares its text.

    patterns: applied one after the other to the pieces so far; a match becomes a piece, and so does what lies between
    two matches. nfc: the published tokenizer composes characters first (Unicode NFC). ignore_merges: a piece that is in
    the vocabulary as a whole is that token, however its merges would cut it. add_bos: prompts start with BOS, unless
    the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The library's object: the cuts, then the byte-level alphabet."""
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def build_normalizer(self) -> normalizers.Normalizer | None:
        """The library's object for what is done to the text before it's cut, if anything is."""
        return normalizers.NFC() if self.nfc else None


_PLAIN = PreTokenizer((_GPT2,))
_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3 = PreTokenizer((_tiktoken(r"\p{N}{1,3}"),))
_LLAMA3_BPE = evolve(_LLAMA3, ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((_tiktoken(r"\p{N}"),))
_QWEN35 = PreTokenizer(
    (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    nfc=True,
)
_TEKKEN = PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True)
_GPT4O = PreTokenizer((_cased(rf"{_CONTRACTIONS}?", r"\p{N}{1,3}"),))
_DEFAULT = PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_FALCON = PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]"))
_DEEPSEEK_CODER = PreTokenizer(
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")
)
_DEEPSEEK_V3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"""| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}""",
    )
)
_SEED_CODER = PreTokenizer(
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "exaone4", "trillion", "granite-docling"), _PLAIN),
    **dict.fromkeys(("mpt", "olmo"), evolve(_PLAIN, nfc=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "command-r": evolve(_DIGITS, nfc=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3_BPE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _LLAMA3),
    "qwen2": evolve(_QWEN2, nfc=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"), _QWEN2),
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "falcon": _FALCON,
    "deepseek-coder": _DEEPSEEK_CODER,
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK_V3),
    "seed-coder": _SEED_CODER,
}
"""By the name that GGUF files use."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """Look one up. Errors: `UnsupportedModel` that lists the known names."""
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModel(f"pre-tokenizer {name!r} (tokenizer.ggml.pre) is not implemented; known are {known}")
    return found
