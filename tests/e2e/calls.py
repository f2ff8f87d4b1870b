"""Direct calls of the function that Crossplane runs, with what it would be sent, less what a bad day takes away."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
from crossplane.function import resource
from crossplane.function.proto.v1 import run_function_pb2 as fnv1
from crossplane.function.proto.v1 import run_function_pb2_grpc as grpcv1

from tests.e2e.environment import Environment
from tests.e2e.fleet import Member, read
from tests.e2e.install import FUNCTION
from tests.e2e.kube import OBJECT, USAGE, Kind, Manifest, owned
from tests.e2e.runtime import NAMESPACE

_KEY = "crossplane.io/composition-resource-name"
_ROUNDS = 5


def storm(world: Environment, members: Sequence[Member], count: int, seed: int = 1) -> dict[str, int]:
    """Call `count` times for random members, each time without some of what is required: not looked up, or not there.

    Returns counts: calls, required resources that were missing, calls whose desired state had less than is observed
    (shrunk), and fatal results.
    """
    chance, found = random.Random(seed), Counter(calls=0, missing=0, shrunk=0, fatal=0)
    function: Any = grpcv1.FunctionRunnerServiceStub(_channel(world))  # type: ignore[no-untyped-call]
    requests = [_request(world, member, function) for member in members]
    for _ in range(count):
        full = chance.choice(requests)
        request = fnv1.RunFunctionRequest()
        request.CopyFrom(full)
        for key in sorted(full.required_resources):
            match chance.randrange(4):
                case 0:
                    del request.required_resources[key]
                case 1:
                    request.required_resources[key].Clear()
                case _:
                    continue
            found["missing"] += 1
        response = function.RunFunction(request, timeout=20)
        found["calls"] += 1
        fatal = any(result.severity == fnv1.SEVERITY_FATAL for result in response.results)
        found["fatal"] += fatal
        found["shrunk"] += not fatal and not set(request.observed.resources) <= set(response.desired.resources)
    return dict(found)


def _channel(world: Environment) -> grpc.Channel:
    """Reach the function as Crossplane does: by mTLS, with Crossplane's own certificate."""
    folder = world.folder / "tls-client"
    credentials = grpc.ssl_channel_credentials(
        *((folder / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    )
    name = f"{FUNCTION}.{NAMESPACE}"
    return grpc.secure_channel(
        f"127.0.0.1:{world.runtime.listens(FUNCTION)}", credentials, [("grpc.ssl_target_name_override", name)]
    )


def _request(world: Environment, member: Member, function: Any) -> fnv1.RunFunctionRequest:
    """What Crossplane would send for a composite now, all that is required looked up."""
    kube, composite = world.control.kube, read(world, member)
    request = fnv1.RunFunctionRequest(meta=fnv1.RequestMeta(tag="storm", capabilities=list(_capabilities())))
    resource.update(request.observed.composite, composite)
    for kind in (OBJECT, USAGE):
        for item in owned(kube.find(kind, member.namespace), composite):
            resource.update(request.observed.resources[item["metadata"]["annotations"][_KEY]], item)
    for _ in range(_ROUNDS):
        wanted = function.RunFunction(request, timeout=20).requirements.resources
        if set(wanted) == set(request.required_resources):
            return request
        for key, selector in wanted.items():
            request.required_resources[key].Clear()
            for item in _select(world, selector):
                resource.update(request.required_resources[key].items.add(), item)
    raise AssertionError(f"{member}: its requirements do not settle")


def _capabilities() -> Any:
    return (fnv1.CAPABILITY_CAPABILITIES, fnv1.CAPABILITY_REQUIRED_RESOURCES, fnv1.CAPABILITY_CONDITIONS)


def _select(world: Environment, selector: fnv1.ResourceSelector) -> list[Manifest]:
    kube, kind = world.control.kube, Kind(selector.api_version, selector.kind)
    namespace = selector.namespace or None
    if selector.HasField("match_name"):
        one = kube.get(kind, selector.match_name, namespace)
        return [one] if one else []
    labels = ",".join(f"{key}={value}" for key, value in selector.match_labels.labels.items())
    return kube.find(kind, namespace, label_selector=labels)
