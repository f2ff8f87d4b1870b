"""SGLang: how it is started, reached, and read.

Its parser takes any prefix of an option's name that no other option begins with; `--tp` and `--dp` are no more.
"""

from function.engines import table
from function.engines.args import CommandLine
from function.engines.kind import Kind

# What a user may have wired by hand; a tier never adds a second one, or overwrites it.
OWN_WIRING = (
    *("--enable-hierarchical-cache", "--enable-hicache", "--hicache-ratio", "--hicache-size", "--hicache-write-policy"),
    *("--hicache-host-memory-mode", "--hicache-host-memory-fraction", "--hicache-mem-layout", "--hicache-io-backend"),
    *("--hicache-storage-backend", "--hicache-storage-backend-extra-config", "--hicache-storage-prefetch-policy"),
    *("--enable-lmcache", "--lmcache-config-file", "--enable-flexkv", "--flexkv-config-file", "--radix-cache-backend"),
    *("--enable-unified-cache-external-linker",),
)

# Options that change no KV: what every other option does is not ours to guess, so it makes another identity.
# --context-length is none of them: models with LongRoPE rotate keys by it.
HARMLESS = frozenset(
    {
        *("--model-path", "--model", "--trust-remote-code", "--download-dir", "--tokenizer-mode", "--random-seed"),
        *("--host", "--port", "--api-key", "--admin-api-key", "--log-level", "--log-level-http", "--log-requests"),
        *("--log-requests-level", "--enable-metrics", "--enable-metrics-for-all-schedulers", "--stream-interval"),
        *("--tp-size", "--tp", "--tensor-parallel-size", "--pp-size", "--pipeline-parallel-size"),
        *("--dp-size", "--dp", "--data-parallel-size", "--mem-fraction-static", "--max-running-requests"),
        *("--max-prefill-tokens", "--chunked-prefill-size", "--schedule-policy", "--schedule-conservativeness"),
        *("--cuda-graph-max-bs", "--cuda-graph-max-bs-decode", "--cuda-graph-max-bs-prefill", "--disable-cuda-graph"),
        *("--watchdog-timeout", "--chat-template", "--tool-call-parser", "--reasoning-parser", "--enable-cache-report"),
        *("--skip-server-warmup", "--show-time-cost", "--decode-log-interval", "--served-model-name", "--warmups"),
        *("--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr"),
        *("--sleep-on-idle", "--grammar-backend", "--disable-overlap-schedule", "--ssl-keyfile", "--ssl-certfile"),
    }
)

_TENSOR = ("--tp-size", "--tensor-parallel-size", "--tp")
_PIPELINE = ("--pp-size", "--pipeline-parallel-size")
_DATA = ("--dp-size", "--data-parallel-size", "--dp")
# Within the TP group; --enable-dp-attention is the older way to ask for it.
_ATTENTION_DATA = ("--attn-dp-size", "--attention-data-parallel-size")
_CONTEXT = ("--attn-cp-size", "--attention-context-parallel-size")
_CONTEXT_SWITCHES = (
    *("--enable-prefill-cp", "--enable-prefill-context-parallel"),
    *("--enable-nsa-prefill-context-parallel", "--enable-dsa-prefill-context-parallel"),
)


def ranks(line: CommandLine, pods: int = 1) -> int:
    """How many processes, and so GPUs, one pod runs: TP x PP, times DP where each replica has its own GPUs.

    Where the engine spans `pods`, each runs its part of them.
    """
    data = 1 if line.flags("--enable-dp-attention") else line.integer(*_DATA)
    return max(1, line.integer(*_TENSOR) * pipeline(line) * data // pods)


def spans(line: CommandLine, pods: int) -> bool:  # noqa: ARG001 (as every kind's)
    """Whether the ranks of one replica are in several pods."""
    return pods > 1


def pipeline(line: CommandLine) -> int:
    """How many stages hold a layer range each."""
    return line.integer(*_PIPELINE)


def sliced(line: CommandLine) -> bool:
    """Whether ranks may hold slices of a page's tokens, by context parallelism."""
    return line.integer(*_CONTEXT) > 1 or bool(line.flags(*_CONTEXT_SWITCHES))


def decodes_by_fa3(line: CommandLine) -> bool:
    """Whether the user asks for FlashAttention 3 for decoding, which has decided how host memory is laid out."""
    return (line.value("--decode-attention-backend") or line.value("--attention-backend")) == "fa3"


def layout(line: CommandLine) -> tuple[int, ...]:
    """How KV lies in host memory and is split: TP, PP, DP and CP of attention, and the decode kernel."""
    data = line.integer(*_DATA) if line.flags("--enable-dp-attention") else line.integer(*_ATTENTION_DATA)
    return (line.integer(*_TENSOR), pipeline(line), data, line.integer(*_CONTEXT), int(decodes_by_fa3(line)))


KIND = Kind(
    name="SGLang",
    repository="sglang",
    port=30000,
    command=("python3", "-m", "sglang.launch_server"),
    # It listens on loopback otherwise, where nobody could ask it.
    listen=("--host=0.0.0.0",),
    model=("--model-path", "--model"),
    own_wiring=OWN_WIRING,
    kv_transfer=False,
    program="sglang",
    harmless=HARMLESS,
    lora=("--enable-lora", "--lora-paths"),
    prefix="SGLANG_",
    harmless_env=frozenset({"SGLANG_API_KEY", "SGLANG_LOGGING_CONFIG_PATH", "SGLANG_HOST_IP"}),
    source_env=("SGLANG_USE_MODELSCOPE", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    ranks=ranks,
    spans=spans,
    layout=layout,
    attached=table.SGLANG_HICACHE,
    example="0.5.23",
)
