"""Typed views of what users write: lean models whose defaults equal the XRDs' and whose errors become conditions."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.alias_generators import to_camel

from function import sizing

# What a text that has the wrong form should be, by its field.
_FORMS = {
    "host": "must be a host name or an IPv4 address, without a port",
    "lmcache": "must be an image that is pinned by a tag or a digest",
    "path": "must be an absolute path without colons",
    "targetNamespace": "must be a namespace's name: lower-case letters, digits and dashes",
    "version": "must be a version, such as 0.33.0",
}
_SHOWN = 64  # longer strings are not shown in messages

M = TypeVar("M", bound="Model")


class Model(BaseModel):
    """A part of a spec. Unknown fields are Crossplane's or a newer API's, and none of our business."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class Invalid(Exception):
    """A spec that cannot be composed; the text names each field, its value and the fix."""


def _disk(text: str) -> str:
    if sizing.quantity(text) < sizing.GIB:
        raise ValueError("must be at least 1Gi")
    return text


def _number(value: object) -> object:
    # A request's numbers are floats, so pydantic's strict mode is no way; a text is no number, though.
    if isinstance(value, str | bool):
        raise ValueError("must be a whole number")
    return value


def _amount(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return str(int(value))
    if isinstance(value, str) and value:
        return value
    raise ValueError("must be a quantity, such as 2 or 64Gi")


Int = Annotated[int, BeforeValidator(_number)]
Bool = Annotated[bool, Strict()]
Disk = Annotated[str, AfterValidator(_disk)]
Memory = Disk
Amount = Annotated[str, BeforeValidator(_amount)]
Name = Annotated[str, Field(min_length=1, max_length=253)]


class Ref(Model):
    """A resource by name."""

    name: Name


def parse(model: type[M], spec: Mapping[str, Any]) -> M:
    """Read a spec into its model.

    Args:
        model: The model of the kind's spec.
        spec: The spec as the API server stores it, with or without the XRD's defaults.

    Returns:
        The model, the same in both cases.

    Raises:
        Invalid: a line for each field that is wrong.
    """
    try:
        return model.model_validate(spec)
    except ValidationError as e:
        lines = [_line(error) for error in e.errors(include_url=False, include_context=False)]
        raise Invalid("; ".join(lines)) from None


def _line(error: Any) -> str:
    """Write one error: the field, its value where it is a short scalar, and what would be right."""
    path = ".".join(("spec", *(str(part) for part in error["loc"])))
    message = re.sub(r"^(Value error, |Input )", "", error["msg"])
    if error["type"] == "string_pattern_mismatch":
        message = _FORMS.get(str(error["loc"][-1]), message)
    value = error["input"]
    if error["type"] == "missing":
        return f"{path} is required"
    # Neither what may be somebody's data nor what may be a URL's password is repeated.
    short = isinstance(value, str) and len(value) <= _SHOWN and "@" not in value
    scalar = (short or isinstance(value, bool | int | float)) and "env" not in error["loc"]
    shown = f" (is {value!r})" if scalar else ""
    return f"{path}{shown}: {message}"
