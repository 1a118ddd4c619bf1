"""The limits that a canary must meet. The one module that other leaves share; it imports nothing of ours."""

from pydantic import BaseModel, ConfigDict, Field


class CanaryPolicy(BaseModel):
    """Limits of a canary beside stable, and the confidence: a domain's settings, published with each version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(
        0.05, ge=0, lt=1, description="Non-inferiority margin of a canary's mean score on held-out questions."
    )
    max_error_increase: float = Field(0.02, ge=0, lt=1, description="Non-inferiority margin of its error rate.")
    max_slow_increase: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Non-inferiority margin of its share of slow requests; of stable's, 0.05 are slow by definition.",
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Maximum probability of a wrong promotion, and of a wrong rollback."
    )
    min_pairs: int = Field(20, ge=1, description="Minimum pairs of questions or requests per comparison.")
    max_hours: float = Field(24.0, gt=0, description="A canary without a verdict after this time is reported.")
