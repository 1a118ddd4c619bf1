"""The configuration models, one per command. Frozen; an unknown key is an error."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import re2
from pydantic import Field, StringConstraints, field_validator, model_validator

from config.hosts import AllowedHost, AllowedOrigin
from config.limits import RequestLimits
from config.model import Config
from config.monitor import MonitorConfig

AdapterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=128)]


def check_pattern(what: str, pattern: str) -> None:
    """Check that a regular expression can be matched in linear time, as servers do.

    Raises:
        ValueError: It cannot, or is none.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        re.compile(pattern)
        re2.compile(pattern.replace(r"\Z", r"\z"), options)
    except (re.error, RecursionError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{what} must be a regular expression: {error}") from None
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise ValueError(
            f"{what} cannot be matched in linear time ({reason}): write {pattern[:80]!r} without lookaround "
            r"((?=…), (?!…)) and backreferences (\1)."
        ) from None


class DataConfig(Config):
    """Source and split of a domain's examples."""

    source: Literal["icd10cm", "iso18245", "licensedcode", "jsonl"]
    path: Path | None = Field(None, description="JSONL file of `{input, output}` rows (with `source: jsonl`).")
    licence: str | None = Field(None, description="Licence of the data; default: the packaged source's own.")
    num_train: int = Field(2000, ge=1, description="Maximum number of training examples.")
    num_validation: int = Field(64, ge=1, description="Number of examples for early stopping.")
    num_test: int = Field(240, ge=1, description="Number of held-out examples; never trained on.")
    out_of_scope_share: float = Field(0.06, ge=0, lt=1, description="Share of inputs that must be refused.")
    max_input_chars: int = Field(400, ge=1, description="Longer inputs are truncated.")
    near_duplicate_jaccard: float = Field(
        0.8, gt=0, le=1, description="MinHash similarity at which a training example is dropped as a duplicate."
    )
    seed: int = 13

    @model_validator(mode="after")
    def _jsonl_needs_a_path(self) -> "DataConfig":
        if (self.source == "jsonl") != (self.path is not None):
            raise ValueError(f"`path` requires `source: jsonl`; got source {self.source!r}, path {self.path}")
        return self


class ChatConfig(Config):
    """How an example becomes a conversation."""

    system: str = Field(
        max_length=16_384,
        description="System prompt for training, evaluation and serving; clients need not send it.",
    )
    user: str = Field(
        "{input}",
        description="User turn; `{input}` is replaced by the input. The server does not apply it: clients send the "
        "whole turn.",
    )

    @model_validator(mode="after")
    def _user_has_the_input(self) -> "ChatConfig":
        if "{input}" not in self.user:
            raise ValueError(f"`user` must contain {{input}}; got {self.user!r}")
        return self


class AnswerConfig(Config):
    """Expected answer format of the domain."""

    json_schema: dict[str, Any] | None = Field(None, description="JSON schema of a valid answer.")
    refusal: str | None = Field(None, description="Expected answer to an out-of-scope input.")

    @field_validator("json_schema")
    @classmethod
    def _the_patterns_compile(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        nodes: list[Any] = [schema]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                by_pattern = node.get("patternProperties")
                for pattern in (node.get("pattern"), *(by_pattern if isinstance(by_pattern, dict) else ())):
                    if isinstance(pattern, str):
                        check_pattern("A pattern of json_schema", pattern)
            nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return schema


class RecipeConfig(Config):
    """LoRA and optimiser settings, in PEFT's and TRL's words."""

    lora_r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] | None = None
    init_lora_weights: bool | str = True
    learning_rate: float = Field(1e-3, gt=0)
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(0.05, ge=0, description="Warmup steps, or a share of all steps if below 1.")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_steps: int = Field(80, ge=1)
    per_device_train_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_length: int = Field(256, ge=16, description="Maximum tokens per example; longer ones are truncated.")
    eval_steps: int = Field(20, ge=1)
    early_stopping_patience: int = Field(
        2, ge=1, description="Evaluations without a better held-out loss before training stops."
    )
    seed: int = 13
    template_date: date | Literal["today", "varied"] = Field(
        "today",
        description="For bases whose chat template writes the date: `today` is the day on which the run begins; a date "
        "(2026-11-28) is fixed; `varied` gives each example another date within three years from today.",
    )


class EvaluationConfig(Config):
    """Generation and scoring of answers; also the default length and stop strings for clients."""

    metric: Literal["exact_match"] = "exact_match"
    max_new_tokens: int = Field(32, ge=1)
    stop: tuple[StopString, ...] = Field(
        (), max_length=4, description="Stop strings; they are included in the answer. vLLM accepts at most 4."
    )
    num_few_shot: int = Field(5, ge=0, description="Examples in the prompt of the few-shot baseline.")


class DefaultsConfig(Config):
    """Further defaults for evaluation and clients: see `DatasetManifest.request_fields`."""

    temperature: float = Field(
        0.0, ge=0, le=2, allow_inf_nan=False, description="0: greedy decoding, which suits exact match."
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    response_format: Literal["json_schema"] | None = Field(
        None, description="json_schema: constrain answers to `answer.json_schema`; this costs time per token."
    )


class GatesConfig(Config):
    """Conditions for promoting a new version to `stable` automatically."""

    min_gain: float = Field(
        0.0, description="Required gain: the adapter's score minus the base's on the held-out split."
    )
    min_valid_format: float = Field(0.0, ge=0, le=1)


class QualityConfig(Config):
    """Rules for judging canaries and answers of the domain; published with each version."""

    margin: float = Field(
        0.05, ge=0, lt=1, description="Non-inferiority margin of a canary's mean score on held-out questions."
    )
    max_error_increase: float = Field(0.02, ge=0, lt=1, description="Non-inferiority margin of its error rate.")
    max_slow_increase: float = Field(
        0.05, ge=0, lt=1, description="Non-inferiority margin of its share of slow requests."
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Maximum probability of a wrong promotion, and of a wrong rollback."
    )
    min_pairs: int = Field(20, ge=1, description="Minimum pairs of questions or requests per comparison.")
    max_hours: float = Field(24.0, gt=0, description="A canary without a verdict after this time is reported.")
    rubric: str | None = Field(None, min_length=1, description="Grading instructions for the judge.")
    answer_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Regular expression of a valid answer (RE2 syntax: no lookaround, no backreference).",
    )
    refusal: str | None = Field(None, description="Default: derived from `answer`.")
    publish_probes: bool = Field(
        True, description="Publish the held-out examples with the version, so that a server can replay them."
    )

    @field_validator("answer_pattern")
    @classmethod
    def _the_pattern_compiles(cls, pattern: str | None) -> str | None:
        check_pattern("answer_pattern", pattern or "")
        return pattern


class DomainConfig(Config):
    """`config/domains/<domain>.yaml`: everything that makes one adapter."""

    name: AdapterName
    description: str
    base: str = Field("smollm2-135m-nf4", description="Prepared base model: a folder in `var/bases`.")
    data: DataConfig
    chat: ChatConfig
    answer: AnswerConfig = AnswerConfig()
    recipe: RecipeConfig = RecipeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    defaults: DefaultsConfig = DefaultsConfig()
    gates: GatesConfig = GatesConfig()
    quality: QualityConfig = QualityConfig()

    @model_validator(mode="after")
    def _a_format_has_its_schema(self) -> "DomainConfig":
        if self.defaults.response_format and self.answer.json_schema is None:
            raise ValueError("`defaults.response_format: json_schema` requires a schema in `answer.json_schema`")
        return self


class ServeLimits(RequestLimits):
    """`limits` of `config/serve.yaml`: limits and defaults of requests."""

    default_max_tokens: int = Field(
        512,
        ge=1,
        description="Answer length in tokens if neither request nor version sets one; vLLM alone would fill the "
        "context.",
    )

    @model_validator(mode="after")
    def _the_default_answer_is_one_that_may_be_asked_for(self) -> "ServeLimits":
        self._let_default_follow("default_max_tokens", min(self.default_max_tokens, self.max_tokens))
        self._let_default_follow("max_tokens", max(self.default_max_tokens, self.max_tokens))
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(
                f"default_max_tokens {self.default_max_tokens} must be at most max_tokens {self.max_tokens}"
            )
        return self


class ServeConfig(Config):
    """`config/serve.yaml`: one server.

    A limit that is set works by itself: the defaults of the limits that it must agree with follow it. Only two values
    that were both set can contradict each other.
    """

    base: str = Field(description="Prepared base model: a folder in `var/bases`.")
    served_model_name: str = Field("base", description="Model name of the base for clients.")
    host: str = Field("127.0.0.1", description="Listen address. Any address beyond loopback requires API keys.")
    port: int = Field(8000, ge=0, le=65535)
    allowed_hosts: tuple[AllowedHost, ...] | None = Field(
        None,
        description="Additional `Host` names to accept, beside loopback names and `host`; '*': every name. null: none "
        "if `host` is loopback, else every name.",
    )
    cors_origins: tuple[AllowedOrigin, ...] = Field(
        (), description="Origins of web pages that may use this server from a browser (CORS), as https://app.example."
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Listen address of `metrics_port`.")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Separate port that serves only `/metrics`, without authentication. On `port`, `/metrics` requires "
        "an admin key if there are API keys.",
    )
    share_prefix_cache: bool = Field(
        False,
        description="Share the prefix cache between tenants. `cached_tokens` and the time to the first token then "
        "reveal to a tenant which prompts others have sent.",
    )
    max_loras: int = Field(
        16,
        ge=1,
        description="Adapters in one batch (vLLM `max_loras`). With our CPU operator slots take no memory; on a GPU "
        "each reserves that of an adapter of `max_lora_rank`: set a lower number there.",
    )
    max_cpu_loras: int = Field(
        64,
        ge=1,
        description="Adapters in host memory (vLLM `max_cpu_loras`): memory-mapped files on a CPU, pinned copies for a "
        "GPU.",
    )
    slot_turn_s: float | None = Field(
        0.5,
        gt=0,
        description="Minimum time that an adapter keeps its slot while others wait for one, seconds; its unfinished "
        "answers continue at its next turn. null: it keeps the slot until no request needs it.",
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    max_model_len: int = Field(2048, ge=16, description="Context length: tokens of prompt and answer together.")
    max_num_seqs: int = Field(
        32,
        ge=1,
        description="Sequences in one batch (vLLM `max_num_seqs`): a request takes one for each prompt and each of its "
        "`n` answers.",
    )
    max_num_batched_tokens: int = Field(
        2048, ge=16, description="Tokens in one engine step (vLLM `max_num_batched_tokens`)."
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=1 << 24,
        description="Size of the KV cache on a CPU, bytes. Default: enough for `max_num_seqs` sequences of full "
        "length, "
        "at most half of the free memory.",
    )
    staged_cache_bytes: int = Field(
        4 << 30,
        ge=0,
        description="Disk cache of versions converted to the engine's layout (`staged` in the state folder), bytes: "
        "later loads map these files. The least recently used are deleted. 0: no cache.",
    )
    cpu_base: Literal["bfloat16", "int8"] = Field(
        "bfloat16",
        description="Linear layers of the base on a CPU: as in training, or in 8 bits, weights and activations (W8A8), "
        "which is faster. Each adapter is still checked against its fingerprint.",
    )
    cpu_lora: Literal["native", "torch", "stock"] = Field(
        "native",
        description="Implementation of LoRA on a CPU: our C++ operator, plain torch, or vLLM's own, which computes "
        "wrong values if base and adapters share a batch.",
    )
    cpu_compile: bool = Field(
        True,
        description="torch.compile on a CPU, with `cpu_lora: native`: faster answers, but the first start takes two to "
        "three minutes longer. The compiled code is cached for later starts.",
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    parity_tolerance_nats: float = Field(
        0.25, gt=0, description="Maximum mean |log-probability difference| to the training stack, per token."
    )
    ready_timeout_s: float = Field(600.0, gt=0)
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Time for in-flight requests to finish at shutdown, seconds."
    )
    request_timeout_s: float = Field(
        600.0, gt=0, description="Maximum time from receiving the request's body to the last token, seconds."
    )
    engine_stall_timeout_s: float = Field(
        300.0,
        gt=0,
        description="An engine with requests that completes no step for this time is restarted, seconds; must exceed "
        "the duration of a step with `max_num_batched_tokens` of prompt.",
    )
    max_body_bytes: int = Field(
        512 << 10,
        ge=1024,
        description="Maximum size of a request body, bytes; larger ones get a 413. Raise it with `limits`.",
    )
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Maximum time to receive a request's body, seconds; slower ones get a 408. A body waits at most as "
        "long while others are read, then gets a 429.",
    )
    limits: ServeLimits = Field(default_factory=ServeLimits, description="Limits of a single request.")
    keys_file: Path | None = Field(
        None, description="API key file; default: `keys.json` in the state folder, if it exists."
    )
    max_waiting: int = Field(256, ge=0, description="Maximum number of queued requests.")
    max_wait_s: float = Field(60.0, gt=0, description="Maximum time in the queue, seconds; then a 429.")
    remote_store: str | None = Field(None, description="Remote adapter store to mirror, as s3://bucket/adapters.")
    remote_sync_s: float = Field(5.0, gt=0, description="Interval between polls of the remote store, seconds.")
    canary_probes: bool = Field(False, description="Replay golden prompts of resident versions continuously.")
    canary_probe_interval_s: float = Field(30.0, gt=0)
    tool_call_parser: str | None = Field(
        "hermes", description="vLLM's tool-call parser for the base's format; null: requests with `tools` are refused."
    )
    quality: MonitorConfig = Field(
        default_factory=MonitorConfig, description="The quality monitor: what it stores and decides."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OTLP/HTTP endpoint for traces, as http://127.0.0.1:4318/v1/traces.",
    )
    log_level: Literal["debug", "info", "warning"] = "info"
    log_format: Literal["human", "json"] = Field("human", description="json: one JSON object per line.")

    @model_validator(mode="after")
    def _metrics_have_a_port_of_their_own(self) -> "ServeConfig":
        if self.metrics_port is not None and self.metrics_port == self.port:
            raise ValueError(f"metrics_port {self.metrics_port} must differ from port; leave it out to use port alone")
        return self

    @model_validator(mode="after")
    def _host_memory_holds_the_slots(self) -> "ServeConfig":
        self._let_default_follow("max_loras", min(self.max_loras, self.max_cpu_loras))
        self._let_default_follow("max_cpu_loras", max(self.max_loras, self.max_cpu_loras))
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(f"max_cpu_loras {self.max_cpu_loras} must be at least max_loras {self.max_loras}")
        return self

    @model_validator(mode="after")
    def _a_step_has_a_token_for_each_request(self) -> "ServeConfig":
        wanted = self.limits.max_sequences if "max_sequences" in self.limits.model_fields_set else 0
        self._let_default_follow("max_num_batched_tokens", max(self.max_num_batched_tokens, wanted))
        self._let_default_follow("max_num_seqs", min(max(self.max_num_seqs, wanted), self.max_num_batched_tokens))
        self._let_default_follow("max_num_batched_tokens", max(self.max_num_seqs, self.max_num_batched_tokens))
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} must be at least max_num_seqs "
                f"{self.max_num_seqs}: each request of a batch takes a token of each step"
            )
        return self

    @model_validator(mode="after")
    def _a_request_fits_into_a_batch(self) -> "ServeConfig":
        limits = self.limits.model_copy()
        limits._let_default_follow("max_sequences", min(limits.max_sequences, self.max_num_seqs))
        object.__setattr__(self, "limits", limits)
        if limits.max_sequences > self.max_num_seqs:
            raise ValueError(
                f"limits.max_sequences {limits.max_sequences} must be at most max_num_seqs {self.max_num_seqs}"
            )
        return self

    @model_validator(mode="after")
    def _the_default_answer_fits_the_context(self) -> "ServeConfig":
        limits = self.limits
        self._let_default_follow("max_model_len", max(self.max_model_len, limits.default_max_tokens))
        if limits.default_max_tokens > self.max_model_len:
            limits = limits.model_copy()
            limits._let_default_follow("default_max_tokens", self.max_model_len)
            object.__setattr__(self, "limits", limits)
        if limits.default_max_tokens > self.max_model_len:
            raise ValueError(
                f"limits.default_max_tokens {limits.default_max_tokens} must be at most max_model_len "
                f"{self.max_model_len}"
            )
        return self
