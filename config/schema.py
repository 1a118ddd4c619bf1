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
    """Do nothing where a regular expression can be matched in linear time, as servers match it.

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
    """Where a domain's examples come from, and how they are split."""

    source: Literal["icd10cm", "iso18245", "licensedcode", "jsonl"]
    path: Path | None = Field(None, description="JSONL file of `{input, output}` rows (source: jsonl).")
    licence: str | None = Field(None, description="Licence of the data (packaged sources know theirs).")
    num_train: int = Field(2000, ge=1, description="Most training examples.")
    num_validation: int = Field(64, ge=1, description="Examples for early stopping.")
    num_test: int = Field(240, ge=1, description="Held-out examples; never trained on.")
    out_of_scope_share: float = Field(0.06, ge=0, lt=1, description="Share of inputs that must be refused.")
    max_input_chars: int = Field(400, ge=1, description="Longer inputs are cut.")
    near_duplicate_jaccard: float = Field(
        0.8, gt=0, le=1, description="MinHash similarity from which a training example is dropped."
    )
    seed: int = 13

    @model_validator(mode="after")
    def _jsonl_needs_a_path(self) -> "DataConfig":
        if (self.source == "jsonl") != (self.path is not None):
            raise ValueError(f"`path` goes with `source: jsonl`; got source {self.source!r}, path {self.path}")
        return self


class ChatConfig(Config):
    """How an example becomes a conversation."""

    system: str = Field(
        max_length=16_384,
        description="System prompt, the same in training, evaluation and use; clients need not send it.",
    )
    user: str = Field(
        "{input}", description="User turn; `{input}` is replaced. No server does that: clients send the whole turn."
    )

    @model_validator(mode="after")
    def _user_has_the_input(self) -> "ChatConfig":
        if "{input}" not in self.user:
            raise ValueError(f"`user` must contain {{input}}; got {self.user!r}")
        return self


class AnswerConfig(Config):
    """What a valid answer looks like."""

    json_schema: dict[str, Any] | None = Field(None, description="JSON schema of a valid answer.")
    refusal: str | None = Field(None, description="The agreed answer to an out-of-scope input.")

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
    warmup_steps: float = Field(0.05, ge=0, description="Steps, or a share of them when below 1.")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_steps: int = Field(80, ge=1)
    per_device_train_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_length: int = Field(256, ge=16, description="Tokens per example; longer ones are cut.")
    eval_steps: int = Field(20, ge=1)
    early_stopping_patience: int = Field(2, ge=1, description="Evaluations without a better held-out loss.")
    seed: int = 13
    template_date: date | Literal["today", "varied"] = Field(
        "today",
        description="For bases whose chat template writes the date: that of the day on which the run begins, this one "
        "(2026-11-28), or another one for each example, of the three years from that day on.",
    )


class EvaluationConfig(Config):
    """How answers are made and scored; clients get the same length and stop strings where they name none."""

    metric: Literal["exact_match"] = "exact_match"
    max_new_tokens: int = Field(32, ge=1)
    stop: tuple[StopString, ...] = Field(
        (), max_length=4, description="Strings that end an answer; they stay in it. vLLM takes at most 4."
    )
    num_few_shot: int = Field(5, ge=0, description="Examples in the prompt of the few-shot baseline.")


class DefaultsConfig(Config):
    """What evaluation and clients get beyond `chat.system` and `evaluation`: see `DatasetManifest.request_fields`."""

    temperature: float = Field(
        0.0, ge=0, le=2, allow_inf_nan=False, description="0: greedy, as exact match is best scored."
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    response_format: Literal["json_schema"] | None = Field(
        None, description="json_schema: hold answers to `answer.json_schema`; it costs time per token."
    )


class GatesConfig(Config):
    """What a version must reach before `stable` moves to it by itself."""

    min_gain: float = Field(0.0, description="Adapter's score minus the base's on the held-out split.")
    min_valid_format: float = Field(0.0, ge=0, le=1)


class QualityConfig(Config):
    """How canaries of the domain are judged, and what its answers are held against; it travels with each version."""

    margin: float = Field(0.05, ge=0, lt=1, description="A canary's mean probe score may be lower by less than this.")
    max_error_increase: float = Field(0.02, ge=0, lt=1, description="Its error rate may be higher by less than this.")
    max_slow_increase: float = Field(
        0.05, ge=0, lt=1, description="Its share of slow requests may be higher by less than this."
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Most probability of a wrong promotion, and of a wrong rollback."
    )
    min_pairs: int = Field(20, ge=1, description="Pairs of questions or requests that each comparison needs.")
    max_hours: float = Field(24.0, gt=0, description="A canary that has proven nothing by then is reported.")
    rubric: str | None = Field(None, min_length=1, description="What a judge grades answers by.")
    answer_pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Regular expression of a valid answer, for RE2: no lookaround, no backreference.",
    )
    refusal: str | None = Field(None, description="By default that of `answer`.")
    publish_probes: bool = Field(
        True, description="Put the held-out examples into the version, where a server asks them again."
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
    base: str = Field("smollm2-135m-nf4", description="Prepared base, a folder of `var/bases`.")
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
            raise ValueError("`defaults.response_format: json_schema` needs a schema in `answer.json_schema`")
        return self


class ServeLimits(RequestLimits):
    """`limits` of `config/serve.yaml`: what a request may ask for, and what it gets where it does not say."""

    default_max_tokens: int = Field(
        512,
        ge=1,
        description="Tokens of an answer whose length neither request nor version names; vLLM would fill the context.",
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

    base: str = Field(description="Prepared base, a folder of `var/bases`.")
    served_model_name: str = Field("base", description="The base model's name for clients.")
    host: str = Field("127.0.0.1", description="Loopback; another one needs API keys.")
    port: int = Field(8000, ge=0, le=65535)
    allowed_hosts: tuple[AllowedHost, ...] | None = Field(
        None,
        description="Further `Host` names that requests may be sent to, beside loopback names and `host`; '*': every "
        "name. null: none where `host` is loopback, every name elsewhere.",
    )
    cors_origins: tuple[AllowedOrigin, ...] = Field(
        (), description="Web pages that may use this server from a browser (CORS), as https://app.example."
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Where `metrics_port` listens.")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="A port that serves `/metrics` alone, without a key. On `port` it needs an admin key where there "
        "are API keys.",
    )
    share_prefix_cache: bool = Field(
        False,
        description="Let tenants reuse each other's cached prompts. `cached_tokens` and the time to the first token "
        "then tell a tenant what others have sent.",
    )
    max_loras: int = Field(
        16,
        ge=1,
        description="Adapters in one batch, vLLM's name. On a CPU our operator's slots take no room; on a GPU each "
        "takes that of an adapter of `max_lora_rank`: set fewer there.",
    )
    max_cpu_loras: int = Field(
        64, ge=1, description="Adapters kept in host memory: on a CPU mapped files, for a GPU pinned copies."
    )
    slot_turn_s: float | None = Field(
        0.5,
        gt=0,
        description="How long an adapter keeps its slot at least, seconds, while others wait for one; then it gives "
        "way, and its answers go on after the next turn. null: it keeps it until nobody asks for it any more.",
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    max_model_len: int = Field(2048, ge=16, description="Context length: tokens of prompt and answer together.")
    max_num_seqs: int = Field(
        32, ge=1, description="Sequences in one batch: a request takes one for each prompt and each of its `n` answers."
    )
    max_num_batched_tokens: int = Field(2048, ge=16, description="Tokens in one engine step.")
    kv_cache_bytes: int | None = Field(
        None,
        ge=1 << 24,
        description="KV cache on a CPU, bytes; by default what `max_num_seqs` of full length need, at most half of the "
        "free memory.",
    )
    staged_cache_bytes: int = Field(
        4 << 30,
        ge=0,
        description="Disk for versions in the layout that the engine takes (`staged` in the state folder): a later "
        "load then maps a file instead of converting one. The least recently used go. 0: none.",
    )
    cpu_base: Literal["bfloat16", "int8"] = Field(
        "bfloat16",
        description="The base's linear layers on a CPU: as trained on, or rounded to 8 bits, weights and activations "
        "(W8A8), which is faster; every adapter is still held against its fingerprint.",
    )
    cpu_lora: Literal["native", "torch", "stock"] = Field(
        "native",
        description="What computes LoRA on a CPU: our C++ operator, plain torch, or vLLM itself, which is wrong where "
        "base and adapters share a batch.",
    )
    cpu_compile: bool = Field(
        True,
        description="torch.compile on a CPU, with `cpu_lora: native`: faster answers, and a first start that takes two "
        "to three minutes more. The compiled code is kept for later starts.",
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    parity_tolerance_nats: float = Field(
        0.25, gt=0, description="Most mean |log-probability difference| to the training stack, per token."
    )
    ready_timeout_s: float = Field(600.0, gt=0)
    drain_timeout_s: float = Field(30.0, ge=0, description="Time in-flight requests get at shutdown, seconds.")
    request_timeout_s: float = Field(
        600.0, gt=0, description="Longest time from a request, once its body is there, to the last token."
    )
    engine_stall_timeout_s: float = Field(
        300.0,
        gt=0,
        description="An engine that has requests and makes no step for so long is ended and started again, seconds; "
        "longer than a step with `max_num_batched_tokens` of prompt takes.",
    )
    max_body_bytes: int = Field(
        512 << 10, ge=1024, description="Largest request body, bytes; then a 413. Raise it with `limits`."
    )
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Longest time until a request's body is there, seconds; then a 408. A body waits as long at most "
        "while others are read; then a 429.",
    )
    limits: ServeLimits = Field(default_factory=ServeLimits, description="How much one request may ask for.")
    keys_file: Path | None = Field(None, description="API keys; by default `keys.json` of the state folder, if there.")
    max_waiting: int = Field(256, ge=0, description="Requests that wait for a place in the engine.")
    max_wait_s: float = Field(60.0, gt=0, description="Longest wait for a place; then a 429.")
    remote_store: str | None = Field(None, description="Store to mirror, e.g. s3://bucket/adapters.")
    remote_sync_s: float = Field(5.0, gt=0, description="Time between two looks at the remote store.")
    canary_probes: bool = Field(False, description="Replay golden prompts of resident versions, for ever.")
    canary_probe_interval_s: float = Field(30.0, gt=0)
    tool_call_parser: str | None = Field(
        "hermes", description="vLLM's parser of tool calls, by the base's format; null refuses `tools`."
    )
    quality: MonitorConfig = Field(
        default_factory=MonitorConfig, description="What is kept of the traffic, and what is decided from it."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Where a trace of each request goes (OTLP over HTTP), as http://127.0.0.1:4318/v1/traces.",
    )
    log_level: Literal["debug", "info", "warning"] = "info"
    log_format: Literal["human", "json"] = Field("human", description="json: one object a line, for machines.")

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
