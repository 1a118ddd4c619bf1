"""The figures of a data set report, as `lorikeet data report --json` prints them."""

from config.dataset import DatasetType, Split, StepRecord
from config.model import Config


class ListedFinding(Config):
    """One row, and what was found; `where` is its file and line."""

    where: str
    reason: str
    text: str
    other: str | None = None


class FindingGroup(Config):
    """All findings of one step or check."""

    name: str
    findings: tuple[ListedFinding, ...]


class LengthFigures(Config):
    """Lengths of one part of the rows; the quantiles are lengths of rows."""

    part: str
    unit: str
    smallest: int
    median: int
    p95: int
    p99: int
    largest: int
    total: int


class Histogram(Config):
    """`counts[i]` rows have from `edges[i]` up to, not including, `edges[i + 1]`."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


class TokenFigures(Config):
    """Lengths in tokens of the domain's base, of `num_checked` training rows."""

    base: str
    num_checked: int
    max_length: int
    num_cut: int
    rows: LengthFigures
    learnt: LengthFigures
    histogram: Histogram


class LearntSpan(Config):
    text: str
    is_learnt: bool


class LearntRow(Config):
    """One row of the trainer's batch: the text of its tokens, split where the labels begin or end."""

    where: str
    spans: tuple[LearntSpan, ...]
    num_context_tokens: int
    num_learnt_tokens: int


class TokenReport(Config):
    """What a report says in tokens; `note` says why it says nothing."""

    tokens: TokenFigures | None = None
    learnt: tuple[LearntRow, ...] = ()
    note: str = ""


class LanguageFigures(Config):
    part: str
    counts: dict[str, int]
    num_unknown: int


class ClassFigures(Config):
    """Rows of one answer in each split."""

    answer: str
    counts: dict[Split, int]


class BalanceFigures(Config):
    num_classes: int
    entropy_bits: float
    evenness: float
    classes: tuple[ClassFigures, ...]


class DataReport(Config):
    """What was built and found. Texts are shortened; personal data in the findings is masked."""

    domain: str
    version: str
    type: DatasetType
    description: str
    source: str
    licence: str | None
    dataset_sha256: str
    created_at: str
    num_rows: dict[Split, int]
    num_out_of_scope: int
    num_synthetic: int
    steps: tuple[StepRecord, ...]
    notes: tuple[str, ...]
    lengths: tuple[LengthFigures, ...]
    languages: tuple[LanguageFigures, ...]
    balance: BalanceFigures | None
    num_refusals: int
    num_answers: int
    tokens: TokenFigures | None
    learnt: tuple[LearntRow, ...]
    groups: tuple[FindingGroup, ...]
