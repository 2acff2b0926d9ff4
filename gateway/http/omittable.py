"""Members of a request that may be left out but must not be null."""

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

T = TypeVar("T")


class _RejectsNull:
    """Makes pydantic reject None for a type `T | None`, except as the default, which it does not validate."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401 - pydantic's
        required: CoreSchema = handler(source)["schema"]  # the source's schema is "nullable", and contains that of `T`
        return required


Omittable: TypeAlias = Annotated[T | None, _RejectsNull()]
"""A member's type, for a default of None: None means that the member was left out."""
