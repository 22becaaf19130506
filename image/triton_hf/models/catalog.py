"""Every parameter there is, in groups; `models.registry` says which engine and task take which."""

from __future__ import annotations

from triton_hf.models.parameters import (
    MAX_TOKENS,
    Choice,
    Document,
    Flag,
    Integer,
    Mapped,
    Number,
    Parameter,
    StopStrings,
    StopTokens,
    Text,
    TokenBias,
    table,
)

QUEUE = table(
    Parameter(
        name="slots",
        kind=Integer(low=1, high=4096),
        default="8",
        meaning="requests that the engine works on at the same time",
    ),
    Parameter(
        name="max_queue",
        kind=Integer(low=0, high=1_000_000),
        default="64",
        meaning="requests that may wait; the next one is refused with 503",
    ),
    Parameter(
        name="max_queue_seconds",
        kind=Number(low=0.0, high=86_400.0),
        default="50",
        meaning="longest wait of a request for its first slot, then 503; 0 waits for ever. Keep it "
        "below the time-out of the gateway (often 60 s), so that the reason reaches the client",
    ),
    Parameter(
        name="max_prompt_tokens",
        kind=Integer(low=1, high=MAX_TOKENS),
        default="1024",
        meaning="longest prompt in tokens, after the chat template",
    ),
    Parameter(
        name="max_total_tokens",
        kind=Integer(low=2, high=MAX_TOKENS),
        default="2048",
        meaning="longest prompt and answer together, in tokens",
    ),
    Parameter(
        name="stream_events",
        kind=Integer(low=0, high=1_000_000),
        default="100 a core; simulated: 0",
        meaning="most events a second of all streams together while more than four are open; an "
        "event then carries several tokens, and the first and the last event of a stream never "
        "wait. 0 sends every token alone",
    ),
)

REPOSITORY = table(
    Parameter(name="repo_id", kind=Text(), meaning="`ORG/NAME` of the repository on the Hub"),
    Parameter(
        name="revision",
        kind=Text(),
        default="main",
        meaning="commit, tag or branch; the model store pins a commit by itself",
    ),
    Parameter(
        name="gated", kind=Flag(), default="false", meaning="whether the repository needs a token"
    ),
)

COMPUTE = table(
    Parameter(
        name="device",
        kind=Choice(values=("auto", "cpu", "cuda")),
        default="auto",
        meaning="auto takes a GPU if there is one",
    ),
    Parameter(
        name="dtype",
        kind=Choice(values=("auto", "float32", "bfloat16", "float16")),
        default="auto",
        meaning="number format of the weights; auto is as stored",
    ),
    Parameter(
        name="cpu_step",
        kind=Choice(values=("auto", "torch")),
        default="auto",
        meaning="what computes on a CPU: auto takes the native kernels for Llama-shaped models in "
        "bfloat16 where the CPU has AVX512, and torch for all others",
    ),
    Parameter(
        name="weights",
        kind=Choice(values=("auto", "int8")),
        default="auto",
        meaning="format of the weights in memory: auto is `dtype`; int8 (CPU only) reads less "
        "memory and is lossy",
    ),
)

VLLM = table(
    COMPUTE["dtype"],
    Parameter(
        name="engine_args",
        kind=Mapped(),
        default="{}",
        meaning="arguments of vLLM's engine (`AsyncEngineArgs`), such as "
        "`{gpu_memory_utilization: 0.8}`; those that are parameters here are refused",
    ),
)
# Arguments of vLLM's engine that something else decides.
VLLM_OWNED = {
    "model": "'repository'",
    "served_model_name": "the name of the model",
    "tokenizer": "the repository",
    "tokenizer_revision": "'revision'",
    "revision": "'revision'",
    "code_revision": "'revision'",
    "hf_token": "the model-sync Job, which alone has a token",
    "download_dir": "the model store",
    "dtype": "'dtype'",
    "max_num_seqs": "'slots'",
    "max_model_len": "'max_total_tokens'",
    "max_num_queued_reqs": "'max_queue'",
    "generation_config": "the sampling parameters of the model",
    "override_generation_config": "the sampling parameters of the model",
    "trust_remote_code": "the server: no code of a repository is run",
    "runner": "the task of the model",
    "stream_interval": "'stream_events'",
    "disable_log_stats": "the server, whose gauges need the statistics",
    "skip_tokenizer_init": "the server",
}

SIMULATED = table(
    Parameter(
        name="ttft_ms",
        kind=Number(low=0.0, high=600_000.0),
        default="50",
        meaning="time to the first token of a simulated model, in ms",
    ),
    Parameter(
        name="inter_token_ms",
        kind=Number(low=0.0, high=600_000.0),
        default="10",
        meaning="time between tokens of a simulated model, in ms",
    ),
    Parameter(
        name="tokens_per_second",
        kind=Number(low=0.0, high=1_000_000.0, above=True),
        meaning="tokens a second of one answer of a simulated model, instead of `inter_token_ms`",
    ),
    Parameter(
        name="load_seconds",
        kind=Number(low=0.0, high=86_400.0),
        default="0",
        meaning="time that a simulated model takes to load, in s",
    ),
)

SAMPLING = table(
    Parameter(
        name="max_tokens",
        kind=Integer(low=1, high=MAX_TOKENS),
        default="256",
        request=True,
        meaning="most tokens of the answer; with the prompt at most `max_total_tokens`",
    ),
    Parameter(
        name="temperature",
        kind=Number(low=0.0, high=2.0),
        default="0",
        request=True,
        meaning="0 always takes the likeliest token; higher values vary more",
    ),
    Parameter(
        name="top_p",
        kind=Number(low=0.0, high=1.0, above=True),
        default="1",
        request=True,
        meaning="sample only from the likeliest tokens that together have this probability",
    ),
    Parameter(
        name="top_k",
        kind=Integer(low=0, high=1_000_000),
        default="0",
        request=True,
        meaning="sample only from the k likeliest tokens; 0 is all",
    ),
    Parameter(
        name="min_p",
        kind=Number(low=0.0, high=1.0),
        default="0",
        request=True,
        meaning="sample only from tokens with at least this share of the likeliest one's "
        "probability",
    ),
    Parameter(
        name="repetition_penalty",
        kind=Number(low=0.0, high=2.0, above=True),
        default="1",
        request=True,
        meaning="above 1 makes tokens less likely that occur already",
    ),
    Parameter(
        name="presence_penalty",
        kind=Number(low=-2.0, high=2.0),
        default="0",
        model=False,
        request=True,
        meaning="above 0 makes tokens less likely that the answer has already",
    ),
    Parameter(
        name="frequency_penalty",
        kind=Number(low=-2.0, high=2.0),
        default="0",
        model=False,
        request=True,
        meaning="the same, each time that the answer has the token",
    ),
    Parameter(
        name="logit_bias",
        kind=TokenBias(),
        model=False,
        request=True,
        meaning="added to the logits of these tokens before sampling",
    ),
    Parameter(
        name="seed",
        kind=Integer(low=0, high=2**63 - 1),
        request=True,
        meaning="the same seed and request give the same answer, in half precision by torch up to "
        "rounding; so do rows of one request that are equal",
    ),
    Parameter(
        name="stop",
        kind=StopStrings(),
        model=False,
        request=True,
        meaning="ends the answer before the string",
    ),
    Parameter(
        name="stop_token_ids",
        kind=StopTokens(),
        model=False,
        request=True,
        meaning="ends the answer before the token",
    ),
    Parameter(
        name="ignore_eos",
        kind=Flag(),
        default="false",
        model=False,
        request=True,
        meaning="go on when the model wants to end",
    ),
    Parameter(
        name="tools",
        kind=Document(),
        model=False,
        request=True,
        meaning="functions that the answer may call, as a JSON list in OpenAI's form",
    ),
    Parameter(
        name="tool_choice",
        kind=Text(),
        model=False,
        request=True,
        meaning="`none`, `auto`, `required` (at least one call) or `function:NAME` (that one)",
    ),
    Parameter(
        name="parallel_tool_calls",
        kind=Flag(),
        default="true",
        model=False,
        request=True,
        meaning="whether an answer may hold several calls",
    ),
    Parameter(
        name="json_schema",
        kind=Document(),
        model=False,
        request=True,
        meaning="the answer is JSON that this schema allows; a keyword that cannot be forced is "
        "refused by name",
    ),
    Parameter(
        name="regex",
        kind=Document(),
        model=False,
        request=True,
        meaning="the whole answer matches this regular expression",
    ),
    Parameter(
        name="grammar",
        kind=Document(),
        model=False,
        request=True,
        meaning="the answer follows this grammar (xgrammar's EBNF, whose first rule is `root`)",
    ),
    Parameter(
        name="structural_tag",
        kind=Document(),
        model=False,
        request=True,
        meaning="the answer follows this structural tag of xgrammar, as JSON",
    ),
)
