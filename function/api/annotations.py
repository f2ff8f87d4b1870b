"""What an ML team writes on a pod template, where no spec has a field for it: annotations of one domain."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from function import api, kube
from function.api import VERSION, Invalid, Model, parse
from function.api.deployment import TierRef

PREFIX = f"{kube.DOMAIN}/"
TIER = f"{PREFIX}tier"
_OURS = "connector-hash"


class Written(Model):
    """What a pod template asks for by annotations, named by what follows the domain."""

    tier: str = Field(pattern=api.TIER, max_length=317)
    tier_kind: Literal["KVOffloadTier", "KVOffloadFleet"] = Field("KVOffloadTier", alias="tier-kind")
    engine: Literal["vLLM", "SGLang"] | None = None
    version: str | None = Field(None, pattern=VERSION)
    container: str | None = Field(None, min_length=1, max_length=63)
    identity: str | None = Field(None, min_length=1, max_length=253)
    role: Literal["Prefill", "Decode"] | None = None
    on_unavailable: Literal["Wait", "ServeWithout"] = Field("Wait", alias="on-unavailable")

    @property
    def tier_ref(self) -> TierRef:
        """The tier that is named, or the fleet."""
        namespace, _, name = self.tier.rpartition("/")
        return TierRef(name=name, namespace=namespace or kube.SYSTEM_NAMESPACE, kind=self.tier_kind)


def read(annotations: Mapping[str, str]) -> Written:
    """Read a pod template's annotations, one of which names a tier.

    Raises:
        Invalid: one is wrong; the text names it, its value and the fix.
    """
    own = {name.removeprefix(PREFIX): value for name, value in annotations.items() if name.startswith(PREFIX)}
    known = [field.alias or name for name, field in Written.model_fields.items()]
    # What a patch adds itself is no mistake of anybody's.
    if unknown := [name for name in sorted(own) if name not in known and name != _OURS]:
        raise Invalid(f"annotation {PREFIX}{unknown[0]} is not known on a pod template; known are {', '.join(known)}")
    try:
        return parse(Written, own)
    except Invalid as e:
        raise Invalid(str(e).replace("spec.", f"annotation {PREFIX}")) from None
