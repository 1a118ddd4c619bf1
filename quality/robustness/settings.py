"""`evaluation.robustness` in a domain's YAML."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

PerturbationName = Literal[
    "typos",
    "casing",
    "white_space",
    "paraphrase",
    "digits",
    "distractors",
    "long_context",
    "prompt_injection",
    "contradictory_instructions",
    "no_system_prompt",
    "out_of_scope",
    "neighbouring_domain",
]
PERTURBATIONS: tuple[PerturbationName, ...] = get_args(PerturbationName)


class RobustnessConfig(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    perturbations: tuple[PerturbationName, ...] = Field(
        PERTURBATIONS, description="Which ones; default: all. Each is asked where it applies."
    )
    num_questions: int = Field(50, ge=1, description="Held-out questions that are perturbed, drawn by `seed`.")
    seed: int = Field(13, description="Same seed, same questions and perturbed copies.")
    typo_rate: float = Field(0.05, gt=0, le=1, description="Typing errors a letter; at least one a question.")
    long_context_words: int = Field(
        300, ge=1, le=100_000, description="Words of a question in `long_context`, with what stands before it."
    )
    synonyms: dict[str, tuple[str, ...]] = Field(
        {}, description="Words of the domain and what may stand for them in `paraphrase`, beside the built-in list."
    )

    @field_validator("perturbations")
    @classmethod
    def _each_once(cls, names: tuple[PerturbationName, ...]) -> tuple[PerturbationName, ...]:
        if not names:
            raise ValueError("must name at least one perturbation; leave it out for all of them")
        if len(set(names)) < len(names):
            raise ValueError(f"must name each perturbation once; got {', '.join(names)}")
        return names

    @field_validator("synonyms")
    @classmethod
    def _words_have_synonyms(cls, synonyms: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for word, others in synonyms.items():
            if not word.strip() or not others or not all(other.strip() for other in others):
                raise ValueError(f"must be words with lists of words; got {word!r}: {list(others)}")
        return synonyms


def _from_switch(value: Any) -> Any:
    """`robustness: true` for the defaults, `false` for none."""
    return ({} if value else None) if isinstance(value, bool) else value


RobustnessSettings = Annotated[RobustnessConfig | None, BeforeValidator(_from_switch)]
