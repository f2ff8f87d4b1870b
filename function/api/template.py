"""The parts of a pod template, and of a ResourceClaimTemplate, that are read: an earlier step may desire anything."""

from typing import Any

from pydantic import Field

from function.api import Int, Model

Objects = tuple[dict[str, Any], ...]


class Named(Model):
    """An entry of a list that goes by names."""

    name: str = Field(min_length=1)


class Variable(Named):
    """An environment variable."""

    value: str | None = None


class Mount(Model):
    """A volume's mount."""

    name: str = ""
    mount_path: str


class Used(Named):
    """A claim that a container uses."""

    request: str = ""


class Claim(Named):
    """A claim of a pod."""

    resource_claim_template_name: str = ""


class Resources(Model):
    """What a container asks for."""

    requests: dict[str, Any] = Field(default_factory=dict)
    limits: dict[str, Any] = Field(default_factory=dict)
    claims: tuple[Used, ...] = ()


class Capabilities(Model):
    """A container's capabilities."""

    add: tuple[str, ...] = ()


class Security(Model):
    """A container's security context."""

    capabilities: Capabilities | None = None


class Container(Named):
    """A container."""

    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[Variable, ...] = ()
    ports: Objects = ()
    volume_mounts: tuple[Mount, ...] = ()
    resources: Resources | None = None
    security_context: Security | None = None


class Affinity(Model):
    """A pod's affinity."""

    node_affinity: dict[str, Any] = Field(default_factory=dict)


class Pod(Model):
    """A pod's spec."""

    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Named, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: Objects = ()
    resource_claims: tuple[Claim, ...] = ()
    affinity: Affinity | None = None
    resources: Resources | None = None


class Metadata(Model):
    """A pod's metadata."""

    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Template(Model):
    """A pod template."""

    metadata: Metadata | None = None
    spec: Pod


class Exactly(Model):
    """One way to ask for devices."""

    count: Int | None = None


class Request(Named):
    """A request for devices."""

    exactly: Exactly | None = None
    first_available: tuple[Exactly, ...] = ()
    count: Int | None = None


class Constraint(Model):
    """A constraint on devices, or their configuration."""

    requests: tuple[str, ...] = ()


class Devices(Model):
    """What a claim asks for."""

    requests: tuple[Request, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    config: tuple[Constraint, ...] = ()


class ClaimSpec(Model):
    """A claim's spec."""

    devices: Devices = Field(default_factory=Devices)


class ClaimTemplateSpec(Model):
    """A ResourceClaimTemplate's spec."""

    spec: ClaimSpec = Field(default_factory=ClaimSpec)


class ClaimMetadata(Model):
    """A ResourceClaimTemplate's metadata."""

    labels: dict[str, str] | None = None


class ClaimTemplate(Model):
    """A ResourceClaimTemplate."""

    metadata: ClaimMetadata
    spec: ClaimTemplateSpec
