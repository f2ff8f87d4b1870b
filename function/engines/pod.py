"""A ModelDeployment's engine: what backends see of it, and the pod it runs in before any tier is attached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from function import kube, sizing
from function.api.deployment import Engine as EngineSpec
from function.engines import Engine, identity, sglang, versions, vllm
from function.engines.args import CommandLine, expand
from function.engines.kind import Kind

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (vllm.KIND, sglang.KIND)}

CONTAINER = "engine"
PORT_NAME = "http"
# Loading a large model takes long; an engine that is still loading is not a dead one.
_STARTUP_SECONDS = 3600
_PROBE_PERIOD = 10


@dataclass(frozen=True)
class Said:
    """What a user says of an engine beside its container: its version, who vouches for what, its role, whose it is.

    `owner` is what tells its model from another one at the same path; `pod` is the pod's spec, whose volumes tell it as
    well, and `workload` who has volumes for it that are not there. `pods` is how many it runs in.
    """

    owner: tuple[str, ...]
    version: str | None = None
    identity: str | None = None
    role: str | None = None
    pod: kube.Manifest = field(default_factory=dict)
    workload: str = ""
    pods: int = 1


def view(kind: Kind, container: kube.Manifest, said: Said) -> Engine:
    """See an engine as backends do.

    Args:
        kind: Which engine it is.
        container: Its container, as it stands in a pod template.
        said: What the user says of it beside that.
    """
    env: dict[str, str | None] = {}
    for e in container.get("env", ()):
        env[e["name"]] = None if "valueFrom" in e else expand(e.get("value") or "", env)
    image = container.get("image", "")
    line = CommandLine(container.get("command", ()), container.get("args", ()), env)
    version = versions.of_engine(said.version, image, kind.repository)
    elsewhere = container.get("envFrom") or ()
    owner = (
        *said.owner,
        *_sources(said, container, identity.model(kind, line)),
        *([kube.compact(list(elsewhere))] if elsewhere else ()),
    )
    return Engine(
        kind=kind,
        image=image,
        version=version,
        identity=identity.derive(
            kind, line, env, image=image, owner=owner, vouched=said.identity, unseen=bool(elsewhere)
        ),
        dra=bool(container.get("resources", {}).get("claims")),
        line=line,
        role=said.role,
        env=env,
        pods=max(said.pods, line.nodes),
        memory=(sizing.asked_memory(container) or ("", 0))[1],
    )


def _sources(said: Said, container: kube.Manifest, model: str) -> list[str]:
    """Tell what a path's files come from: the volumes that are mounted there, and what fills them before."""

    def there(path: str) -> bool:
        if not model.startswith("/"):
            return True
        mounted, wanted = (f"{p.rstrip('/')}/" for p in (path, model))
        return wanted.startswith(mounted) or mounted.startswith(wanted)

    mounts = [m for m in container.get("volumeMounts", ()) if there(m["mountPath"])]
    if not mounts:
        return []
    names = {m.get("name") for m in mounts}
    volumes = [v for v in said.pod.get("volumes", ()) if v["name"] in names]
    fill = [c for c in said.pod.get("initContainers", ()) if names & {m.get("name") for m in c.get("volumeMounts", ())}]
    elsewhere = said.workload if names - {v["name"] for v in volumes} else ""
    return [kube.compact([mounts, volumes, fill, elsewhere])]


def read(spec: EngineSpec, *, namespace: str, name: str) -> Engine:
    """Read a ModelDeployment's engine.

    Args:
        spec: The engine as the user wrote it.
        namespace: The deployment's namespace.
        name: The deployment's name.

    Returns:
        What backends see of it.
    """
    cache = spec.kv_cache
    said = Said(
        owner=(namespace, name),
        version=spec.version,
        identity=cache.identity if cache else None,
        role=cache.role if cache else None,
    )
    container = {
        "image": spec.image,
        "command": spec.command,
        "args": spec.args,
        "env": [e.manifest() for e in spec.env],
        "resources": _resources(spec, 0),
    }
    return view(KINDS[spec.name], container, said)


def kind_of(container: kube.Manifest) -> Kind | None:
    """Tell which engine a container runs, by the program that it starts, else by its image; None where neither says."""
    command = [*container.get("command", ()), *(container.get("args", ()) if not container.get("command") else ())]
    program = " ".join(takewhile(lambda word: not word.startswith("--"), command))
    repository = container.get("image", "").partition("@")[0].rpartition("/")[2].partition(":")[0]
    for text in (program, repository):
        found = [kind for kind in KINDS.values() if kind.program in text]
        if len(found) == 1:
            return found[0]
    return None


def joins(container: kube.Manifest) -> bool:
    """Whether a container only joins a Ray cluster, whose head starts the engine in it, and takes no flags itself."""
    words = [*container.get("command", ()), *container.get("args", ())]
    return bool(words) and words[0].rpartition("/")[2] == "ray"


def port(kind: Kind, line: CommandLine) -> int:
    """The port that the engine's server listens on."""
    given = line.integer("--port")
    return given if 1 < given < 65536 else kind.port  # noqa: PLR2004 (a TCP port)


def pod_template(spec: EngineSpec, line: CommandLine, labels: dict[str, str]) -> kube.Manifest:
    """Write the engine's pod as the user asked for it, unattached.

    Args:
        spec: The engine as the user wrote it; its words and variables go in unchanged and in order.
        line: Its command line.
        labels: The pod's labels.

    Returns:
        A pod template with one container named `engine`.
    """
    kind = KINDS[spec.name]
    scheme = {"scheme": "HTTPS"} if line.flags("--ssl-keyfile", "--ssl-certfile") else {}
    health = {"httpGet": {"path": "/health", "port": PORT_NAME, **scheme}}
    container = kube.prune(
        {
            "name": CONTAINER,
            "image": spec.image,
            "command": list(spec.command or kind.command),
            "args": [*spec.args, *(word for word in kind.listen if not line.flags(word.partition("=")[0]))],
            "env": [e.manifest() for e in spec.env],
            "ports": [{"name": PORT_NAME, "containerPort": port(kind, line)}],
            "resources": _resources(spec, kind.ranks(line, 1)),
            "startupProbe": health
            | {"periodSeconds": _PROBE_PERIOD, "failureThreshold": _STARTUP_SECONDS // _PROBE_PERIOD},
            "readinessProbe": health | {"periodSeconds": _PROBE_PERIOD},
        }
    )
    claims = spec.resources.claims if spec.resources else ()
    pod = kube.prune(
        {
            "automountServiceAccountToken": False,
            # A Service named vllm would set VLLM_PORT to a URL, which vLLM refuses.
            "enableServiceLinks": False,
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "containers": [container],
            "resourceClaims": [
                {"name": c.name, "resourceClaimTemplateName": c.resource_claim_template_name} for c in claims
            ],
        }
    )
    return {"metadata": {"labels": labels}, "spec": pod}


def finish(template: kube.Manifest) -> kube.Manifest:
    """Give the engine the shared memory that its ranks talk through, unless a tier has put something there."""
    pod = template["spec"]
    container = pod["containers"][0]
    if any(m["mountPath"] == "/dev/shm" for m in container.get("volumeMounts", ())):  # noqa: S108 (a mount, no file)
        return template
    container.setdefault("volumeMounts", []).append({"name": "dshm", "mountPath": "/dev/shm"})  # noqa: S108
    pod.setdefault("volumes", []).append({"name": "dshm", "emptyDir": {"medium": "Memory"}})
    return template


def service_port(kind: Kind, line: CommandLine) -> kube.Manifest:
    """The Service's port in front of an engine."""
    return {"name": PORT_NAME, "port": port(kind, line), "targetPort": PORT_NAME}


def _resources(spec: EngineSpec, gpus: int) -> kube.Manifest:
    if spec.resources is None:
        return {"limits": {"nvidia.com/gpu": str(gpus)}}
    return kube.prune(
        {
            "requests": dict(spec.resources.requests),
            "limits": dict(spec.resources.limits),
            "claims": [{"name": c.name} for c in spec.resources.claims],
        }
    )
