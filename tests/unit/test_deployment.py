"""A ModelDeployment's life, pass after pass."""

import copy
import json
from collections.abc import Callable

import pytest

from function import api, attachment, deployment, releases
from function.api.deployment import Engine as EngineSpec
from function.api.tier import TierSpec
from function.backends.base import Site, Tier
from function.engines import pod as engine_pod
from function.kube import ANNOTATION_PATCH, Manifest
from function.render import Rendered, render
from tests.lint.schemas import schema_errors
from tests.unit.stories import Story, engine_story, messages, pod, specs, state, tier_story

ENGINE = "engine-gke-h200-prod"


def args(rendered: Rendered) -> list[str]:
    found: list[str] = pod(rendered)["spec"]["containers"][0]["args"]
    return found


def env(rendered: Rendered) -> dict[str, Manifest]:
    return {e["name"]: e for e in pod(rendered)["spec"]["containers"][0]["env"]}


def latch(rendered: Rendered) -> str:
    text: str = rendered.composed[ENGINE]["metadata"]["annotations"][ANNOTATION_PATCH]
    return text


def image(new: str) -> Callable[[Manifest], None]:
    def change(d: Manifest) -> None:
        d["spec"]["engine"]["image"] = new

    return change


# --- the seed -----------------------------------------------------------------------------------------------------


def test_the_seeds_engine_is_attached_in_process() -> None:
    rendered = engine_story().render()
    assert args(rendered) == [
        "--model=meta-llama/Llama-3.3-70B-Instruct",
        "--kv-transfer-config",
        '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}',
    ]
    variables = env(rendered)
    assert variables["LMCACHE_CONFIG_FILE"]["value"] == "/etc/kv-offload/lmcache.yaml"
    assert variables["LMCACHE_USE_EXPERIMENTAL"]["value"] == "True"
    assert variables["LMCACHE_LOG_LEVEL"]["value"] == "WARNING"
    assert variables["LMCACHE_TRACK_USAGE"]["value"] == "false"
    assert variables["LMCACHE_REMOTE_URL"]["valueFrom"]["secretKeyRef"]["key"] == "redis-url"
    assert state(rendered, attachment.TIER_UNUSED) == ("True", "EngineTooOld")
    message = rendered.condition(attachment.TIER_UNUSED)["message"]
    for number in ("2 GiB x 1 rank", "64 GiB", "1Ti", "InProcess"):
        assert number in message
    assert state(rendered, attachment.IMAGE_UNVERIFIED) == ("True", "LMCacheUnknown")


def test_a_current_engine_is_attached_to_its_nodes_agent() -> None:
    rendered = engine_story(image("vllm/vllm-openai:v0.33.0")).render()
    config = json.loads(args(rendered)[-1])
    assert config["kv_connector"] == "LMCacheMPConnector"
    assert config["kv_connector_extra_config"] == {
        "lmcache.mp.host": "tcp://kvtier-modelplane-system-lmcache-h200-987d1.default.svc",
        "lmcache.mp.port": "5555",
        "lmcache.mp.isolated_ipc": True,
        "lmcache.mp.heartbeat_interval": 10,
        "lmcache.mp.mq_timeout": 60,
    }
    assert config["kv_load_failure_policy"] == "recompute"
    terms = pod(rendered)["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [t["matchExpressions"][0]["key"] for t in terms["nodeSelectorTerms"]] == [
        "nvidia.com/gpu.present",
        "cloud.google.com/gke-accelerator",
        "modelplane.ai/pool",
    ]
    assert state(rendered, attachment.TIER_UNUSED) == ("False", "Nothing")


def test_the_engine_waits_for_its_tiers_config_map() -> None:
    volumes = pod(engine_story().render())["spec"]["volumes"]
    (config,) = [v["configMap"] for v in volumes if "configMap" in v]
    assert config == {"name": "kvtier-modelplane-system-lmcache-h200-987d1"}  # not optional


def test_gpus_are_asked_for_by_the_arguments() -> None:
    story = engine_story(lambda d: d["spec"]["engine"]["args"].extend(["-tp", "4", "--pipeline_parallel_size=2"]))
    limits = pod(story.render())["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "8"}


# --- passes -------------------------------------------------------------------------------------------------------


def test_it_is_ready_when_the_cluster_shows_it_and_a_second_pass_changes_nothing() -> None:
    story = engine_story()
    settled = story.settle()
    assert state(settled, deployment.ENGINE_READY) == ("True", "Ready")
    assert settled.composite["status"]["replicas"] == "1/1"
    assert settled.composite["status"]["kvCache"] == {
        "tier": "modelplane-system/lmcache-h200",
        "connector": "LMCacheConnectorV1",
    }
    story.happen()
    again = story.render()
    assert again.composed == settled.composed
    assert again.composite == settled.composite
    assert messages(again) == []


def test_all_conditions_are_there_on_every_path() -> None:
    story = engine_story()
    paths = {
        "first sight": story.render(),
        "nothing required": render(engine_story().composite),
        "invalid": engine_story(lambda d: d["spec"]["engine"].update(name="Nope")).render(),
        "settled": story.settle(),
    }
    for path, rendered in paths.items():
        types = [c["type"] for c in rendered.composite["status"]["conditions"]]
        assert types == list(deployment.VOCABULARY), path


def without_tier(story: Story) -> Story:
    """Settle a story, then delete its tier."""
    story.settle()
    story.happen()
    del story.required["KVOffloadTier"]
    return story


def test_a_tier_that_is_gone_changes_nothing_that_runs() -> None:
    story = engine_story()
    before = story.settle()
    rendered = without_tier(story).render()
    assert specs(rendered) == specs(before)
    assert latch(rendered) == latch(before)
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", "TierNotFound")


def test_without_its_tier_an_engine_takes_a_new_image_and_keeps_its_patch_to_the_byte() -> None:
    story = engine_story()
    before = story.settle()
    without_tier(story)
    story.composite["spec"]["engine"]["image"] = "vllm/vllm-openai:v0.33.0"
    rendered = story.render()
    assert pod(rendered)["spec"]["containers"][0]["image"] == "vllm/vllm-openai:v0.33.0"
    assert latch(rendered) == latch(before)
    template, was = copy.deepcopy(pod(rendered)), pod(before)
    template["spec"]["containers"][0]["image"] = was["spec"]["containers"][0]["image"]
    assert template == was


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("invalid", lambda t: t["spec"]["lmcache"].update(cpuTierGiBPerNode=0), "TierInvalid"),
        ("on another cluster", lambda t: t["spec"]["inferenceClusterRef"].update(name="other"), "TierOnOtherCluster"),
        ("in another namespace", lambda t: t["spec"].update(targetNamespace="kv"), "TierInOtherNamespace"),
        ("closed to it", lambda t: t["spec"].update(allowedNamespaces={"from": "Same"}), "NamespaceNotAllowed"),
        ("in process, GPUs unknown", lambda t: t["spec"]["lmcache"].update(mode="InProcess"), "TierInvalid"),
        ("without it in mind", lambda t: t["spec"]["lmcache"].update(mode="Multiprocess"), "EngineTooOld"),
    ],
)
def test_a_running_engine_keeps_its_attachment_when_its_tier_becomes(
    name: str, change: Callable[[Manifest], None], reason: str
) -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    change(story.required["KVOffloadTier"])
    rendered = story.render()
    assert specs(rendered) == specs(before), name
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", reason), name


def test_a_running_engine_is_left_alone_when_its_agents_become_of_another_release() -> None:
    story = engine_story(image("vllm/vllm-openai:v0.33.0-cu129"))
    before = story.settle()
    story.happen()
    story.required["KVOffloadTier"]["spec"]["images"] = {"lmcache": "lmcache/standalone:v0.6.0"}
    rendered = story.render()
    assert specs(rendered) == specs(before)
    assert latch(rendered) == latch(before)
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", "VersionSkew")
    # One that starts now is not attached.
    story = engine_story(image("vllm/vllm-openai:v0.33.0-cu129"))
    story.required["KVOffloadTier"]["spec"]["images"] = {"lmcache": "lmcache/standalone:v0.6.0"}
    assert state(story.render(), attachment.TIER_ATTACHED) == ("False", "VersionSkew")


def test_a_running_engine_does_not_change_to_another_release_than_its_agents() -> None:
    story = engine_story(image("lmcache/vllm-openai:v0.5.6"))
    story.composite["spec"]["engine"]["version"] = "0.33.0"
    before = story.settle()
    story.happen()
    story.composite["spec"]["engine"]["image"] = "lmcache/vllm-openai:v0.6.0"
    rendered = story.render()
    assert specs(rendered) == specs(before)
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", "VersionSkew")
    assert "waits" in rendered.condition(attachment.TIER_ATTACHED)["message"]
    # With its agents it may.
    story.required["KVOffloadTier"]["spec"]["images"] = {"lmcache": "lmcache/standalone:v0.6.0"}
    assert state(story.render(), attachment.TIER_ATTACHED) == ("True", "Attached")


def changed(story: Story, change: Callable[[Manifest], None]) -> tuple[Rendered, Rendered]:
    """Settle an attached engine, take its tier away, and change the engine."""
    before = story.settle()
    story.happen()
    del story.required["KVOffloadTier"]
    change(story.composite["spec"]["engine"])
    return before, story.render()


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e["args"].append("--quantization=fp8"),
        lambda e: e["args"].append("--enable-lora"),
        lambda e: e["args"].append("--config=all.yaml"),
        lambda e: e.update(args=["--model=/mnt/models"]),
        lambda e: e.update(command=["sh", "-c"]),
        lambda e: e.update(env=[{"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}]),
        lambda e: e.update(env=[{"name": "LMCACHE_TRACK_USAGE", "value": "true"}]),
    ],
)
def test_a_change_that_the_kept_attachment_is_not_right_for_waits(change: Callable[[Manifest], None]) -> None:
    before, rendered = changed(engine_story(), change)
    assert specs(rendered) == specs(before)
    assert latch(rendered) == latch(before)
    assert state(rendered, attachment.TIER_ATTACHED)[0] == "True"
    assert "waits" in rendered.condition(attachment.TIER_ATTACHED)["message"]
    assert state(rendered, deployment.ROLLED_OUT) == ("False", "Held")
    assert state(rendered, deployment.ENGINE_READY) == ("True", "Ready")
    assert state(rendered, attachment.TIER_UNUSED) == ("True", "EngineTooOld")


def test_an_engine_too_old_for_its_connector_is_not_rolled_out() -> None:
    story = engine_story(image("vllm/vllm-openai:v0.33.0"))
    story.required["KVOffloadTier"]["spec"]["lmcache"]["mode"] = "Multiprocess"
    before = story.settle()
    story.happen()
    story.composite["spec"]["engine"]["image"] = "vllm/vllm-openai:v0.11.0"
    rendered = story.render()
    assert specs(rendered) == specs(before)
    assert state(rendered, attachment.TIER_ATTACHED) == ("True", "EngineTooOld")


def test_what_waited_is_rolled_out_when_the_tier_is_back() -> None:
    story = engine_story()
    tier = story.required["KVOffloadTier"]
    _, rendered = changed(story, lambda e: e["args"].append("--quantization=fp8"))
    assert "--quantization=fp8" not in args(rendered)
    story.required["KVOffloadTier"] = tier
    seed = env(rendered)["PYTHONHASHSEED"]
    rendered = story.render()
    assert "--quantization=fp8" in args(rendered)
    assert env(rendered)["PYTHONHASHSEED"] != seed


def test_a_new_pod_that_never_gets_ready_is_said_while_the_old_one_serves() -> None:
    story = engine_story()
    story.settle()
    story.composite["spec"]["engine"]["image"] = "vllm/vllm-openai:v0.12.0"
    story.render()
    story.happen(surge=1)
    rendered = story.render()
    assert state(rendered, deployment.ENGINE_READY) == ("False", "NotReady")
    assert state(rendered, deployment.ROLLED_OUT) == ("False", "Rolling")


def test_an_engine_of_which_only_the_service_is_there_still_waits() -> None:
    story = engine_story()
    story.settle()
    story.happen()
    story.observed = [o for o in story.observed if "service" in o["metadata"]["name"]]
    del story.required["KVOffloadTier"]
    assert [m["kind"] for m in story.render().manifests] == ["Service"]


def test_gpu_pools_that_come_and_go_restart_no_engine() -> None:
    def pools(*gpus: int) -> list[Manifest]:
        return [{"name": f"p{n}", "devices": [{"name": "gpu", "driver": "gpu.nvidia.com", "count": n}]} for n in gpus]

    tier = tier_story(lambda t: t["spec"]["lmcache"].update(mode="InProcess", cpuTierGiBPerNode=512))
    tier.required["InferenceCluster"]["status"]["gpuPools"] = pools(4, 8)
    tier.settle()
    story = engine_story()
    story.required["KVOffloadTier"] = tier.composite
    before = story.settle()
    story.happen()
    tier.happen()
    for cluster in (story.required["InferenceCluster"], tier.required["InferenceCluster"]):
        cluster["status"]["gpuPools"] = pools(4)
    rendered = tier.render()
    assert rendered.composite["status"]["memory"]["gpusPerNode"] == 8
    assert rendered.condition("Accepted")["reason"] == "GPUPoolsChanged"
    story.required["KVOffloadTier"] = rendered.composite
    assert specs(story.render()) == specs(before)


def test_an_engine_with_tls_is_probed_by_tls() -> None:
    rendered = engine_story(lambda d: d["spec"]["engine"]["args"].append("--ssl-keyfile=/k")).render()
    assert pod(rendered)["spec"]["containers"][0]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_a_number_that_is_none_is_no_crash() -> None:
    rendered = engine_story(
        lambda d: d["spec"]["engine"]["args"].extend(["--tensor-parallel-size=²", "--port=99999"])
    ).render()
    assert not rendered.fatal
    assert pod(rendered)["spec"]["containers"][0]["ports"][0]["containerPort"] == 8000


def test_without_a_cluster_an_engine_that_may_serve_without_is_told_what_to_set() -> None:
    def serve_without(d: Manifest) -> None:
        d["spec"]["engine"]["kvCache"]["onUnavailable"] = "ServeWithout"

    story = engine_story(serve_without)
    del story.required["KVOffloadTier"]
    assert "set spec.inferenceClusterRef" in story.render().condition(attachment.TIER_ATTACHED)["message"]


def test_the_example_that_may_serve_without_its_tier_does() -> None:
    story = engine_story(example="lmcache-inprocess")
    del story.required["KVOffloadTier"]
    assert "--kv-transfer-config" not in args(story.render())


def test_a_tier_ref_that_goes_detaches() -> None:
    story = engine_story()
    story.settle()
    story.happen()
    del story.composite["spec"]["engine"]["kvCache"]
    story.composite["spec"]["inferenceClusterRef"] = {"name": "gke-h200-prod"}
    rendered = story.render()
    assert args(rendered) == ["--model=meta-llama/Llama-3.3-70B-Instruct"]
    assert ANNOTATION_PATCH not in rendered.composed[ENGINE]["metadata"]["annotations"]
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "NotRequested")


def test_a_cluster_that_is_gone_changes_nothing_that_runs() -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    del story.required["InferenceCluster"]
    rendered = story.render()
    assert specs(rendered) == specs(before)
    assert state(rendered, deployment.CLUSTER_REACHABLE) == ("False", "ClusterNotFound")


def test_an_engine_is_never_moved() -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    story.composite["spec"]["inferenceClusterRef"] = {"name": "elsewhere"}
    rendered = story.render()
    assert specs(rendered) == specs(before)
    assert state(rendered, deployment.CLUSTER_REACHABLE) == ("False", "ClusterMoved")


def test_all_gone_at_once_keeps_all() -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    story.required = {}
    assert specs(story.render()) == specs(before)


def test_a_latch_that_somebody_edited_is_fatal_and_changes_nothing() -> None:
    story = without_tier(engine_story())
    for observed in story.observed:
        annotations = observed["metadata"]["annotations"]
        if ANNOTATION_PATCH in annotations:
            annotations[ANNOTATION_PATCH] = annotations[ANNOTATION_PATCH].replace("LMCache", "Other")
    rendered = story.render()
    assert rendered.fatal
    assert messages(rendered) == [
        "fatal: ModelDeployment: annotation kv-offload.modelplane.ai/patch of Object "
        "engine-llama-70b-engine-gke-h200-prod-8db44 was changed; put it back; nothing was changed"
    ]


def test_a_latch_that_somebody_edited_is_not_fatal_before_the_tier_is_looked_up() -> None:
    story = engine_story()
    before = story.settle()
    story.happen()
    for observed in story.observed:
        if ANNOTATION_PATCH in observed["metadata"]["annotations"]:
            observed["metadata"]["annotations"][ANNOTATION_PATCH] = "{}"
    rendered = story.render()  # the tier is there, and computes the patch anew
    assert not rendered.fatal
    assert latch(rendered) == latch(before)


# --- waiting ------------------------------------------------------------------------------------------------------


def test_an_engine_that_never_ran_waits_for_its_tier_and_then_starts_attached() -> None:
    story = engine_story()
    tier = story.required.pop("KVOffloadTier")
    rendered = story.render()
    assert rendered.composed == {}
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "TierNotFound")
    story.required["KVOffloadTier"] = tier
    assert "--kv-transfer-config" in args(story.render())


def test_an_engine_that_serves_without_starts_at_once_and_is_attached_later() -> None:
    def serve_without(d: Manifest) -> None:
        d["spec"]["engine"]["kvCache"]["onUnavailable"] = "ServeWithout"
        d["spec"]["inferenceClusterRef"] = {"name": "gke-h200-prod"}

    story = engine_story(serve_without)
    tier = story.required.pop("KVOffloadTier")
    assert "--kv-transfer-config" not in args(story.render())
    story.happen()
    story.required["KVOffloadTier"] = tier
    assert "--kv-transfer-config" in args(story.render())


def test_a_tier_that_has_no_status_yet_is_enough() -> None:
    story = engine_story()
    del story.required["KVOffloadTier"]["status"]
    assert "--kv-transfer-config" in args(story.render())


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("vllm/vllm-openai:latest", "EngineVersionUnknown"),
        ("example.com/llm:v3", "EngineVersionUnknown"),
        ("vllm/vllm-openai:v0.10.2", "EngineVersionUnsupported"),
    ],
)
def test_an_engine_whose_version_is_no_good_is_not_started_attached(tag: str, reason: str) -> None:
    rendered = engine_story(image(tag)).render()
    assert rendered.composed == {}
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", reason)


def test_an_engine_that_serves_lora_adapters_is_refused() -> None:
    rendered = engine_story(lambda d: d["spec"]["engine"]["args"].append("--enable-lora")).render()
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "LoRANotIsolated")


# --- the user's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        ["--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'],
        ['--kv_transfer_config={"kv_connector":"NixlConnector"}'],
        ["--kv-transfer-config.kv_connector", "NixlConnector"],
        ["--kv-offloading-size", "64"],
        ["--kv_offloading_size=64"],
    ],
)
def test_the_users_own_wiring_is_respected_and_the_engine_starts_with_it(own: list[str]) -> None:
    rendered = engine_story(lambda d: d["spec"]["engine"]["args"].extend(own)).render()
    assert args(rendered) == ["--model=meta-llama/Llama-3.3-70B-Instruct", *own]
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "UserConfigured")


def test_an_engine_with_its_own_wiring_runs_beside_its_tier_all_the_same() -> None:
    story = engine_story(lambda d: d["spec"]["engine"]["args"].append("--kv-offloading-size=8"))
    story.required["KVOffloadTier"]["spec"]["targetNamespace"] = "kv"
    assert {m["metadata"]["namespace"] for m in story.render().manifests} == {"kv"}


def test_a_shell_hides_the_flags_and_the_engine_starts_as_it_is() -> None:
    def shell(d: Manifest) -> None:
        d["spec"]["engine"]["command"] = ["/bin/bash", "-c", "vllm serve x --kv-transfer-config y"]

    rendered = engine_story(shell).render()
    assert state(rendered, attachment.TIER_ATTACHED) == ("False", "CommandHidesArgs")
    assert args(rendered) == ["--model=meta-llama/Llama-3.3-70B-Instruct"]


def test_a_plain_command_is_attached() -> None:
    def command(d: Manifest) -> None:
        d["spec"]["engine"]["command"] = ["vllm", "serve", "meta-llama/Llama-3.3-70B-Instruct"]
        d["spec"]["engine"]["args"] = []

    rendered = engine_story(command).render()
    assert args(rendered)[0] == "--kv-transfer-config"
    assert pod(rendered)["spec"]["containers"][0]["command"][0] == "vllm"


def test_the_users_variables_win_and_are_named() -> None:
    mine = [{"name": "PYTHONHASHSEED", "value": "7"}, {"name": "LMCACHE_CONFIG_FILE", "value": "/mine.yaml"}]
    rendered = engine_story(lambda d: d["spec"]["engine"].update(env=mine)).render()
    assert env(rendered)["PYTHONHASHSEED"]["value"] == "7"
    assert state(rendered, attachment.USER_OVERRIDES) == ("True", "UserEnv")
    message = rendered.condition(attachment.USER_OVERRIDES)["message"]
    assert "LMCACHE_CONFIG_FILE" in message and "up to PYTHONHASHSEED" in message
    names = [e["name"] for e in pod(rendered)["spec"]["containers"][0]["env"]]
    assert len(names) == len(set(names))


def test_a_log_level_of_the_users_takes_the_password_out_of_the_way() -> None:
    rendered = engine_story(
        lambda d: d["spec"]["engine"].update(env=[{"name": "LMCACHE_LOG_LEVEL", "value": "DEBUG"}])
    ).render()
    assert "LMCACHE_REMOTE_URL" not in env(rendered)
    assert state(rendered, attachment.REMOTE_NOT_ATTACHED) == ("True", "NoSafeWay")


def test_the_users_wiring_wins_over_an_attachment_too() -> None:
    story = engine_story()
    story.settle()
    story.happen()
    story.composite["spec"]["engine"]["args"].append("--kv-offloading-size=8")
    rendered = story.render()
    assert args(rendered) == ["--model=meta-llama/Llama-3.3-70B-Instruct", "--kv-offloading-size=8"]


def test_a_role_that_the_tier_has_no_use_for_is_said() -> None:
    rendered = engine_story(lambda d: d["spec"]["engine"]["kvCache"].update(role="Prefill")).render()
    assert state(rendered, "RoleUnused") == ("True", "NotPeerToPeer")
    assert state(engine_story().render(), "RoleUnused") == ("False", "Nothing")
    assert state(engine_story(example="nixl-p2p").render(), "RoleUnused") == ("False", "Nothing")


# --- NICs by claim ------------------------------------------------------------------------------------------------


def nics(rendered: Rendered) -> list[Manifest]:
    return [m for m in rendered.manifests if m["kind"] == "ResourceClaimTemplate"]


def test_an_engine_claims_its_nics_by_a_template_of_its_own() -> None:
    rendered = engine_story(example="mooncake-ha").settle()
    (template,) = nics(rendered)
    assert schema_errors({**template, "metadata": {**template["metadata"], "annotations": {}}}) == []
    assert [r["exactly"]["count"] for r in template["spec"]["spec"]["devices"]["requests"]] == [4]
    spec = pod(rendered)["spec"]
    named = {"name": "kv-nics", "resourceClaimTemplateName": template["metadata"]["name"]}
    assert spec["resourceClaims"] == [named]
    assert spec["containers"][0]["resources"]["claims"] == [{"name": "kv-nics"}]
    assert template["metadata"]["namespace"] == "default"
    assert state(rendered, attachment.NICS_NOT_ALIGNED) == ("False", "Nothing")


def test_nics_beside_gpus_whose_claim_nobody_reads_are_not_aligned() -> None:
    story = engine_story(example="mooncake-ha")
    story.required["KVOffloadTier"]["spec"]["rdma"]["dra"]["alignWithGPU"] = True
    rendered = story.render()
    assert state(rendered, attachment.NICS_NOT_ALIGNED) == ("True", "CannotAlign")
    assert "KVOffloadTier modelplane-system/mooncake-ha" in rendered.condition(attachment.NICS_NOT_ALIGNED)["message"]


@pytest.mark.parametrize("change", [None, {"deviceClassName": "other.example"}])
def test_nics_stay_while_the_engine_keeps_its_attachment(change: Manifest | None) -> None:
    story = engine_story(example="mooncake-ha")
    before = nics(story.settle())
    if change is None:
        del story.required["KVOffloadTier"]
    else:
        story.required["KVOffloadTier"]["spec"]["rdma"]["dra"] = change
        story.required["InferenceCluster"]["status"]["gpuPools"] = [
            {"name": "h100", "devices": [{"name": "nic", "driver": "x", "deviceClassName": "other.example"}]}
        ]
    rendered = story.render()
    assert state(rendered, attachment.TIER_ATTACHED)[1] == ("TierNotFound" if change is None else "InsufficientNICs")
    assert "keeps what attached it" in rendered.condition(attachment.TIER_ATTACHED)["message"]
    assert nics(rendered) == before


def test_nics_go_with_the_attachment() -> None:
    story = engine_story(example="mooncake-ha")
    story.settle()
    del story.composite["spec"]["engine"]["kvCache"]
    story.composite["spec"]["inferenceClusterRef"] = {"name": "oke-h100"}
    rendered = story.render()
    assert nics(rendered) == []
    assert "resourceClaims" not in pod(rendered)["spec"]


def test_an_engine_is_not_called_attached_before_anything_is_composed() -> None:
    story = engine_story()
    del story.required["InferenceCluster"]["status"]
    rendered = story.render()
    assert rendered.composed == {}
    assert state(rendered, attachment.TIER_ATTACHED) == ("Unknown", "Waiting")
    assert "once ClusterReachable is True" in rendered.condition(attachment.TIER_ATTACHED)["message"]


def test_a_field_that_a_newer_function_knows_leaves_what_is_latched_alone() -> None:
    class Newer(TierSpec):
        later: str = "as before"

    raw = tier_story().composite["spec"]
    bases = []
    for model in (TierSpec, Newer):
        found = Tier("modelplane-system", "shared", api.parse(model, raw), releases.NEWEST)
        engine = engine_pod.read(
            api.parse(EngineSpec, engine_story().composite["spec"]["engine"]), namespace="a", name="b"
        )
        decided = attachment.decide(attachment.Consumer(engine, "Wait"), found, Site(gpus_per_node=8), None)
        assert decided.patch
        bases.append(decided.patch.basis)
    assert bases[0] == bases[1]
