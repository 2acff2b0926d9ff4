"""Media type, charset and content coding of a request body (RFC 9110 §8.3 and §8.4), and `Accept` (§12.5.1)."""

import re
from encodings import normalize_encoding
from encodings.aliases import aliases

from gateway.http.requests import Request
from gateway.problems import UNSUPPORTED_MEDIA_TYPE, ProblemError

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - no secret
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PARAMETER = re.compile(rf"({_TOKEN})=(?:({_TOKEN})|({_QUOTED}))")
# Possessive quantifiers: whitespace between semicolons would cause exponential backtracking.
_MEDIA_TYPE = re.compile(rf"[ \t]*+({_TOKEN}/{_TOKEN})((?:[ \t]*+;[ \t]*+(?:{_PARAMETER.pattern})?+)*+)[ \t]*+")
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+"?)++')
"""A comma in quotes does not end an element of a list."""
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_UTF_8 = {"utf_8", *(alias for alias, codec in aliases.items() if codec == "utf_8")}
"""The names of UTF-8 that `codecs.lookup` accepts; the lookup itself would cache every name that a client invents."""


def parse_media_type(request: Request) -> str | None:
    """Return the body's media type in lower case; None unless it is declared once, without a charset or with UTF-8.

    Other parameters are ignored: JSON and forms define none.
    """
    declared = request.headers.getlist("content-type")
    parsed = _MEDIA_TYPE.fullmatch(declared[0]) if len(declared) == 1 else None
    if parsed is None:
        return None
    for name, token, quoted in _PARAMETER.findall(parsed[2]):
        if name.lower() == "charset" and not is_utf_8(token or re.sub(r"\\(.)", r"\1", quoted[1:-1])):
            return None
    return parsed[1].lower()


def is_utf_8(charset: str) -> bool:
    """Whether a charset name is an alias of UTF-8."""
    return charset.isascii() and normalize_encoding(charset).lower() in _UTF_8


def reject_encoded_body(request: Request) -> None:
    """Raise ProblemError 415 if the body has a content coding, such as gzip."""
    codings = (request.join_header(b"content-encoding") or "").lower().split(",")
    if any(coding.strip() not in ("", "identity") for coding in codings):
        detail = "Send the body without a content coding"
        raise build_media_type_problem(detail, {"Accept-Encoding": "identity"})


def build_media_type_problem(detail: str, headers: dict[str, str] | None = None) -> ProblemError:
    """Return a 415 `unsupported_media_type`."""
    return ProblemError(UNSUPPORTED_MEDIA_TYPE, detail, headers=headers)


def prefers(request: Request, media_type: str, default: str) -> bool:
    """Whether `Accept` names a media type, and the default one with no greater weight; wildcards mean the default."""
    weights = dict[str, float]()
    for element in _ELEMENT.findall(request.join_header(b"accept") or ""):
        if parsed := _MEDIA_TYPE.fullmatch(element):
            parameters = {name.lower(): token for name, token, _ in _PARAMETER.findall(parsed[2])}
            weight = parameters.get("q", "1")
            weights[parsed[1].lower()] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    return weights.get(media_type, 0.0) >= max(weights.get(default, 0.0), 0.001)
