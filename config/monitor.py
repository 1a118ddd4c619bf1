"""`quality` of `config/serve.yaml`: what the quality monitor stores and decides."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.model import Config

Share = Annotated[float, Field(ge=0, le=1)]
Privacy = Literal["none", "features", "redacted", "full"]
VerdictMode = Literal["off", "dry_run", "act"]

PRIVACIES_WITH_TEXT: tuple[Privacy, ...] = ("redacted", "full")


class JudgeConfig(Config):
    """The model that grades sampled answers, and its request limits."""

    url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OpenAI-compatible base URL, as http://127.0.0.1:8001/v1; null: this server's own base model.",
    )
    model: str | None = Field(
        None, min_length=1, description="Model name of the judge at that URL; null if there is no URL."
    )
    api_key_env: str | None = Field(
        None, min_length=1, description="Environment variable that holds the judge's API key."
    )
    sample_rate: Share = Field(0.1, description="Share of the samples with text to grade.")
    requests_per_minute: float = Field(
        30.0, gt=0, description="Maximum requests to the judge per minute, including retries."
    )
    tokens_per_day: int = Field(1_000_000, ge=1, description="Maximum prompt and completion tokens per UTC day.")
    timeout_s: float = Field(60.0, gt=0, description="Timeout of one request to the judge, seconds.")
    max_attempts: int = Field(3, ge=1, description="Attempts per grade, including the first.")
    pairwise: bool = Field(False, description="Also ask which is better: a canary's answer or stable's.")
    min_labels: int = Field(30, ge=2, description="Human labels needed before the judge's scores count as calibrated.")

    @model_validator(mode="after")
    def _a_judge_elsewhere_has_a_name(self) -> "JudgeConfig":
        if (self.url is None) != (self.model is None):
            raise ValueError(f"`model` and `url` must be set together; got url {self.url!r}, model {self.model!r}")
        if self.url is None and self.api_key_env is not None:
            raise ValueError(f"`api_key_env` requires `url`; got {self.api_key_env!r} and no url")
        return self


class MonitorConfig(Config):
    """The quality monitor: signals and samples of traffic, held-out questions, drift, verdicts on canaries, a judge."""

    enabled: bool = Field(True, description="False: nothing is stored, asked or decided.")
    privacy: Privacy = Field(
        "features",
        description="What samples contain: none (no samples), features (numbers), redacted (text without the personal "
        "data that patterns find), full (text).",
    )
    sample_rate: Share = Field(0.1, description="Share of the answers to store as samples.")
    rates: dict[str, Share] = Field(
        default_factory=dict,
        description="Sample rates by adapter name (the base by its served name), instead of `sample_rate`.",
    )
    reservoir: int = Field(20, ge=1, description="Maximum samples per adapter version and minute.")
    retention_days: float = Field(
        30.0, gt=0, description="Retention of samples, grades, labels, scores, drift checks and evidence, days."
    )
    most_samples: int = Field(100_000, ge=1, description="Maximum number of samples; the oldest are deleted.")
    logprob_rate: Share = Field(
        1.0, description="Share of the answers for which log-probabilities are requested from the engine."
    )
    held_out_interval_s: float = Field(
        10.0, gt=0, description="Interval between rounds of held-out questions, seconds."
    )
    held_out_patience_s: float = Field(
        60.0,
        ge=0,
        description="Maximum time that a round of held-out questions waits for idle clients, seconds; a canary's never "
        "wait.",
    )
    held_out_at_once: int = Field(2, ge=1, description="Maximum held-out questions in the engine at a time.")
    held_out_again_hours: float = Field(
        24.0, gt=0, description="Interval before a version is asked the same held-out question again, hours."
    )
    drift_window: int = Field(100, ge=10, description="Exchanges per drift check.")
    drift_alpha: float = Field(
        0.01, gt=0, lt=1, description="Probability of ever reporting drift on a stream that has not drifted."
    )
    drift_embedding: str | None = Field(
        None,
        min_length=1,
        description="Sentence-embedding model for drift in meaning: minilm (extra `embeddings`), a folder, or a model "
        "name on the Hugging Face Hub; null: none.",
    )
    verdict: VerdictMode = Field(
        "dry_run",
        description="Effect of a verdict on a canary: `off` judges nothing, `dry_run` only reports it, `act` moves the "
        "alias.",
    )
    verdict_interval_s: float = Field(5.0, gt=0, description="Interval between verdicts on a canary, seconds.")
    judge: JudgeConfig | None = Field(None, description="null: no judge.")

    @model_validator(mode="after")
    def _a_judge_has_something_to_read(self) -> "MonitorConfig":
        if self.judge is not None and self.privacy not in PRIVACIES_WITH_TEXT:
            raise ValueError(
                f"`judge` requires samples with text (`privacy: redacted` or `full`); got {self.privacy!r}"
            )
        return self

    def rate_of(self, adapter: str) -> float:
        """The share of an adapter's answers that are kept."""
        return self.rates.get(adapter, self.sample_rate)
