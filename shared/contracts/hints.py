"""The wire format of hints: which owners have reached which revision, for followers of changes."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from shared.contracts.values import Int64

MAX_HINTS = 10_000
"""Limit on the owners in a message."""


class ChangeHint(BaseModel, frozen=True, use_attribute_docstrings=True):
    """An owner's revision after a commit."""

    owner: Int64
    revision: Int64
    """Commands of the owner that were decided so far; notes may have changed, or not."""


class ChangeHints(BaseModel, frozen=True, use_attribute_docstrings=True):
    """A message of hints."""

    owners: Annotated[list[ChangeHint], Field(max_length=MAX_HINTS, fail_fast=True)]


def encode_hints(revisions: Mapping[int, int]) -> bytes:
    """Return the message for the owners' revisions."""
    owners = [ChangeHint(owner=owner, revision=revision) for owner, revision in revisions.items()]
    return ChangeHints(owners=owners).model_dump_json().encode()


def decode_hints(body: bytes) -> dict[int, int]:
    """Return the owners' revisions; empty if the message cannot be read."""
    try:
        return {hint.owner: hint.revision for hint in ChangeHints.model_validate_json(body).owners}
    except ValidationError:
        return {}
