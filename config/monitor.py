"""`quality` of `config/serve.yaml`: what the server keeps of its traffic, and what it decides from it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.model import Config

Share = Annotated[float, Field(ge=0, le=1)]
Privacy = Literal["none", "features", "redacted", "full"]
VerdictMode = Literal["off", "dry_run", "act"]

PRIVACIES_WITH_TEXT: tuple[Privacy, ...] = ("redacted", "full")


class JudgeConfig(Config):
    """The model that grades sampled answers, and how much it may be asked."""

    url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OpenAI-compatible base URL, as http://127.0.0.1:8001/v1; null: this server's own base model.",
    )
    model: str | None = Field(None, min_length=1, description="The judge's name at that URL; null without one.")
    api_key_env: str | None = Field(
        None, min_length=1, description="Environment variable that holds the judge's API key."
    )
    sample_rate: Share = Field(0.1, description="Share of the samples with text that are graded.")
    requests_per_minute: float = Field(30.0, gt=0, description="Most requests to the judge, retries among them.")
    tokens_per_day: int = Field(1_000_000, ge=1, description="Most tokens of prompts and answers, per UTC day.")
    timeout_s: float = Field(60.0, gt=0, description="Longest wait for one answer of the judge.")
    max_attempts: int = Field(3, ge=1, description="Tries of one grade, the first among them.")
    pairwise: bool = Field(False, description="Also ask which is better, a canary's answer or stable's.")
    min_labels: int = Field(30, ge=2, description="Labels by people before the judge's scores count as calibrated.")

    @model_validator(mode="after")
    def _a_judge_elsewhere_has_a_name(self) -> "JudgeConfig":
        if (self.url is None) != (self.model is None):
            raise ValueError(f"`model` goes with `url`; got url {self.url!r}, model {self.model!r}")
        if self.url is None and self.api_key_env is not None:
            raise ValueError(f"`api_key_env` goes with `url`; got {self.api_key_env!r} and no url")
        return self


class MonitorConfig(Config):
    """The quality monitor: signals and samples of traffic, probes, drift, verdicts on canaries, a judge."""

    enabled: bool = Field(True, description="False: nothing is kept, probed or decided.")
    privacy: Privacy = Field(
        "features",
        description="What a sample keeps: none (no samples), features (numbers), redacted (text without what patterns "
        "find of people), full (text).",
    )
    sample_rate: Share = Field(0.1, description="Share of the answers that are kept as samples.")
    rates: dict[str, Share] = Field(
        default_factory=dict, description="Other shares, by adapter name; the base's by its served name."
    )
    reservoir: int = Field(20, ge=1, description="Samples per adapter version and minute at most.")
    retention_days: float = Field(
        30.0, gt=0, description="Older samples, grades, labels, scores, looks and evidence go."
    )
    most_samples: int = Field(100_000, ge=1, description="Samples at most; the oldest go.")
    logprob_rate: Share = Field(
        1.0, description="Share of the answers whose log-probabilities the engine is asked for."
    )
    probe_interval_s: float = Field(10.0, gt=0, description="Time between two rounds of held-out probes, seconds.")
    probe_patience_s: float = Field(
        60.0,
        ge=0,
        description="Longest wait of a round of held-out probes for a pause of the clients, seconds; a canary's never "
        "wait for one.",
    )
    probes_at_once: int = Field(2, ge=1, description="Held-out probes in the engine at most.")
    probe_again_hours: float = Field(
        24.0, gt=0, description="A version is asked the same held-out probe again after so long."
    )
    drift_window: int = Field(100, ge=10, description="Exchanges of one look at drift.")
    drift_alpha: float = Field(
        0.01, gt=0, lt=1, description="Probability of ever calling a stream drifting that is not."
    )
    drift_embedding: str | None = Field(
        None,
        min_length=1,
        description="Sentence-embedding model that tells what exchanges are about: minilm (extra `embeddings`), a "
        "folder, or a hub's name; null: none.",
    )
    verdict: VerdictMode = Field(
        "dry_run", description="What follows from a verdict: nothing is judged, it is told, or the alias moves."
    )
    verdict_interval_s: float = Field(5.0, gt=0, description="Time between two verdicts on a canary, seconds.")
    judge: JudgeConfig | None = Field(None, description="null: no judge.")

    @model_validator(mode="after")
    def _a_judge_has_something_to_read(self) -> "MonitorConfig":
        if self.judge is not None and self.privacy not in PRIVACIES_WITH_TEXT:
            raise ValueError(f"`judge` needs samples with text: privacy redacted or full; got {self.privacy!r}")
        return self

    def rate_of(self, adapter: str) -> float:
        """The share of an adapter's answers that are kept."""
        return self.rates.get(adapter, self.sample_rate)
