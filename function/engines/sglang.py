"""SGLang: how it is started, reached, and read."""

from function.engines import versions
from function.engines.args import CommandLine
from function.engines.kind import Kind

# What a user may have wired by hand; a tier never adds a second one, or overwrites it.
OWN_WIRING = (
    *("--enable-hierarchical-cache", "--enable-hicache", "--hicache-ratio", "--hicache-size", "--hicache-write-policy"),
    *("--hicache-storage-backend", "--hicache-storage-backend-extra-config", "--enable-lmcache"),
    *("--hicache-storage-prefetch-policy", "--hicache-mem-layout", "--hicache-io-backend", "--lmcache-config-file"),
)

# Options that change no KV: what every other option does is not ours to guess, so it makes another identity.
# --context-length is none of them: models with LongRoPE rotate keys by it.
HARMLESS = frozenset(
    {
        *("--model-path", "--model", "--trust-remote-code", "--download-dir", "--tokenizer-mode", "--random-seed"),
        *("--host", "--port", "--api-key", "--log-level", "--log-level-http", "--log-requests", "--enable-metrics"),
        *("--tp-size", "--tp", "--tensor-parallel-size", "--pp-size", "--pp", "--pipeline-parallel-size"),
        *("--dp-size", "--dp", "--data-parallel-size", "--mem-fraction-static", "--max-running-requests"),
        *("--max-prefill-tokens", "--chunked-prefill-size", "--schedule-policy", "--schedule-conservativeness"),
        *("--cuda-graph-max-bs", "--disable-cuda-graph", "--watchdog-timeout", "--chat-template"),
        *("--tool-call-parser", "--reasoning-parser", "--enable-cache-report", "--skip-server-warmup"),
        *("--show-time-cost", "--decode-log-interval", "--served-model-name"),
    }
)


def ranks(line: CommandLine) -> int:
    """How many processes, and so GPUs, one pod runs: TP x PP, times DP where each replica has its own GPUs."""
    data = 1 if line.flags("--enable-dp-attention") else line.integer("--dp-size", "--data-parallel-size", "--dp")
    return (
        line.integer("--tp-size", "--tensor-parallel-size", "--tp")
        * line.integer("--pp-size", "--pipeline-parallel-size", "--pp")
        * data
    )


KIND = Kind(
    name="SGLang",
    repository="sglang",
    port=30000,
    command=("python3", "-m", "sglang.launch_server"),
    # It listens on loopback otherwise, where nobody could ask it.
    listen=("--host=0.0.0.0",),
    model=("--model-path", "--model"),
    own_wiring=OWN_WIRING,
    harmless=HARMLESS,
    lora=("--enable-lora", "--lora-paths"),
    source_env=("SGLANG_USE_MODELSCOPE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    ranks=ranks,
    support=versions.sglang,
    oldest=versions.SGLANG_TABLE[0].since,
    example="0.5.23",
)
