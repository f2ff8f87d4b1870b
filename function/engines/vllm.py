"""vLLM: how it is started, reached, and read."""

from function.engines import table
from function.engines.args import CommandLine
from function.engines.kind import Kind

# What a user may have wired by hand; a tier never adds a second one, or overwrites it.
OWN_WIRING = ("--kv-offloading-size", "--kv-offloading-backend")

# Options that change no KV: what every other option does is not ours to guess, so it makes another identity.
# --max-model-len is none of them: models with LongRoPE rotate keys by it (vLLM phi3_long_rope_scaled_rope.py).
HARMLESS = frozenset(
    {
        *("--model", "--served-model-name", "--trust-remote-code", "--download-dir", "--tokenizer-mode", "--seed"),
        *("--host", "--port", "--root-path", "--api-key", "--uvicorn-log-level", "--enable-server-load-tracking"),
        *("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--allowed-origins", "--allowed-methods"),
        *("--allowed-headers", "--allow-credentials", "--disable-log-requests", "--disable-log-stats"),
        *("--enable-log-requests", "--disable-uvicorn-access-log", "--max-log-len", "--otlp-traces-endpoint"),
        *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp"),
        *("--distributed-executor-backend", "--gpu-memory-utilization", "--max-num-seqs"),
        *("--max-num-batched-tokens", "--enforce-eager", "--swap-space", "--async-scheduling", "--scheduling-policy"),
        *("--enable-prefix-caching", "--no-enable-prefix-caching", "--enable-chunked-prefill"),
        *("--no-enable-chunked-prefill", "--chat-template", "--chat-template-content-format", "--response-role"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser", "--generation-config"),
        *("--override-generation-config", "--max-logprobs", "--limit-mm-per-prompt", "--kv-transfer-config"),
        *("--nnodes", "-n", "--node-rank", "-r", "--master-addr", "--master-port", "--headless"),
        *("--data-parallel-start-rank", "-dpr", "--data-parallel-rank", "-dpn", "--data-parallel-size-local", "-dpl"),
        *("--data-parallel-address", "-dpa", "--data-parallel-rpc-port", "-dpp", "--data-parallel-backend", "-dpb"),
        *("--data-parallel-hybrid-lb", "-dph", "--data-parallel-external-lb", "-dpe", "--api-server-count", "-asc"),
    }
)


_LOCAL = ("--data-parallel-size-local", "-dpl")


def ranks(line: CommandLine, pods: int = 1) -> int:
    """How many processes, and so GPUs, one pod runs: TP x PP x DP of its args, the DP that is local to it.

    Where the engine spans `pods`, each runs its part of them.
    """
    every = (
        line.integer("--tensor-parallel-size", "-tp")
        * line.integer("--pipeline-parallel-size", "-pp")
        * line.integer("--prefill-context-parallel-size", "-pcp")
        * replicas(line)
    )
    return max(1, every // pods) if spans(line, pods) else every


def spans(line: CommandLine, pods: int) -> bool:
    """Whether the ranks of one replica are in several pods; not where each has data-parallel replicas of its own."""
    return pods > 1 and (line.nodes > 1 or not line.flags(*_LOCAL))


def replicas(line: CommandLine) -> int:
    """How many data-parallel replicas one pod runs: those that are local to it."""
    return line.integer(*(_LOCAL if line.flags(*_LOCAL) else ("--data-parallel-size", "-dp")))


def layout(line: CommandLine) -> tuple[int, ...]:
    """How KV is split: TP, PP, and the context parallelism of prefill and decode."""
    return (
        line.integer("--tensor-parallel-size", "-tp"),
        line.integer("--pipeline-parallel-size", "-pp"),
        line.integer("--prefill-context-parallel-size", "-pcp"),
        line.integer("--decode-context-parallel-size", "-dcp"),
    )


KIND = Kind(
    name="vLLM",
    repository="vllm",
    port=8000,
    command=(),
    listen=(),
    model=("--model",),
    own_wiring=OWN_WIRING,
    kv_transfer=True,
    program="vllm",
    harmless=HARMLESS,
    lora=("--enable-lora", "--lora-modules"),
    prefix="VLLM_",
    harmless_env=frozenset(
        {
            *("VLLM_API_KEY", "VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH"),
            *("VLLM_HOST_IP", "VLLM_PORT", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "VLLM_USAGE_SOURCE"),
            *("VLLM_CACHE_ROOT", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "VLLM_WORKER_MULTIPROC_METHOD"),
        }
    ),
    source_env=("VLLM_USE_MODELSCOPE", "VLLM_MODEL_REDIRECT_PATH", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    ranks=ranks,
    spans=spans,
    layout=layout,
    attached=table.VLLM_IN_PROCESS,
    example="0.33.0",
)
