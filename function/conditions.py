"""Conditions and the events that go with their transitions."""

from collections.abc import Mapping
from dataclasses import dataclass

from crossplane.function.proto.v1 import run_function_pb2 as fnv1

from function import kube

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
# Crossplane's own types: core drops a function's condition of one of them without a word (IsSystemConditionType).
SYSTEM = frozenset({"Ready", "Synced", "Healthy", "UpToDate", "Responsive"})

_STATUS = {TRUE: fnv1.STATUS_CONDITION_TRUE, FALSE: fnv1.STATUS_CONDITION_FALSE, UNKNOWN: fnv1.STATUS_CONDITION_UNKNOWN}


@dataclass(frozen=True)
class Condition:
    """One condition: status, a CamelCase reason, a message with names in it, and whether a person has to act."""

    status: str
    reason: str
    message: str
    warn: bool = False


class Conditions:
    """The conditions of one composite: a fixed vocabulary, all of it written on every path.

    Crossplane keeps what a function once wrote, so a type left out would go stale.
    """

    def __init__(self, vocabulary: Mapping[str, Condition]) -> None:
        """Start with what every type says until it is set."""
        assert not SYSTEM & vocabulary.keys(), SYSTEM & vocabulary.keys()
        self._conditions = dict(vocabulary)

    def set(self, type_: str, status: str, reason: str, message: str, *, warn: bool = False) -> None:
        """Set a condition of the vocabulary; KeyError for a type that is not in it."""
        self.put(type_, Condition(status, reason, message, warn))

    def put(self, type_: str, condition: Condition) -> None:
        """Set a condition that is made already; KeyError for a type that is not in the vocabulary."""
        if type_ not in self._conditions:
            raise KeyError(type_)
        self._conditions[type_] = condition

    def is_true(self, type_: str) -> bool:
        """Whether a condition is True."""
        return self._conditions[type_].status == TRUE

    def write(self, req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
        """Write all conditions, and an event for each that changed: a warning where someone has to act, else a note.

        What a composite says at first sight is no transition, unless someone has to act on it.
        """
        observed = {
            kube.text(entry, "type"): (kube.text(entry, "status"), kube.text(entry, "reason"))
            for entry in kube.objects(req.observed.composite.resource, "status", "conditions")
        }
        for type_, new in self._conditions.items():
            rsp.conditions.append(
                fnv1.Condition(type=type_, status=_STATUS[new.status], reason=new.reason, message=new.message)
            )
            status, reason = observed.get(type_, ("", ""))
            if (status, reason) == (new.status, new.reason):
                continue
            if new.warn or (status and status != new.status):
                severity = fnv1.SEVERITY_WARNING if new.warn else fnv1.SEVERITY_NORMAL
                rsp.results.append(fnv1.Result(severity=severity, reason=new.reason, message=f"{type_}: {new.message}"))
