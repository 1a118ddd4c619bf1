"""A question as it stands, and its perturbed copy."""

from dataclasses import dataclass

from quality.robustness.settings import PerturbationName


@dataclass(frozen=True)
class PlainQuestion:
    """A held-out question.

    Attributes:
        text: The last user turn.
        expected: The expected answer; what it repeats of the question is not perturbed.
    """

    text: str
    expected: str
    has_system_prompt: bool = True


@dataclass(frozen=True)
class ForeignQuestion:
    """A question of another domain."""

    text: str
    domain: str


@dataclass(frozen=True)
class PerturbedQuestion:
    """One perturbed copy of a question.

    Attributes:
        number: Index of the question among those that were given.
        variant: Which kind of the perturbation it is, as `upper` of `casing`.
        text: Stands for the question's text; None: only the system prompt is left out.
        expects_refusal: The text is another question, which is out of scope. Otherwise the expected answer stays.
    """

    perturbation: PerturbationName
    number: int
    variant: str
    text: str | None
    expects_refusal: bool = False
