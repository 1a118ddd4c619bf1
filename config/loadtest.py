"""`config/loadtest.yaml`: one load test. Requests, models, arrival times and end."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.domain import AdapterName
from config.model import Config


class PoissonArrival(Config):
    """Poisson arrivals: independent users, exponential gaps."""

    kind: Literal["poisson"] = "poisson"
    rate: float = Field(1.0, gt=0, description="Requests per second.")


class GammaArrival(Config):
    """Bursty arrivals: gamma gaps, named as in `vllm bench serve`."""

    kind: Literal["gamma"]
    rate: float = Field(gt=0, description="Requests per second.")
    burstiness: float = Field(
        gt=0, description="Shape of the gamma distribution: 1 is Poisson, below 1 bursty, above 1 more regular."
    )


class ConstantArrival(Config):
    """A metronome."""

    kind: Literal["constant"]
    rate: float = Field(gt=0, description="Requests per second.")


class RateStep(Config):
    rate: float = Field(gt=0, description="Requests per second.")
    duration_s: float = Field(gt=0)


class StepArrival(Config):
    """Poisson arrivals whose rate changes in steps. The run ends with the last step."""

    kind: Literal["step"]
    steps: tuple[RateStep, ...] = Field(min_length=1)


class RampArrival(Config):
    """Poisson arrivals whose rate changes linearly until the end of the run."""

    kind: Literal["ramp"]
    rate_from: float = Field(gt=0, description="Requests per second at the start.")
    rate_to: float = Field(gt=0, description="Requests per second at `duration_s`.")


class TraceArrival(Config):
    """Replay: a CSV or JSONL file with `time_s`, and optionally `model`, `prompt`, `max_tokens`."""

    kind: Literal["trace"]
    path: Path
    speed: float = Field(1.0, gt=0, description="Speed-up: 2 replays in half the time.")


class ClosedArrival(Config):
    """Closed loop: a fixed number of users; each waits for an answer before sending the next request."""

    kind: Literal["closed"]
    concurrency: int = Field(ge=1, le=4096)


Arrival = Annotated[
    PoissonArrival | GammaArrival | ConstantArrival | StepArrival | RampArrival | TraceArrival | ClosedArrival,
    Field(discriminator="kind"),
]


class ZipfPopularity(Config):
    """The adapter of rank k gets requests in proportion to 1 / k**s."""

    kind: Literal["zipf"]
    s: float = Field(1.0, ge=0)


class UniformPopularity(Config):
    kind: Literal["uniform"] = "uniform"


class WeightedPopularity(Config):
    kind: Literal["weights"]
    weights: tuple[float, ...] = Field(min_length=1, description="One weight per model, in the order of `models`.")


class HotSetPopularity(Config):
    """A small, changing set of adapters gets most requests: the worst case for a cache with eviction."""

    kind: Literal["hot_set"]
    size: int = Field(ge=1, description="Number of hot adapters at a time.")
    share: float = Field(0.9, gt=0, le=1, description="Share of requests for the hot adapters.")
    rotate_after: int = Field(
        100, ge=1, description="Number of requests after which the hot set moves to the next adapters."
    )


class OneShotPopularity(Config):
    """Each adapter gets one request, in order, so that every request is a cold start; then the run ends."""

    kind: Literal["one_shot"]


Popularity = Annotated[
    ZipfPopularity | UniformPopularity | WeightedPopularity | HotSetPopularity | OneShotPopularity,
    Field(discriminator="kind"),
]


class MixConfig(Config):
    """Which model each request asks for."""

    models: tuple[str, ...] = Field(min_length=1, description="Model references, the most popular first.")
    popularity: Popularity = UniformPopularity()
    base: str | None = Field(None, description="The base model's served name, for `base_share`.")
    base_share: float = Field(0.0, ge=0, le=1, description="Share of requests for the base model.")

    @model_validator(mode="after")
    def _shares_can_be_served(self) -> "MixConfig":
        if self.base_share and self.base is None:
            raise ValueError(f"base_share {self.base_share} needs `base`, the base model's served name")
        popularity = self.popularity
        if isinstance(popularity, WeightedPopularity) and len(popularity.weights) != len(self.models):
            raise ValueError(f"got {len(popularity.weights)} weights for {len(self.models)} models; give one each")
        if isinstance(popularity, WeightedPopularity) and (min(popularity.weights) < 0 or sum(popularity.weights) == 0):
            raise ValueError(f"weights must not be negative nor all zero; got {popularity.weights}")
        if isinstance(popularity, HotSetPopularity) and popularity.size > len(self.models):
            raise ValueError(f"a hot set of {popularity.size} needs at least that many models; got {len(self.models)}")
        return self


class FixedLength(Config):
    kind: Literal["fixed"] = "fixed"
    value: int = Field(ge=1)


class UniformLength(Config):
    kind: Literal["uniform"]
    low: int = Field(ge=1)
    high: int = Field(ge=1)

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "UniformLength":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class LognormalLength(Config):
    """Log-normal lengths: many short, a few long, like human input."""

    kind: Literal["lognormal"]
    median: float = Field(ge=1)
    sigma: float = Field(0.5, ge=0, description="Standard deviation of the logarithm.")
    max: int = Field(ge=1, description="Maximum; longer draws are truncated.")


Length = Annotated[FixedLength | UniformLength | LognormalLength, Field(discriminator="kind")]


class SyntheticPrompts(Config):
    """Random words from a fixed list, about one token each; prompts do not repeat."""

    kind: Literal["synthetic"] = "synthetic"
    num_words: Length = FixedLength(value=32)
    shared_prefix_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of each prompt that is a prefix common to all requests for a model.",
    )


class DatasetPrompts(Config):
    """Prompts of a built data set's test split, in the form used in training."""

    kind: Literal["dataset"]
    domain: AdapterName | None = Field(None, description="Data set; default: that of each adapter's own domain.")


Prompts = Annotated[SyntheticPrompts | DatasetPrompts, Field(discriminator="kind")]


class LoadtestConfig(Config):
    """One load test. It ends at `duration_s` or `num_requests`, whichever comes first."""

    url: str = Field("http://127.0.0.1:8000/v1", description="OpenAI-compatible endpoint.")
    mix: MixConfig
    arrival: Arrival = PoissonArrival()
    duration_s: float = Field(60.0, gt=0, le=86_400, description="Duration of sending, seconds.")
    num_requests: int = Field(10_000, ge=1, le=10_000_000, description="Most requests.")
    prompts: Prompts = SyntheticPrompts()
    max_tokens: Length | None = Field(
        None, description="Length of answers in tokens. Default: 32, or the data set's evaluation setting."
    )
    ignore_eos: bool = Field(
        True,
        description="Keep answers from ending early (vLLM, SGLang). Set false for servers that reject the field.",
    )
    return_token_ids: bool = Field(
        False,
        description="Request a chunk for every token, even one without text (vLLM): ITL is then between tokens.",
    )
    request_timeout_s: float = Field(120.0, gt=0, description="Timeout per request, counted from sending, seconds.")
    drain_timeout_s: float = Field(
        60.0, ge=0, description="Time limit for open requests after the last one was sent, seconds."
    )
    seed: int = 13
