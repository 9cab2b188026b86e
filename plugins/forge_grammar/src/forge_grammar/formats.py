"""Languages of the string formats that JSON Schema names; those that aren't regular (`regex`) or hang on tables of
Unicode beyond Python's (`idn-hostname`) are not here.

Where a name's specification and RFC 3339 as it is read by common validators differ, the stricter holds: no leap
seconds, no year 0000.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from forge_grammar.regular import Language
from forge_grammar.regular.limits import remembered

_DAY_PAIRS = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    r"(?!0000)(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{{2}}{_DAY_PAIRS}|{_DAY_PAIRS}00)-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-]{_CLOCK})"

_HOURS = "[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?"
_CLOCK_SPAN = f"T(?:{_HOURS}|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DATE_SPAN = "(?:[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?)"
_DURATION = f"P(?:{_DATE_SPAN}(?:{_CLOCK_SPAN})?|{_CLOCK_SPAN}|[0-9]+W)"

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"


def _ipv6() -> str:
    """RFC 3986, section 3.2.2: eight groups, of which `::` stands for one or more."""
    group, last = "[0-9A-Fa-f]{1,4}", f"(?:[0-9A-Fa-f]{{1,4}}:[0-9A-Fa-f]{{1,4}}|{_IPV4})"
    forms = [f"(?:{group}:){{6}}{last}", f"::(?:{group}:){{5}}{last}"]
    for before in range(5):
        forms.append(f"(?:(?:{group}:){{0,{before}}}{group})?::(?:{group}:){{{4 - before}}}{last}")
    forms.append(f"(?:(?:{group}:){{0,5}}{group})?::{group}")
    forms.append(f"(?:(?:{group}:){{0,6}}{group})?::")
    return f"(?:{'|'.join(forms)})"


_IPV6 = _ipv6()

_LABEL = "(?!..--)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_ABOVE = r"\u{80}-\u{10FFFF}"
_INTERNATIONAL = r"A-Za-z0-9\u{A1}-\u{10FFFF}"
_LITERAL = rf"\[(?:{_IPV4}|IPv6:{_IPV6})\]"


def _email(above: str, domain: str) -> str:
    """RFC 5321, section 4.1.2; with `above`, RFC 6531."""
    atom = f"[{_ATOM}{above}]+"
    quoted = rf'"(?:[ !#-\[\]-~{above}]|\\[ -~])*"'
    return rf"(?:{atom}(?:\.{atom})*|{quoted})@(?:{domain}|{_LITERAL})"


_INTERNATIONAL_LABEL = f"[{_INTERNATIONAL}](?:[{_INTERNATIONAL}-]{{0,61}}[{_INTERNATIONAL}])?"

_UCS = (
    r"\u{A0}-\u{D7FF}\u{F900}-\u{FDCF}\u{FDF0}-\u{FFEF}"
    + "".join(rf"\u{{{plane:X}0000}}-\u{{{plane:X}FFFD}}" for plane in range(1, 14))
).replace(r"\u{E0000}", r"\u{E1000}")
_PRIVATE = r"\u{E000}-\u{F8FF}\u{F0000}-\u{FFFFD}\u{100000}-\u{10FFFD}"


def _uri(ucs: str, private: str, reference: bool) -> str:
    """RFC 3986, appendix A; RFC 3987, section 2.2 with its further characters."""
    unreserved, marks = rf"A-Za-z0-9._~\-{ucs}", "!$&'()*+,;="
    encoded = "%[0-9A-Fa-f]{2}"
    char = f"(?:[{unreserved}{marks}:@]|{encoded})"
    no_colon = f"(?:[{unreserved}{marks}@]|{encoded})"
    host = rf"(?:\[(?:{_IPV6}|[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:\-]+)\]|(?:[{unreserved}{marks}]|{encoded})*)"
    authority = f"(?:(?:[{unreserved}{marks}:]|{encoded})*@)?{host}(?::[0-9]*)?"
    absolute = f"//{authority}(?:/{char}*)*|/(?:{char}+(?:/{char}*)*)?"
    query = rf"(?:\?(?:{char}|[/?{private}])*)?(?:#(?:{char}|[/?])*)?"
    full = rf"[A-Za-z][A-Za-z0-9+.\-]*:(?:{absolute}|{char}+(?:/{char}*)*|){query}"
    return f"(?:{full}|(?:{absolute}|{no_colon}+(?:/{char}*)*|){query})" if reference else full


_VARIABLE = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})(?:\.?(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2}))*(?::[1-9][0-9]{0,3}|\*)?"
_TEMPLATE = (
    rf"(?:[!#$&(-;=?-\[\]_a-z~{_UCS}{_PRIVATE}]|%[0-9A-Fa-f]{{2}}|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
)
_POINTER = "(?:/(?:[^~/]|~[01])*)*"

_PATTERNS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": _DURATION,
    "email": _email("", _HOSTNAME),
    "idn-email": _email(_ABOVE, rf"{_INTERNATIONAL_LABEL}(?:\.{_INTERNATIONAL_LABEL})*"),
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": _uri("", "", reference=False),
    "uri-reference": _uri("", "", reference=True),
    "iri": _uri(_UCS, _PRIVATE, reference=False),
    "iri-reference": _uri(_UCS, _PRIVATE, reference=True),
    "uri-template": _TEMPLATE,
    "uuid": "[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}",
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
}

MAX_LENGTHS = {"hostname": 253, "email": 254, "idn-email": 254}
"""Code points that a text of the format may have at most, where the language itself doesn't say it: a counter says it
in far fewer states."""


@remembered(64)
def format_language(name: str) -> Language:
    """The texts of a format (lengths beside: `MAX_LENGTHS`). Errors: `KeyError` if it isn't one of `FORMATS`."""
    language = Language.regex(_PATTERNS[name], whole=True)
    return language & _short_local_part() if name.endswith("email") else language


@remembered(1)
def _short_local_part() -> Language:
    """At most 64 code points before the last @ (RFC 5321, section 4.5.3.1.1). Where a quoted part ends is told first,
    so that no state has to count beyond it.
    """
    plain = Language.regex('[^"@]{1,64}@[^"@]*', whole=True)
    quoted = Language.regex(r'"(?:[^"\\]|\\[^])*"@[^"@]*', whole=True)
    return plain | (quoted & Language.regex('"[^]{0,62}"@[^"@]*', whole=True))


FORMATS: dict[str, Callable[[], Language]] = {name: partial(format_language, name) for name in _PATTERNS}
"""Per name of a format what makes its language."""
