"""A patch goes into a pod template once, around what the user wrote, which wins."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function.attach import apply
from function.backends.base import EnginePatch
from function.kube import Manifest

ANYWHERE: list[Manifest] = [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]

PATCH = EnginePatch(
    tier="modelplane-system/shared",
    connector="LMCacheMPConnector",
    env=[{"name": "A", "value": "ours"}, {"name": "B", "value": "ours"}],
    args=["--kv-transfer-config", "{}"],
    mounts=[{"name": "kv-offload", "mountPath": "/etc/kv-offload", "readOnly": True}],
    volumes=[{"name": "kv-offload", "configMap": {"name": "tier"}}],
    labels={"tier": "ours"},
    annotations={"hash": "ours"},
    node_selector={"pool": "ours"},
    affinity=ANYWHERE,
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
)


def template(container: Manifest | None = None, pod: Manifest | None = None, **metadata: Any) -> Manifest:
    """Write a pod template with a container named engine."""
    containers = [{"name": "engine", "image": "vllm", **(container or {})}]
    return {"metadata": metadata, "spec": {"containers": containers, **(pod or {})}}


def engine(attached: Manifest) -> Manifest:
    found: Manifest = attached["spec"]["containers"][0]
    return found


def test_a_patch_goes_into_an_empty_template_as_it_is() -> None:
    attached, overridden = apply(template(), PATCH, "engine")
    assert overridden == []
    assert attached == {
        "metadata": {"labels": {"tier": "ours"}, "annotations": {"hash": "ours"}},
        "spec": {
            "containers": [
                {
                    "name": "engine",
                    "image": "vllm",
                    "args": ["--kv-transfer-config", "{}"],
                    "env": [{"name": "A", "value": "ours"}, {"name": "B", "value": "ours"}],
                    "volumeMounts": [{"name": "kv-offload", "mountPath": "/etc/kv-offload", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "kv-offload", "configMap": {"name": "tier"}}],
            "nodeSelector": {"pool": "ours"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
                    }
                }
            },
        },
    }


def test_a_patch_that_adds_nothing_leaves_no_empty_fields_behind() -> None:
    attached, _ = apply(template(), EnginePatch(tier="a/b", connector="c"), "engine")
    assert attached == {"metadata": {}, "spec": {"containers": [{"name": "engine", "image": "vllm"}]}}


# --- env ----------------------------------------------------------------------------------------------------------


def test_the_users_variable_wins_and_is_reported() -> None:
    users = [{"name": "B", "value": "theirs"}]
    attached, overridden = apply(template({"env": users}), PATCH, "engine")
    assert engine(attached)["env"] == [{"name": "A", "value": "ours"}, {"name": "B", "value": "theirs"}]
    assert overridden == ["B"]


def test_the_users_variable_wins_where_its_value_is_elsewhere() -> None:
    users = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]
    attached, overridden = apply(template({"env": users}), PATCH, "engine")
    assert engine(attached)["env"] == [{"name": "B", "value": "ours"}, *users]
    assert overridden == ["A"]


def test_what_the_user_set_to_our_value_is_nothing_to_report() -> None:
    attached, overridden = apply(template({"env": [{"name": "A", "value": "ours"}]}), PATCH, "engine")
    assert sorted(e["name"] for e in engine(attached)["env"]) == ["A", "B"]
    assert overridden == []


def test_ours_come_first_so_that_the_users_may_refer_to_them_and_the_users_keep_their_order() -> None:
    users = [{"name": "Z", "value": "1"}, {"name": "C", "value": "$(A)$(Z)"}, {"name": "K", "value": "$(C)"}]
    attached, _ = apply(template({"env": users}), PATCH, "engine")
    assert [e["name"] for e in engine(attached)["env"]] == ["A", "B", "Z", "C", "K"]
    assert engine(attached)["env"][2:] == users


# --- args ---------------------------------------------------------------------------------------------------------


def test_our_args_come_last_and_the_users_keep_their_order() -> None:
    attached, _ = apply(template({"args": ["--b", "--a=1", "--b"]}), PATCH, "engine")
    assert engine(attached)["args"] == ["--b", "--a=1", "--b", "--kv-transfer-config", "{}"]


def test_our_args_are_added_once() -> None:
    attached, _ = apply(template({"args": ["--a", "--kv-transfer-config", "{}"]}), PATCH, "engine")
    assert engine(attached)["args"] == ["--a", "--kv-transfer-config", "{}"]


def test_a_command_stays_as_it_is() -> None:
    attached, _ = apply(template({"command": ["vllm", "serve", "Q/Q"]}), PATCH, "engine")
    assert engine(attached)["command"] == ["vllm", "serve", "Q/Q"]
    assert engine(attached)["args"] == ["--kv-transfer-config", "{}"]


# --- volumes, mounts ----------------------------------------------------------------------------------------------


def test_the_users_volumes_and_mounts_stay_in_order_before_ours() -> None:
    mounts = [{"name": "z", "mountPath": "/z"}, {"name": "b", "mountPath": "/b"}]
    volumes: list[Manifest] = [{"name": "z", "emptyDir": {}}, {"name": "b", "emptyDir": {}}]
    attached, _ = apply(template({"volumeMounts": mounts}, {"volumes": volumes}), PATCH, "engine")
    assert engine(attached)["volumeMounts"] == [*mounts, *PATCH.mounts]
    assert attached["spec"]["volumes"] == [*volumes, *PATCH.volumes]


def test_a_volume_clashes_by_name_and_the_users_stays() -> None:
    theirs = [{"name": "kv-offload", "emptyDir": {}}]
    attached, _ = apply(template(pod={"volumes": theirs}), PATCH, "engine")
    assert attached["spec"]["volumes"] == theirs


def test_a_mount_clashes_by_path_and_the_users_stays() -> None:
    theirs = [{"name": "other", "mountPath": "/etc/kv-offload"}]
    attached, _ = apply(template({"volumeMounts": theirs}), PATCH, "engine")
    assert engine(attached)["volumeMounts"] == theirs


def test_a_volume_that_is_mounted_elsewhere_too_is_no_clash() -> None:
    theirs = [{"name": "kv-offload", "mountPath": "/elsewhere"}]
    attached, _ = apply(template({"volumeMounts": theirs}), PATCH, "engine")
    assert engine(attached)["volumeMounts"] == [*theirs, *PATCH.mounts]


# --- metadata, placement ------------------------------------------------------------------------------------------


def test_the_users_labels_annotations_and_node_selector_win() -> None:
    written = template(
        pod={"nodeSelector": {"pool": "theirs", "zone": "a"}},
        labels={"tier": "theirs", "app": "x"},
        annotations={"hash": "theirs"},
    )
    attached, _ = apply(written, PATCH, "engine")
    assert attached["metadata"] == {"labels": {"tier": "theirs", "app": "x"}, "annotations": {"hash": "theirs"}}
    assert attached["spec"]["nodeSelector"] == {"pool": "theirs", "zone": "a"}


def test_the_users_affinity_to_nodes_stays_as_a_whole() -> None:
    affinity: Manifest = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    attached, _ = apply(template(pod={"affinity": affinity}), PATCH, "engine")
    assert attached["spec"]["affinity"] == affinity


def test_an_engine_that_only_keeps_apart_from_other_pods_follows_its_tier_all_the_same() -> None:
    affinity: Manifest = {
        "podAntiAffinity": {},
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
    }
    attached, _ = apply(template(pod={"affinity": affinity}), PATCH, "engine")
    assert attached["spec"]["affinity"] == {
        "podAntiAffinity": {},
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [],
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": ANYWHERE},
        },
    }


def test_a_toleration_is_added_behind_the_users_and_not_twice() -> None:
    theirs = [{"key": "spot", "operator": "Exists"}]
    attached, _ = apply(template(pod={"tolerations": theirs}), PATCH, "engine")
    assert attached["spec"]["tolerations"] == [*theirs, {"key": "nvidia.com/gpu", "operator": "Exists"}]
    same = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    attached, _ = apply(template(pod={"tolerations": same}), PATCH, "engine")
    assert attached["spec"]["tolerations"] == same


@pytest.mark.parametrize("field", ["serviceAccountName", "priorityClassName", "schedulerName"])
def test_a_field_that_is_none_of_our_business_stays(field: str) -> None:
    written = template({"resources": {"limits": {"nvidia.com/gpu": "2"}}}, {field: "x"}, name="n")
    attached, _ = apply(written, PATCH, "engine")
    assert attached["spec"][field] == "x"
    assert attached["metadata"]["name"] == "n"
    assert engine(attached)["resources"] == {"limits": {"nvidia.com/gpu": "2"}}


# --- containers ---------------------------------------------------------------------------------------------------


def test_only_the_engines_container_is_touched_wherever_it_stands() -> None:
    sidecar = {"name": "sidecar", "image": "s", "args": [], "env": [{"name": "A", "value": "theirs"}]}
    written = template(pod={"initContainers": [{"name": "engine", "image": "i"}]})
    written["spec"]["containers"].insert(0, sidecar)
    attached, overridden = apply(written, PATCH, "engine")
    assert attached["spec"]["containers"][0] == sidecar
    assert attached["spec"]["containers"][1]["args"] == ["--kv-transfer-config", "{}"]
    assert attached["spec"]["initContainers"] == [{"name": "engine", "image": "i"}]
    assert overridden == []


def test_without_the_engines_container_no_container_is_touched() -> None:
    written = template({"args": ["--a"]})
    attached, overridden = apply(written, PATCH, "another")
    assert attached["spec"]["containers"] == written["spec"]["containers"]
    assert overridden == []


# --- properties ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["A", "B", "C", "kv-offload"])
VALUES = st.sampled_from(["ours", "theirs", ""])
VARIABLES = st.lists(st.builds(lambda n, v: {"name": n, "value": v}, NAMES, VALUES), unique_by=lambda e: e["name"])
MOUNTS = st.lists(
    st.builds(lambda n, p: {"name": n, "mountPath": p}, NAMES, st.sampled_from(["/etc/kv-offload", "/a", "/b"])),
    unique_by=lambda m: m["mountPath"],
)
VOLUMES = st.lists(st.builds(lambda n: {"name": n, "emptyDir": {}}, NAMES), unique_by=lambda v: v["name"])
WORDS = st.lists(st.sampled_from(["--a", "--kv-transfer-config", "{}", "x"]))
LABELS = st.dictionaries(st.sampled_from(["tier", "hash", "pool", "x"]), VALUES)


@st.composite
def templates(draw: st.DrawFn) -> Manifest:
    """Give a pod template in which any part may be missing."""

    def some(**parts: st.SearchStrategy[Any]) -> Manifest:
        return {name: draw(part) for name, part in parts.items() if draw(st.booleans())}

    container = some(env=VARIABLES, args=WORDS, volumeMounts=MOUNTS)
    pod = some(volumes=VOLUMES, nodeSelector=LABELS, tolerations=st.just([{"key": "x", "operator": "Exists"}]))
    written = template(container, pod, **some(labels=LABELS, annotations=LABELS))
    if not written["metadata"]:
        del written["metadata"]
    return written


@st.composite
def patches(draw: st.DrawFn) -> EnginePatch:
    return EnginePatch(
        tier="a/b",
        connector="c",
        env=draw(VARIABLES),
        args=draw(WORDS),
        mounts=draw(MOUNTS),
        volumes=draw(VOLUMES),
        labels=draw(LABELS),
        annotations=draw(LABELS),
        node_selector=draw(LABELS),
        affinity=draw(st.sampled_from([[], ANYWHERE])),
        tolerations=draw(st.sampled_from([[], [{"key": "x", "operator": "Exists"}], [{"key": "y"}]])),
    )


@given(written=templates(), patch=patches())
@settings(deadline=None)
def test_attaching_twice_is_attaching_once(written: Manifest, patch: EnginePatch) -> None:
    once, overridden = apply(written, patch, "engine")
    assert apply(once, patch, "engine") == (once, overridden)


@given(written=templates(), patch=patches())
@settings(deadline=None)
def test_what_is_given_is_never_changed_in_place(written: Manifest, patch: EnginePatch) -> None:
    before, latch = copy.deepcopy(written), patch.to_json()
    attached, _ = apply(written, patch, "engine")
    # Nor later, by whoever goes on with the result.
    attached["metadata"].setdefault("labels", {})["later"] = "x"
    for field in ("args", "env", "volumeMounts"):
        engine(attached).setdefault(field, []).append("x")
    for field in ("volumes", "tolerations", "containers"):
        attached["spec"].setdefault(field, []).append("x")
    assert written == before
    assert patch.to_json() == latch


@given(written=templates(), patch=patches())
@settings(deadline=None)
def test_what_the_user_wrote_is_all_there_and_in_order(written: Manifest, patch: EnginePatch) -> None:
    attached, _ = apply(written, patch, "engine")
    before, after = engine(written), engine(attached)
    env = before.get("env", [])
    assert after.get("env", [])[len(after.get("env", [])) - len(env) :] == env
    args = before.get("args", [])
    assert after.get("args", [])[: len(args)] == args
    mounts = before.get("volumeMounts", [])
    assert after.get("volumeMounts", [])[: len(mounts)] == mounts
    volumes = written["spec"].get("volumes", [])
    assert attached["spec"].get("volumes", [])[: len(volumes)] == volumes
    names = [e["name"] for e in after.get("env", [])]
    assert len(names) == len(set(names))


@given(written=templates(), patch=patches())
@settings(deadline=None)
def test_a_latch_that_is_read_back_attaches_the_same(written: Manifest, patch: EnginePatch) -> None:
    again = EnginePatch.from_json(patch.to_json())
    assert again.to_json() == patch.to_json()
    assert apply(written, again, "engine") == apply(written, patch, "engine")
