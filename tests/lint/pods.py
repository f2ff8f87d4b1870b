"""Rules on a pod template: its volumes, containers, environment, arguments, ports and privileges."""

import posixpath
import re
from collections.abc import Iterable, Iterator

from tests.lint.grammar import DNS_LABEL, ENV_NAME, PORT_NAME
from tests.lint.model import Bundle, Container, Manifest, Pod, field, items, label, repeated

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = frozenset({"exec", "grpc", "httpGet", "sleep", "tcpSocket"})
_SHELLS = frozenset({"ash", "bash", "dash", "sh"})

_VARIABLE = re.compile(r"\$\$|\$\(([-._A-Za-z][-.\w]*)\)", re.ASCII)
_SHELL_VARIABLE = re.compile(r"\$\$|\$\(([A-Z_][A-Z0-9_]*)\)", re.ASCII)
_IMAGE = re.compile(r"[^@\s]+?(?::(?P<tag>[\w][-.\w]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?", re.ASCII)


def names_in_pods_are_valid(bundle: Bundle) -> Iterator[str]:
    """Volumes, containers, ports and environment variables have names that the API server takes."""
    for pod in bundle.pods:
        for volume in items(pod.spec, "volumes"):
            if objection := DNS_LABEL.objection(volume.get("name")):
                yield f"{pod.where}.volumes: {objection}"
        for container in pod.containers:
            if objection := DNS_LABEL.objection(container.spec.get("name")):
                yield f"{container.where}.name: {objection}"
            for port in items(container.spec, "ports"):
                if "name" in port and (objection := PORT_NAME.objection(port["name"])):
                    yield f"{container.where}.ports: {objection}"
            for env in items(container.spec, "env"):
                if objection := ENV_NAME.objection(env.get("name")):
                    yield f"{container.where}.env: {objection}"


def names_in_pods_are_unique(bundle: Bundle) -> Iterator[str]:
    """No two volumes, no two containers, and no two ports of a pod share a name."""
    for pod in bundle.pods:
        for same in repeated([*_names(pod.spec, "volumes"), *pod.claimed_volumes]):
            yield f"{pod.where}.volumes: two volumes {same}"
        for same in repeated([*_names(pod.spec, "initContainers"), *_names(pod.spec, "containers")]):
            yield f"{pod.where}.containers: two containers {same}"
        for same in repeated(str(port["name"]) for port in pod.ports if "name" in port):
            yield f"{pod.where}.containers: two ports named {same}"


def ports_in_pods_are_unique(bundle: Bundle) -> Iterator[str]:
    """No two containers of a pod listen on one port, and on the host's network the host port is the container's."""
    for pod in bundle.pods:
        for same in repeated(f"{port.get('containerPort')}/{port.get('protocol', 'TCP')}" for port in pod.ports):
            yield f"{pod.where}.containers: two ports {same}"
        for port in pod.ports:
            host_port = port.get("hostPort")
            if pod.spec.get("hostNetwork") and host_port not in {None, port.get("containerPort")}:
                yield f"{pod.where}.containers: hostPort {host_port} with hostNetwork is not the containerPort"


def env_names_are_unique(bundle: Bundle) -> Iterator[str]:
    """No environment variable is set twice in a container."""
    for container in _containers(bundle):
        for same in repeated(_names(container.spec, "env")):
            yield f"{container.where}.env[{same}]: set twice"


def flags_are_unique(bundle: Bundle) -> Iterator[str]:
    """No flag is given twice, as `--flag=value` or `--flag value`, with `_` or `-`, except those that repeat.

    Nor a flag and a field of it (`--kv-transfer-config.kv_role`): only one of the two is heard. A lone `--` begins the
    arguments of another program.
    """
    allowed = {_flag(flag) for flag in bundle.context.repeatable_flags}
    for container in _containers(bundle):
        for tokens in _programs(_command_line(container)):
            flags = [_flag(token) for token in tokens if token.startswith("--")]
            for same in repeated(flags):
                if same not in allowed:
                    yield f"{container.where}.args: {same} is given twice"
            for name in sorted({flag for flag in flags if flag.partition(".")[0] in flags and "." in flag}):
                yield f"{container.where}.args: {name} is given beside {name.partition('.')[0]}"


def variables_are_declared(bundle: Bundle) -> Iterator[str]:
    """`$(VAR)` in command, args, env and subPathExpr means a variable of the same container, in env an earlier one.

    A container whose environment comes from outside the set is left alone. In a shell script `$(name)` runs a command,
    so that only upper case names count there.
    """
    for pod in bundle.pods:
        for container in pod.containers:
            known = _imported(bundle, pod, container)
            if known is None:
                continue
            for position, env in enumerate(items(container.spec, "env")):
                for name in _missing(str(env.get("value", "")), known):
                    yield f"{container.where}.env[{label(env, position)}]: $({name}) is not declared before"
                known.add(str(env.get("name")))
            for key, index, text, pattern in _expanded(container):
                for name in _missing(text, known, pattern):
                    yield f"{container.where}.{key}[{index}]: $({name}) is not declared"


def mounts_have_volumes(bundle: Bundle) -> Iterator[str]:
    """A volumeMount or volumeDevice names a volume of its pod."""
    for pod in bundle.pods:
        volumes = {*_names(pod.spec, "volumes"), *pod.claimed_volumes}
        for container in pod.containers:
            for name in _mounted(container):
                if name not in volumes:
                    yield f"{container.where}.volumeMounts[{name}]: no such volume"


def volumes_are_mounted(bundle: Bundle) -> Iterator[str]:
    """Every volume is mounted by some container."""
    for pod in bundle.pods:
        mounted = {name for container in pod.containers for name in _mounted(container)}
        for name in sorted({*_names(pod.spec, "volumes"), *pod.claimed_volumes} - mounted):
            yield f"{pod.where}.volumes[{name}]: mounted nowhere"


def mount_paths_are_sound(bundle: Bundle) -> Iterator[str]:
    """Mount paths are absolute and unique in their container; a mount has one kind of subPath, that stays inside."""
    for container in _containers(bundle):
        mounts = items(container.spec, "volumeMounts")
        paths = [posixpath.normpath(str(mount.get("mountPath"))) for mount in mounts]
        for same in repeated(paths):
            yield f"{container.where}.volumeMounts: two mounts at {same}"
        for mount, path in zip(mounts, paths, strict=True):
            where = f"{container.where}.volumeMounts[{mount.get('name')}]"
            if not path.startswith("/") or ":" in path:
                yield f"{where}.mountPath: {path!r} is not an absolute path without ':'"
            sub_paths = [str(mount[key]) for key in ("subPath", "subPathExpr") if key in mount]
            if len(sub_paths) > 1 or any(p.startswith("/") or ".." in p.split("/") for p in sub_paths):
                yield f"{where}.subPath: {sub_paths} is not one relative path without '..'"


def unions_have_one_member(bundle: Bundle) -> Iterator[str]:
    """A volume has one source, a variable one value and that one source, a probe or hook one handler."""
    for pod in bundle.pods:
        for where, member, least in _unions(pod):
            if not least <= len(member) <= 1:
                yield f"{where}: {sorted(member)} instead of one of a kind"


def images_are_pinned(bundle: Bundle) -> Iterator[str]:
    """Images, and image volumes, have a tag that does not move, or a digest."""
    for pod in bundle.pods:
        images = [(f"{container.where}.image", container.spec.get("image")) for container in pod.containers]
        for volume in items(pod.spec, "volumes"):
            if "image" in volume:
                where = f"{pod.where}.volumes[{volume.get('name')}].image.reference"
                images.append((where, volume["image"].get("reference")))
        for where, image in images:
            match = _IMAGE.fullmatch(str(image or ""))
            moving = match is None or (match["tag"] or "latest").partition("-")[0] == "latest"
            if match is None or (moving and not match["digest"]):
                yield f"{where}: {image!r} is not pinned"


def probes_hit_declared_ports(bundle: Bundle) -> Iterator[str]:
    """A probe or hook names a port, by number or name, that its own container declares."""
    for container in _containers(bundle):
        ports = items(container.spec, "ports")
        declared = {port[key] for port in ports for key in ("containerPort", "name") if key in port}
        for where, probe in _probes(container):
            for handler in ("grpc", "httpGet", "tcpSocket"):
                if handler in probe and probe[handler].get("port") not in declared:
                    yield f"{where}.{handler}.port: {probe[handler].get('port')!r} is not a port of the container"


def host_network_keeps_cluster_dns(bundle: Bundle) -> Iterator[str]:
    """A pod on the host's network says so to DNS: else it resolves no Service."""
    for pod in bundle.pods:
        if pod.spec.get("hostNetwork") and pod.spec.get("dnsPolicy") != "ClusterFirstWithHostNet":
            yield f"{pod.where}.dnsPolicy: must be ClusterFirstWithHostNet with hostNetwork"


def service_links_are_off(bundle: Bundle) -> Iterator[str]:
    """No pod gets a variable for every Service: a Service named vllm would set VLLM_PORT."""
    for pod in bundle.pods:
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.where}.enableServiceLinks: must be false"


def tokens_stay_out(bundle: Bundle) -> Iterator[str]:
    """No pod is given a token for the Kubernetes API: none speaks to it."""
    for pod in bundle.pods:
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}.automountServiceAccountToken: must be false"


def our_containers_are_confined(bundle: Bundle) -> Iterator[str]:
    """Containers of our pods cannot escalate, have no capability they do not name, and filter system calls."""
    for pod in bundle.pods:
        for container in pod.containers if pod.ours else ():
            where = f"{container.where}.securityContext"
            context = field(container.spec, "securityContext")
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{where}.allowPrivilegeEscalation: must be false"
            if context.get("privileged"):
                yield f"{where}.privileged: must not be true"
            if "ALL" not in items(field(context, "capabilities"), "drop"):
                yield f"{where}.capabilities.drop: must hold ALL"
            seccomp = field(context, "seccompProfile") or field(pod.spec, "securityContext", "seccompProfile")
            if seccomp.get("type") != "RuntimeDefault":
                yield f"{where}.seccompProfile.type: must be RuntimeDefault, here or in the pod"


def _containers(bundle: Bundle) -> Iterator[Container]:
    """Takes a bundle; yields every container of every pod."""
    for pod in bundle.pods:
        yield from pod.containers


def _names(value: Manifest, key: str) -> list[str]:
    """Takes a mapping and the key of a list in it; returns the names of the list's items."""
    return [str(item.get("name")) for item in items(value, key)]


def _mounted(container: Container) -> list[str]:
    """Takes a container; returns the names of the volumes it mounts."""
    return [*_names(container.spec, "volumeMounts"), *_names(container.spec, "volumeDevices")]


def _probes(container: Container) -> Iterator[tuple[str, Manifest]]:
    """Takes a container; yields where each probe and hook is, and the mapping that holds its handler."""
    for key in _PROBES:
        if key in container.spec:
            yield f"{container.where}.{key}", container.spec[key]
    for key in ("postStart", "preStop"):
        if hook := field(container.spec, "lifecycle", key):
            yield f"{container.where}.lifecycle.{key}", hook


def _unions(pod: Pod) -> Iterator[tuple[str, set[str], int]]:
    """Takes a pod; yields where a union is, which members it has, and the least it may have."""
    for index, volume in enumerate(items(pod.spec, "volumes")):
        yield f"{pod.where}.volumes[{label(volume, index)}]", set(volume) - {"name"}, 1
    for container in pod.containers:
        for index, env in enumerate(items(container.spec, "env")):
            where = f"{container.where}.env[{label(env, index)}]"
            yield where, set(env) - {"name"}, 0
            if "valueFrom" in env:
                yield f"{where}.valueFrom", set(env["valueFrom"] or ()), 1
        for where, probe in _probes(container):
            yield where, set(probe) & _HANDLERS, 1


def _command_line(container: Container) -> list[str]:
    """Takes a container; returns its command and args."""
    return [str(token) for key in ("command", "args") for token in items(container.spec, key)]


def _programs(tokens: Iterable[str]) -> Iterator[list[str]]:
    """Takes a command line; yields its parts between lone `--`."""
    part: list[str] = []
    for token in tokens:
        if token == "--":
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _flag(token: str) -> str:
    """Takes a command line token; returns the flag in it as compared, without value and with `-` for `_`."""
    return token.partition("=")[0].replace("_", "-")


def _imported(bundle: Bundle, pod: Pod, container: Container) -> set[str] | None:
    """Takes a container; returns the variables its envFrom gives, or None when a source is outside the set."""
    names: set[str] = set()
    for source in items(container.spec, "envFrom"):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if key in source:
                found = bundle.find(kind, source[key].get("name"), pod.namespace)
                if found is None:
                    return None
                keys = {**field(found, "data"), **field(found, "stringData")}
                names |= {f"{source.get('prefix', '')}{name}" for name in keys}
    return names


def _expanded(container: Container) -> Iterator[tuple[str, object, str, re.Pattern[str]]]:
    """Takes a container; yields key, index, text and pattern of all that Kubernetes expands, but env."""
    line = _command_line(container)
    shell = bool(line) and posixpath.basename(line[0]) in _SHELLS
    for key in ("command", "args"):
        for index, token in enumerate(items(container.spec, key)):
            yield key, index, str(token), _SHELL_VARIABLE if shell else _VARIABLE
    for mount in items(container.spec, "volumeMounts"):
        yield "volumeMounts", mount.get("name"), str(mount.get("subPathExpr", "")), _VARIABLE


def _missing(text: str, known: set[str], pattern: re.Pattern[str] = _VARIABLE) -> list[str]:
    """Takes a text and the variables known; returns the others that it refers to. `$$` escapes."""
    return [match[1] for match in pattern.finditer(text) if match[1] and match[1] not in known]
