"""InferenceCluster (standalone): the subset of Modelplane's shape that this project needs."""

from typing import Literal, Self

from pydantic import model_validator

from function.api import Model, Name


class KubeconfigRef(Model):
    """A kubeconfig in a Secret of modelplane-system."""

    name: Name
    key: Name = "kubeconfig"


class Existing(Model):
    """A cluster that is there already."""

    secret_ref: KubeconfigRef


class Cluster(Model):
    """Where the cluster comes from."""

    source: Literal["Existing", "Local"]
    existing: Existing | None = None

    @model_validator(mode="after")
    def _block_of_source(self) -> Self:
        if (self.source == "Existing") != (self.existing is not None):
            raise ValueError("existing is required when source is Existing, and wrong otherwise")
        return self


class ClusterSpec(Model):
    """The whole spec of an InferenceCluster."""

    cluster: Cluster
