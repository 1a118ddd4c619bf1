"""Whether fine-tuning pays: one recommendation from measured ways to answer, with its reason and what would change it.

The rules, in order:
1. Among the ways without training, and among those with the adapter, the candidate is the cheapest of those that are
   not significantly worse than the best of their kind (the paired 95% interval of the difference includes 0), and of
   those that cost up to `SAME_COST` times as much the simplest.
2. Where one candidate's advantage is significant, it is recommended.
3. Otherwise the adapter is recommended if it answers at least `CHEAPER` times as cheaply, as prompts are shorter;
   if not, what needs no training is.
4. Without a measured adapter, what needs no training is recommended, and the learning curve is next to be measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CHEAPER = 1.5
"""How much cheaper an adapter must be that is not measurably better."""

SAME_COST = 1.1
"""Costs that are this near are taken for the same."""


@dataclass(frozen=True)
class AnswerOption:
    """A measured way to answer.

    Attributes:
        is_trained: With the adapter.
        effort: What it needs beside the base; the lower of two that are equal otherwise is preferred.
        seconds_per_1000: Machine time of 1,000 answers; None: not measured.
    """

    name: str
    is_trained: bool
    effort: int
    value: float
    seconds_per_1000: float | None = None


@dataclass(frozen=True)
class Advantage:
    """How much better the second of two options is on the same items, with its 95% interval; positive is better."""

    value: float
    ci_low: float
    ci_high: float

    @property
    def is_significant(self) -> bool:
        return self.ci_low > 0 or self.ci_high < 0


@dataclass(frozen=True)
class MoreRows:
    """What more training rows may add to the adapter, by the learning curve."""

    factor: float
    gain: float
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        return f"{self.ci_low:+.2f} to {self.ci_high:+.2f}"


@dataclass(frozen=True)
class Advice:
    """One recommendation.

    Attributes:
        choice: Name of the recommended option.
    """

    choice: str
    summary: str
    reason: str
    would_change: tuple[str, ...]


Compare = Callable[[AnswerOption, AnswerOption], Advantage]
"""Advantage of the second option over the first."""


def recommend(
    options: Sequence[AnswerOption], compare: Compare, *, metric: str, num_items: int, more_rows: MoreRows | None = None
) -> Advice:
    """Choose by the rules above.

    Raises:
        ValueError: No option goes without training.
    """
    prompted = [option for option in options if not option.is_trained]
    if not prompted:
        raise ValueError("At least one option must go without training.")
    plain = _candidate(prompted, compare)
    trained = [option for option in options if option.is_trained]
    if not trained:
        return _without_adapter(plain, metric)
    adapter = _candidate(trained, compare)
    advantage = compare(plain, adapter)
    is_chosen, reason = _judged(plain, adapter, advantage, metric, num_items)
    changes = [
        _by_questions(advantage, num_items),
        _by_rows(plain, advantage, more_rows, is_chosen=is_chosen),
        _by_cost(plain, adapter, advantage, is_chosen=is_chosen),
    ]
    return Advice(
        (adapter if is_chosen else plain).name,
        f"Fine-tune: use {adapter.name}." if is_chosen else f"Do not fine-tune: use {plain.name}.",
        reason,
        tuple(change for change in changes if change),
    )


def _candidate(options: Sequence[AnswerOption], compare: Compare) -> AnswerOption:
    """The cheapest option that is not significantly worse than the best."""
    best = options[0]
    for option in options[1:]:
        if compare(best, option).value > 0:
            best = option
    as_good = [option for option in options if option is best or compare(option, best).ci_low <= 0]
    lowest = min(option.seconds_per_1000 or math.inf for option in as_good)
    as_cheap = [option for option in as_good if (option.seconds_per_1000 or math.inf) <= SAME_COST * lowest]
    return min(as_cheap, key=lambda option: option.effort)


def _judged(
    plain: AnswerOption, adapter: AnswerOption, advantage: Advantage, metric: str, num_items: int
) -> tuple[bool, str]:
    """Whether the adapter is recommended, and why."""
    found = (
        f"{metric} {adapter.value:.3f} of {adapter.name}, {plain.value:.3f} of {plain.name}: "
        f"{advantage.value:+.3f} ({advantage.ci_low:+.3f} to {advantage.ci_high:+.3f})"
    )
    if advantage.is_significant:
        return advantage.value > 0, f"{found}."
    undecided = f"{found}, which {num_items} questions cannot tell from none"
    ratio = _ratio(plain, adapter)
    if ratio is not None and ratio >= CHEAPER:
        return True, f"{undecided}; but it answers {ratio:.1f} times as cheaply."
    cheaper = "" if ratio is None else f", and the adapter is not {CHEAPER:g} times as cheap ({ratio:.1f})"
    return False, f"{undecided}{cheaper}; {plain.name} needs no training."


def _without_adapter(plain: AnswerOption, metric: str) -> Advice:
    return Advice(
        plain.name,
        f"Use {plain.name}; an adapter was not measured.",
        f"Of the ways without training, none is significantly better than {plain.name} ({metric} {plain.value:.3f}) "
        "and as cheap.",
        ("A trained adapter, or the learning curve.",),
    )


def _by_questions(advantage: Advantage, num_items: int) -> str:
    """What these questions do not show, and how many would, if the difference is as large as it seems."""
    if advantage.is_significant:
        if advantage.value < 0:
            return ""
        return f"A margin: that training gains more than {advantage.ci_low:+.2f}, {num_items} questions do not show."
    half = (advantage.ci_high - advantage.ci_low) / 2
    if abs(advantage.value) < 0.005:
        return f"A difference that more questions show: {num_items} resolve about {half:.2f}."
    wanted = math.ceil(round(num_items * (half / advantage.value) ** 2 / 10, 6)) * 10
    return f"About {wanted:,} held-out questions would tell a difference of {advantage.value:+.2f} from none."


def _by_rows(plain: AnswerOption, advantage: Advantage, more: MoreRows | None, *, is_chosen: bool) -> str:
    if more is None:
        return ""
    words = f"{more.factor:g} times the training rows: {more} for the adapter by the learning curve"
    if is_chosen:
        return f"{words}."
    if advantage.ci_high + more.ci_high <= 0:
        return f"{words}, which would not reach {plain.name}."
    return f"{words}, which may pass {plain.name}."


def _by_cost(plain: AnswerOption, adapter: AnswerOption, advantage: Advantage, *, is_chosen: bool) -> str:
    ratio = _ratio(plain, adapter)
    if ratio is None:
        return "Times and cost of the adapter: serve it, and decide again."
    if advantage.is_significant and advantage.value > 0 and ratio < 1:
        return f"A budget per answer: {plain.name} is {1 / ratio:.1f} times as cheap."
    if advantage.is_significant and advantage.value < 0 and ratio > 1:
        return f"A budget per answer: {adapter.name} is {ratio:.1f} times as cheap."
    if not advantage.is_significant and is_chosen:
        return f"Prompts of {plain.name} that cost less than {CHEAPER:g} times those of {adapter.name}."
    return ""


def _ratio(plain: AnswerOption, adapter: AnswerOption) -> float | None:
    """How many times as cheap the adapter's answers are."""
    if not plain.seconds_per_1000 or not adapter.seconds_per_1000:
        return None
    return plain.seconds_per_1000 / adapter.seconds_per_1000
