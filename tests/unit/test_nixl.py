"""Nixl: what engines are told, what is refused, and what the agent deletes."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from function import api, releases
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends import of
from function.backends.base import (
    CREDENTIALS,
    CredentialError,
    EnginePatch,
    Invalid,
    Plan,
    Refusal,
    Site,
    Tier,
)
from function.backends.hierarchy import Store
from function.backends.nixl import Nixl
from function.engines import Engine, pod, table
from function.kube import Manifest
from function.stores.files import CLEAN
from tests.unit.builders import INSTANCE, MODEL, attach, credential, env, part, plan, refuse

FS: Manifest = {"hostPath": {"path": "/mnt/nvme"}, "sizePerNode": "1Ti"}
OBJ: Manifest = {"bucket": "kv-cache", "endpoint": "http://minio.storage:9000"}
SECRET: Manifest = {"name": "bucket-keys"}
KEYS = credential(**{"access-key-id": "id-1", "secret-access-key": "secret-1"})
VLLM = "vllm/vllm-openai:v0.33.0"
SGLANG = "lmsysorg/sglang:v0.5.23"


def tier(nixl: Mapping[str, Any], **fields: Any) -> Tier:
    """Read the tier modelplane-system/shared with this nixl block."""
    spec = {"inferenceClusterRef": {"name": "eu-h100"}, "backend": "Nixl", "nixl": nixl, **fields}
    return Tier("modelplane-system", "shared", api.parse(TierSpec, spec), releases.RELEASES["2026.11"])


def storing(**fields: Any) -> Tier:
    """Read a tier that stores 64 GiB per node and what is given; without, files."""
    return tier({"storage": {"cpuTierGiBPerNode": 64, **(fields or {"fs": FS})}})


def moving(*, port: int | None = None, **fields: Any) -> Tier:
    """Read a tier that moves KV between engines."""
    return tier({"p2p": {"sideChannelPort": port} if port else {}}, **fields)


def engine(*args: str, image: str = VLLM, model: str = MODEL, **kv_cache: str) -> Engine:
    """Read an engine of deployment ml/chat with these further args, and fields of its kvCache."""
    sglang = "sglang" in image
    spec = {
        "name": "SGLang" if sglang else "vLLM",
        "image": image,
        "args": [f"--model{'-path' if sglang else ''}={model}", *args],
        "kvCache": {"tierRef": {"name": "shared"}, **kv_cache},
    }
    return pod.read(api.parse(EngineSpec, spec), namespace="ml", name="chat")


def config(patch: EnginePatch) -> Any:
    """Read a patch's --kv-transfer-config."""
    assert not patch.args
    return dict(patch.kv_transfer)


def bytes_to_use(of_engine: Engine, to: Tier | None = None, gpus: int = 8) -> int:
    """Attach, and read how much host memory the engine is told to take."""
    patch = attach(to or storing(), of_engine, Site(gpus_per_node=gpus))
    return int(config(patch)["kv_connector_extra_config"]["cpu_bytes_to_use"])


class TestVLLMStorage:
    def test_an_engine_offloads_to_its_own_folder_of_the_node(self) -> None:
        subject = engine()
        patch = attach(storing(), subject)
        assert patch.connector == "OffloadingConnector"
        assert config(patch) == {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "spec_name": "TieringOffloadingSpec",
                "cpu_bytes_to_use": 8589934592,
                "secondary_tiers": [{"type": "fs", "root_dir": f"/var/lib/kv-offload/vllm-{subject.keyspace}"}],
            },
        }
        assert patch.mounts == [{"name": "kv-files", "mountPath": "/var/lib/kv-offload", "subPath": INSTANCE}]
        assert patch.volumes == [{"name": "kv-files", "hostPath": {"path": "/mnt/nvme", "type": "DirectoryOrCreate"}}]
        assert env(patch) == {"PYTHONHASHSEED": subject.identity.seed}
        assert patch.labels == {"kv-offload.modelplane.ai/tier": INSTANCE}
        assert patch.affinity
        assert patch.notices == []

    def test_an_engine_offloads_to_a_bucket_by_its_pods_own_identity(self) -> None:
        subject = engine()
        patch = attach(storing(obj={"bucket": "kv-cache", "region": "eu-west-1"}), subject)
        assert config(patch)["kv_connector_extra_config"]["secondary_tiers"] == [
            {
                "type": "obj",
                # sha256("eu-h100") begins with 92996.
                "prefix": f"{INSTANCE}-92996/{subject.keyspace}",
                "store_config": {
                    "bucket": "kv-cache",
                    "endpoint_override": "https://s3.eu-west-1.amazonaws.com",
                    "scheme": "https",
                    "region": "eu-west-1",
                },
            }
        ]
        assert env(patch) == {"PYTHONHASHSEED": subject.identity.seed}
        assert patch.mounts == ()
        assert not patch.notices

    def test_another_store_than_amazons_is_reached_as_its_endpoint_says(self) -> None:
        (behind,) = config(attach(storing(obj=OBJ), engine()))["kv_connector_extra_config"]["secondary_tiers"]
        assert behind["store_config"] == {
            "bucket": "kv-cache",
            "endpoint_override": "http://minio.storage:9000",
            "scheme": "http",
        }

    @pytest.mark.parametrize(
        ("ref", "name", "keys"),
        [
            (SECRET, INSTANCE, ("access-key-id", "secret-access-key")),
            (
                {**SECRET, "accessKeyIdKey": "id", "secretAccessKeyKey": "key"},
                INSTANCE,
                ("access-key-id", "secret-access-key"),
            ),
            (
                {**SECRET, "accessKeyIdKey": "id", "secretAccessKeyKey": "key", "onCluster": True},
                "bucket-keys",
                ("id", "key"),
            ),
        ],
    )
    def test_credentials_come_from_a_secret_alone(self, ref: Manifest, name: str, keys: tuple[str, str]) -> None:
        patch = attach(storing(obj={**OBJ, "secretRef": ref}), engine())
        assert env(patch) == {
            "PYTHONHASHSEED": engine().identity.seed,
            "AWS_ACCESS_KEY_ID": {"name": name, "key": keys[0]},
            "AWS_SECRET_ACCESS_KEY": {"name": name, "key": keys[1]},
        }
        assert "access_key" not in str(patch.kv_transfer)

    @pytest.mark.parametrize(
        ("args", "gpus", "gib"),
        [
            ((), 8, 8),
            (("-tp", "4"), 8, 32),
            (("-tp", "8"), 8, 64),
            # Its other half is on another node.
            (("-tp", "16"), 8, 64),
            (("-tp", "2", "-pp", "2"), 4, 64),
            # Each replica takes its own.
            (("-tp", "2", "-dp", "4"), 8, 16),
            (("-tp", "2", "-dp", "8", "-dpl", "2"), 8, 16),
        ],
    )
    def test_an_engine_takes_the_share_of_its_gpus(self, args: tuple[str, ...], gpus: int, gib: int) -> None:
        assert bytes_to_use(engine(*args), gpus=gpus) == gib * 1024**3

    def test_a_share_need_not_be_a_whole_gib(self) -> None:
        assert bytes_to_use(engine(), tier({"storage": {"cpuTierGiBPerNode": 12, "fs": FS}})) == 1610612736

    def test_gpus_are_the_placements_first(self) -> None:
        to = tier({"storage": {"cpuTierGiBPerNode": 64, "fs": FS}}, placement={"gpusPerNode": 2})
        assert bytes_to_use(engine(), to, gpus=8) == 32 * 1024**3

    def test_what_tells_engines_apart_tells_their_folders_apart(self) -> None:
        subjects = (
            engine(),
            engine("--dtype=float16"),
            engine("-tp", "2"),
            engine(model="Qwen/Qwen3-8B"),
            engine(image="vllm/vllm-openai:v0.32.0"),
            engine(identity="mine"),
            engine("--enable-lora"),
        )
        for made_of in (storing(), storing(obj=OBJ)):
            places = {
                json.dumps(config(attach(made_of, s))["kv_connector_extra_config"]["secondary_tiers"]) for s in subjects
            }
            assert len(places) == len(subjects)

    def test_an_attachment_is_for_its_keyspace(self) -> None:
        patch = attach(storing(), engine())
        assert patch.holds(engine())
        assert not patch.holds(engine(image="vllm/vllm-openai:v0.33.1"))
        assert not patch.holds(engine("-tp", "2"))

    @pytest.mark.parametrize(
        ("nixl", "subject", "reason", "says"),
        [
            (FS, engine(image="vllm/vllm-openai:v0.21.0"), "EngineTooOld", "vLLM 0.21.0 has no offload to files"),
            (FS, engine("--enable-lora", image="vllm/vllm-openai:v0.30.0"), "LoRANotIsolated", "take 0.31.0 or newer"),
            (FS, engine("-dp", "2", image="vllm/vllm-openai:v0.25.0"), "RanksNotIsolated", "take 0.26.0 or newer"),
            (OBJ, engine(image="vllm/vllm-openai:v0.25.0"), "EngineTooOld", "use 0.26.0 or newer"),
            (FS, engine(image="vllm/vllm-openai:latest"), "EngineVersionUnknown", "set engine.version"),
        ],
    )
    def test_an_engine_is_refused(self, nixl: Manifest, subject: Engine, reason: str, says: str) -> None:
        refusal = refuse(storing(**{"obj" if nixl is OBJ else "fs": nixl}), subject)
        assert refusal.reason == reason
        assert says in refusal.message

    @pytest.mark.parametrize(
        ("nixl", "subject"),
        [
            (FS, engine(image="vllm/vllm-openai:v0.22.0")),
            (FS, engine("--enable-lora", image="vllm/vllm-openai:v0.31.0")),
            (FS, engine("-dp", "2", image="vllm/vllm-openai:v0.26.0")),
            (OBJ, engine(image="vllm/vllm-openai:v0.26.0")),
            (FS, engine("--enable-lora", "-dp", "2")),
        ],
    )
    def test_the_oldest_engine_of_each_kind_is_attached(self, nixl: Manifest, subject: Engine) -> None:
        attach(storing(**{"obj" if nixl is OBJ else "fs": nixl}), subject)


class TestSGLangStorage:
    def store(self, to: Tier, subject: Engine) -> Store:
        """Give a store that is not refused."""
        found = Nixl().store(to, Site(8), subject)
        assert isinstance(found, Store), found
        return found

    def refusal(self, to: Tier, subject: Engine) -> Refusal:
        """Give the reason why there is no store."""
        found = Nixl().store(to, Site(8), subject)
        assert isinstance(found, Refusal), found
        return found

    def test_files_are_read_by_the_way_that_notices_a_torn_one_and_evicted_by_the_agent(self) -> None:
        subject = engine(image=SGLANG)
        found = self.store(storing(), subject)
        assert found.backend == "nixl"
        assert found.extra == {"use_posix_aio": "true", "l3_cleaner_enabled": False}
        assert {e["name"]: e["value"] for e in found.env} == {
            "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN": "POSIX",
            "SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR": f"/var/lib/kv-offload/sglang-{subject.keyspace}",
        }
        assert found.mounts == [{"name": "kv-files", "mountPath": "/var/lib/kv-offload", "subPath": INSTANCE}]
        assert [n.reason for n in found.notices] == ["NixlUnknown"]

    def test_a_bucket_is_named_in_arguments_that_hold_no_credentials(self) -> None:
        found = self.store(storing(obj={**OBJ, "secretRef": SECRET}), engine(image=SGLANG, identity="mine"))
        assert found.extra == {
            "bucket": "kv-cache",
            "endpoint_override": "http://minio.storage:9000",
            "scheme": "http",
        }
        assert [e["name"] for e in found.env] == [
            "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ]
        assert found.env[0]["value"] == "OBJ"
        assert found.mounts == ()

    def test_an_engine_is_attached_with_its_share_of_host_memory(self) -> None:
        patch = attach(storing(), engine("--tp-size=2", image=SGLANG))
        assert patch.connector == "HiCache"
        # 64 GiB over 8 GPUs are 8.59 GB for each rank.
        assert "--hicache-size=8" in patch.args
        assert "--hicache-storage-backend=nixl" in patch.args

    @pytest.mark.parametrize(
        ("subject", "reason"),
        [
            (engine("--dtype=float16", image=SGLANG), "IdentityNotShared"),
            (engine(image=SGLANG, model="/mnt/models"), "IdentityNotShared"),
            (engine("--served-model-name=llm", image=SGLANG), "IdentityNotShared"),
            (engine("--served-model-name=llm", image=SGLANG, identity="mine"), "IdentityNotShared"),
        ],
    )
    def test_objects_have_no_room_for_what_the_model_string_does_not_say(self, subject: Engine, reason: str) -> None:
        assert self.refusal(storing(obj=OBJ), subject).reason == reason
        self.store(storing(), subject)

    @pytest.mark.parametrize(
        "subject",
        [
            engine(image=SGLANG, identity="mine"),
            engine(f"--served-model-name={MODEL}", image=SGLANG, identity="mine"),
            engine("--dtype=float16", image=SGLANG, identity="mine"),
            engine(image=SGLANG, model="/mnt/models", identity="mine"),
        ],
    )
    def test_objects_are_shared_where_somebody_vouches_for_the_model_string(self, subject: Engine) -> None:
        self.store(storing(obj=OBJ), subject)

    @pytest.mark.parametrize("nixl", [{"fs": FS}, {"obj": OBJ}])
    def test_an_older_sglang_mixes_transfers_up(self, nixl: Manifest) -> None:
        refusal = self.refusal(storing(**nixl), engine(image="lmsysorg/sglang:v0.5.19"))
        assert refusal.reason == "EngineTooOld"
        assert "use 0.5.20 or newer" in refusal.message
        self.store(storing(**nixl), engine(image="lmsysorg/sglang:v0.5.20", identity="mine"))

    def test_pipeline_stages_are_refused_since_keys_leave_them_out(self) -> None:
        assert refuse(storing(), engine("--pp-size=2", image=SGLANG)).reason == "RanksNotIsolated"

    def test_nothing_stands_behind_host_memory_where_nothing_is_stored(self) -> None:
        assert self.refusal(moving(), engine(image=SGLANG)).reason == "StoresNothing"


class TestP2P:
    @pytest.mark.parametrize(("role", "kv_role"), [("Prefill", "kv_producer"), ("Decode", "kv_consumer")])
    def test_an_engine_has_the_half_that_its_user_gives_it(self, role: str, kv_role: str) -> None:
        patch = attach(moving(), engine(role=role))
        assert config(patch) == {
            "kv_connector": "NixlConnector",
            "kv_role": kv_role,
            "kv_connector_extra_config": {"kv_lease_duration": 30},
        }
        assert list(patch.env) == [
            {"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": "5600"},
        ]
        assert patch.ports == [{"name": "kv-side-0", "containerPort": 5600}]
        assert not patch.notices
        assert patch.mounts == ()

    def test_an_attachment_is_for_its_role(self) -> None:
        patch = attach(moving(), engine(role="Prefill"))
        assert patch.holds(engine(role="Prefill"))
        assert not patch.holds(engine(role="Decode"))
        assert EnginePatch.from_json(patch.to_json()).role == "Prefill"

    def test_without_a_lease_an_older_vllm_has_its_own_timeout(self) -> None:
        patch = attach(moving(), engine(image="vllm/vllm-openai:v0.21.0", role="Decode"))
        assert config(patch) == {"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}
        assert patch.since == (0, 13, 0)

    def test_each_data_parallel_rank_has_a_port(self) -> None:
        patch = attach(moving(port=7000), engine("-tp", "2", "-dp", "3", role="Prefill"))
        assert [p["containerPort"] for p in patch.ports] == [7000, 7001, 7002]
        assert len({p["name"] for p in patch.ports}) == 3

    def test_nics_are_the_engines(self) -> None:
        rdma = {
            "extendedResource": {"name": "rdma/hca"},
            "agents": {"count": 0},
            "engines": {"count": 2},
            "netDevices": ["mlx5_0", "mlx5_1"],
            "gidIndex": 0,
        }
        patch = attach(moving(rdma=rdma), engine(role="Prefill"))
        assert patch.resources == {"rdma/hca": "2"}
        assert patch.capabilities == ("IPC_LOCK",)
        assert list(patch.env)[2:] == [
            {"name": "UCX_NET_DEVICES", "value": "mlx5_0:1,mlx5_1:1"},
            {"name": "UCX_IB_GID_INDEX", "value": "0"},
        ]

    def test_nics_by_claim_are_the_engines_to_claim(self) -> None:
        rdma = {"dra": {"deviceClassName": "nics"}, "agents": {"count": 0}, "engines": {"count": 1}}
        to = moving(rdma=rdma)
        patch = attach(to, engine(role="Prefill"))
        assert patch.devices == [{"name": "kv-nic", "exactly": {"deviceClassName": "nics", "count": 1}}]
        assert [p.name for p in plan(to).parts] == ["engines-network-policy"]

    def test_nodes_without_enough_nics_are_said(self) -> None:
        rdma = {"dra": {"deviceClassName": "nics"}, "agents": {"count": 0}, "engines": {"count": 5}}
        to, site = moving(rdma=rdma), Site(pools={"h100": {"nics": 4}})
        assert refuse(to, engine(role="Prefill"), site).reason == "InsufficientNICs"
        assert [n.type for n in plan(to, site).notices] == ["InsufficientNICs"]

    @pytest.mark.parametrize(
        ("subject", "reason", "says"),
        [
            (engine(), "RoleMissing", "set engine.kvCache.role to Prefill or Decode"),
            (engine(image="vllm/vllm-openai:v0.12.0", role="Prefill"), "EngineTooOld", "use 0.13.0 or newer"),
            (engine(image=SGLANG, role="Prefill"), "EngineNotSupported", "--disaggregation-mode"),
            (engine("--port=5601", "-dp", "2", role="Prefill"), "PortTaken", "port 5601, which is among"),
        ],
    )
    def test_an_engine_is_refused(self, subject: Engine, reason: str, says: str) -> None:
        refusal = refuse(moving(), subject)
        assert refusal.reason == reason
        assert says in refusal.message

    def test_engines_reach_all_of_each_other_and_others_their_api(self) -> None:
        (policy,) = plan(moving()).parts
        assert policy.manifest["spec"] == {
            "podSelector": {"matchLabels": {"kv-offload.modelplane.ai/tier": INSTANCE}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"kv-offload.modelplane.ai/tier": INSTANCE}}}]},
                {"ports": [{"port": "http", "protocol": "TCP"}]},
            ],
        }

    def test_no_policy_binds_the_hosts_network(self) -> None:
        rdma = {
            "extendedResource": {"name": "rdma/hca"},
            "agents": {"count": 0},
            "engines": {"count": 1},
            "hostNetwork": {"firstPort": 9000},
        }
        to = moving(rdma=rdma)
        assert [n.type for n in plan(to).notices] == ["HostNetworkUnprotected"]
        assert attach(to, engine(role="Decode")).host_network
        assert plan(moving()).notices == []


class TestImages:
    @pytest.mark.parametrize(
        ("to", "which"),
        [
            (storing(obj=OBJ), engine(image="team/vllm:v0.33.0")),
            (storing(), engine(image="team/sglang:v0.5.23")),
            (moving(), engine(image="team/vllm:v0.33.0", role="Prefill")),
        ],
    )
    def test_an_image_that_nobody_has_looked_into_is_warned_of(self, to: Tier, which: Engine) -> None:
        assert ("EngineImageUnverified", "NixlUnknown") in [(n.type, n.reason) for n in attach(to, which).notices]

    @pytest.mark.parametrize(
        ("to", "which"),
        [(storing(obj=OBJ), engine()), (storing(), engine(image=SGLANG)), (moving(), engine(role="Decode"))],
    )
    def test_an_image_that_is_known_to_hold_no_nixl_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, to: Tier, which: Engine
    ) -> None:
        without = tuple(
            table.Image(repository, (0, 5, 0), (1, 0, 0), table.NIXL, holds=False, source="made up")
            for repository in ("vllm/vllm-openai", "lmsysorg/sglang")
        )
        monkeypatch.setattr(table, "IMAGES", without)
        refusal = refuse(to, which)
        assert refusal.reason == "LibraryMissing"
        assert which.image in refusal.message

    def test_files_of_vllm_need_none(self) -> None:
        assert not attach(storing(), engine(image="team/vllm:v0.33.0")).notices


class TestPlan:
    def agent(self, planned: Plan) -> Manifest:
        """Give the agents' pod."""
        spec: Manifest = part(planned, "agents").manifest["spec"]["template"]["spec"]
        return spec

    def test_files_have_an_agent_on_every_node(self) -> None:
        planned = plan(storing())
        assert [p.name for p in planned.parts] == ["service-account", "network-policy", "agents"]
        assert planned.memory == {"cacheGiB": 64, "gpusPerNode": 8}
        spec = self.agent(planned)
        (container,) = spec["containers"]
        assert container["command"][:2] == ["/bin/sh", "-c"]
        # Of 1Ti in KiB, nine tenths and eight.
        assert container["args"] == ["/var/lib/kv-offload", "966367641", "858993459"]
        assert container["image"] == "busybox:1.37.0"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
        }
        assert container["volumeMounts"] == [
            {"name": "kv-files", "mountPath": "/var/lib/kv-offload", "subPath": INSTANCE}
        ]
        assert spec["volumes"] == [{"name": "kv-files", "hostPath": {"path": "/mnt/nvme", "type": "DirectoryOrCreate"}}]
        assert "ports" not in container

    def test_nobody_may_reach_an_agent(self) -> None:
        assert part(plan(storing()), "network-policy").manifest["spec"] == {
            "podSelector": {
                "matchLabels": {"app.kubernetes.io/instance": INSTANCE, "app.kubernetes.io/component": "agent"}
            },
            "policyTypes": ["Ingress"],
        }

    def test_a_bucket_has_its_credentials_and_nothing_else(self) -> None:
        planned = plan(storing(obj={**OBJ, "secretRef": SECRET}), secret=KEYS)
        (copy,) = planned.parts
        assert copy.name == CREDENTIALS
        assert copy.manifest["data"] == {"access-key-id": "aWQtMQ==", "secret-access-key": "c2VjcmV0LTE="}
        assert copy.manifest["metadata"]["name"] == INSTANCE

    def test_only_the_keys_that_are_used_are_copied(self) -> None:
        ref = {**SECRET, "accessKeyIdKey": "id", "secretAccessKeyKey": "key"}
        (copy,) = plan(storing(obj={**OBJ, "secretRef": ref}), secret=credential(id="i", key="k", other="o")).parts
        assert copy.manifest["data"] == {"access-key-id": "aQ==", "secret-access-key": "aw=="}

    def test_a_secrets_bytes_are_in_no_hash(self) -> None:
        to = storing(obj={**OBJ, "secretRef": SECRET})
        (copy,) = plan(to, secret=KEYS).parts
        assert copy.version == "uid-1 access-key-id secret-access-key"

    def test_a_secret_that_is_not_read_is_held(self) -> None:
        planned = plan(storing(obj={**OBJ, "secretRef": SECRET}))
        assert (list(planned.parts), list(planned.held)) == ([], [CREDENTIALS])

    @pytest.mark.parametrize("ref", [None, {**SECRET, "onCluster": True}])
    def test_nothing_is_read_where_nothing_is_copied(self, ref: Manifest | None) -> None:
        to = storing(obj={**OBJ, **({"secretRef": ref} if ref else {})})
        assert of(to.spec).secrets(to) == {}
        assert (list(plan(to).parts), list(plan(to).held)) == ([], [])

    @pytest.mark.parametrize("data", [{"access-key-id": "id"}, {"secret-access-key": "key"}, {}])
    def test_a_secret_needs_both_keys(self, data: Mapping[str, str]) -> None:
        with pytest.raises(CredentialError, match=r"Secret modelplane-system/bucket-keys has no key '\S+'"):
            plan(storing(obj={**OBJ, "secretRef": SECRET}), secret=credential(**data))

    def test_somebody_has_to_know_a_nodes_gpus(self) -> None:
        with pytest.raises(Invalid, match=r"spec\.placement\.gpusPerNode is required with nixl\.storage"):
            plan(storing(), Site())

    def test_a_rank_gets_a_gib_at_least(self) -> None:
        with pytest.raises(
            Invalid, match=r"cpuTierGiBPerNode \(is 4\) is less than 1 GiB for each of 8 GPUs; set at le"
        ):
            plan(tier({"storage": {"cpuTierGiBPerNode": 4, "fs": FS}}))

    def test_behind_hicache_nobody_asks_for_gpus(self) -> None:
        spec = {
            "inferenceClusterRef": {"name": "eu-h100"},
            "backend": "HiCache",
            "hicache": {"ratio": 2, "l3": {"backend": "Nixl"}},
            "nixl": {"storage": {"cpuTierGiBPerNode": 64, "fs": FS}},
        }
        to = Tier("modelplane-system", "shared", api.parse(TierSpec, spec), releases.RELEASES["2026.11"])
        planned = Nixl().plan(to, Site(), {})
        assert [p.name for p in planned.parts] == ["service-account", "network-policy", "agents"]
        assert planned.memory == {}

    def test_a_bucket_has_to_be_found(self) -> None:
        with pytest.raises(api.Invalid, match=r"spec\.nixl\.storage\.obj.*set endpoint, or region"):
            storing(obj={"bucket": "kv-cache"})


SHELLS = {"sh": "sh"} | ({"busybox": "busybox"} if shutil.which("busybox") else {})
NOW = 1_800_000_000
KIB = 1024


@pytest.fixture(params=SHELLS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give a PATH: this machine's own, and one of busybox's programs where it is installed."""
    if request.param == "sh":
        return os.environ["PATH"]
    folder = tmp_path_factory.mktemp("busybox")
    busybox = shutil.which("busybox")
    assert busybox
    for program in ("sh", "find", "stat", "awk", "sort", "tr", "xargs", "rm", "rmdir"):
        (folder / program).symlink_to(busybox)
    return str(folder)


def write(file: Path, minutes: int, kib: int = 100) -> Path:
    """Write a file of this many KiB, last used this many minutes before NOW."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(kib * KIB))
    os.utime(file, (NOW - minutes * 60, NOW - minutes * 60))
    return file


def clean(folder: Path, path: str, most: int, left: int, during: str = "") -> str:
    """Run what the agent runs, once; `during` is a shell command that runs between its looks."""
    words = [f'{CLEAN}\ntr() {{ {during or ":"}; command tr "$@"; }}\nclean "$@"', "cleaner", str(folder)]
    done = subprocess.run(
        [shutil.which("sh", path=path) or "sh", "-c", *words, str(most), str(left)],
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


class TestCleaner:
    def test_what_was_least_recently_used_goes_until_enough_is_left(self, tmp_path: Path, path: str) -> None:
        files = [write(tmp_path / f"vllm-a/m_r0/{i:03}/x.bin", minutes=10 * i) for i in range(6)]
        clean(tmp_path, path, most=550, left=310)
        assert [f.exists() for f in files] == [True, True, True, False, False, False]

    def test_nothing_goes_below_the_bound(self, tmp_path: Path, path: str) -> None:
        files = [write(tmp_path / f"vllm-a/{i}.bin", minutes=i) for i in range(4)]
        assert clean(tmp_path, path, most=400, left=100) == ""
        assert all(f.exists() for f in files)

    def test_files_of_one_minute_do_not_all_go(self, tmp_path: Path, path: str) -> None:
        files = [write(tmp_path / f"vllm-a/{i}.bin", minutes=0) for i in range(10)]
        clean(tmp_path, path, most=900, left=800)
        assert sum(f.exists() for f in files) == 8

    def test_a_file_that_was_read_stays(self, tmp_path: Path, path: str) -> None:
        old, read = write(tmp_path / "vllm-a/old", minutes=50), write(tmp_path / "vllm-a/read", minutes=90)
        os.utime(read, (NOW, NOW - 90 * 60))
        clean(tmp_path, path, most=150, left=120)
        assert (old.exists(), read.exists()) == (False, True)

    def test_a_file_that_was_written_stays_where_no_reads_are_noted(self, tmp_path: Path, path: str) -> None:
        old, written = write(tmp_path / "vllm-a/old", minutes=50), write(tmp_path / "vllm-a/new", minutes=90)
        os.utime(written, (NOW - 90 * 60, NOW))
        clean(tmp_path, path, most=150, left=120)
        assert (old.exists(), written.exists()) == (False, True)

    @pytest.mark.parametrize(
        "name",
        ["two  words ", "it's", 'a "quote"', "back\\slash", "-rf", "$HOME", "*", "`x`", "tab\tbed", "ä", "#", "..."],
    )
    def test_a_name_may_be_odd(self, tmp_path: Path, path: str, name: str) -> None:
        odd, new = write(tmp_path / "sglang-a" / name, minutes=50), write(tmp_path / "sglang-a/new", minutes=0)
        clean(tmp_path, path, most=150, left=120)
        assert (odd.exists(), new.exists()) == (False, True)

    def test_no_name_means_another_file(self, tmp_path: Path, path: str) -> None:
        victim = write(tmp_path / "victim", minutes=0)
        lying = write(tmp_path / f"kv/x\n1 1 8 {victim}", minutes=90)
        old = write(tmp_path / "kv/old", minutes=50)
        write(tmp_path / "kv/new", minutes=0)
        clean(tmp_path / "kv", path, most=150, left=120)
        assert (victim.exists(), lying.exists(), old.exists()) == (True, True, False)

    def test_a_link_is_not_followed(self, tmp_path: Path, path: str) -> None:
        outside = write(tmp_path / "outside/file", minutes=90)
        (tmp_path / "kv").mkdir()
        (tmp_path / "kv/folder").symlink_to(outside.parent)
        (tmp_path / "kv/file").symlink_to(outside)
        write(tmp_path / "kv/old", minutes=50)
        clean(tmp_path / "kv", path, most=50, left=1)
        assert outside.exists()
        assert not (tmp_path / "kv/old").exists()

    @pytest.mark.parametrize("folder", [".", "no/such"])
    def test_an_empty_folder_or_none_is_no_fault(self, tmp_path: Path, path: str, folder: str) -> None:
        assert clean(tmp_path / folder, path, most=0, left=0) == ""

    def test_files_may_go_by_themselves_meanwhile(self, tmp_path: Path, path: str) -> None:
        gone, old = write(tmp_path / "vllm-a/gone", minutes=90), write(tmp_path / "vllm-a/old", minutes=80)
        new = write(tmp_path / "vllm-a/new", minutes=0)
        clean(tmp_path, path, most=250, left=120, during=f"rm -f {gone}")
        assert (gone.exists(), old.exists(), new.exists()) == (False, False, True)

    def test_folders_of_vllm_go_a_day_after_their_last_file_and_no_others(self, tmp_path: Path, path: str) -> None:
        for i in range(3):
            write(tmp_path / f"vllm-a/m_r0/full/{i}", minutes=i)
        folders = {n: tmp_path / n for n in ("vllm-a/m_r0/old", "vllm-a/m_r0/new", "vllm-a/m_r0/full", "sglang-a/old")}
        for name, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            then = time.time() - (0 if name.endswith("new") else 2 * 86400)
            os.utime(folder, (then, then))
        clean(tmp_path, path, most=250, left=220)
        assert [n for n, folder in folders.items() if not folder.exists()] == ["vllm-a/m_r0/old"]

    def test_an_agent_stops_at_once_when_told_to(self, tmp_path: Path) -> None:
        (cleaner,) = part(plan(storing()), "agents").manifest["spec"]["template"]["spec"]["containers"]
        process = subprocess.Popen([*cleaner["command"], str(tmp_path), "1", "0"])
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=5) == 0

    def test_an_agent_is_ready_where_it_can_write_and_delete(self, tmp_path: Path) -> None:
        (cleaner,) = part(plan(storing()), "agents").manifest["spec"]["template"]["spec"]["containers"]
        command = [
            w.replace("/var/lib/kv-offload", str(tmp_path)) for w in cleaner["readinessProbe"]["exec"]["command"]
        ]
        assert subprocess.run(command, check=False).returncode == 0
        assert list(tmp_path.iterdir()) == []
        gone = [w.replace(str(tmp_path), str(tmp_path / "gone")) for w in command]
        assert subprocess.run(gone, check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"AWS_ACCESS_KEY_ID"}, ["engine.env sets AWS_ACCESS_KEY_ID and not AWS_SECRET_ACCESS_KEY"]),
        ({"AWS_SECRET_ACCESS_KEY"}, ["engine.env sets AWS_SECRET_ACCESS_KEY and not AWS_ACCESS_KEY_ID"]),
        ({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, []),
        (set(), []),
    ],
)
def test_half_of_a_pair_of_credentials_is_told(own: set[str], says: list[str]) -> None:
    subject = replace(engine(), env=dict.fromkeys(own))
    patch = attach(storing(obj={**OBJ, "secretRef": SECRET}), subject)
    # Whole in the patch: should the user take theirs away while the tier cannot be asked, the tier's are there.
    assert {e["name"] for e in patch.env} >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    said = [n.message for n in patch.notices if n.type == "UserOverrides"]
    assert [message.partition(", which")[0] for message in said] == says
