"""The body of `POST /v1/fine_tuning/jobs`: OpenAI's fields, and the extension `lorikeet`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from config.graders import GraderConfig, ScoreModelGrader, single_graders

MAX_METADATA = 16
_ADDITIONS = frozenset({"alias", "domain", "gates"})

Auto = Literal["auto"]
_NAME = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_ID = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_MetadataValue = Annotated[str, StringConstraints(max_length=512)]
_Method = Literal["supervised", "dpo", "reinforcement"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SupervisedHyperparameters(_Settings):
    """`auto`: chosen from the number of examples."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"


class DpoHyperparameters(SupervisedHyperparameters):
    """Hyperparameters of preference optimisation."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"


class ReinforcementHyperparameters(SupervisedHyperparameters):
    """Hyperparameters of reinforcement fine-tuning."""

    compute_multiplier: Auto | Annotated[float, Field(gt=0, le=10)] = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1, lt=2**31)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1, lt=2**31)] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"


class SupervisedMethod(_Settings):
    """Learn the assistant's turns."""

    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class DpoMethod(_Settings):
    """Learn which of two answers is preferred."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


def _runnable(grader: Any) -> Any:
    """Explain why a grader of OpenAI's is not supported; pydantic would only call it unknown."""
    kind = grader.get("type") if isinstance(grader, dict) else None
    if kind == "python":
        raise ValueError("this server does not run code of clients; use string_check, text_similarity or score_model")
    if kind == "label_model":
        raise ValueError("label_model cannot be run; use score_model")
    return grader


Grader = Annotated[GraderConfig, BeforeValidator(_runnable)]


class ReinforcementMethod(_Settings):
    """Learn answers that a grader scores highly."""

    grader: Grader
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: dict[str, Any] | None = None


class MethodRequest(_Settings):
    """The method, with its settings under its own name."""

    type: _Method
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: ReinforcementMethod | None = None

    @model_validator(mode="after")
    def _settings_belong_to_the_method(self) -> "MethodRequest":
        for name in ("supervised", "dpo", "reinforcement"):
            if name != self.type and getattr(self, name) is not None:
                raise ValueError(f"`method.{name}` does not match `method.type` {self.type!r}; leave it out")
        if self.type == "reinforcement" and self.reinforcement is None:
            raise ValueError("`method.reinforcement` with a `grader` is required with `method.type` 'reinforcement'")
        return self

    def resolved(self) -> dict[str, Any]:
        """OpenAI's object, with all settings of the method."""
        default = {"supervised": SupervisedMethod, "dpo": DpoMethod}
        settings = getattr(self, self.type) or default[self.type]()
        return {"type": self.type, self.type: settings.model_dump(mode="json", exclude_none=True)}


class JobRequest(_Settings):
    """A new fine-tuning job."""

    model: _NAME = Field(description="The served base, or a fine-tuned model or adapter to continue from.")
    training_file: _ID
    validation_file: _ID | None = None
    suffix: str | None = Field(None, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(None, max_length=MAX_METADATA)
    method: MethodRequest | None = None
    hyperparameters: SupervisedHyperparameters | None = Field(
        None, description="Deprecated; use `method.supervised.hyperparameters`."
    )
    integrations: list[dict[str, Any]] | None = Field(None, max_length=0, description="Not supported; leave it out.")
    lorikeet: dict[str, Any] = Field(
        default_factory=dict, description="Extension: `domain` (recipe, method, chat, …), `gates`, `alias`."
    )

    @field_validator("lorikeet")
    @classmethod
    def _additions_are_known(cls, additions: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(additions.keys() - _ADDITIONS):  # as `gate`: without gates all would pass
            raise ValueError(f"{unknown[0][:40]!r} is not known; `lorikeet` takes {', '.join(sorted(_ADDITIONS))}")
        return additions

    @model_validator(mode="after")
    def _hyperparameters_are_given_once(self) -> "JobRequest":
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError("give `hyperparameters` under `method` only")
        return self

    def resolved_method(self) -> dict[str, Any]:
        """The method with its settings; supervised if none is named."""
        supervised = SupervisedMethod(hyperparameters=self.hyperparameters or SupervisedHyperparameters())
        method = self.method or MethodRequest(type="supervised", supervised=supervised)
        return method.resolved()

    def grader_models(self) -> set[str]:
        """The models that its graders call."""
        reinforcement = self.method.reinforcement if self.method else None
        graders = single_graders(reinforcement.grader) if reinforcement else ()
        return {grader.model for grader in graders if isinstance(grader, ScoreModelGrader)}
