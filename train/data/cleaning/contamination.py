"""No held-out row, no row of a benchmark and no near copy of one may be trained on.

Three measures, each of the questions; any one suffices:
- near copies by MinHash (near_copies.py);
- 8-grams of words: a training row that contains 70% of those of a held-out question, as in PaLM (Chowdhery et al.,
  2022, section 8). It finds a question inside a longer text, in any turn or in an answer. N-grams in more than ten
  training rows are common phrases and do not count, as in GPT-3 (Brown et al., 2020, appendix C);
- cosine similarity of sentence embeddings, if set.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from config.data import CleaningConfig
from train.data.cleaning.boilerplate import MAX_ROWS
from train.data.cleaning.embeddings import similar_by_meaning
from train.data.cleaning.near_copies import NearCopies, prompt_text
from train.data.cleaning.text import words
from train.data.examples import Example
from train.data.steps import CONTAMINATION, Step, StepResult, finding

NGRAM_WORDS = 8
_MIN_NGRAMS = 3
"""A question with fewer n-grams that count is compared by the other measures only."""


def drop_contaminated(
    train: Sequence[Example],
    held_out: Sequence[Example],
    benchmarks: Sequence[Example],
    config: CleaningConfig,
    on_rows: Callable[[int], None] = lambda count: None,
) -> StepResult:
    """Drop training rows that are, or contain, or nearly are, a held-out or benchmark row."""
    protected = [*held_out, *benchmarks]
    found: dict[int, tuple[str, Example]] = {}
    if config.near_duplicate_cosine is not None:
        found |= _by_meaning(train, protected, config.near_duplicate_cosine)
    index = NearCopies(config.near_duplicate_jaccard, [*train, *protected])
    if config.ngram_overlap is not None:
        found |= dict(_by_ngrams(train, protected, index, config.ngram_overlap))
    found |= dict(_by_minhash(train, protected, index, on_rows))
    names = {id(row): "a benchmark row" for row in benchmarks}
    findings = tuple(
        finding(train[number], f"{how} {names.get(id(other), 'a held-out row')}", other)
        for number, (how, other) in sorted(found.items())
    )
    is_kept = config.contamination == "keep"
    kept = tuple(row for number, row in enumerate(train) if is_kept or number not in found)
    return StepResult(kept, Step(CONTAMINATION, len(train), len(kept), findings=findings))


def _by_minhash(
    train: Sequence[Example], protected: Sequence[Example], index: NearCopies, on_rows: Callable[[int], None]
) -> Iterator[tuple[int, tuple[str, Example]]]:
    for row, compared in zip(protected, index.compared(protected), strict=True):
        index.add(row, compared)
    for number, (row, compared) in enumerate(zip(train, index.compared(train, on_rows), strict=True)):
        other = index.find(row, compared)
        if other is not None:
            yield number, ("equal or nearly equal to", other)


def _by_ngrams(
    train: Sequence[Example], protected: Sequence[Example], index: NearCopies, least: float
) -> Iterator[tuple[int, tuple[str, Example]]]:
    owners: dict[str, list[int]] = defaultdict(list)
    for owner, row in enumerate(protected):
        for ngram in ngrams(index.distinctive(prompt_text(row))):
            owners[ngram].append(owner)
    num_rows: Counter[str] = Counter()
    hits = dict(_hits(train, owners, num_rows))
    common = {ngram for ngram, count in num_rows.items() if count > MAX_ROWS}
    totals = Counter(owner for ngram, rows in owners.items() if ngram not in common for owner in rows)
    for number, ngrams_of_row in hits.items():
        shared = Counter(owner for ngram in ngrams_of_row - common for owner in owners[ngram])
        owner, count = max(shared.items(), key=lambda item: item[1] / totals[item[0]], default=(0, 0))
        if not count or totals[owner] < _MIN_NGRAMS or count < least * totals[owner]:
            continue
        # The words of programs may be equal where symbols or indentation are not.
        if not index.differ_in_marks(prompt_text(train[number]), prompt_text(protected[owner])):
            share = f"{count / totals[owner]:.0%}"
            yield number, (f"has {share} of the {NGRAM_WORDS}-word sequences of", protected[owner])


def _hits(
    train: Iterable[Example], owners: Mapping[str, Sequence[int]], num_rows: Counter[str]
) -> Iterator[tuple[int, set[str]]]:
    """The held-out n-grams of each training row that has some, while they are not common; counts their rows."""
    for number, row in enumerate(train):
        turns = (*row.prompt, *row.completion, *row.chosen, *row.rejected)
        texts = [turn.content for turn in turns if turn.role not in ("system", "developer")] or [row.text]
        found = {ngram for text in texts for ngram in ngrams(text) if ngram in owners}
        num_rows.update(found)
        rare = {ngram for ngram in found if num_rows[ngram] <= MAX_ROWS}
        if rare:
            yield number, rare


def ngrams(text: str) -> set[str]:
    """Sequences of eight words of a text; none of a shorter one."""
    found = words(text)
    return {" ".join(found[start : start + NGRAM_WORDS]) for start in range(len(found) - NGRAM_WORDS + 1)}


def _by_meaning(
    train: Sequence[Example], protected: Sequence[Example], cosine: float
) -> dict[int, tuple[str, Example]]:
    pairs = similar_by_meaning([prompt_text(row) for row in train], [prompt_text(row) for row in protected], cosine)
    return {
        number: (f"by its meaning (cosine {similarity:.2f}) near", protected[other])
        for number, (other, similarity) in pairs.items()
    }
