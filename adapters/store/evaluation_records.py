"""What a manifest says of a version's evaluation: scores, figures, gates and forgetting."""

from typing import Literal

from pydantic import Field

from adapters.scores import Score
from adapters.store.record import Record


class Evaluation(Record):
    """Base (zero-shot) and adapter on the same held-out split, by the training stack."""

    metric: str
    base: Score
    adapter: Score
    base_valid_format: Score
    valid_format: Score


class ObjectiveScore(Record):
    """A score of an objective on the held-out split, without and with the adapter."""

    base: Score | None = Field(None, description="None: the base has no such score.")
    adapter: Score
    lower_is_better: bool = False
    paired_gain: Score | None = Field(
        None, description="`gain` with its interval, paired by row. None: fewer than two rows, or an older version."
    )

    @property
    def gain(self) -> float:
        """Adapter minus base; where lower is better (perplexity), the share by which it falls. No base: the score."""
        if self.base is None:
            return self.adapter.value
        if self.lower_is_better:
            return 1 - self.adapter.value / self.base.value
        return self.adapter.value - self.base.value


NATS = "nats per token"
"""Metric of a text's likelihood."""
_NOT_SHARES = (NATS, "length", "bleu", "chrf")

FigureKind = Literal["metric", "robustness", "forgetting", "overfitting"]


class FigureRecord(Record):
    """One figure of the evaluation before publication: of base and version on the same items.

    Named by its `key`, in gates, cards and metrics: `exact_match`, `exact_match[scope: out]`, `robustness[typos]`,
    `forgetting[arithmetic]`.
    """

    kind: FigureKind
    metric: str = Field(description="Name of the metric, `nats per token` of a likelihood.")
    part: str = Field("", description="Slice, perturbation, text or set of questions; empty: all held-out questions.")
    adapter: Score
    base: Score | None = Field(None, description="None: not measured.")
    difference: Score | None = Field(None, description="Adapter minus base, paired by item.")
    p: float | None = Field(None, description="Two-sided p of no difference; None: without one.")
    higher_is_better: bool = True
    num_left_out: int = Field(0, description="Items that the metric could not score.")
    chance: float | None = Field(None, description="What guessing would reach; None: not known.")

    @property
    def is_base_at_chance(self) -> bool:
        """Whether the base itself could not do it, so that nothing could be lost."""
        return self.base is not None and self.chance is not None and self.base.ci_low <= self.chance

    @property
    def is_text(self) -> bool:
        """Whether it is the likelihood of a text."""
        return self.metric == NATS

    @property
    def is_share(self) -> bool:
        """Whether it is of a metric from 0 to 1, or a gap of one; shown in per cent."""
        scores = (self.adapter, self.base or self.adapter)
        return self.metric not in _NOT_SHARES and all(-1 <= score.value <= 1 for score in scores)

    @property
    def change(self) -> Literal["better", "worse", ""]:
        """Whether the whole interval of the difference lies on one side; "" if it includes zero or is not known."""
        if self.difference is None or self.difference.ci_low <= 0 <= self.difference.ci_high:
            return ""
        return "better" if (self.difference.value > 0) == self.higher_is_better else "worse"

    @property
    def key(self) -> str:
        name = self.metric if self.kind == "metric" else self.kind
        return f"{name}[{self.part}]" if self.part else name


class GateOutcome(Record):
    """A condition for promotion, as it was judged before publication."""

    is_met: bool
    finding: str = Field(description="In one line, with numbers and intervals.")


class Forgetting(Record):
    """Mean negative log-likelihood of general text, nats per token, without and with the adapter."""

    text: str = Field(description="Which text was measured.")
    num_tokens: int
    base_nll: float
    adapter_nll: float


class QualityBaseline(Record):
    """Statistics of this version's answers at publish, against which drift is measured."""

    n: int
    mean_answer_tokens: float
    mean_token_logprob: float
    mean_prompt_tokens: float
