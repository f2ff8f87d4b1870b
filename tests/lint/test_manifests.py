"""Every rule passes the good set, and finds the mistake it is for."""

import base64
import copy
import json
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.lint import network, objects, pods, references
from tests.lint.good import CONFINED, ENGINE, PASSWORD, TIER, good_set, manifest
from tests.lint.manifests import RULES, Context, lint, unwrap
from tests.lint.model import Bundle, Rule
from tests.lint.schemas import schema_errors

Set = dict[str, dict[str, Any]]
Change = Callable[[Set], None]

CONTEXT = Context(secrets=(PASSWORD,))

AGENT = "DaemonSet/lm-agent"
ETCD = "StatefulSet/lm-etcd"
LLAMA = "Deployment/llama"
POD = "spec.template.spec"
SERVER = f"{POD}.containers.server"
SERVER_AT = f"{POD}.containers[server]"


def put(who: str, path: str, value: object) -> Change:
    """Takes whom, a dotted path (an item of a list by name or index) and a value; returns the change that sets it."""

    def change(manifests: Set) -> None:
        parent, _, key = path.rpartition(".")
        target = _at(manifests[who], parent)
        target[int(key) if isinstance(target, list) else key] = copy.deepcopy(value)

    return change


def drop(who: str, path: str) -> Change:
    """Takes whom and a path; returns the change that removes what is there."""

    def change(manifests: Set) -> None:
        parent, _, key = path.rpartition(".")
        target = _at(manifests[who], parent)
        del target[int(key) if isinstance(target, list) else key]

    return change


def add(who: str, path: str, item: object) -> Change:
    """Takes whom, the path of a list and an item; returns the change that appends it, if need be to a new list."""

    def change(manifests: Set) -> None:
        parent, _, key = path.rpartition(".")
        _at(manifests[who], parent).setdefault(key, []).append(copy.deepcopy(item))

    return change


def without(who: str) -> Change:
    """Takes whom; returns the change that leaves the manifest out."""

    def change(manifests: Set) -> None:
        del manifests[who]

    return change


def also(extra: dict[str, Any]) -> Change:
    """Takes a manifest; returns the change that adds it."""
    return lambda manifests: manifests.update(extra=copy.deepcopy(extra))


def both(*changes: Change) -> Change:
    """Takes changes; returns the change that makes all."""

    def change(manifests: Set) -> None:
        for one in changes:
            one(manifests)

    return change


def _at(value: Any, path: str) -> Any:
    """Takes a manifest and a dotted path; returns what is there."""
    for part in filter(None, path.split(".")):
        if isinstance(value, list):
            value = value[int(part)] if part.isdigit() else next(item for item in value if item["name"] == part)
        else:
            value = value[part]
    return value


def changed(*changes: Change) -> list[dict[str, Any]]:
    """Takes changes; returns the good set after them. No part of it is another's too."""
    manifests: Set = json.loads(json.dumps(good_set()))
    both(*changes)(manifests)
    return list(manifests.values())


class Mistake(NamedTuple):
    """A story, the rule that finds it, the change that makes it, how the finding begins, and what it says."""

    story: str
    rule: Rule
    change: Change
    begins: str
    says: str


UNDEFINED_KEY = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "lm-redis", "key": "user"}}}
RESOURCES = f"{SERVER}.resources"
PORTS = f"{SERVER}.ports"
MOUNTS = f"{SERVER}.volumeMounts"
VOLUMES = f"{POD}.volumes"
MEMORY = f"{AGENT}: {SERVER_AT}.resources.limits.memory"
CONFIG_DATA = "ConfigMap/lm-connector: data.seed"
BASE64_IN_URL = base64.b64encode(b"x:" + PASSWORD + b"@").decode()
OPEN = {"from": [{"namespaceSelector": {}}], "ports": [{"port": "mp"}]}

MISTAKES = [
    # objects
    Mistake(
        "two manifests are one object",
        objects.objects_are_unique,
        also(manifest("v1", "ConfigMap", "lm-connector", data={"a": "b"})),
        "ConfigMap/lm-connector: metadata.name",
        "twice in namespace 'default'",
    ),
    Mistake(
        "a name has a capital and an underscore",
        objects.names_are_valid,
        put("Secret/lm-redis", "metadata.name", "A_b"),
        "Secret/A_b: metadata.name",
        "RFC 1123 subdomain",
    ),
    Mistake(
        "a Service's name begins with a digit",
        objects.names_are_valid,
        put("Service/llama", "metadata.name", "70b-llama"),
        "Service/70b-llama: metadata.name",
        "DNS-1035 label",
    ),
    Mistake(
        "a Service's name has a dot",
        objects.names_are_valid,
        put("Service/llama", "metadata.name", "llama.x"),
        "Service/llama.x: metadata.name",
        "DNS-1035 label",
    ),
    Mistake(
        "a Service's name is 64 characters long",
        objects.names_are_valid,
        put("Service/llama", "metadata.name", 64 * "a"),
        f"Service/{64 * 'a'}: metadata.name",
        "at most 63",
    ),
    Mistake(
        "a StatefulSet's name leaves no room for the hash in its pods' label",
        objects.names_are_valid,
        put(ETCD, "metadata.name", 53 * "a"),
        f"StatefulSet/{53 * 'a'}: metadata.name",
        "at most 52",
    ),
    Mistake(
        "a manifest has no name",
        objects.names_are_valid,
        drop("Secret/lm-redis", "metadata.name"),
        "Secret/None: metadata.name",
        "None is not",
    ),
    Mistake(
        "a namespace has a dot",
        objects.names_are_valid,
        put("Secret/lm-redis", "metadata.namespace", "a.b"),
        "Secret/lm-redis: metadata.namespace",
        "RFC 1123 label",
    ),
    Mistake(
        "a label value is longer than 63 characters",
        objects.labels_are_valid,
        put("Secret/lm-redis", "metadata.labels.tier", 64 * "a"),
        "Secret/lm-redis: metadata.labels: tier",
        "a label value of at most 63",
    ),
    Mistake(
        "a label key has two slashes",
        objects.labels_are_valid,
        put("Secret/lm-redis", "metadata.labels.a/b/c", "x"),
        "Secret/lm-redis: metadata.labels: a/b/c",
        "RFC 1123 subdomain before the '/'",
    ),
    Mistake(
        "a node selector's value is a bool",
        objects.labels_are_valid,
        put(AGENT, f"{POD}.nodeSelector.gpu", value=True),
        f"{AGENT}: {POD}.nodeSelector: gpu",
        "True is not a label value",
    ),
    Mistake(
        "a Service selects by an impossible label",
        objects.labels_are_valid,
        put("Service/llama", "spec.selector.tier", "a b"),
        "Service/llama: spec.selector: tier",
        "'a b' is not a label value",
    ),
    Mistake(
        "an expression that needs values has none",
        objects.expressions_are_valid,
        drop("PodDisruptionBudget/lm-etcd", "spec.selector.matchExpressions.0.values"),
        "PodDisruptionBudget/lm-etcd: spec.selector.matchExpressions[0].values",
        "In with values None",
    ),
    Mistake(
        "an expression has an impossible key",
        objects.expressions_are_valid,
        put("PodDisruptionBudget/lm-etcd", "spec.selector.matchExpressions.0.key", "-tier"),
        "PodDisruptionBudget/lm-etcd: spec.selector.matchExpressions[0].key",
        "'-tier' is not a qualified name",
    ),
    Mistake(
        "annotations are more than 256 KiB together",
        objects.annotations_are_valid,
        put("ConfigMap/lm-connector", "metadata.annotations", {"a": 200_000 * "x", "b": 70_000 * "x"}),
        "ConfigMap/lm-connector: metadata.annotations",
        "270002 bytes",
    ),
    Mistake(
        "an annotation of a pod has an impossible key",
        objects.annotations_are_valid,
        put(AGENT, "spec.template.metadata.annotations.a b", "x"),
        f"{AGENT}: spec.template.metadata.annotations",
        "'a b' is not a qualified name",
    ),
    Mistake(
        "a ConfigMap's key is a path",
        objects.data_is_valid,
        put("ConfigMap/lm-connector", "data.conf/lmcache", "x"),
        "ConfigMap/lm-connector: data.conf/lmcache",
        "is not a key",
    ),
    Mistake(
        "a Secret's data is not encoded",
        objects.data_is_valid,
        put("Secret/lm-redis", "data.user", "default!"),
        "Secret/lm-redis: data.user",
        "not base64",
    ),
    Mistake(
        "a ConfigMap is larger than etcd takes",
        objects.data_is_valid,
        put("ConfigMap/lm-connector", "data.big", 1_048_577 * "x"),
        "ConfigMap/lm-connector: data",
        "more than 1048576",
    ),
    Mistake(
        "a field is null",
        objects.nothing_is_empty,
        put(AGENT, f"{POD}.priorityClassName", None),
        f"{AGENT}: {POD}.priorityClassName",
        "null",
    ),
    Mistake(
        "a list is empty",
        objects.nothing_is_empty,
        put(AGENT, f"{POD}.tolerations", []),
        f"{AGENT}: {POD}.tolerations",
        "empty",
    ),
    Mistake(
        "a map is empty",
        objects.nothing_is_empty,
        put(AGENT, f"{POD}.securityContext", {}),
        f"{AGENT}: {POD}.securityContext",
        "empty",
    ),
    Mistake(
        "a policy's peers are an empty list, which means everybody",
        objects.nothing_is_empty,
        put("NetworkPolicy/lm-etcd", "spec.ingress.0.from", []),
        "NetworkPolicy/lm-etcd: spec.ingress[0].from",
        "empty",
    ),
    Mistake(
        "replicas came through a protobuf Struct",
        objects.integers_are_integers,
        put(LLAMA, "spec.replicas", 3.0),
        f"{LLAMA}: spec.replicas",
        "3.0 is a float",
    ),
    Mistake(
        "a port is larger than ports are",
        objects.ports_are_in_range,
        put("Service/llama", "spec.ports.0.port", 70000),
        "Service/llama: spec.ports[main].port",
        "70000 is no port",
    ),
    Mistake(
        "memory is written GiB",
        objects.quantities_are_valid,
        put(AGENT, f"{RESOURCES}.limits.memory", "64GiB"),
        MEMORY,
        "'64GiB' is no quantity",
    ),
    Mistake(
        "memory is a float",
        objects.quantities_are_valid,
        put(AGENT, f"{RESOURCES}.limits.memory", 1.5),
        MEMORY,
        "1.5 is no quantity",
    ),
    Mistake(
        "memory is in thousandths of a byte",
        objects.quantities_are_valid,
        put(AGENT, f"{RESOURCES}.limits.memory", "500m"),
        MEMORY,
        "finer than memory is counted",
    ),
    Mistake(
        "a scratch volume is smaller than nothing",
        objects.quantities_are_valid,
        put(AGENT, f"{VOLUMES}.shm.emptyDir.sizeLimit", "-1Gi"),
        f"{AGENT}: {VOLUMES}[shm].emptyDir.sizeLimit",
        "negative",
    ),
    Mistake(
        "a claim's size is no quantity",
        objects.quantities_are_valid,
        put(ETCD, "spec.volumeClaimTemplates.0.spec.resources.requests.storage", "8 Gi"),
        f"{ETCD}: spec.volumeClaimTemplates[0].spec.resources.requests.storage",
        "'8 Gi' is no quantity",
    ),
    Mistake(
        "a request is more than its limit, in another unit",
        objects.requests_fit_limits,
        put(AGENT, f"{RESOURCES}.limits.memory", "71G"),
        f"{AGENT}: {SERVER_AT}.resources.requests.memory",
        "70Gi is more than the limit 71G",
    ),
    Mistake(
        "a GPU is requested without a limit",
        objects.requests_fit_limits,
        drop(LLAMA, f"{POD}.containers.engine.resources.limits"),
        f"{LLAMA}: {POD}.containers[engine].resources.requests.nvidia.com/gpu",
        "must have an equal limit",
    ),
    Mistake(
        "hugepages stand alone",
        objects.requests_fit_limits,
        put(AGENT, RESOURCES, {"limits": {"hugepages-2Mi": "1Gi"}}),
        f"{AGENT}: {SERVER_AT}.resources",
        "need cpu or memory",
    ),
    Mistake(
        "a password is in a ConfigMap",
        objects.secrets_stay_in_secrets,
        put("ConfigMap/lm-connector", "data.seed", f"redis://{PASSWORD.decode()}@host"),
        CONFIG_DATA,
        "holds a secret value",
    ),
    Mistake(
        "a password is in an annotation, as base64 within more base64",
        objects.secrets_stay_in_secrets,
        put(AGENT, "metadata.annotations", {"auth": BASE64_IN_URL}),
        f"{AGENT}: metadata.annotations.auth",
        "holds a secret value",
    ),
    Mistake(
        "a password is in an argument, percent-encoded",
        objects.secrets_stay_in_secrets,
        add(AGENT, f"{SERVER}.args", f"redis://:{urllib.parse.quote(PASSWORD, safe='')}@host"),
        f"{AGENT}: {SERVER_AT}.args[6]",
        "holds a secret value",
    ),
    Mistake(
        "a password is in an argument, percent-encoded only where it must be",
        objects.secrets_stay_in_secrets,
        add(AGENT, f"{SERVER}.args", f"redis://:{urllib.parse.quote(PASSWORD, safe='/:@+').lower()}@host"),
        f"{AGENT}: {SERVER_AT}.args[6]",
        "holds a secret value",
    ),
    Mistake(
        "a password is percent-encoded and then in base64",
        objects.secrets_stay_in_secrets,
        put(
            "ConfigMap/lm-connector",
            "data.seed",
            base64.b64encode(urllib.parse.quote(PASSWORD, safe="").encode()).decode(),
        ),
        CONFIG_DATA,
        "holds a secret value",
    ),
    Mistake(
        "a password is a key, and the finding does not repeat it",
        objects.secrets_stay_in_secrets,
        put("ConfigMap/lm-connector", "data", {PASSWORD.decode(): "x"}),
        "ConfigMap/lm-connector: data",
        "holds a secret value",
    ),
    Mistake(
        "a password is in a label of the Secret itself",
        objects.secrets_stay_in_secrets,
        put("Secret/lm-redis", "metadata.annotations", {"was": PASSWORD.decode()}),
        "Secret/lm-redis: metadata.annotations.was",
        "holds a secret value",
    ),
    # pods
    Mistake(
        "a volume's name has a dot",
        pods.names_in_pods_are_valid,
        add(AGENT, VOLUMES, {"name": "a.b", "emptyDir": {}}),
        f"{AGENT}: {VOLUMES}",
        "'a.b' is not an RFC 1123 label",
    ),
    Mistake(
        "a container's name has an underscore",
        pods.names_in_pods_are_valid,
        put(LLAMA, f"{POD}.containers.engine.name", "the_engine"),
        f"{LLAMA}: {POD}.containers[the_engine].name",
        "RFC 1123 label",
    ),
    Mistake(
        "a port's name is longer than 15 characters",
        pods.names_in_pods_are_valid,
        put(AGENT, f"{PORTS}.mp.name", "multiprocess-rpc"),
        f"{AGENT}: {SERVER_AT}.ports",
        "at most 15",
    ),
    Mistake(
        "a variable's name has a space",
        pods.names_in_pods_are_valid,
        add(AGENT, f"{SERVER}.env", {"name": "A B", "value": "x"}),
        f"{AGENT}: {SERVER_AT}.env",
        "'A B' is not an environment variable name",
    ),
    Mistake(
        "a volume is declared twice",
        pods.names_in_pods_are_unique,
        add(AGENT, VOLUMES, {"name": "shm", "emptyDir": {}}),
        f"{AGENT}: {VOLUMES}",
        "two volumes shm",
    ),
    Mistake(
        "a container has an init container's name",
        pods.names_in_pods_are_unique,
        put(AGENT, f"{POD}.initContainers.clean.name", "server"),
        f"{AGENT}: {POD}.containers",
        "two containers server",
    ),
    Mistake(
        "two ports of a pod have one name",
        pods.names_in_pods_are_unique,
        put(AGENT, f"{PORTS}.metrics.name", "mp"),
        f"{AGENT}: {POD}.containers",
        "two ports named mp",
    ),
    Mistake(
        "two containers of a pod listen on one port",
        pods.ports_in_pods_are_unique,
        put(AGENT, f"{PORTS}.metrics.containerPort", 5555),
        f"{AGENT}: {POD}.containers",
        "two ports 5555/TCP",
    ),
    Mistake(
        "a pod on the host's network asks for another port of the host",
        pods.ports_in_pods_are_unique,
        both(put(AGENT, f"{POD}.hostNetwork", value=True), put(AGENT, f"{PORTS}.mp.hostPort", 5556)),
        f"{AGENT}: {POD}.containers",
        "hostPort 5556",
    ),
    Mistake(
        "a variable is set twice",
        pods.env_names_are_unique,
        add(AGENT, f"{SERVER}.env", {"name": "ID", "value": "x"}),
        f"{AGENT}: {SERVER_AT}.env[ID]",
        "set twice",
    ),
    Mistake(
        "a flag is given twice, with and without an equals sign",
        pods.flags_are_unique,
        put(AGENT, f"{SERVER}.args", ["--port=5555", "--port", "5556"]),
        f"{AGENT}: {SERVER_AT}.args",
        "--port is given twice",
    ),
    Mistake(
        "a flag is given twice, once with an underscore",
        pods.flags_are_unique,
        add(LLAMA, f"{POD}.containers.engine.args", "--kv_transfer_config={}"),
        f"{LLAMA}: {POD}.containers[engine].args",
        "--kv-transfer-config is given twice",
    ),
    Mistake(
        "a flag of the command is given again in the args",
        pods.flags_are_unique,
        put(ETCD, f"{POD}.containers.etcd.args", ["--data-dir", "/elsewhere"]),
        f"{ETCD}: {POD}.containers[etcd].args",
        "--data-dir is given twice",
    ),
    Mistake(
        "a flag is given, and a field of it",
        pods.flags_are_unique,
        add(LLAMA, f"{POD}.containers.engine.args", "--kv-transfer-config.kv_role=kv_both"),
        f"{LLAMA}: {POD}.containers[engine].args",
        "--kv-transfer-config.kv-role is given beside --kv-transfer-config",
    ),
    Mistake(
        "an argument refers to a variable that is not there",
        pods.variables_are_declared,
        add(AGENT, f"{SERVER}.args", "--host=$(POD_IP)"),
        f"{AGENT}: {SERVER_AT}.args[6]",
        "$(POD_IP) is not declared",
    ),
    Mistake(
        "a variable refers to a later one",
        pods.variables_are_declared,
        put(AGENT, f"{SERVER}.env.0", {"name": "NODE", "value": "$(PASSWORD)"}),
        f"{AGENT}: {SERVER_AT}.env[NODE]",
        "$(PASSWORD) is not declared before",
    ),
    Mistake(
        "a subPathExpr refers to a variable of another container",
        pods.variables_are_declared,
        put(AGENT, f"{POD}.initContainers.clean.volumeMounts.0.subPathExpr", "$(ID)"),
        f"{AGENT}: {POD}.initContainers[clean].volumeMounts[disk]",
        "$(ID) is not declared",
    ),
    Mistake(
        "a shell script refers to a variable that is not there",
        pods.variables_are_declared,
        put(AGENT, f"{POD}.initContainers.clean.command.2", "rm -rf /disk/$(NODE_NAME)"),
        f"{AGENT}: {POD}.initContainers[clean].command[2]",
        "$(NODE_NAME) is not declared",
    ),
    Mistake(
        "a mount has no volume",
        pods.mounts_have_volumes,
        put(AGENT, f"{MOUNTS}.shm.name", "dshm"),
        f"{AGENT}: {SERVER_AT}.volumeMounts[dshm]",
        "no such volume",
    ),
    Mistake(
        "a volume is mounted nowhere",
        pods.volumes_are_mounted,
        add(AGENT, VOLUMES, {"name": "spare", "emptyDir": {}}),
        f"{AGENT}: {VOLUMES}[spare]",
        "mounted nowhere",
    ),
    Mistake(
        "two mounts are at one path, but for a slash",
        pods.mount_paths_are_sound,
        put(AGENT, f"{MOUNTS}.shm.mountPath", "/disk/"),
        f"{AGENT}: {SERVER_AT}.volumeMounts",
        "two mounts at /disk",
    ),
    Mistake(
        "a mount path is relative",
        pods.mount_paths_are_sound,
        put(AGENT, f"{MOUNTS}.shm.mountPath", "dev/shm"),
        f"{AGENT}: {SERVER_AT}.volumeMounts[shm].mountPath",
        "not an absolute path",
    ),
    Mistake(
        "a mount has both kinds of subPath",
        pods.mount_paths_are_sound,
        put(AGENT, f"{MOUNTS}.disk.subPath", "x"),
        f"{AGENT}: {SERVER_AT}.volumeMounts[disk].subPath",
        "not one relative path",
    ),
    Mistake(
        "a subPath leaves its volume",
        pods.mount_paths_are_sound,
        put(AGENT, f"{MOUNTS}.config.subPath", "../x"),
        f"{AGENT}: {SERVER_AT}.volumeMounts[config].subPath",
        "not one relative path",
    ),
    Mistake(
        "a volume has two sources",
        pods.unions_have_one_member,
        put(AGENT, f"{VOLUMES}.shm.hostPath", {"path": "/dev/shm"}),
        f"{AGENT}: {VOLUMES}[shm]",
        "['emptyDir', 'hostPath']",
    ),
    Mistake(
        "a volume has no source",
        pods.unions_have_one_member,
        drop(AGENT, f"{VOLUMES}.shm.emptyDir"),
        f"{AGENT}: {VOLUMES}[shm]",
        "[] instead of one",
    ),
    Mistake(
        "a variable has a value and a source",
        pods.unions_have_one_member,
        put(AGENT, f"{SERVER}.env.PASSWORD.value", "x"),
        f"{AGENT}: {SERVER_AT}.env[PASSWORD]",
        "['value', 'valueFrom']",
    ),
    Mistake(
        "a variable has two sources",
        pods.unions_have_one_member,
        put(AGENT, f"{SERVER}.env.NODE.valueFrom.secretKeyRef", {"name": "lm-redis", "key": "password"}),
        f"{AGENT}: {SERVER_AT}.env[NODE].valueFrom",
        "['fieldRef', 'secretKeyRef']",
    ),
    Mistake(
        "a probe asks in two ways",
        pods.unions_have_one_member,
        put(AGENT, f"{SERVER}.readinessProbe.httpGet", {"port": "mp"}),
        f"{AGENT}: {SERVER_AT}.readinessProbe",
        "['httpGet', 'tcpSocket']",
    ),
    Mistake(
        "an image has no tag, though its registry has a port",
        pods.images_are_pinned,
        put(AGENT, f"{SERVER}.image", "registry.example:5000/lmcache"),
        f"{AGENT}: {SERVER_AT}.image",
        "is not pinned",
    ),
    Mistake(
        "an image's tag is latest",
        pods.images_are_pinned,
        put(LLAMA, f"{POD}.containers.engine.image", "vllm/vllm-openai:latest"),
        f"{LLAMA}: {POD}.containers[engine].image",
        "is not pinned",
    ),
    Mistake(
        "an image's tag is the latest of a flavour",
        pods.images_are_pinned,
        put(LLAMA, f"{POD}.containers.engine.image", "vllm/vllm-openai:latest-cu129"),
        f"{LLAMA}: {POD}.containers[engine].image",
        "is not pinned",
    ),
    Mistake(
        "an image volume has no tag",
        pods.images_are_pinned,
        add(AGENT, VOLUMES, {"name": "wheel", "image": {"reference": "wheels"}}),
        f"{AGENT}: {VOLUMES}[wheel].image.reference",
        "is not pinned",
    ),
    Mistake(
        "a probe asks a port by an unknown name",
        pods.probes_hit_declared_ports,
        put(AGENT, f"{SERVER}.readinessProbe.tcpSocket.port", "rpc"),
        f"{AGENT}: {SERVER_AT}.readinessProbe.tcpSocket.port",
        "'rpc' is not a port of the container",
    ),
    Mistake(
        "a hook calls a port that is not declared",
        pods.probes_hit_declared_ports,
        put(AGENT, f"{SERVER}.lifecycle", {"preStop": {"httpGet": {"port": 8080}}}),
        f"{AGENT}: {SERVER_AT}.lifecycle.preStop.httpGet.port",
        "8080 is not a port of the container",
    ),
    Mistake(
        "a pod on the host's network asks the host's DNS",
        pods.host_network_keeps_cluster_dns,
        put(AGENT, f"{POD}.hostNetwork", value=True),
        f"{AGENT}: {POD}.dnsPolicy",
        "must be ClusterFirstWithHostNet",
    ),
    Mistake(
        "an engine has service links",
        pods.service_links_are_off,
        drop(LLAMA, f"{POD}.enableServiceLinks"),
        f"{LLAMA}: {POD}.enableServiceLinks",
        "must be false",
    ),
    Mistake(
        "an engine is given a token",
        pods.tokens_stay_out,
        put(LLAMA, f"{POD}.automountServiceAccountToken", value=True),
        f"{LLAMA}: {POD}.automountServiceAccountToken",
        "must be false",
    ),
    Mistake(
        "an init container of ours may escalate",
        pods.our_containers_are_confined,
        put(AGENT, f"{POD}.initContainers.clean.securityContext", {**CONFINED, "allowPrivilegeEscalation": True}),
        f"{AGENT}: {POD}.initContainers[clean].securityContext.allowPrivilegeEscalation",
        "must be false",
    ),
    Mistake(
        "a container of ours keeps the default capabilities",
        pods.our_containers_are_confined,
        drop(AGENT, f"{SERVER}.securityContext.capabilities"),
        f"{AGENT}: {SERVER_AT}.securityContext.capabilities.drop",
        "must hold ALL",
    ),
    Mistake(
        "a container of ours filters no system calls, though its pod does",
        pods.our_containers_are_confined,
        both(
            put(AGENT, f"{POD}.securityContext", {"seccompProfile": {"type": "RuntimeDefault"}}),
            put(AGENT, f"{SERVER}.securityContext.seccompProfile.type", "Unconfined"),
        ),
        f"{AGENT}: {SERVER_AT}.securityContext.seccompProfile.type",
        "must be RuntimeDefault",
    ),
    Mistake(
        "a container of ours is privileged",
        pods.our_containers_are_confined,
        put(AGENT, f"{SERVER}.securityContext.privileged", value=True),
        f"{AGENT}: {SERVER_AT}.securityContext.privileged",
        "must not be true",
    ),
    # references
    Mistake(
        "a pod's ConfigMap is not in the set",
        references.references_resolve,
        put(LLAMA, f"{VOLUMES}.kv.configMap.name", "lm-conector"),
        f"{LLAMA}: {VOLUMES}[kv].configMap",
        "ConfigMap/lm-conector is not in the set",
    ),
    Mistake(
        "a pod's ConfigMap is in another namespace",
        references.references_resolve,
        both(put("ConfigMap/lm-connector", "metadata.namespace", "other"), drop(AGENT, f"{VOLUMES}.2")),
        f"{LLAMA}: {VOLUMES}[kv].configMap",
        "is not in the set",
    ),
    Mistake(
        "a volume takes a key that its ConfigMap lacks",
        references.references_resolve,
        put(LLAMA, f"{VOLUMES}.kv.configMap.items.0.key", "hash-seed"),
        f"{LLAMA}: {VOLUMES}[kv].configMap",
        "ConfigMap/lm-connector has no key 'hash-seed'",
    ),
    Mistake(
        "a volume's Secret is not in the set",
        references.references_resolve,
        add(AGENT, VOLUMES, {"name": "tls", "secret": {"secretName": "lm-tls"}}),
        f"{AGENT}: {VOLUMES}[tls].secret",
        "Secret/lm-tls is not in the set",
    ),
    Mistake(
        "a projected volume's Secret is not in the set",
        references.references_resolve,
        add(AGENT, VOLUMES, {"name": "tls", "projected": {"sources": [{"secret": {"name": "lm-tls"}}]}}),
        f"{AGENT}: {VOLUMES}[tls].projected.secret",
        "Secret/lm-tls is not in the set",
    ),
    Mistake(
        "a variable takes a key that its Secret lacks",
        references.references_resolve,
        add(AGENT, f"{SERVER}.env", UNDEFINED_KEY),
        f"{AGENT}: {SERVER_AT}.env[X].valueFrom.secretKeyRef",
        "Secret/lm-redis has no key 'user'",
    ),
    Mistake(
        "a container's whole environment is not in the set",
        references.references_resolve,
        put(AGENT, f"{SERVER}.envFrom", [{"configMapRef": {"name": "env"}}]),
        f"{AGENT}: {SERVER_AT}.envFrom.configMapRef",
        "ConfigMap/env is not in the set",
    ),
    Mistake(
        "a pod's account is not in the set",
        references.references_resolve,
        without("ServiceAccount/lm-agent"),
        f"{AGENT}: {POD}.serviceAccountName",
        "ServiceAccount/lm-agent is not in the set",
    ),
    Mistake(
        "a pod's claim template is not in the set",
        references.references_resolve,
        without("ResourceClaimTemplate/lm-rdma"),
        f"{LLAMA}: {POD}.resourceClaims[rdma].resourceClaimTemplateName",
        "ResourceClaimTemplate/lm-rdma is not in the set",
    ),
    Mistake(
        "a subPath is no file of its ConfigMap",
        references.sub_paths_exist,
        put(AGENT, f"{MOUNTS}.config.subPath", "lmcache.yml"),
        f"{AGENT}: {SERVER_AT}.volumeMounts[config].subPath",
        "no file 'lmcache.yml' in the volume",
    ),
    Mistake(
        "a container uses a claim that its pod does not have",
        references.claims_resolve,
        add(AGENT, f"{RESOURCES}.claims", {"name": "rdma"}),
        f"{AGENT}: {SERVER_AT}.resources.claims[rdma]",
        "not a claim of the pod",
    ),
    Mistake(
        "a container uses a request that the claim does not have",
        references.claims_resolve,
        put(LLAMA, f"{POD}.containers.engine.resources.claims.0.request", "gpu"),
        f"{LLAMA}: {POD}.containers[engine].resources.claims[rdma].request",
        "no request 'gpu' in the claim",
    ),
    Mistake(
        "a pod's claim is used by no container",
        references.claims_resolve,
        drop(LLAMA, f"{POD}.containers.engine.resources.claims"),
        f"{LLAMA}: {POD}.resourceClaims[rdma]",
        "no container uses it",
    ),
    Mistake(
        "a StatefulSet's Service is not in the set",
        references.stateful_sets_have_services,
        put(ETCD, "spec.serviceName", "etcd"),
        f"{ETCD}: spec.serviceName",
        "Service/etcd is not in the set",
    ),
    # network
    Mistake(
        "a workload does not select its own pods",
        network.workloads_select_their_own_pods,
        put(AGENT, "spec.selector.matchLabels", {"app": "agent"}),
        f"{AGENT}: spec.selector",
        "does not select the template's labels",
    ),
    Mistake(
        "a workload selects another's pods too",
        network.workloads_select_no_others,
        put(
            LLAMA,
            "spec.selector",
            {
                "matchExpressions": [
                    {"key": next(iter(ENGINE)), "operator": "Exists"},
                    {"key": "app.kubernetes.io/component", "operator": "NotIn", "values": ["agent"]},
                ]
            },
        ),
        f"{LLAMA}: spec.selector",
        f"also selects the pods of {ETCD}",
    ),
    Mistake(
        "a Service selects no pod",
        network.selectors_find_pods,
        put("Service/lm-agent", "spec.selector", {"app": "agent"}),
        "Service/lm-agent: spec.selector",
        "selects no pod",
    ),
    Mistake(
        "a policy selects no pod",
        network.selectors_find_pods,
        put("NetworkPolicy/lm-agent", "spec.podSelector", {"matchLabels": {"app": "agent"}}),
        "NetworkPolicy/lm-agent: spec.podSelector",
        "selects no pod",
    ),
    Mistake(
        "a policy lets in nobody, for a misspelt label",
        network.selectors_find_pods,
        put("NetworkPolicy/lm-agent", "spec.ingress.0.from.0.podSelector", {"matchLabels": {"app": "engin"}}),
        "NetworkPolicy/lm-agent: spec.ingress.from.podSelector",
        "selects no pod",
    ),
    Mistake(
        "a budget selects no pod",
        network.selectors_find_pods,
        put("PodDisruptionBudget/lm-etcd", "spec.selector", {"matchLabels": {"app": "etcd"}}),
        "PodDisruptionBudget/lm-etcd: spec.selector",
        "selects no pod",
    ),
    Mistake(
        "a monitor selects no pod",
        network.selectors_find_pods,
        put("PodMonitor/lm-agent", "spec.selector", {"matchLabels": {"app": "agent"}}),
        "PodMonitor/lm-agent: spec.selector",
        "selects no pod",
    ),
    Mistake(
        "a Service has a port twice",
        network.service_ports_are_sound,
        add("Service/llama", "spec.ports", {"name": "other", "port": 80, "targetPort": "http"}),
        "Service/llama: spec.ports",
        "two ports 80/TCP",
    ),
    Mistake(
        "two ports of a Service have one name",
        network.service_ports_are_sound,
        add("Service/llama", "spec.ports", {"name": "main", "port": 81, "targetPort": "http"}),
        "Service/llama: spec.ports",
        "two ports named main",
    ),
    Mistake(
        "one of two ports of a Service has no name",
        network.service_ports_are_sound,
        add("Service/llama", "spec.ports", {"port": 81, "targetPort": "http"}),
        "Service/llama: spec.ports",
        "None is not an RFC 1123 label",
    ),
    Mistake(
        "a Service leads to a port by an unknown name",
        network.service_targets_exist,
        put("Service/lm-agent", "spec.ports.0.targetPort", "rpc"),
        "Service/lm-agent: spec.ports.targetPort",
        f"no port 'rpc' in {AGENT}",
    ),
    Mistake(
        "a Service without a target port leads to a port that is not declared",
        network.service_targets_exist,
        drop("Service/llama", "spec.ports.0.targetPort"),
        "Service/llama: spec.ports.targetPort",
        f"no port 80 in {LLAMA}",
    ),
    Mistake(
        "a Service leads to a port over another protocol",
        network.service_targets_exist,
        put("Service/llama", "spec.ports.0.protocol", "UDP"),
        "Service/llama: spec.ports.targetPort",
        f"no port 'http' in {LLAMA}",
    ),
    Mistake(
        "a monitor scrapes a port by an unknown name",
        network.monitored_ports_exist,
        put("PodMonitor/lm-agent", "spec.podMetricsEndpoints.0.port", "prometheus"),
        "PodMonitor/lm-agent: spec.podMetricsEndpoints.port",
        f"no port 'prometheus' in {AGENT}",
    ),
    Mistake(
        "a policy lets in to a port by an unknown name",
        network.policy_ports_exist,
        put("NetworkPolicy/lm-agent", "spec.ingress.0.ports.0.port", "rpc"),
        "NetworkPolicy/lm-agent: spec.ingress.ports",
        "no port 'rpc' in the pods it selects",
    ),
    Mistake(
        "a listener has no policy",
        network.listeners_are_guarded,
        without("NetworkPolicy/lm-etcd"),
        f"{ETCD}: {POD}.containers",
        "port 2379 is in no NetworkPolicy that selects the pod",
    ),
    Mistake(
        "a listener's policy is one for what goes out",
        network.listeners_are_guarded,
        put("NetworkPolicy/lm-etcd", "spec.policyTypes", ["Egress"]),
        f"{ETCD}: {POD}.containers",
        "port 2379 is in no NetworkPolicy that selects the pod",
    ),
    Mistake(
        "a listener was added and its policy was not told",
        network.listeners_are_guarded,
        add(AGENT, PORTS, {"name": "admin", "containerPort": 8080}),
        f"{AGENT}: {POD}.containers",
        "port admin is in no NetworkPolicy that selects the pod",
    ),
    Mistake(
        "a policy lets everybody in, for it says nothing of peers",
        network.listeners_are_guarded,
        drop("NetworkPolicy/lm-etcd", "spec.ingress.0.from"),
        f"{ETCD}: {POD}.containers",
        "port 2379 is open to everybody",
    ),
    Mistake(
        "a policy lets all namespaces in",
        network.listeners_are_guarded,
        add("NetworkPolicy/lm-agent", "spec.ingress", OPEN),
        f"{AGENT}: {POD}.containers",
        "port mp is open to everybody",
    ),
    Mistake(
        "a policy lets all addresses in",
        network.listeners_are_guarded,
        add("NetworkPolicy/lm-agent", "spec.ingress.0.from", {"ipBlock": {"cidr": "0.0.0.0/0"}}),
        f"{AGENT}: {POD}.containers",
        "port mp is open to everybody",
    ),
]


class Fine(NamedTuple):
    """A story, a change that nothing may object to, and what is known beyond the set."""

    story: str
    change: Change
    context: Context = CONTEXT


OUTSIDE = Context(
    external=frozenset({"Secret/user-redis", "ConfigMap/env", "ResourceClaimTemplate/nics"}),
    external_pods=({"app": "router"}, ENGINE),
)

FINE = [
    Fine("nothing is changed", both()),
    Fine(
        "a Secret that the user keeps on the cluster is named",
        put(AGENT, f"{SERVER}.env.PASSWORD.valueFrom.secretKeyRef", {"name": "user-redis", "key": "any"}),
        OUTSIDE,
    ),
    Fine(
        "variables come from a ConfigMap outside the set",
        both(
            put(AGENT, f"{SERVER}.envFrom", [{"configMapRef": {"name": "env"}}]),
            add(AGENT, f"{SERVER}.args", "--x=$(FROM_ENV)"),
        ),
        OUTSIDE,
    ),
    Fine(
        "variables come from a ConfigMap of the set, with a prefix",
        both(
            put(AGENT, f"{SERVER}.envFrom", [{"prefix": "KV_", "configMapRef": {"name": "lm-connector"}}]),
            add(AGENT, f"{SERVER}.args", "--x=$(KV_seed)"),
        ),
    ),
    Fine(
        "an optional ConfigMap is missing", put(LLAMA, f"{VOLUMES}.kv.configMap", {"name": "absent", "optional": True})
    ),
    Fine(
        "a claim template is outside the set",
        put(LLAMA, f"{POD}.resourceClaims.0.resourceClaimTemplateName", "nics"),
        OUTSIDE,
    ),
    Fine(
        "a policy lets in pods from outside the set",
        add("NetworkPolicy/lm-agent", "spec.ingress.0.from", {"podSelector": {"matchLabels": {"app": "router"}}}),
        OUTSIDE,
    ),
    Fine("a tier is rendered without engines", both(without(LLAMA), without("Service/llama")), OUTSIDE),
    Fine(
        "a program takes a flag more than once",
        put(AGENT, f"{SERVER}.args", ["--lora_module=a", "--lora-module", "b"]),
        Context(repeatable_flags=frozenset({"--lora-module"})),
    ),
    Fine(
        "two programs of one command line take the same flag",
        put(AGENT, f"{SERVER}.command", ["tini", "--port", "1", "--", "lmcache"]),
    ),
    Fine("a scratch volume has no settings", put(AGENT, f"{VOLUMES}.shm.emptyDir", {})),
    Fine(
        "an engine is not confined and not guarded",
        put(LLAMA, f"{POD}.containers.engine.securityContext", {"privileged": True}),
    ),
    Fine(
        "a pod is confined as a whole",
        both(
            put(AGENT, f"{POD}.securityContext", {"seccompProfile": {"type": "RuntimeDefault"}}),
            drop(AGENT, f"{SERVER}.securityContext.seccompProfile"),
        ),
    ),
    Fine("a policy lets engines in to all ports", drop("NetworkPolicy/lm-agent", "spec.ingress.0.ports")),
    Fine(
        "a policy keeps everything from going out",
        both(
            put("NetworkPolicy/lm-agent", "spec.policyTypes", ["Ingress", "Egress"]),
            put("NetworkPolicy/lm-agent", "spec.egress", []),
        ),
    ),
    Fine(
        "an init container that ends listens where a server will",
        put(AGENT, f"{POD}.initContainers.clean.ports", [{"name": "mp", "containerPort": 5555}]),
    ),
    Fine(
        "a host path is divided by node", put(AGENT, f"{VOLUMES}.0", {"name": "disk", "hostPath": {"path": "/mnt/kv"}})
    ),
    Fine(
        "a pod on the host's network says so to DNS",
        both(put(AGENT, f"{POD}.hostNetwork", value=True), put(AGENT, f"{POD}.dnsPolicy", "ClusterFirstWithHostNet")),
    ),
    Fine("a Service has no selector", drop("Service/llama", "spec.selector")),
    Fine(
        "numbers in a JSON string are floats",
        put("ConfigMap/lm-connector", "data.seed", json.dumps({"seed": 3.0, "none": None})),
    ),
    Fine(
        "an image has a moving tag and a digest",
        put(LLAMA, f"{POD}.containers.engine.image", "vllm:latest@sha256:" + 64 * "0"),
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_good_set_satisfies(rule: Rule) -> None:
    assert list(rule(Bundle(tuple(changed()), CONTEXT))) == []


@pytest.mark.parametrize("fine", FINE, ids=lambda fine: fine.story)
def test_nothing_is_said_when(fine: Fine) -> None:
    manifests = changed(fine.change)
    assert [error for manifest in manifests for error in schema_errors(manifest)] == []
    assert lint(manifests, fine.context) == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.story)
def test_it_is_told_that(mistake: Mistake) -> None:
    manifests = changed(mistake.change)
    (finding,) = mistake.rule(Bundle(tuple(manifests), CONTEXT))
    assert finding.startswith(f"{mistake.begins}:") and mistake.says in finding
    assert finding in lint(manifests, CONTEXT)
    assert PASSWORD.decode() not in finding


def test_every_rule_has_a_mistake_to_find() -> None:
    assert {mistake.rule for mistake in MISTAKES} == set(RULES)


def test_objects_are_unwrapped_and_may_carry_a_secret_in_its_data() -> None:
    carried: list[dict[str, Any]] = [
        {
            "apiVersion": "kubernetes.m.crossplane.io/v1alpha1",
            "kind": "Object",
            "metadata": {"name": f"lm-{index}", "namespace": "modelplane-system", "labels": TIER},
            "spec": {"forProvider": {"manifest": manifest}},
        }
        for index, manifest in enumerate(changed())
    ]
    assert unwrap([*carried, {"kind": "Usage"}]) == changed()
    assert lint(carried, CONTEXT) == []
    carried[0]["metadata"]["annotations"] = {"latch": json.dumps({"env": PASSWORD.decode()})}
    assert lint(carried, CONTEXT) == ["Object/lm-0: metadata.annotations.latch: holds a secret value"]
