"""ResourceClaimTemplates by which an engine comes by its tier's NICs: a copy of its own with them in it, or a second.

A template's spec never changes, so names carry a hash of it. The engine's own stays as an earlier step wrote it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from function import kube

API_VERSION = "resource.k8s.io/v1"
KIND = "ResourceClaimTemplate"
# What a claim of NICs alone is called in its pod.
NAME = "kv-nics"
# Drivers of GPUs. Their DeviceClasses have the same names.
GPUS = ("gpu.nvidia.com", "gpu.amd.com")

_PCIE_ROOT = "resource.kubernetes.io/pcieRoot"
# Of requests, of constraints and of devices in one claim.
_MOST = 32

# Finds a template by its name; None for one that no step of the pipeline composes.
Find = Callable[[str], kube.Manifest | None]


@dataclass(frozen=True)
class Claim:
    """What a pod claims its NICs by: the claim's name in the pod, its template, and why they are not aligned."""

    name: str
    template: kube.Manifest
    apart: str = ""

    @property
    def entry(self) -> kube.Manifest:
        """The pod's entry in resourceClaims."""
        return {"name": self.name, "resourceClaimTemplateName": self.template["metadata"]["name"]}


class Apart(Exception):
    """The NICs cannot be in the engine's own claim, or not on its GPUs' PCIe roots; the text says why."""


def own(devices: Sequence[kube.Manifest], metadata: kube.Manifest, apart: str) -> Claim:
    """Give a claim of NICs alone.

    Args:
        devices: The requests.
        metadata: The template's, with the name that its own begins with.
        apart: Why the NICs are in no claim of the engine's.
    """
    return Claim(NAME, _template(metadata, _alone(devices)), apart)


def is_own(entry: kube.Manifest, devices: Sequence[kube.Manifest]) -> bool:
    """Whether a pod's entry in resourceClaims is what `own` gives for these devices."""
    return str(entry.get("resourceClaimTemplateName", "")).endswith(_suffix(_alone(devices)))


def join(
    pod: kube.Manifest, container: str, devices: Sequence[kube.Manifest], find: Find, *, align: bool = False
) -> Claim:
    """Give the claim that an engine has, with the NICs in a copy of its template.

    Args:
        pod: The pod's spec, unattached.
        container: The engine container's name.
        devices: The requests that are added.
        find: Finds the engine's templates.
        align: Whether each GPU is to have its NICs on its own PCIe root.

    Raises:
        Apart: the NICs cannot be in it.
    """
    name, theirs = _joinable(pod, container, find)
    if _ours(theirs):
        return Claim(name, theirs)
    claim = theirs["spec"]["spec"]["devices"]
    requests, apart = claim["requests"], ""
    names = [r["name"] for r in requests]
    added = {"requests": [*requests, *devices], "constraints": []}
    split = {n: [n] for n in names}
    if sum(map(_count, added["requests"])) > _MOST or len(added["requests"]) > _MOST:
        raise Apart(f"the engine's claim would ask for more than {_MOST} devices")
    if clash := {d["name"] for d in devices}.intersection(names):
        raise Apart(f"the engine's claim has a request {min(clash)!r} of its own")
    if align:
        try:
            aligned = _aligned(claim, devices)
            _named(pod, name, aligned[1])
            added, split = aligned
        except Apart as why:
            apart = str(why)
    # What names no request is meant for all that were there.
    kept = {
        field: [{**e, "requests": [s for n in e.get("requests") or names for s in split.get(n, [n])]} for e in entries]
        for field in ("constraints", "config")
        if (entries := claim.get(field))
    }
    constraints = [*kept.get("constraints", ()), *added["constraints"]]
    together = {**claim, **kept, "requests": added["requests"], "constraints": constraints}
    spec = {**theirs["spec"], "spec": {**theirs["spec"]["spec"], "devices": kube.prune(together)}}
    return Claim(name, _template(theirs["metadata"], spec), apart)


def as_composed(template: kube.Manifest) -> kube.Manifest:
    """Give a template as it was composed, without what a control plane adds to it."""
    metadata = template["metadata"]
    found = metadata.get("labels") or {}
    labels = {name: value for name, value in found.items() if not name.startswith("crossplane.io/")}
    kept = {name: metadata[name] for name in ("name", "namespace") if name in metadata}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {**kept, "labels": labels},
        "spec": template["spec"],
    }


def asked(pod: kube.Manifest, container: str, find: Find) -> Mapping[str, int]:
    """Count what an engine's own claims ask for, by DeviceClass, as far as that can be seen."""
    counts: dict[str, int] = {}
    for _, theirs in _claimed(pod, container, find):
        for request in _requests(theirs) if theirs and not _ours(theirs) else ():
            for class_ in _classes(request):
                counts[class_] = counts.get(class_, 0) + _count(request)
    return counts


# --- the engine's own claim ---------------------------------------------------------------------------------------


def _claimed(pod: kube.Manifest, container: str, find: Find) -> Iterator[tuple[kube.Manifest, kube.Manifest | None]]:
    """Go through the claims that the engine's container uses, each with its template where that is known."""
    templates = {c.get("name"): c.get("resourceClaimTemplateName") for c in pod.get("resourceClaims") or ()}
    engine: kube.Manifest = next((c for c in pod["containers"] if c.get("name") == container), {})
    for used in (engine.get("resources") or {}).get("claims") or ():
        name = templates.get(used.get("name"))
        yield used, find(name) if name else None


def _joinable(pod: kube.Manifest, container: str, find: Find) -> tuple[str, kube.Manifest]:
    """Find the claim that NICs may join, by its name in the pod, and its template: where the GPUs are."""
    used = list(_claimed(pod, container, find))
    if not used:
        raise Apart("the engine claims nothing by DRA")
    known = [(entry, theirs) for entry, theirs in used if theirs]
    if not known:
        raise Apart("no step of this pipeline composes the template that the engine claims its devices by")
    with_gpus = [(entry, theirs) for entry, theirs in known if any(map(_gpus, _requests(theirs)))]
    found = with_gpus or known
    if len(found) > 1:
        raise Apart("the engine has several claims that its GPUs may be in")
    ((entry, theirs),) = found
    if entry.get("request"):
        raise Apart(f"the engine's container sees only request {entry['request']!r} of its claim")
    if theirs.get("apiVersion") != API_VERSION:
        raise Apart(f"the engine's ResourceClaimTemplate is of {theirs.get('apiVersion')}, not {API_VERSION}")
    if not _requests(theirs) or not all(r.get("exactly") or r.get("firstAvailable") for r in _requests(theirs)):
        raise Apart("the engine's ResourceClaimTemplate asks for nothing, or not in the shape of its API")
    return str(entry["name"]), theirs


def _aligned(
    claim: kube.Manifest, devices: Sequence[kube.Manifest]
) -> tuple[dict[str, list[kube.Manifest]], dict[str, list[str]]]:
    """Pair each GPU with its share of the NICs.

    A constraint holds for all devices of its requests, so several GPUs of one request are on one root or none: each
    becomes a request of its own.

    Returns:
        All requests, and the constraints that are added; and by a request's name, the names of what it became.
    """
    requests: Sequence[kube.Manifest] = claim["requests"]
    gpus = [r for r in requests if _gpus(r)]
    if not gpus:
        raise Apart(f"the engine's claim asks for no {' or '.join(GPUS)}")
    for gpu in gpus:
        if gpu.get("firstAvailable"):
            raise Apart(
                f"request {gpu['name']!r} of the engine's claim leaves open which GPUs it gets (firstAvailable)"
            )
        if gpu["exactly"].get("allocationMode") == "All":
            raise Apart(f"request {gpu['name']!r} of the engine's claim takes all GPUs there are (allocationMode All)")
    total = sum(map(_count, gpus))
    if uneven := next((c for c in map(_count, devices) if c % total), None):
        raise Apart(f"{total} GPUs cannot have equal shares of {uneven} NIC{'s' if uneven > 1 else ''}")
    split = {r["name"]: _split(r) if r in gpus else [r] for r in requests}
    added, constraints = [one for ones in split.values() for one in ones], []
    for number, gpu in enumerate(one for r in gpus for one in split[r["name"]]):
        nics = [_share(d, number, total) for d in devices]
        added += nics
        constraints.append({"requests": [gpu["name"], *(n["name"] for n in nics)], "matchAttribute": _PCIE_ROOT})
    if max(len(added), len(constraints) + len(claim.get("constraints") or ())) > _MOST:
        raise Apart(f"the engine's claim would have more than {_MOST} requests or constraints")
    if len({r["name"] for r in added}) < len(added):
        raise Apart("requests of the engine's claim have the names that single GPUs or NICs would get")
    return {"requests": added, "constraints": constraints}, {n: [r["name"] for r in ones] for n, ones in split.items()}


def _named(pod: kube.Manifest, claim: str, split: Mapping[str, Sequence[str]]) -> None:
    """Check that no container of the pod goes by the name of a request that is split."""
    for container in [*pod["containers"], *(pod.get("initContainers") or ())]:
        for used in (container.get("resources") or {}).get("claims") or ():
            request = used.get("request")
            if used.get("name") == claim and len(split.get(request, ())) > 1:
                raise Apart(f"container {container.get('name')!r} sees only request {request!r} of the engine's claim")


def _split(request: kube.Manifest) -> list[kube.Manifest]:
    """Make a request of each device of a request."""
    count = _count(request)
    if count == 1:
        return [request]
    one = {**request["exactly"], "count": 1}
    # A name is a DNS label.
    return [{**request, "name": f"{request['name'][:60]}-{n}", "exactly": one} for n in range(count)]


def _share(device: kube.Manifest, number: int, total: int) -> kube.Manifest:
    """Give one GPU's share of the NICs; one GPU has them all."""
    if total == 1:
        return device
    exactly = {**device["exactly"], "count": _count(device) // total}
    return {**device, "name": f"{device['name']}-{number}", "exactly": exactly}


# --- templates ----------------------------------------------------------------------------------------------------


def _template(metadata: kube.Manifest, spec: kube.Manifest) -> kube.Manifest:
    kept = {key: value for key, value in metadata.items() if key == "namespace"}
    labels = {**(metadata.get("labels") or {}), **kube.MANAGED_BY}
    named = {"name": f"{metadata['name']}{_suffix(spec)}", **kept, "labels": labels}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": named, "spec": spec}


def _alone(devices: Sequence[kube.Manifest]) -> kube.Manifest:
    return {"spec": {"devices": {"requests": list(devices)}}}


def _suffix(spec: kube.Manifest) -> str:
    return f"-nics-{kube.digest(spec)[:5]}"


def _ours(template: kube.Manifest) -> bool:
    return kube.MANAGED_BY.items() <= (template["metadata"].get("labels") or {}).items()


def _requests(template: kube.Manifest) -> Sequence[kube.Manifest]:
    spec = (template.get("spec") or {}).get("spec") or {}
    return (spec.get("devices") or {}).get("requests") or ()


def _classes(request: kube.Manifest) -> frozenset[str]:
    """The DeviceClasses of a request, one for each of its alternatives at most."""
    kinds = request.get("firstAvailable") or [request.get("exactly") or request]
    return frozenset(str(kind["deviceClassName"]) for kind in kinds if kind.get("deviceClassName"))


def _gpus(request: kube.Manifest) -> bool:
    return not _classes(request).isdisjoint(GPUS)


def _count(request: kube.Manifest) -> int:
    """How many devices a request is sure to ask for."""
    kinds = request.get("firstAvailable") or [request.get("exactly") or request]
    return min(int(kind.get("count") or (0 if kind.get("allocationMode") == "All" else 1)) for kind in kinds)
