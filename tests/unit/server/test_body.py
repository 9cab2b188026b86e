"""Bodies: whatever bytes come, an object or a clear 400."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.errors import InvalidRequest
from forge.server.body import parse_object

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=5), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_valid_object_comes_through_unchanged(value: dict[str, Any], ascii_only: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0123456789dDeE.-+ntf \ud83d'[:-1], max_size=40).map(str.encode)
)
@settings(max_examples=400, deadline=None)
def test_no_bytes_bring_down_the_parser(body: bytes) -> None:
    refusal, value = None, None
    try:
        value = parse_object(body)
    except InvalidRequest as error:
        refusal = error
    assert value == json.loads(body) if refusal is None else refusal.message.startswith("the body")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b'{"a": 1} x', "line 1, column 10"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8 text.* at byte 7"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON value"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too large"),
        (b'{"a": {"b": 1, "b": 2}}', 'key "b" occurs twice'),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": ["\\ud800"]}', r"half of a surrogate pair, \\ud800"),
        (b'{"\\uDFFF": 1}', r"half of a surrogate pair, \\udfff"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_object(body)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
