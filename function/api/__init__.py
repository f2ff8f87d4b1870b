"""Typed views of what users write: lean models whose defaults equal the XRDs' and whose errors become conditions."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.alias_generators import to_camel

from function import sizing

NAMESPACE = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OBJECT = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
KEY = r"^[-._a-zA-Z0-9]+$"
RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
HOST = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
ENDPOINT = r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[0-9]{1,5}$"
PATH = r"^/[^:]+$"
IMAGE = r"^[^ ]+(:[^ :/]+|@sha256:[0-9a-f]{64})$"
VERSION = r"^v?[0-9]+\.[0-9]+(\.[0-9]+)?$"
BUCKET = r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"
REGION = r"^[a-z0-9-]+$"
DEVICE = r"^[A-Za-z0-9_.-]+$"
TIER = r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
# What a text of the wrong form should be, by the pattern that it does not match.
FORMS = {
    NAMESPACE: "must be a namespace's name: lower-case letters, digits and dashes",
    OBJECT: "must be a name of a Kubernetes object: lower-case letters, digits, dashes and dots",
    KEY: "must be a key of a Secret: letters, digits, dashes, dots and underscores",
    RESOURCE: "must be a resource with its domain, such as rdma/rdma_shared_device_a",
    HOST: "must be a host name or an IPv4 address, without a port",
    ENDPOINT: "must be a URL with a port and no path, such as http://store.example:2379",
    PATH: "must be an absolute path without colons",
    IMAGE: "must be an image that is pinned by a tag or a digest",
    VERSION: "must be a version, such as 0.33.0",
    BUCKET: "must be a bucket's name: lower-case letters, digits, dashes and dots",
    REGION: "must be a region: lower-case letters, digits and dashes",
    DEVICE: "must be an RDMA device, such as mlx5_0",
    TIER: "must be a tier's name of at most 253 characters, or namespace/name",
}
# What pydantic calls by Python's names.
_SHAPES = {
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}
_SHOWN = 64  # longer strings are not shown in messages

M = TypeVar("M", bound="Model")


class Model(BaseModel):
    """A part of a spec. Unknown fields are Crossplane's or a newer API's, and none of our business."""

    # Most models are but parts of others, and need nothing of their own.
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", defer_build=True
    )


class Invalid(Exception):
    """A spec that cannot be composed; the text names each field, its value and the fix."""


def _disk(text: str) -> str:
    if sizing.quantity(text) < sizing.GIB:
        raise ValueError("must be at least 1Gi")
    return text


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("must be an IPv4 or IPv6 address, since AIBrix looks up no names") from None
    return text


def _number(value: object) -> object:
    # A request's numbers are floats, so pydantic's strict mode is no way; a text is no number, though.
    if isinstance(value, str | bool):
        raise ValueError("must be a whole number")
    return value


def _fraction(value: object) -> object:
    if isinstance(value, str | bool):
        raise ValueError("must be a number")
    return value


def _amount(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return str(int(value))
    if isinstance(value, str) and value:
        return value
    raise ValueError("must be a quantity, such as 2 or 64Gi")


Int = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_fraction)]
Members = Annotated[Literal[1, 3], BeforeValidator(_number)]
Bool = Annotated[bool, Strict()]
Disk = Annotated[str, AfterValidator(_disk)]
Memory = Disk
Address = Annotated[str, AfterValidator(_address)]
Amount = Annotated[str, BeforeValidator(_amount)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=OBJECT)]
Key = Annotated[str, Field(min_length=1, max_length=253, pattern=KEY)]


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
        lines = [_line(error) for error in e.errors(include_url=False)]
        raise Invalid("; ".join(lines)) from None


def _line(error: Any) -> str:
    """Write one error: the field, its value where it is a short scalar, and what would be right."""
    path = "".join(("spec", *(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])))
    message = _SHAPES.get(error["type"]) or re.sub(r"^(Value error, |Input )", "", error["msg"])
    if message.startswith("spec."):
        # A rule over the whole spec names its fields itself.
        return message
    if error["type"] == "string_pattern_mismatch":
        message = FORMS.get(error["ctx"]["pattern"], message)
    value = error["input"]
    if error["type"] == "missing":
        return f"{path} is required"
    # Neither what may be somebody's data nor what may be a URL's password is repeated.
    short = isinstance(value, str) and len(value) <= _SHOWN and "@" not in value
    scalar = (short or isinstance(value, bool | int | float)) and "env" not in error["loc"]
    shown = f" (is {value!r})" if scalar else ""
    return f"{path}{shown}: {message}"
