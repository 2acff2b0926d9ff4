"""How a request declares its body: the media type, the charset and the content coding (RFC 9110 §8.3 and §8.4)."""

import re
from encodings import normalize_encoding
from encodings.aliases import aliases
from http import HTTPStatus

from fastapi import Request

from gateway.errors import ProblemError

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - no secret
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PARAMETER = re.compile(rf"({_TOKEN})=(?:({_TOKEN})|({_QUOTED}))")
# Possessive, or white space between semicolons could be divided in exponentially many ways.
_MEDIA_TYPE = re.compile(rf"[ \t]*+({_TOKEN}/{_TOKEN})((?:[ \t]*+;[ \t]*+(?:{_PARAMETER.pattern})?+)*+)[ \t]*+")
_UTF_8 = {"utf_8", *(alias for alias, codec in aliases.items() if codec == "utf_8")}
"""What `codecs.lookup` takes for UTF-8. It is not asked, since it remembers every name that a client invents."""


def media_type_of(request: Request) -> str | None:
    """The media type of the body in lower case; None where it is not declared once, or not to be UTF-8.

    Parameters other than `charset` are ignored: they mean nothing for JSON or a form.
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
    """Whether a charset is UTF-8, by any of its names."""
    return charset.isascii() and normalize_encoding(charset).lower() in _UTF_8


def refuse_coded_body(request: Request) -> None:
    """Raises ProblemError 415 where the body is compressed, or coded in any other way."""
    codings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    if any(coding.strip() not in ("", "identity") for coding in codings):
        detail = "Send the body as it is, without a content coding"
        raise unsupported_media_type(detail, {"Accept-Encoding": "identity"})


def unsupported_media_type(detail: str, headers: dict[str, str] | None = None) -> ProblemError:
    """415."""
    return ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail, headers=headers)
