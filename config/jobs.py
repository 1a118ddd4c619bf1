"""`jobs` in `config/serve.yaml`: files, fine-tuning jobs and batches of clients."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from config.model import Config


class ScheduleConfig(Config):
    """When an adapter is retrained automatically, from `NAME@stable` and with users' feedback on its answers."""

    after_corrections: int = Field(
        200,
        ge=1,
        description="Number of new corrections since the last scheduled training that starts one. Those of one user "
        "count up to `max_user_share` of all.",
    )
    every_hours: float = Field(24.0, gt=0, description="Minimum time between two scheduled trainings, hours.")
    domain: Path | None = Field(
        None,
        description="The adapter's domain file (YAML): recipe, gates and metrics. Default: `config/domains/NAME.yaml`.",
    )
    kind: Literal["sft", "preference"] = Field(
        "sft", description="Train on corrected answers, or on pairs of a better and a worse one (`dpo`)."
    )
    min_score: float = Field(0.75, gt=0, le=1, description="Minimum score of a good answer, 0 to 1.")
    max_user_share: float = Field(
        0.05, gt=0, le=1, description="Maximum share of the rows that rest on one user's votes alone."
    )
    canary_weight: float | None = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the requests that go to the new version while it is a canary. null: it gets copies of "
        "requests only (shadow).",
    )


class JobsConfig(Config):
    """Limits on what clients store and train, and on the resources of training."""

    enabled: bool = Field(
        True,
        description="Serve files, fine-tuning jobs and batches. On a server with API keys, the key must be allowed to "
        "train (`lorikeet keys create --train`).",
    )
    worker: bool = Field(
        True, description="Start a worker process with the server. false: start `lorikeet worker` yourself."
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores for a training. null: half of the cores, at least one.")
    memory_bytes: int | None = Field(
        None,
        ge=1 << 28,
        description="Maximum resident memory of a training, bytes; above it the job fails. null: no limit.",
    )
    gpu_memory: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of a GPU's memory that must be free before a job starts there. null: 0.9, "
        "as on a GPU that no server uses.",
    )
    yield_at: float | None = Field(
        2.0,
        gt=1,
        description="Pause training at a checkpoint while clients' p99 inter-token latency is this many times "
        "the latency without training. null: never.",
    )
    grader_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OpenAI-compatible base URL of the models that `score_model` graders call, e.g. "
        "http://127.0.0.1:8001/v1. null: this server.",
    )
    max_file_bytes: int = Field(512 << 20, ge=1, description="Maximum size of a file, bytes.")
    max_bytes_per_tenant: int = Field(
        10 << 30, ge=1, description="Maximum size of all files of a tenant together, bytes."
    )
    max_jobs_per_tenant: int = Field(
        20, ge=1, description="Maximum number of a tenant's unfinished fine-tuning jobs, and of its unfinished batches."
    )
    max_training_s_per_day: float | None = Field(
        None, gt=0, description="Maximum training time of a tenant per day, seconds; further jobs wait. null: no limit."
    )
    file_expiry_s: int | None = Field(
        None,
        ge=3600,
        description="Delete files after this time, seconds, unless the upload sets `expires_after`. null: never.",
    )
    keep_days: int | None = Field(
        30,
        ge=1,
        description="How long events and result files of ended jobs, and output files of ended batches, are kept, "
        "days. null: always. Published versions stay.",
    )
    schedule: dict[str, ScheduleConfig] = Field(
        default_factory=dict,
        description="Scheduled training by adapter: starts once enough corrections are stored.",
    )
