"""The examples are what they say."""

import pytest

from function.render import EXAMPLES
from tests import examples

# seeds/000 of the proposal, to the letter.
SEED_TIER = """\
apiVersion: modelplane.ai/v1alpha1
kind: KVOffloadTier
metadata:
  name: lmcache-h200
  namespace: modelplane-system
spec:
  inferenceClusterRef:
    name: gke-h200-prod
  backend: LMCache
  lmcache:
    cpuTierGiBPerNode: 64
    diskTier:
      storageClassName: nvme-local
      sizePerNode: 1Ti
    remote:
      redis:
        host: kv-redis.modelplane-system
        port: 6379
        secretRef:
          name: kv-redis-auth
"""
SEED_DEPLOYMENT = """\
apiVersion: modelplane.ai/v1alpha1
kind: ModelDeployment
metadata:
  name: llama-70b
spec:
  engine:
    name: vLLM
    image: vllm/vllm-openai:v0.11
    args:
    - "--model=meta-llama/Llama-3.3-70B-Instruct"
    kvCache:
      tierRef:
        name: lmcache-h200
"""


def test_the_first_example_is_the_proposals_to_the_letter() -> None:
    assert (EXAMPLES / "lmcache" / "tier.yaml").read_text() == SEED_TIER
    assert (EXAMPLES / "lmcache" / "deployment.yaml").read_text() == SEED_DEPLOYMENT


@pytest.mark.parametrize("name", examples.names())
def test_required_and_observed_files_are_what_the_helper_makes(name: str) -> None:
    for file, text in examples.files(EXAMPLES / name).items():
        assert (EXAMPLES / name / file).read_text() == text, (
            f"{name}/{file} differs: run `make examples`, and read the diff"
        )
