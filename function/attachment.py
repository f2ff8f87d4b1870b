"""Decides what attaches an engine to the tier that it names.

It goes by what is asked for, what is known, and what attached the engine before: a tier that is absent, not ready or
invalid never changes a running engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from google.protobuf import struct_pb2 as structpb

from function import attach, backends, claims, kube, memory
from function.backends.base import EnginePatch, Invalid, Refusal, Site, Tier
from function.conditions import FALSE, TRUE, UNKNOWN, Condition
from function.engines import Engine, kv_transfer
from function.engines.args import CommandLine, names
from function.tier import CREDENTIALS_RESOLVED, Unavailable

TIER_ATTACHED = "TierAttached"
# The reason where a shell or a variable hides an engine's flags.
HIDES_ARGS = "CommandHidesArgs"
# Warnings: True is what somebody should look at.
TIER_UNUSED = "TierUnusedByEngine"
IMAGE_UNVERIFIED = "EngineImageUnverified"
USER_OVERRIDES = "UserOverrides"
MULTIPROCESS_FORCED = "MultiprocessForced"
REMOTE_NOT_ATTACHED = "RemoteNotAttached"
ROLE_UNUSED = "RoleUnused"
MEMORY_SHORT = "EngineMemoryShort"
NICS_NOT_ALIGNED = "NICsNotAligned"
CLIENT_UNVERIFIED = "StoreClientUnverified"

WARNINGS = (
    *(TIER_UNUSED, IMAGE_UNVERIFIED, USER_OVERRIDES, MULTIPROCESS_FORCED, REMOTE_NOT_ATTACHED, ROLE_UNUSED),
    *(MEMORY_SHORT, NICS_NOT_ALIGNED, CLIENT_UNVERIFIED),
)

# Variables by which stores tell models from each other.
_KEEP_APART = ("PYTHONHASHSEED", "AIBRIX_KV_CACHE_OL_L2_CACHE_NAMESPACE", "AIBRIX_LLM_KV_CACHE_KV_CACHE_NS")

# An engine's name behind "patch-hash." in an annotation's.
_LONGEST_OF = 52

# Fields of a tier that no engine sees: changing one must not let a new function version write a patch anew.
_UNSEEN = frozenset({"update_strategy", "allowed_namespaces"})


@dataclass(frozen=True)
class Attachment:
    """What becomes of a tierRef: the condition TierAttached, and a patch or none.

    With `hold` nothing is delivered, and what runs stays as it is.
    """

    condition: Condition
    patch: EnginePatch | None = None
    hold: bool = False


@dataclass(frozen=True)
class Consumer:
    """Who names a tier: its engine, what it does without, and what carries it, as it is observed.

    `templates` are its pod templates, in which `container` is the engine's. `of` is which engine of several it is that
    are carried.
    """

    engine: Engine
    on_unavailable: str
    templates: Sequence[kube.Manifest] = ()
    container: str = "engine"
    observed: structpb.Struct | None = None
    of: str = ""

    @property
    def runs(self) -> bool:
        """Whether it was delivered before."""
        return self.observed is not None

    @property
    def latched(self) -> EnginePatch | None:
        """What attached it before; raises Malformed where somebody changed that."""
        return latched(self.observed, self.of)


NOT_REQUESTED = Attachment(Condition(FALSE, "NotRequested", "engine.kvCache names no tier"))


def decide(consumer: Consumer, found: Tier | Unavailable, site: Site, behind: Tier | Unavailable | None) -> Attachment:
    """Decide what attaches an engine.

    Args:
        consumer: Who asks.
        found: The tier that it names, or why it cannot be used.
        site: What is known of the cluster.
        behind: What stands behind the tier, or why that cannot be used; None where nothing does.
    """
    if isinstance(found, Unavailable) and found.waiting:
        # Crossplane will call again; nothing may be fatal or change until then.
        return wait(found)
    if own := _own_wiring(consumer, None):
        return own
    if hidden := _hidden(consumer.engine.line):
        return _unreadable(hidden, consumer)
    decision = _ask(consumer.engine, found, site, behind)
    if not isinstance(decision, EnginePatch):
        return _unattached(decision, consumer)
    if own := _own_wiring(consumer, decision):
        return own
    if taken := next((t for pod in consumer.templates if (t := attach.taken(pod, decision, consumer.container))), ""):
        return _unattached(Refusal("NameTaken", f"{taken}; rename it to have the tier attached"), consumer)
    patch = _unchanged(consumer, decision)
    return attached(patch)


def attached(patch: EnginePatch) -> Attachment:
    """Attach an engine by a patch."""
    return Attachment(Condition(TRUE, "Attached", f"By {patch.connector} to KVOffloadTier {patch.tier}"), patch)


def wait(why: Unavailable) -> Attachment:
    """Leave everything as it is until Crossplane has looked up what is required."""
    return Attachment(Condition(UNKNOWN, why.reason, why.message), hold=True)


def lacking(attachment: Attachment, tier: structpb.Struct) -> Attachment:
    """Add to an attachment's message what its pods may wait for, as the tier's own condition says."""
    credentials, _, lacks = kube.condition(tier, CREDENTIALS_RESOLVED)
    if attachment.condition.reason != "Attached" or credentials != FALSE:
        return attachment
    message = f"{attachment.condition.message}; its pods may wait for the tier's Secret: {lacks}"
    return replace(attachment, condition=replace(attachment.condition, message=message))


def notices(patch: EnginePatch, engine: Engine) -> list[tuple[str, Condition]]:
    """Say what somebody should look at in an attachment, by type of warning."""
    found = [(n.type, Condition(TRUE, n.reason, n.message, warn=True)) for n in patch.notices]
    if engine.role and patch.role is None:
        message = f"engine.kvCache.role (is {engine.role}) is for tiers with nixl.p2p; this tier has no use for it"
        found.append((ROLE_UNUSED, Condition(TRUE, "NotPeerToPeer", message, warn=True)))
    return found


def apply(
    template: kube.Manifest,
    patch: EnginePatch,
    engine: Engine,
    container: str,
    *,
    flags: bool = True,
    claim: claims.Claim | None = None,
) -> tuple[kube.Manifest, list[tuple[str, Condition]]]:
    """Attach a pod template as attach.apply does, and say what somebody should look at in it, by type of warning."""
    users = next(c for c in template["spec"]["containers"] if c["name"] == container)
    attached, overridden = attach.apply(template, patch, container, flags=flags, claim=claim)
    warnings = (
        (MEMORY_SHORT, memory.short(users, patch, engine)),
        (NICS_NOT_ALIGNED, _not_aligned(patch, claim)),
        (USER_OVERRIDES, _overrides(patch, overridden)),
    )
    return attached, [(type_, condition) for type_, condition in warnings if condition]


def _not_aligned(patch: EnginePatch, claim: claims.Claim | None) -> Condition | None:
    """Say why NICs are not where their GPUs are, though the tier asks for it; None where they are, or need not be."""
    if claim is None or not patch.align or not claim.apart:
        return None
    message = f"rdma.dra.alignWithGPU of KVOffloadTier {patch.tier} has no effect on this engine's NICs: {claim.apart}"
    return Condition(TRUE, "CannotAlign", message, warn=True)


def _overrides(patch: EnginePatch, overridden: list[str]) -> Condition | None:
    """Say which of the tier's variables the user has set, and what is then up to the user; None for none."""
    if not overridden:
        return None
    apart = next((name for name in overridden if name in _KEEP_APART), "")
    seed = f" Sharing, and keeping models apart, is now up to {apart} as set." if apart else ""
    noticed = [f" {n.message}." for n in patch.notices if n.type == USER_OVERRIDES]
    message = f"engine.env sets {', '.join(overridden)}, which the tier would set otherwise; yours stays.{seed}"
    return Condition(TRUE, "UserEnv", message + "".join(noticed), warn=True)


class Altered(kube.Malformed):
    """A latch that is not as this function wrote it."""


# --- the latch ----------------------------------------------------------------------------------------------------


def latched(observed: structpb.Struct | None, of: str = "") -> EnginePatch | None:
    """Read back what attached an engine before.

    Args:
        observed: What carries the engine: its Object, or the workload itself.
        of: Which engine of several that it carries.

    Returns:
        The patch; None where there is none.

    Raises:
        Altered: somebody changed it.
        Malformed: another version of this function wrote it, in a way that this one does not know.
    """
    key, key_of_hash = _latch_keys(of)
    text = kube.text(observed, "metadata", "annotations", key)
    if not text:
        return None
    if kube.text(observed, "metadata", "annotations", key_of_hash) != kube.digest(text)[:12]:
        name = kube.text(observed, "metadata", "name")
        raise Altered(f"annotation {key} of {kube.text(observed, 'kind')} {name} was changed; put it back")
    try:
        return EnginePatch.from_json(text)
    except (TypeError, ValueError):
        raise kube.Malformed(
            f"annotation {key} of {kube.text(observed, 'kind')} {kube.text(observed, 'metadata', 'name')} was written "
            "by another version of this function: run that one, or remove the annotation to have the engine attached "
            "anew"
        ) from None


def latch(patch: EnginePatch, of: str = "") -> Mapping[str, str]:
    """Write what attaches an engine as annotations of what carries it."""
    text = patch.to_json()
    key, key_of_hash = _latch_keys(of)
    return {key: text, key_of_hash: kube.digest(text)[:12]}


def _latch_keys(of: str) -> tuple[str, str]:
    """Name the annotations of a latch and of its hash, each of 63 characters at most behind the domain."""
    which = "" if not of else f".{of}" if len(of) <= _LONGEST_OF else f".{kube.child_name(of, longest=_LONGEST_OF)}"
    return f"{kube.ANNOTATION_PATCH}{which}", f"{kube.ANNOTATION_PATCH}-hash{which}"


# --- the decision -------------------------------------------------------------------------------------------------


def _own_wiring(consumer: Consumer, patch: EnginePatch | None) -> Attachment | None:
    """Respect what the user has wired by hand, where the tier's connector cannot go beside it.

    The engine starts with it, and without the tier.
    """
    line = consumer.engine.line
    message = ""
    if own := line.flags(*consumer.engine.kind.own_wiring):
        message = f"engine.args set {names(own)}, which stays as it is; remove it to have the tier attached"
    elif consumer.engine.kind.kv_transfer:
        own_config = kv_transfer.of(line)
        if why := kv_transfer.conflict(own_config, patch.kv_transfer if patch else None, consumer.engine.version):
            message = f"engine.args set {kv_transfer.FLAG}, which {why}"
    return Attachment(Condition(FALSE, "UserConfigured", message, warn=True)) if message else None


def hides_args(of: str = "") -> str:
    """Say that a shell or a variable hides an engine's flags, in the pod template `of` where there are several."""
    where = f" of {of}" if of else ""
    return (
        f"engine.command or args{where} hide the engine's flags behind a shell or a variable; put them as they are "
        "into engine.args to have the tier attached"
    )


def _hidden(line: CommandLine) -> Refusal | None:
    """Say what hides the engine's flags, and with them what it computes and how it is wired."""
    if line.hidden:
        return Refusal(HIDES_ARGS, hides_args())
    if line.flags("--config"):
        return Refusal(
            "ConfigHidesArgs",
            "engine.args name a --config file, which hides the engine's flags; put them into engine.args to have "
            "the tier attached",
        )
    return None


def _ask(
    engine: Engine, found: Tier | Unavailable, site: Site, behind: Tier | Unavailable | None
) -> EnginePatch | Refusal | Unavailable:
    """Ask the tier's backend, where the tier and what stands behind it can be used."""
    if isinstance(found, Unavailable):
        return found
    if isinstance(behind, Unavailable):
        return behind
    site = replace(site, l3=behind)
    try:
        decision = backends.of(found.spec).attach(found, site, engine)
    except Invalid as e:
        return Unavailable("TierInvalid", f"KVOffloadTier {found.ref} cannot be used: {e}", waiting=not site.known)
    if isinstance(decision, EnginePatch):
        return replace(decision, basis=_basis(found, site, engine))
    return decision


def _unchanged(consumer: Consumer, decision: EnginePatch) -> EnginePatch:
    """Keep a patch to the byte where nothing that it was decided by has changed.

    Another function version may write another one, and a running engine is not restarted for that alone.
    """
    try:
        before = consumer.latched
    except Altered:
        # Somebody changed it, and it is written anew.
        return decision
    return before if before and before.basis == decision.basis else decision


def _basis(tier: Tier, site: Site, engine: Engine) -> str:
    """Hash everything that a backend decides by."""

    def seen(tier: Tier) -> object:
        return [
            tier.ref,
            tier.release.name,
            tier.gpus_per_node,
            # Without defaults: a field that a new version adds moves nobody who has not set it.
            tier.spec.model_dump(mode="json", exclude=set(_UNSEEN), exclude_defaults=True),
        ]

    behind = seen(site.l3) if site.l3 else None
    return kube.digest([seen(tier), behind, tier.gpus_per_node or site.gpus_per_node, engine.facts])[:12]


def _unreadable(why: Refusal, consumer: Consumer) -> Attachment:
    """Respect a command that cannot be read: the engine starts with it, unless it runs attached."""
    if before := consumer.latched:
        return _keep(before, why, consumer)
    return Attachment(Condition(FALSE, why.reason, why.message, warn=True))


def _unattached(why: Refusal | Unavailable, consumer: Consumer) -> Attachment:
    """Keep what is attached; else wait or serve without, as the user chose."""
    if isinstance(why, Unavailable) and why.waiting:
        return wait(why)
    if before := consumer.latched:
        return _keep(before, why, consumer)
    hold = consumer.on_unavailable == "Wait" and not consumer.runs
    if consumer.runs:
        what = "the engine runs on without it"
    elif hold:
        # What refuses an engine as it is will not come to another mind.
        held = "the engine waits for it" if isinstance(why, Unavailable) else "no engine is started"
        what = f"{held} (kvCache.onUnavailable is Wait; ServeWithout would start it without the tier)"
    else:
        what = "the engine starts without it (kvCache.onUnavailable is ServeWithout)"
    return Attachment(Condition(FALSE, why.reason, f"{why.message}; {what}", warn=True), hold=hold)


def _keep(patch: EnginePatch, why: Refusal | Unavailable, consumer: Consumer) -> Attachment:
    """Keep what attached a running engine, as long as it is right for the engine that is now asked for."""
    if own := _own_wiring(consumer, patch):
        return own
    message = f"{why.message}; the engine keeps what attached it to KVOffloadTier {patch.tier}"
    ruled_out = isinstance(why, Refusal) and patch.connector in why.rules_out
    if patch.holds(consumer.engine) and not ruled_out:
        return Attachment(Condition(TRUE, why.reason, message, warn=True), patch)
    message += ". What was changed does not go with that, and waits; remove kvCache.tierRef to run without"
    return Attachment(Condition(TRUE, why.reason, message, warn=True), patch, hold=True)
