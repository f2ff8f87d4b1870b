"""InferenceClusters: what others read of one, and the composer of the standalone kind."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from google.protobuf import struct_pb2 as structpb

from function import api, claims, kube, resolve, status
from function.api.cluster import ClusterSpec
from function.conditions import FALSE, TRUE, UNKNOWN, Condition, Conditions
from function.delivery import API_VERSION, CONFIG_KIND, Delivered

MODELPLANE = "modelplane.ai/v1alpha1"
PROVIDER_CONFIG = "provider-config"


@dataclass(frozen=True)
class View:
    """What a tier or an engine reads of its InferenceCluster."""

    name: str
    found: resolve.Found

    @classmethod
    def require(
        cls, req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse, name: str, key: str = "cluster"
    ) -> "View":
        """Require an InferenceCluster by name; `key` is the requirement's."""
        ref = resolve.Reference(MODELPLANE, "InferenceCluster", name)
        return cls(name, resolve.require(req, rsp, key, ref))

    @property
    def provider_config(self) -> str:
        """The ClusterProviderConfig that reaches it; empty where none is known."""
        return kube.text(self.found.resource, "status", "providerConfigRef", "name")

    @property
    def gpus_per_node(self) -> int | None:
        """The GPUs of the pool with the most, by its DRA devices; None where no pool is known.

        The most, because a share for as many ranks fits the smaller pools as well.
        """
        counts = [
            sum(
                kube.integer(device, "count") or 1
                for device in kube.objects(pool, "devices")
                if kube.text(device, "driver") in claims.GPUS
            )
            for pool in kube.objects(self.found.resource, "status", "gpuPools")
        ]
        return max(counts, default=0) or None

    @property
    def pools(self) -> Mapping[str, Mapping[str, int]]:
        """What a node of each pool can hand out by claim, by DeviceClass."""
        found: dict[str, dict[str, int]] = {}
        for pool in kube.objects(self.found.resource, "status", "gpuPools"):
            counts = found.setdefault(kube.text(pool, "name"), {})
            for device in kube.objects(pool, "devices"):
                # A synthetic device has no class, and cannot be claimed.
                if class_ := kube.text(device, "deviceClassName"):
                    counts[class_] = counts.get(class_, 0) + (kube.integer(device, "count") or 1)
        return found

    @property
    def resolved(self) -> bool:
        """Whether Crossplane has looked it up, so that what is missing now is for a person to mend."""
        return self.found.state is not resolve.State.UNRESOLVED

    def verdict(self, in_use: str) -> tuple[str, str, str]:
        """Say whether this cluster can be delivered to, as a condition's status, reason and message.

        Args:
            in_use: The provider config of what was delivered before, which is never changed; empty before.
        """
        kept = "; what runs there stays as it is" if in_use else ""
        if self.found.state is resolve.State.UNRESOLVED:
            return UNKNOWN, "Waiting", f"InferenceCluster {self.name} is not read yet"
        if not self.found.present:
            return FALSE, "ClusterNotFound", f"InferenceCluster {self.name} does not exist{kept}"
        if not self.provider_config:
            return FALSE, "NoProviderConfig", f"InferenceCluster {self.name} has no status.providerConfigRef yet{kept}"
        if in_use and in_use != self.provider_config:
            return (
                FALSE,
                "ProviderConfigChanged",
                f"InferenceCluster {self.name} now names provider config {self.provider_config}; what runs was "
                f"delivered by {in_use} and stays with it. Bring that name back, or delete and recreate this resource",
            )
        return TRUE, "Reachable", f"InferenceCluster {self.name} is reached by provider config {self.provider_config}"

    def answers(self, delivered: Iterable[Delivered]) -> tuple[str, str, str]:
        """Say whether the cluster takes what is sent: the provider's Ready stays True while it is unreachable."""
        parts = sorted(delivered, key=lambda d: d.name)
        failed = [d.message for d in parts if d.message]
        if failed:
            return FALSE, "ApplyFailed", f"InferenceCluster {self.name} did not take {failed[0]}"
        waiting = [d.name for d in parts if not d.synced]
        if waiting:
            return UNKNOWN, "Applying", f"InferenceCluster {self.name} has not answered yet for {', '.join(waiting)}"
        return self.verdict(self.provider_config)


ACCEPTED = "Accepted"
VOCABULARY = {ACCEPTED: Condition(UNKNOWN, "Waiting", "Not known before the conditions above are True")}


def compose(req: fnv1.RunFunctionRequest, rsp: fnv1.RunFunctionResponse) -> None:
    """Compose a standalone InferenceCluster: its ClusterProviderConfig, and the status that tiers read."""
    xr = req.observed.composite.resource
    name = kube.required_text(xr, "metadata", "name")
    observed = req.observed.resources.get(PROVIDER_CONFIG)
    conditions = Conditions(VOCABULARY)
    try:
        spec = api.parse(ClusterSpec, kube.plain(kube.sub(xr, "spec") or structpb.Struct()))
    except api.Invalid as e:
        conditions.set(ACCEPTED, FALSE, "InvalidSpec", str(e), warn=True)
        conditions.write(req, rsp)
        if observed is not None:
            _desire(
                rsp,
                kube.text(observed.resource, "metadata", "name"),
                kube.plain(kube.sub(observed.resource, "spec") or structpb.Struct()),
            )
        status.write(req, rsp, status.carried(req, ("providerConfigRef", "namespace")), ready=False)
        return
    credentials: kube.Manifest = {"source": "InjectedIdentity"}
    if spec.cluster.existing:
        ref = spec.cluster.existing.secret_ref
        credentials = {
            "source": "Secret",
            "secretRef": {"namespace": kube.SYSTEM_NAMESPACE, "name": ref.name, "key": ref.key},
        }
    config = kube.child_name(name, "kubeconfig")
    desired = _desire(rsp, config, {"credentials": credentials})
    # A provider config has no readiness of its own: it is ready once it is there.
    desired.ready = fnv1.READY_TRUE if observed is not None else fnv1.READY_UNSPECIFIED
    conditions.set(ACCEPTED, TRUE, "Accepted", f"The cluster is reached by ClusterProviderConfig {config}")
    conditions.write(req, rsp)
    found = {"providerConfigRef": {"name": config}, "namespace": kube.SYSTEM_NAMESPACE}
    status.write(req, rsp, found, ready=observed is not None)


def _desire(rsp: fnv1.RunFunctionResponse, name: str, spec: kube.Manifest) -> fnv1.Resource:
    desired = rsp.desired.resources[PROVIDER_CONFIG]
    desired.Clear()
    metadata = {"name": name, "labels": dict(kube.MANAGED_BY)}
    manifest = {"apiVersion": API_VERSION, "kind": CONFIG_KIND, "metadata": metadata, "spec": spec}
    kube.write(manifest, to=desired.resource)
    return desired
