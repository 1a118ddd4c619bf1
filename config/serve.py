"""`config/serve.yaml`: one server. Frozen; an unknown key is an error."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from config.cluster import AutoscalingConfig
from config.hosts import AllowedHost, AllowedOrigin
from config.jobs import JobsConfig
from config.limits import RequestLimits
from config.model import Config
from config.monitor import PRIVACIES_WITH_TEXT, MonitorConfig


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
    max_connections: int = Field(
        1000,
        ge=1,
        description="Maximum open connections of clients; each further one gets a 503, but for `/health`, `/ready` and "
        "`/metrics`. Each takes a file descriptor: above some 900 raise `ulimit -n`, too, where it is 1024.",
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
    golden_replay: bool = Field(False, description="Replay golden prompts of resident versions continuously.")
    golden_replay_interval_s: float = Field(30.0, gt=0)
    tool_call_parser: str | None = Field(
        "hermes", description="vLLM's tool-call parser for the base's format; null: requests with `tools` are refused."
    )
    quality: MonitorConfig = Field(
        default_factory=MonitorConfig, description="The quality monitor: what it stores and decides."
    )
    jobs: JobsConfig = Field(default_factory=JobsConfig, description="Files, fine-tuning jobs and batches of clients.")
    autoscaling: AutoscalingConfig = Field(
        default_factory=AutoscalingConfig,
        description="With `--cluster ray` and `--max-replicas`: when replicas come and go.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OTLP/HTTP endpoint for traces, as http://127.0.0.1:4318/v1/traces; its /v1/logs gets evaluations.",
    )
    log_level: Literal["debug", "info", "warning"] = "info"
    log_format: Literal["human", "json"] = Field("human", description="json: one JSON object per line.")

    @model_validator(mode="after")
    def _metrics_have_a_port_of_their_own(self) -> "ServeConfig":
        if self.metrics_port is not None and self.metrics_port == self.port:
            raise ValueError(f"metrics_port {self.metrics_port} must differ from port; leave it out to use port alone")
        return self

    @model_validator(mode="after")
    def _scheduled_trainings_have_corrections(self) -> "ServeConfig":
        if self.jobs.schedule and self.quality.privacy not in PRIVACIES_WITH_TEXT:
            raise ValueError(
                f"`jobs.schedule` requires corrections, which `quality.privacy: redacted` or `full` stores; got "
                f"{self.quality.privacy!r}"
            )
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
