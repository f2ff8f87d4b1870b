"""The grammars of Kubernetes names, labels and quantities, as the API server checks them."""

import re
from decimal import Decimal
from typing import NamedTuple


class Grammar(NamedTuple):
    """A kind of name: what it must match in full, how long it may be, and what to call it."""

    pattern: str
    longest: int
    words: str

    def objection(self, text: object) -> str | None:
        """Takes a would-be name; returns what is wrong with it, or None."""
        if isinstance(text, str) and len(text) <= self.longest and re.fullmatch(self.pattern, text, re.ASCII):
            return None
        return f"{text!r} is not {self.words} of at most {self.longest} characters"


_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"[A-Za-z0-9](?:[-\w.]*[A-Za-z0-9])?"

SUBDOMAIN = Grammar(rf"{_LABEL}(?:\.{_LABEL})*", 253, "an RFC 1123 subdomain")
DNS_LABEL = Grammar(_LABEL, 63, "an RFC 1123 label")
SERVICE_NAME = Grammar(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", 63, "a DNS-1035 label")
STATEFUL_NAME = Grammar(_LABEL, 52, "an RFC 1123 label (its pods carry the name and an 11 character hash as a label)")
PORT_NAME = Grammar(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?", 15, "an IANA service name")
ENV_NAME = Grammar(r"[-._A-Za-z][-.\w]*", 253, "an environment variable name")
DATA_KEY = Grammar(r"(?!\.\.?$)[-.\w]+", 253, "a key of alphanumerics, '-', '_' and '.'")
LABEL_VALUE = Grammar(rf"(?:{_QUALIFIED})?", 63, "a label value")

_KEY_PREFIX = SUBDOMAIN._replace(words="an RFC 1123 subdomain before the '/'")
_KEY_NAME = Grammar(_QUALIFIED, 63, "a qualified name")


def key_objection(key: str) -> str | None:
    """Takes the key of a label or annotation, `[prefix/]name`; returns what is wrong with it, or None."""
    prefix, slash, name = key.rpartition("/")
    return (_KEY_PREFIX.objection(prefix) if slash else None) or _KEY_NAME.objection(name)


_QUANTITY = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?\d{1,3})?", re.ASCII
)
_FACTORS = {
    **{suffix: Decimal(1024) ** n for n, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{suffix: Decimal(1000) ** n for n, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)},
}


def quantity(value: object) -> Decimal | None:
    """Takes a quantity (64Gi, 500m, 1e3, 4); returns its number, or None when it is none.

    A float is none: the server stores a string, so that what we apply would never equal what is there.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return None
    number, suffix = match[1], match[2] or ""
    return Decimal(number) * _FACTORS[suffix] if suffix in _FACTORS else Decimal(number + suffix)
