"""vLLM: reads a ModelDeployment's engine, and writes the pod it runs in before any tier is attached."""

from function import kube
from function.api.deployment import Engine as EngineSpec
from function.engines import Engine, identity, versions
from function.engines.args import CommandLine, expand

CONTAINER = "engine"
PORT = 8000
_PORT_NAME = "http"
# Loading a large model takes long; an engine that is still loading is not a dead one.
_STARTUP_SECONDS = 3600
_PROBE_PERIOD = 10

# What a user may have wired by hand; a tier never adds a second one, or overwrites it.
OWN_WIRING = ("--kv-transfer-config", "--kv-offloading-size", "--kv-offloading-backend")


def read(spec: EngineSpec, *, namespace: str, name: str) -> tuple[Engine, CommandLine]:
    """Read an engine's spec.

    Args:
        spec: The engine as the user wrote it.
        namespace: The deployment's namespace.
        name: The deployment's name.

    Returns:
        What backends see of it, and its command line.
    """
    env: dict[str, str | None] = {}
    for e in spec.env:
        env[e.name] = expand(e.value or "", env) if e.value_from is None else None
    line = CommandLine(spec.command, spec.args, env)
    version = versions.of_engine(spec.version, spec.image)
    engine = Engine(
        name=spec.name,
        image=spec.image,
        version=version,
        support=versions.vllm(version) if version else None,
        identity=identity.derive(
            line,
            env,
            image=spec.image,
            owner=(namespace, name),
            vouched=spec.kv_cache.identity if spec.kv_cache else None,
        ),
        ranks=ranks(line),
        dra=bool(spec.resources and spec.resources.claims),
        lmcache=versions.lmcache_of_image(spec.image),
        env_names=frozenset(e.name for e in spec.env),
    )
    return engine, line


def ranks(line: CommandLine) -> int:
    """How many processes, and so GPUs, one pod runs: TP x PP x DP of its args, the DP that is local to it."""
    local = ("--data-parallel-size-local", "-dpl")
    return (
        line.integer("--tensor-parallel-size", "-tp")
        * line.integer("--pipeline-parallel-size", "-pp")
        * line.integer("--prefill-context-parallel-size", "-pcp")
        * line.integer(*(local if line.flags(*local) else ("--data-parallel-size", "-dp")))
    )


def port(line: CommandLine) -> int:
    """The port that the engine's server listens on."""
    given = line.integer("--port")
    return given if 1 < given < 65536 else PORT  # noqa: PLR2004 (a TCP port)


def pod_template(spec: EngineSpec, line: CommandLine, labels: dict[str, str]) -> kube.Manifest:
    """Write the engine's pod as the user asked for it, unattached.

    Args:
        spec: The engine as the user wrote it; its words and variables go in unchanged and in order.
        line: Its command line.
        labels: The pod's labels.

    Returns:
        A pod template with one container named `engine`.
    """
    listens = port(line)
    scheme = {"scheme": "HTTPS"} if line.flags("--ssl-keyfile", "--ssl-certfile") else {}
    health = {"httpGet": {"path": "/health", "port": _PORT_NAME, **scheme}}
    container = kube.prune(
        {
            "name": CONTAINER,
            "image": spec.image,
            "command": list(spec.command),
            "args": list(spec.args),
            "env": [e.manifest() for e in spec.env],
            "ports": [{"name": _PORT_NAME, "containerPort": listens}],
            "resources": _resources(spec, line),
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


def service_port(line: CommandLine) -> kube.Manifest:
    """The Service's port in front of an engine."""
    return {"name": _PORT_NAME, "port": port(line), "targetPort": _PORT_NAME}


def _resources(spec: EngineSpec, line: CommandLine) -> kube.Manifest:
    if spec.resources is None:
        return {"limits": {"nvidia.com/gpu": str(ranks(line))}}
    return kube.prune(
        {
            "requests": dict(spec.resources.requests),
            "limits": dict(spec.resources.limits),
            "claims": [{"name": c.name} for c in spec.resources.claims],
        }
    )
