"""Gates: whether a new version may become `stable` by itself, with one line for each condition.

A condition that the domain sets is compared with the value. One that it leaves to its default goes by intervals:
chance alone must not promote a version, and must not keep one back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adapters.scores import Score
from adapters.store.evaluation_records import Evaluation, FigureRecord, Forgetting, GateOutcome, ObjectiveScore
from adapters.store.manifest import Manifest
from config.domain import FigureGate, GatesConfig
from quality.intervals import unpaired_difference

MIN_QUESTIONS = 6
"""With fewer, no gain is beyond chance: five of five better happens to one worthless adapter in 32."""
_ALPHA = 0.05
_ROUNDING = 1e-9
_MAX_TOLD = 3
FORMAT_MARGIN = 0.05
FORGETTING_NATS = 2.0
FORGETTING_SHARE = 0.4
"""Default limits, per token of a general text and of correct answers; the first is perplexity times 7.4."""


@dataclass(frozen=True)
class DecidingGain:
    """What the gates take for the gain: positive is better.

    Attributes:
        score: With the interval of the paired difference; None: too few rows for one.
        p: Two-sided, of no difference; None: an objective's score, which has none.
    """

    name: str
    value: float
    score: Score | None
    p: float | None = None


@dataclass(frozen=True)
class GateEvidence:
    """What gates look at."""

    gain: DecidingGain | None
    evaluation: Evaluation | None
    scores: Mapping[str, ObjectiveScore]
    forgetting: Forgetting | None
    figures: Sequence[FigureRecord]


def judge_gates(measured: GateEvidence, gates: GatesConfig, stable: Manifest | None) -> tuple[GateOutcome, ...]:
    """Each condition with its finding.

    Args:
        stable: The version that the new one would replace, if any.
    """
    return (
        _judge_gain(measured.gain, gates),
        *_judge_format(measured.evaluation, gates, stable),
        *(_judge_figure(key, gate, measured) for key, gate in gates.figures.items()),
        *_judge_forgetting(measured, gates),
    )


def gate_reason(gates: Sequence[GateOutcome]) -> str:
    """In one line: what failed, or else the first that passed; the version keeps all."""
    if failed := [gate.finding for gate in gates if not gate.is_met]:
        return "gates failed: " + "; ".join(failed)
    passed = [gate.finding for gate in gates]
    more = f"; and {len(passed) - _MAX_TOLD} more" if len(passed) > _MAX_TOLD else ""
    return "gates passed: " + "; ".join(passed[:_MAX_TOLD]) + more


def gain_of(
    gated_by: str, scores: Mapping[str, ObjectiveScore], figures: Sequence[FigureRecord]
) -> DecidingGain | None:
    """The gain that decides: of the objective's own score, else of the first metric, else of any score."""
    first = next((figure for figure in figures if figure.kind == "metric" and not figure.part), None)
    if gated_by in scores or (first is None and scores):
        name = gated_by if gated_by in scores else next(iter(scores))
        return DecidingGain(name, scores[name].gain, scores[name].paired_gain)
    if first is None or first.difference is None:
        return None
    score = first.difference if first.higher_is_better else _negated(first.difference)
    return DecidingGain(first.metric, score.value, score, first.p)


def _judge_gain(gain: DecidingGain | None, gates: GatesConfig) -> GateOutcome:
    if gain is None:
        return GateOutcome(is_met=False, finding="the gain was not measured: no question has a score")
    found = f"gain of {gain.name} {gain.value:+.3f}"
    if gain.score is not None:
        found += f" ({gain.score.ci_low:+.3f} to {gain.score.ci_high:+.3f}, n {gain.score.n})"
    if gates.min_gain is not None:
        is_met = gain.value >= gates.min_gain - _ROUNDING
        return GateOutcome(is_met=is_met, finding=f"{found} {_compared(is_met, 'min_gain', gates.min_gain, '+.3f')}")
    if gain.score is None or gain.score.n < MIN_QUESTIONS:
        return GateOutcome(is_met=False, finding=f"{found} is of fewer than {MIN_QUESTIONS} questions, too few to tell")
    # Few rows: the interval of a bootstrap is too narrow, and the p of swapped answers is exact.
    is_met = gain.score.ci_low > 0 and (gain.p is None or gain.p <= _ALPHA)
    p = "" if gain.p is None else f" (p {gain.p:.3f})"
    return GateOutcome(is_met=is_met, finding=f"{found} is {'' if is_met else 'not '}above zero beyond chance{p}")


def _judge_format(evaluation: Evaluation | None, gates: GatesConfig, stable: Manifest | None) -> Iterator[GateOutcome]:
    if evaluation is None:  # nothing was asked
        return
    own = evaluation.valid_format
    found = f"valid format {_shown(own)}"
    if gates.min_valid_format is not None:
        is_met = own.value >= gates.min_valid_format - _ROUNDING
        compared = _compared(is_met, "min_valid_format", gates.min_valid_format, ".3f")
        yield GateOutcome(is_met=is_met, finding=f"{found} {compared}")
        return
    name, reference = "the base", evaluation.base_valid_format
    if stable is not None and stable.evaluation is not None:
        name, reference = stable.lora_name, stable.evaluation.valid_format
    is_met = _is_not_below(own, reference)
    words = "is not below" if is_met else "is below"
    yield GateOutcome(is_met=is_met, finding=f"{found} {words} that of {name}, {reference.value:.3f}")


def _is_not_below(own: Score, reference: Score) -> bool:
    """At most the margin lower, and the interval of the difference reaches zero (of independent shares)."""
    difference, _, high = unpaired_difference(
        (reference.value, reference.ci_low, reference.ci_high), (own.value, own.ci_low, own.ci_high)
    )
    return difference >= 0 or (difference >= -FORMAT_MARGIN - _ROUNDING and high >= 0)


def _judge_forgetting(measured: GateEvidence, gates: GatesConfig) -> Iterator[GateOutcome]:
    has_texts = any(figure.kind == "forgetting" and figure.is_text for figure in measured.figures)
    if (text := measured.forgetting) is not None and not has_texts:
        lost = text.adapter_nll - text.base_nll
        limit = FORGETTING_NATS if gates.max_forgetting is None else gates.max_forgetting
        is_met = lost <= limit + _ROUNDING
        words = _compared(is_met, "max_forgetting", limit, ".3f", is_upper=True)
        yield GateOutcome(is_met=is_met, finding=f"{text.text}: {lost:+.3f} nats per token {words}")
    for figure in measured.figures:
        if figure.kind == "forgetting" and figure.key not in gates.figures:
            yield _judge_lost(figure, gates.max_forgetting)


def _judge_lost(figure: FigureRecord, wanted: float | None) -> GateOutcome:
    """One set of tasks, text or domain. The default limit fails a loss that is above it beyond chance."""
    if figure.difference is None or figure.adapter.n == 0:
        return GateOutcome(is_met=False, finding=f"{figure.key} was not measured beside the base")
    loss = _negated(figure.difference) if figure.higher_is_better else figure.difference
    default = FORGETTING_SHARE if figure.higher_is_better else FORGETTING_NATS
    limit = default if wanted is None else wanted
    is_beyond = loss.value > limit + _ROUNDING
    is_chance = wanted is None and loss.ci_low <= limit
    found = f"{figure.key} lost {loss.value:.3f} ({loss.ci_low:+.3f} to {loss.ci_high:+.3f}, n {loss.n})"
    if is_beyond and is_chance:
        return GateOutcome(is_met=True, finding=f"{found}, above max_forgetting {limit:.3f} perhaps by chance alone")
    words = _compared(not is_beyond, "max_forgetting", limit, ".3f", is_upper=True)
    return GateOutcome(is_met=not is_beyond, finding=f"{found} {words}")


def _judge_figure(key: str, gate: FigureGate, measured: GateEvidence) -> GateOutcome:
    record = measured_figures(measured).get(key)
    if record is None:
        known = ", ".join(measured_figures(measured)) or "none"
        return GateOutcome(is_met=False, finding=f"{key} was not measured; figures of this version: {known}")
    if record.adapter.n == 0:
        return GateOutcome(is_met=False, finding=f"{key} has no question with a score")
    bounds = [
        ("", record.adapter, gate.min, gate.max, ".3f"),
        ("difference to the base ", record.difference, gate.min_difference, gate.max_difference, "+.3f"),
    ]
    findings = [
        _judge_bound(f"{key} {what}", score, bound, how, is_upper=is_upper)
        for what, score, low, high, how in bounds
        for bound, is_upper in ((low, False), (high, True))
        if bound is not None
    ]
    return GateOutcome(is_met=all(ok for ok, _ in findings), finding=", ".join(text for _, text in findings))


def _judge_bound(what: str, score: Score | None, bound: float, how: str, *, is_upper: bool) -> tuple[bool, str]:
    if score is None:
        return False, f"{what}was not measured"
    is_met = score.value <= bound + _ROUNDING if is_upper else score.value >= bound - _ROUNDING
    interval = f"({score.ci_low:{how}} to {score.ci_high:{how}}, n {score.n})"
    compared = _compared(is_met, "max" if is_upper else "min", bound, how, is_upper=is_upper)
    return is_met, f"{what}{score.value:{how}} {interval} {compared}"


def measured_figures(measured: GateEvidence) -> dict[str, FigureRecord]:
    """The figures that a gate can name, by key: those of the manifest and the objective's scores."""
    own = {
        name: FigureRecord(
            kind="metric",
            metric=name,
            adapter=score.adapter,
            base=score.base,
            difference=_difference(score),
            higher_is_better=not score.lower_is_better,
        )
        for name, score in measured.scores.items()
    }
    return {figure.key: figure for figure in measured.figures} | own


def _difference(score: ObjectiveScore) -> Score | None:
    """Where lower is better the gain is a share of the base's score, and no difference."""
    return None if score.lower_is_better else score.paired_gain


def _negated(score: Score) -> Score:
    return Score(value=-score.value, ci_low=-score.ci_high, ci_high=-score.ci_low, n=score.n)


def _shown(score: Score) -> str:
    return f"{score.value:.3f} ({score.ci_low:.3f} to {score.ci_high:.3f}, n {score.n})"


def _compared(is_met: bool, key: str, wanted: float, how: str, *, is_upper: bool = False) -> str:
    side = "within" if is_met else "above" if is_upper else "below"
    if is_met and not is_upper:
        side = "at least"
    return f"is {side} {key} {wanted:{how}}"
