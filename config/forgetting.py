"""`evaluation.forgetting` and `evaluation.overfitting` of a domain: what is measured beside its own questions."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from config.model import Config

TextName = Literal["prose", "news", "dialogue", "code", "german"]
TaskName = Literal["arithmetic", "cloze", "instructions"]
DomainName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class ForgettingConfig(Config):
    """What the base could do and the adapter may have lost (docs/evaluation.md)."""

    texts: tuple[TextName, ...] = Field(
        ("prose", "news", "dialogue", "code", "german"), description="General texts; their likelihood is measured."
    )
    tasks: tuple[TaskName, ...] = Field(
        ("arithmetic", "cloze", "instructions"), description="General tasks, generated with a seed."
    )
    other_domains: Literal["auto", "none"] | tuple[DomainName, ...] = Field(
        "auto", description="Built data sets whose held-out questions are asked; auto: the first three by name."
    )
    num_questions: int = Field(16, ge=1, description="Maximum number of questions of each task and other domain.")


class OverfittingConfig(Config):
    """Training rows beside held-out ones (docs/evaluation.md)."""

    num_rows: int = Field(
        16, ge=0, description="Training rows, and as many held-out ones, that are asked; 0: not measured."
    )
