"""Perturbed copies of held-out questions. Pure: equal by seed, question and perturbation, whatever else is asked."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from quality.robustness.additions import with_distractors, with_instruction, with_long_context
from quality.robustness.change import ForeignQuestion, PerturbedQuestion, PlainQuestion
from quality.robustness.json_text import is_json, with_each_value, with_longest_value
from quality.robustness.settings import PerturbationName, RobustnessConfig
from quality.robustness.spelling import with_casing, with_digits, with_typos, with_white_space
from quality.robustness.texts import CONTRADICTIONS, INJECTIONS, OUT_OF_SCOPE
from quality.robustness.wording import with_synonyms
from quality.robustness.words import kept_words

NOT_ASKED: Mapping[PerturbationName, str] = {
    "typos": "no word of three letters that may be changed",
    "casing": "no letters with case",
    "white_space": "an empty question",
    "paraphrase": "no word with a listed synonym",
    "digits": "no digits",
    "distractors": "an empty question",
    "long_context": "long enough as it is",
    "prompt_injection": "an empty question",
    "contradictory_instructions": "an empty question",
    "no_system_prompt": "no system prompt",
    "out_of_scope": "no refusal in `answer.refusal`",
    "neighbouring_domain": "no refusal in `answer.refusal`, or no other data set is built",
}
"""Why questions may have no such copy."""

Rewrite = Callable[[str, frozenset[str], RobustnessConfig, Random], tuple[str, str]]
"""(text, words to keep, settings, random numbers) -> (variant, text); the same text: it does not apply."""


@dataclass(frozen=True)
class PerturbedSet:
    """Indices of the drawn questions, and their copies in the order of the settings' perturbations."""

    drawn: tuple[int, ...]
    questions: tuple[PerturbedQuestion, ...]

    def positions(self, perturbation: PerturbationName) -> list[int]:
        """In `questions`, of the copies of one perturbation."""
        return [n for n, question in enumerate(self.questions) if question.perturbation == perturbation]


def perturb(
    questions: Sequence[PlainQuestion],
    settings: RobustnessConfig,
    *,
    has_refusal: bool,
    neighbours: Sequence[ForeignQuestion] = (),
    known: Collection[str] = (),
) -> PerturbedSet:
    """Draw questions and perturb them; a copy that would be equal to its question is left out.

    Args:
        has_refusal: Whether out-of-scope questions have a right answer.
        neighbours: Questions of other domains.
        known: Texts to exclude: the domain's own rows.
    """
    count = min(settings.num_questions, len(questions))
    drawn = tuple(sorted(Random(settings.seed).sample(range(len(questions)), count)))
    own = {_normal(text) for text in known} | {_normal(question.text) for question in questions}
    foreign: dict[PerturbationName, list[ForeignQuestion]] = {
        "out_of_scope": [ForeignQuestion(text, "") for text in OUT_OF_SCOPE],
        "neighbouring_domain": list(neighbours),
    }
    found: list[PerturbedQuestion] = []
    for name in settings.perturbations:
        if name in foreign:
            usable = [question for question in foreign[name] if _normal(question.text) not in own]
            found += _replaced(name, drawn, usable if has_refusal else [], settings.seed)
        else:
            found += _changed(name, drawn, questions, settings)
    return PerturbedSet(drawn, tuple(found))


def _replaced(
    name: PerturbationName, drawn: Sequence[int], foreign: Sequence[ForeignQuestion], seed: int
) -> Iterator[PerturbedQuestion]:
    """As many other questions as were drawn, or all there are."""
    chosen = Random(f"{seed} {name}").sample(range(len(foreign)), min(len(drawn), len(foreign)))
    for number, index in zip(drawn, chosen, strict=False):
        question = foreign[index]
        yield PerturbedQuestion(name, number, question.domain, question.text, expects_refusal=True)


def _changed(
    name: PerturbationName, drawn: Sequence[int], questions: Sequence[PlainQuestion], settings: RobustnessConfig
) -> Iterator[PerturbedQuestion]:
    for number in drawn:
        question = questions[number]
        if name == "no_system_prompt":
            if question.has_system_prompt:
                yield PerturbedQuestion(name, number, "", None)
            continue
        variant, text = rewritten(name, question, settings)
        if text != question.text:
            yield PerturbedQuestion(name, number, variant, text)


def rewritten(name: PerturbationName, question: PlainQuestion, settings: RobustnessConfig) -> tuple[str, str]:
    """(variant, text) of a question's copy; of a JSON object or list only string values are changed."""
    text, kept = question.text, kept_words(question.expected)
    if not text.strip():
        return "", text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    draw, rewrite, variant = Random(f"{settings.seed} {name} {digest}"), _REWRITES[name], ""

    def change(part: str) -> str:
        nonlocal variant
        found, changed = rewrite(part, kept, settings, draw)
        variant = found if changed != part else variant
        return changed

    if not is_json(text):
        changed = change(text)
    elif name in _EVERYWHERE:
        changed = with_each_value(text, change)
    else:
        changed = with_longest_value(text, change)
    return variant, changed


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


_EVERYWHERE = ("typos", "casing", "paraphrase", "digits")
"""In a JSON text, of each string value; others change the longest one."""

_REWRITES: Mapping[PerturbationName, Rewrite] = {
    "typos": lambda text, kept, settings, draw: ("", with_typos(text, kept, settings.typo_rate, draw)),
    "casing": lambda text, kept, settings, draw: with_casing(text, kept, draw),
    "white_space": lambda text, kept, settings, draw: with_white_space(text, draw),
    "paraphrase": lambda text, kept, settings, draw: ("", with_synonyms(text, kept, settings.synonyms, draw)),
    "digits": lambda text, kept, settings, draw: with_digits(text, kept, draw),
    "distractors": lambda text, kept, settings, draw: with_distractors(text, draw),
    "long_context": lambda text, kept, settings, draw: ("", with_long_context(text, settings.long_context_words)),
    "prompt_injection": lambda text, kept, settings, draw: with_instruction(text, INJECTIONS, draw),
    "contradictory_instructions": lambda text, kept, settings, draw: with_instruction(text, CONTRADICTIONS, draw),
}
