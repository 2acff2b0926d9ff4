"""Members of a request that may be left out but must not be null."""

import pytest
from pydantic import BaseModel, ValidationError

from gateway.http.omittable import Omittable


class Parcel(BaseModel):
    """A body with such a member."""

    weight: Omittable[int] = None


def test_member_that_is_left_out_is_none() -> None:
    assert Parcel.model_validate_json("{}").weight is None


def test_null_is_rejected_like_any_other_wrong_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Parcel.model_validate_json('{"weight": null}')
    assert [(each["loc"], each["type"]) for each in caught.value.errors()] == [(("weight",), "int_type")]


def test_schema_does_not_allow_null() -> None:
    assert Parcel.model_json_schema()["properties"]["weight"]["type"] == "integer"
