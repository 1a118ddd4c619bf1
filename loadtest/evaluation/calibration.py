"""Agreement of judges with people: answers that people have graded are shown to the judge, and kappa is computed.

People's grades come from imported sheets (`lorikeet eval import-sheet`) and from the labels of served answers
(`lorikeet quality label`).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from config.home import Home
from config.progress import Progress
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.judging import JudgePlace, LiveJudge
from quality.agreement import Agreement, agreement_of_scores, cohens_kappa
from quality.errors import QualityError
from quality.metrics.item import Item, LeftOut
from quality.metrics.judged import Judged, JudgedPairs, shown
from quality.samples.store import QualityStore

MAX_LABELLED = 200
"""Answers that the judge is shown for its calibration, the newest."""

_CHOICES = {0.0: 0, 0.5: 1, 1.0: 2}
"""First, tie and second as classes."""


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer that people have graded.

    Attributes:
        question: Equal for answers that people saw side by side.
        score: Mean of the people's scores, 0 to 1.
    """

    item: Item
    question: str
    score: float


async def ask_judges(
    metrics: Sequence[object],
    answers: Sequence[Sequence[Item]],
    place: JudgePlace,
    rubric: str | None,
    labelled: Sequence[LabelledAnswer],
    progress: Progress | None = None,
) -> list[str]:
    """Fill in every judge's metric and its agreement with people.

    Args:
        answers: Items of each model; those of the first are what others are compared with.

    Returns:
        A note for each judge that could not be asked, because an endpoint or a second model is missing.

    Raises:
        EvaluationError: A judge cannot be reached.
    """
    notes = []
    for metric in metrics:
        if not isinstance(metric, Judged | JudgedPairs):
            continue
        if place.server is None and metric.settings.url is None:
            notes.append(f"Metric `{metric.name}` is left out: without a server it needs the `url` of a judge.")
            continue
        if isinstance(metric, JudgedPairs) and len(answers) < 2:
            notes.append(f"Metric `{metric.name}` is left out: it compares with a second model (`--against`).")
            continue
        async with LiveJudge(metric, place, rubric, progress) as judge:
            await _judge_answers(judge, answers)
            metric.num_people = len(labelled[-MAX_LABELLED:])
            metric.agreement = await _agreement(judge, labelled[-MAX_LABELLED:])
    return notes


def labels_of_served(home: Home, adapter: str) -> list[LabelledAnswer]:
    """Served answers of an adapter that people have labelled, oldest first.

    Raises:
        EvaluationError: The store of labels cannot be read.
    """
    if not home.quality.is_file():
        return []
    scores: dict[int, list[float]] = defaultdict(list)
    try:
        with QualityStore(home.quality) as store:
            for label in store.labels(adapter):
                scores[label.sample_id].append(label.score)
            samples = [sample for number in scores if (sample := store.sample(number)) is not None]
    except QualityError as error:
        raise EvaluationError(f"Human labels cannot be read: {error}") from error
    return [
        LabelledAnswer(
            Item(id=f"sample {sample.id}", question=sample.prompt, expected="", answer=sample.answer),
            f"sample {sample.id}",
            fmean(scores[sample.id]),
        )
        for sample in samples
        if sample.prompt and sample.answer is not None
    ]


async def _judge_answers(judge: LiveJudge, answers: Sequence[Sequence[Item]]) -> None:
    if isinstance(judge.metric, Judged):
        await judge.grade([item for items in answers for item in items])
        return
    judge.metric.firsts.update({item.id: item.whole_answer for item in answers[0]})
    for items in answers[1:]:
        await judge.compare(answers[0], items)


async def _agreement(judge: LiveJudge, labelled: Sequence[LabelledAnswer]) -> Agreement:
    if isinstance(judge.metric, JudgedPairs):
        return await _agreement_in_pairs(judge, labelled)
    await judge.grade([own.item for own in labelled])
    grades = [(own.score, judge.metric.found[shown(own.item)]) for own in labelled]
    return agreement_of_scores([(score, grade) for score, grade in grades if not isinstance(grade, LeftOut)])


async def _agreement_in_pairs(judge: LiveJudge, labelled: Sequence[LabelledAnswer]) -> Agreement:
    """Kappa of first, tie and second, over answers to one question; people's choice follows from their grades."""
    by_question: dict[str, list[LabelledAnswer]] = defaultdict(list)
    for own in labelled:
        by_question[own.question].append(own)
    pairs = [pair for group in by_question.values() for pair in combinations(group, 2)][-MAX_LABELLED:]
    await judge.compare([first.item for first, _ in pairs], [second.item for _, second in pairs])
    ratings = []
    for first, second in pairs:
        found = judge.preferred(first.item, second.item)
        if not isinstance(found, LeftOut):
            people = 0 if first.score > second.score else 2 if second.score > first.score else 1
            ratings.append((people, _CHOICES[found]))
    return cohens_kappa(ratings, len(_CHOICES))
