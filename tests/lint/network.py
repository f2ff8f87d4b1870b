"""Rules on who finds and who may reach whom: selectors, Services, NetworkPolicies, monitors."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.lint.grammar import DNS_LABEL
from tests.lint.model import Bundle, Manifest, Pod, field, items, namespace, repeated, selects, subject

_EVERYWHERE = frozenset({"0.0.0.0/0", "::/0"})


class Selection(NamedTuple):
    """Where a selector of pods stands, the selector, and the namespace it looks in."""

    where: str
    selector: Manifest
    namespace: str


def workloads_select_their_own_pods(bundle: Bundle) -> Iterator[str]:
    """A workload's selector matches the labels of its template."""
    for manifest in bundle.of_kind("DaemonSet", "Deployment", "StatefulSet"):
        selector = field(manifest, "spec", "selector")
        labels = field(manifest, "spec", "template", "metadata", "labels")
        if not selector or not selects(selector, labels):
            yield f"{subject(manifest)}: spec.selector: does not select the template's labels {dict(labels)}"


def workloads_select_no_others(bundle: Bundle) -> Iterator[str]:
    """Two workloads of a namespace do not select each other's pods: their controllers would fight over them."""
    for manifest in bundle.of_kind("DaemonSet", "Deployment", "StatefulSet"):
        for pod in bundle.selected(field(manifest, "spec", "selector"), namespace(manifest)):
            if pod.owner != subject(manifest):
                yield f"{subject(manifest)}: spec.selector: also selects the pods of {pod.owner}"


def selectors_find_pods(bundle: Bundle) -> Iterator[str]:
    """What a Service, NetworkPolicy, PodDisruptionBudget or PodMonitor selects is in the set, or known to be outside.

    So are a NetworkPolicy's peers in its own namespace: a misspelt label locks everybody out.
    """
    for where, selector, in_namespace in _selections(bundle):
        if not bundle.selected(selector, in_namespace) and not bundle.selects_external(selector):
            yield f"{where}: selects no pod"


def service_ports_are_sound(bundle: Bundle) -> Iterator[str]:
    """A Service's ports are unique, and named if there are several."""
    for service in bundle.of_kind("Service"):
        where = f"{subject(service)}: spec.ports"
        ports = items(field(service, "spec"), "ports")
        for same in repeated(f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in ports):
            yield f"{where}: two ports {same}"
        for same in repeated(str(port["name"]) for port in ports if "name" in port):
            yield f"{where}: two ports named {same}"
        for port in ports:
            if ("name" in port or len(ports) > 1) and (objection := DNS_LABEL.objection(port.get("name"))):
                yield f"{where}: {objection}"


def service_targets_exist(bundle: Bundle) -> Iterator[str]:
    """Every pod that a Service selects declares the Service's target ports."""
    for service in bundle.of_kind("Service"):
        spec = field(service, "spec")
        for pod in _behind(bundle, service):
            for port in items(spec, "ports"):
                target, protocol = port.get("targetPort", port.get("port")), port.get("protocol", "TCP")
                if not any(_is(target, protocol, declared) for declared in pod.ports):
                    where = f"{subject(service)}: spec.ports.targetPort"
                    yield f"{where}: no port {target!r} in {pod.owner}"


def monitored_ports_exist(bundle: Bundle) -> Iterator[str]:
    """Every pod that a PodMonitor selects declares the ports to scrape."""
    for monitor in bundle.of_kind("PodMonitor"):
        for pod in bundle.selected(field(monitor, "spec", "selector"), namespace(monitor)):
            for endpoint in items(field(monitor, "spec"), "podMetricsEndpoints"):
                port = endpoint.get("port", endpoint.get("portNumber"))
                if not any(_is(port, "TCP", declared) for declared in pod.ports):
                    where = f"{subject(monitor)}: spec.podMetricsEndpoints.port"
                    yield f"{where}: no port {port!r} in {pod.owner}"


def policy_ports_exist(bundle: Bundle) -> Iterator[str]:
    """A port that a NetworkPolicy lets in by name is declared by a pod it selects: an unknown name lets nothing in."""
    for policy in bundle.of_kind("NetworkPolicy"):
        pods = bundle.selected(field(policy, "spec", "podSelector"), namespace(policy))
        for rule in items(field(policy, "spec"), "ingress") if pods else ():
            for port in items(rule, "ports"):
                name = port.get("port")
                if isinstance(name, str) and not any(d.get("name") == name for pod in pods for d in pod.ports):
                    yield f"{subject(policy)}: spec.ingress.ports: no port {name!r} in the pods it selects"


def listeners_are_guarded(bundle: Bundle) -> Iterator[str]:
    """Every port of a pod that is ours is let in by a NetworkPolicy that selects the pod, and never for everybody.

    What we run does not ask who is there. On the host's network no policy binds; that is told in a condition. A port
    named health is for its node's kubelet, whom policies do not hold back. Where pods of ours are on the host's network
    themselves, no selector means them, and whom they ask has to be open.
    """
    on_nodes = any(pod.ours and pod.spec.get("hostNetwork") for pod in bundle.pods)
    for pod in bundle.pods:
        for port in pod.ports if pod.ours else ():
            rules = [rule for policy in _policies(bundle, pod) for rule in items(field(policy, "spec"), "ingress")]
            opening = [rule for rule in rules if _opens(rule, port)]
            where = f"{pod.where}.containers: port {port.get('name', port.get('containerPort'))}"
            if not opening and port.get("name") != "health":
                yield f"{where} is in no NetworkPolicy that selects the pod"
            elif not on_nodes and any(_for_everybody(rule) for rule in opening):
                yield f"{where} is open to everybody"


def _selections(bundle: Bundle) -> Iterator[Selection]:
    """Takes a bundle; yields every selector of pods but those of workloads."""
    for manifest in bundle.manifests:
        spec, where, home = field(manifest, "spec"), f"{subject(manifest)}: spec", namespace(manifest)
        match manifest.get("kind"):
            case "Service" if "selector" in spec:
                yield Selection(f"{where}.selector", {"matchLabels": spec["selector"]}, home)
            case "PodDisruptionBudget":
                yield Selection(f"{where}.selector", field(spec, "selector"), home)
            case "PodMonitor" if "namespaceSelector" not in spec:
                yield Selection(f"{where}.selector", field(spec, "selector"), home)
            case "NetworkPolicy":
                yield Selection(f"{where}.podSelector", field(spec, "podSelector"), home)
                for direction, side in (("ingress", "from"), ("egress", "to")):
                    for rule in items(spec, direction):
                        for peer in items(rule, side):
                            if "podSelector" in peer and "namespaceSelector" not in peer:
                                yield Selection(f"{where}.{direction}.{side}.podSelector", peer["podSelector"], home)


def _behind(bundle: Bundle, service: Manifest) -> list[Pod]:
    """Takes a Service; returns the pods it selects."""
    selector = field(service, "spec", "selector")
    return bundle.selected({"matchLabels": selector}, namespace(service)) if selector else []


def _is(target: object, protocol: str, declared: Manifest) -> bool:
    """Takes a port by name or number, a protocol, and a container's port; returns whether the first means the last."""
    named = target is not None and target in {declared.get("name"), declared.get("containerPort")}
    return named and protocol == declared.get("protocol", "TCP")


def _policies(bundle: Bundle, pod: Pod) -> Iterator[Manifest]:
    """Takes a pod; yields the NetworkPolicies that guard what comes in to it."""
    for policy in bundle.of_kind("NetworkPolicy"):
        spec = field(policy, "spec")
        guards = "Ingress" in spec.get("policyTypes", ("Ingress",))
        if guards and namespace(policy) == pod.namespace and selects(field(spec, "podSelector"), pod.labels):
            yield policy


def _opens(rule: Manifest, declared: Manifest) -> bool:
    """Takes an ingress rule and a container's port; returns whether the rule lets that port in. No ports means all."""
    number, protocol = declared["containerPort"], declared.get("protocol", "TCP")
    return "ports" not in rule or any(
        port.get("protocol", "TCP") == protocol
        and ("port" not in port or _is(port["port"], protocol, declared) or _in_range(port, number))
        for port in rule["ports"]
    )


def _in_range(port: Manifest, number: int) -> bool:
    """Takes a policy's port and a number; returns whether the number is in the policy's range."""
    return "endPort" in port and port["port"] <= number <= port["endPort"]


def _for_everybody(rule: Manifest) -> bool:
    """Takes an ingress rule; returns whether it lets everybody in."""
    peers = items(rule, "from")
    return not peers or any(
        field(peer, "ipBlock").get("cidr") in _EVERYWHERE
        or (peer.get("namespaceSelector") == {} and not peer.get("podSelector"))
        for peer in peers
    )
