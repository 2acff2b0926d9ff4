"""What clients send and get: the request bodies, and the models that OpenAPI shows."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Path, Query, Request
from pydantic import AfterValidator, BaseModel, Field, JsonValue, ValidationError, create_model

from gateway.errors import ProblemError, invalid
from gateway.settings import GatewaySettings
from shared.contracts import NoteText, storable

INT64 = 2**63

NoteId = Annotated[int, Path(ge=-INT64, le=INT64 - 1)]
Skip = Annotated[int, Query(ge=0, le=INT64 - 1, description="How many notes to leave out")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many notes to return at most")]


class Note(BaseModel):
    """A note."""

    id: int
    title: str
    description: str
    created_date: datetime
    updated_date: datetime
    version: int


class Answer(BaseModel):
    """The answer that a write would have had, had it waited for its outcome."""

    status: int
    headers: dict[str, str]
    body: JsonValue


class CommandState(BaseModel):
    """What has become of an accepted write."""

    id: UUID
    issued_at: datetime
    status: Literal["pending", "unknown", "applied", "rejected", "failed"]
    answer: Answer | None = None


class NoteBody:
    """Reads a note from a request body, within the lengths that the settings allow."""

    def __init__(self, settings: GatewaySettings) -> None:
        stored = AfterValidator(storable)
        self._model: type[NoteText] = create_model(
            "NoteIn",
            __doc__="What a client writes of a note.",
            __base__=_Strict,
            title=Annotated[str, Field(max_length=settings.title_max_length), stored],
            description=Annotated[str, Field(max_length=settings.description_max_length), stored],
        )

    async def __call__(self, request: Request) -> NoteText:
        """The note; raises ProblemError 415, 400 or 422."""
        require_json(request)
        body = await request.body()
        try:
            return self._model.model_validate_json(body)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise ProblemError(HTTPStatus.BAD_REQUEST, "invalid_json", errors[0]["msg"])
        raise invalid(errors, part="body")

    @property
    def openapi(self) -> dict[str, object]:
        """The request body for a route's `openapi_extra`."""
        schema = self._model.model_json_schema()
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class _Strict(NoteText, extra="forbid"):
    pass


def require_json(request: Request) -> None:
    """Raises ProblemError 415 unless the body is declared as JSON in UTF-8."""
    declared = ",".join(request.headers.getlist("content-type"))
    media_type, _, parameters = declared.lower().partition(";")
    charset = parameters.strip().removeprefix("charset=").strip('"')
    if media_type.strip() != "application/json" or charset not in ("", "utf-8"):
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Send the body as application/json"
        )
