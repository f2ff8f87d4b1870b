"""What schemas miss in the manifests of one cluster.

`lint` takes the set that is rendered for a cluster, after schemas.py found no fault with it: a rule may stumble over a
manifest of the wrong shape. A new rule is one function of a Bundle, in the module of what it looks at, and a line here.
"""

from collections.abc import Iterable, Sequence

from tests.lint import network, objects, pods, references
from tests.lint.model import Bundle, Context, Manifest, Rule, field

__all__ = ["RULES", "Context", "lint", "unwrap"]

RULES: tuple[Rule, ...] = (
    objects.objects_are_unique,
    objects.names_are_valid,
    objects.labels_are_valid,
    objects.expressions_are_valid,
    objects.annotations_are_valid,
    objects.data_is_valid,
    objects.nothing_is_empty,
    objects.integers_are_integers,
    objects.ports_are_in_range,
    objects.quantities_are_valid,
    objects.requests_fit_limits,
    objects.secrets_stay_in_secrets,
    pods.names_in_pods_are_valid,
    pods.names_in_pods_are_unique,
    pods.ports_in_pods_are_unique,
    pods.env_names_are_unique,
    pods.flags_are_unique,
    pods.variables_are_declared,
    pods.mounts_have_volumes,
    pods.volumes_are_mounted,
    pods.mount_paths_are_sound,
    pods.unions_have_one_member,
    pods.images_are_pinned,
    pods.probes_hit_declared_ports,
    pods.host_network_keeps_cluster_dns,
    pods.service_links_are_off,
    pods.tokens_stay_out,
    pods.our_containers_are_confined,
    references.references_resolve,
    references.sub_paths_exist,
    references.claims_resolve,
    references.stateful_sets_have_services,
    network.workloads_select_their_own_pods,
    network.workloads_select_no_others,
    network.selectors_find_pods,
    network.service_ports_are_sound,
    network.service_targets_exist,
    network.monitored_ports_exist,
    network.policy_ports_exist,
    network.listeners_are_guarded,
)

_NOTHING_KNOWN = Context()


def lint(manifests: Sequence[Manifest], context: Context = _NOTHING_KNOWN) -> list[str]:
    """Takes all manifests of one cluster and what is known beyond them; returns `Kind/name: field: what is wrong`.

    Objects of provider-kubernetes may be linted too, in a call of their own: the rules on metadata, values and secrets
    hold for them.
    """
    bundle = Bundle(tuple(manifests), context)
    return [finding for rule in RULES for finding in rule(bundle)]


def unwrap(objects_: Iterable[Manifest]) -> list[Manifest]:
    """Takes composed resources; returns the manifests that the Objects of provider-kubernetes among them carry."""
    return [field(o, "spec", "forProvider", "manifest") for o in objects_ if o.get("kind") == "Object"]
