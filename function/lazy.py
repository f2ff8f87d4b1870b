"""Requests that are parsed only where they are looked at, and that remember where that was.

A `Request` stands in for the SDK's RunFunctionRequest, and a view for each Struct and Value in it: `fn.run` and the
composers cannot tell, and do not know. What was looked at is the request's shape, and what the shape shows of another
request tells whether that one would be answered the same: see replay.py.
"""

import hashlib
import marshal
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Self

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf import struct_pb2 as structpb

# What to look at of a value that holds an object or a list; of any other, that is all there is.
#   _KIND: only that it is one.
#   _ALL: everything.
#   (names, ((name, shape), ...)): these fields of an object; first those that were missing, or plain values.
#   (_ITEMS, shape, ...): each item of a list; None for a plain one.
# Tuples, so that equal ones can be shared.
Shape = tuple[Any, ...]
_KIND: Shape = ()
_ALL: Shape = ("all",)
_ITEMS = "items"
# How the bytes of a Value begin that holds an object, and a list: fields 5 and 6 in google/protobuf/struct.proto.
_STRUCT, _LIST = b"\x2a", b"\x32"
_NESTED = (_STRUCT, _LIST)
# Of a list of fewer bytes, such as conditions, all costs less than its items one by one.
_SHORT = 2048


def _messages() -> tuple[Any, Any]:
    """Make RunFunctionRequest and Value again, but with the values of Structs and lists as bytes."""
    pool = descriptor_pool.DescriptorPool()
    for described in (duration_pb2, structpb, fnv1):
        file = descriptor_pb2.FileDescriptorProto.FromString(described.DESCRIPTOR.serialized_pb)
        if described is structpb:
            messages = {message.name: message for message in file.message_type}
            for message in (messages["Struct"].nested_type[0], messages["ListValue"]):
                field = message.field[-1]
                field.type = field.TYPE_BYTES
                field.ClearField("type_name")
        pool.Add(file)
    names = fnv1.RunFunctionRequest.DESCRIPTOR.full_name, structpb.Value.DESCRIPTOR.full_name
    request, value = (message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names)
    return request, value


_Request, _Value = _messages()


class _View:
    """A Value, and the Struct or ListValue that it holds: all three in one, since their fields have names of their own.

    Its inside is parsed one level deep, once that is asked for.
    """

    __slots__ = ("_inside", "_items", "_kind", "_raw", "_seen", "_whole")

    def __init__(self, raw: bytes, struct: Any = None) -> None:
        # Without a Value around it, a Struct's bytes are those of the kind alone.
        self._raw = raw
        self._kind = raw[:1]
        # The Struct where it is one, else the Value.
        self._inside = struct
        self._seen: dict[str, _View | None] = {}
        self._items: list[_View] | None = None
        self._whole = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What it stands for, as proxies say."""
        return structpb.Struct if self._kind == _STRUCT else structpb.Value

    def _parse(self) -> Any:
        if self._inside is None:
            value = _Value.FromString(self._raw)
            self._inside = value.struct_value if self._kind == _STRUCT else value
        return self._inside

    # --- a Value ----------------------------------------------------------------------------------------------

    def HasField(self, name: str) -> bool:  # noqa: N802
        return self._kind == _STRUCT if name == "struct_value" else self.WhichOneof("kind") == name

    def WhichOneof(self, name: str) -> Any:  # noqa: N802
        return "struct_value" if self._kind == _STRUCT else self._parse().WhichOneof(name)

    @property
    def string_value(self) -> Any:
        return "" if self._kind == _STRUCT else self._parse().string_value

    @property
    def number_value(self) -> Any:
        return 0.0 if self._kind == _STRUCT else self._parse().number_value

    @property
    def bool_value(self) -> Any:
        return False if self._kind == _STRUCT else self._parse().bool_value

    @property
    def struct_value(self) -> Self:
        return self

    @property
    def list_value(self) -> Self:
        return self

    # --- a ListValue ------------------------------------------------------------------------------------------

    @property
    def values(self) -> "list[_View]":
        if self._items is None:
            self._items = [_View(raw) for raw in self._parse().list_value.values] if self._kind == _LIST else []
        return self._items

    # --- a Struct ---------------------------------------------------------------------------------------------

    @property
    def fields(self) -> Self:
        return self

    def get(self, name: str) -> "_View | None":
        if name in self._seen:
            return self._seen[name]
        raw = self._parse().fields.get(name) if self._kind == _STRUCT else None
        found = self._seen[name] = None if raw is None else _View(raw)
        return found

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __getitem__(self, name: str) -> "_View":
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def items(self) -> Any:
        # Whoever asks for all fields gets them parsed in the plain way.
        self._whole = True
        known = self._parse().SerializeToString() if self._kind == _STRUCT else b""
        return structpb.Struct.FromString(known).fields.items()

    # ----------------------------------------------------------------------------------------------------------

    def shape(self) -> Shape | None:
        if self._kind not in _NESTED:
            return None
        if self._whole or (self._items and len(self._raw) < _SHORT):
            return _ALL
        if self._items is not None:
            return _shared((_ITEMS, *(item.shape() for item in self._items)))
        plain, nested = [], []
        for name, view in self._seen.items():
            shape = None if view is None else view.shape()
            if shape is None:
                plain.append(name)
            else:
                nested.append((name, shape))
        return _shared((tuple(plain), tuple(nested))) if self._seen else _KIND


class _Found(Mapping[str, Any]):
    """A map of messages by name: what was found of it, and whether all names were asked for."""

    def __init__(self, messages: Any, view: type) -> None:
        self._messages, self._view = messages, view
        self._seen: dict[Any, Any] = {}
        self._listed = False

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def __getitem__(self, name: str) -> Any:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        self._listed = True
        return iter(self._messages)

    def __len__(self) -> int:
        self._listed = True
        return len(self._messages)

    def _find(self, name: Any) -> Any:
        if name not in self._seen:
            self._seen[name] = self._view(self._messages[name]) if name in self._messages else None
        return self._seen[name]

    def shape(self) -> Shape:
        return self._listed, tuple((name, None if v is None else v.shape()) for name, v in self._seen.items())


class _Resource:
    __slots__ = ("resource",)

    def __init__(self, message: Any) -> None:
        self.resource = _View(_STRUCT, message.resource)

    def shape(self) -> Shape | None:
        return self.resource.shape()


class _Resources:
    __slots__ = ("items",)

    def __init__(self, message: Any) -> None:
        self.items = [_Resource(item) for item in message.items]

    def shape(self) -> Shape:
        return tuple(item.shape() for item in self.items)


class Request:
    """A RunFunctionRequest: what a composer may look at of it. The rest is no attribute, so nobody can miss it."""

    def __init__(self, raw: bytes) -> None:
        """Take a request's bytes, of v1 or v1beta1, which are the same; DecodeError where they are none."""
        self.raw = raw
        self._message = message = _Request.FromString(raw)
        self.meta = SimpleNamespace(tag=message.meta.tag)
        self.observed = SimpleNamespace(
            composite=_Resource(message.observed.composite), resources=_Found(message.observed.resources, _Resource)
        )
        self.required_resources: Any = _Found(message.required_resources, _Resources)
        # Every answer begins with both, so these are parsed as the SDK does.
        self.desired = fnv1.State.FromString(message.desired.SerializeToString())
        self.context = structpb.Struct.FromString(message.context.SerializeToString())

    def show_others(self) -> None:
        """Parse all but the composite as the SDK does: no look at it is noted, which would cost half of composing."""
        message = fnv1.RunFunctionRequest.FromString(self.raw)
        self.observed.resources, self.required_resources = message.observed.resources, message.required_resources

    def key(self) -> tuple[object, ...]:
        """Tell the composite, and the round of its reconcile, from others."""
        fields = self._message.observed.composite.resource.fields
        metadata = _Value.FromString(fields.get("metadata", b"")).struct_value.fields
        names = fields.get("apiVersion"), fields.get("kind"), *map(metadata.get, ("namespace", "name", "uid"))
        return (*names, *sorted(self._message.required_resources))

    def own_shape(self) -> Shape:
        """Give what was looked at of the composite until now."""
        return self.observed.composite.shape() or _KIND

    def others_shape(self) -> Shape:
        """Give what was looked at of all other resources; not after `show_others`."""
        return self.observed.resources.shape(), self.required_resources.shape()

    def own_facts(self, shape: Shape) -> bytes:
        """Hash what a shape shows of the composite, and all that came in: equal where every such thing is."""
        facts: list[object] = [
            self.desired.SerializeToString(deterministic=True),
            self.context.SerializeToString(deterministic=True),
        ]
        _look(self._message.observed.composite.resource, shape, facts)
        return _hash(facts)

    def others_facts(self, shape: Shape) -> bytes:
        """Hash what a shape shows of all other resources."""
        (listed, resources), (_, required) = shape
        facts: list[object] = []
        observed, found = self._message.observed.resources, self._message.required_resources
        if listed:
            facts.append(sorted(observed))
        for name, wanted in resources:
            facts.append(name in observed)
            if wanted is not None and facts[-1]:
                _look(observed[name].resource, wanted, facts)
        for name, wanted in required:
            items = found[name].items if name in found else None
            facts.append(None if items is None else len(items))
            for item, of_item in zip(items or (), wanted or (), strict=False):
                _look(item.resource, of_item, facts)
        return _hash(facts)

    def versions(self) -> bytes | None:
        """Hash which versions of all other resources are here, and their sizes; None where one has no version."""
        found: list[object] = []
        observed, required = self._message.observed.resources, self._message.required_resources
        maps = [(name, [observed[name]]) for name in sorted(observed)]
        maps += [(name, required[name].items) for name in sorted(required)]
        for name, items in maps:
            found += [name, len(items)]
            for item in items:
                metadata = _Value.FromString(item.resource.fields.get("metadata", b"")).struct_value.fields
                version = metadata.get("uid"), metadata.get("resourceVersion")
                if None in version:
                    return None
                found += [*version, item.resource.ByteSize()]
        return _hash(found)


def _hash(facts: list[object]) -> bytes:
    # Version 2 writes equal lists equally; later ones also tell which of their items are one object.
    return hashlib.blake2b(marshal.dumps(facts, 2), digest_size=16).digest()


def _look(struct: Any, shape: Shape, facts: list[object]) -> None:
    """Note what a shape shows of a Struct: a plain value is its bytes, which are one way only."""
    if shape is _KIND:
        return
    if shape is _ALL:
        facts.append(structpb.Struct.FromString(struct.SerializeToString()).SerializeToString(deterministic=True))
        return
    plain, nested = shape
    find = struct.fields.get
    facts.extend(map(find, plain))
    for name, wanted in nested:
        _look_inside(find(name), wanted, facts)


def _look_inside(raw: bytes | None, shape: Shape | None, facts: list[object]) -> None:
    """Note what a shape shows of a Value."""
    kind = raw and raw[:1]
    if raw is None or shape is None or kind not in _NESTED:
        facts.append(raw)
        return
    facts.append(kind)
    if shape is _KIND:
        return
    if shape is _ALL:
        facts.append(structpb.Value.FromString(raw).SerializeToString(deterministic=True))
    elif (kind == _LIST) == (shape[0] is _ITEMS):
        value = _Value.FromString(raw)
        if kind == _STRUCT:
            _look(value.struct_value, shape, facts)
        else:
            items = value.list_value.values
            facts.append(len(items))
            for item, wanted in zip(items, shape[1:], strict=False):
                _look_inside(item, wanted, facts)


@lru_cache(1 << 12)
def _shared(shape: Shape) -> Shape:
    """Give the one shape of all that are equal: most composites look at most of their resources alike."""
    return shape
