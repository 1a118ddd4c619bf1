"""What a teacher wrote is kept only if it passes these filters: `lorikeet data expand`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from transformers import PreTrainedTokenizerBase

from adapters.template_time import noon
from config.dataset import DatasetManifest, DatasetRow, conversation
from config.domain import DomainConfig
from quality.judge import JudgeReplyError, grade_task, read_grade
from quality.scorers import AnswerFormat
from train.data.cleaning.near_copies import NearCopies
from train.data.control_tokens import control_pattern
from train.data.sources import question_answer
from train.data.teacher import Teacher
from train.data.template import render

MIN_JUDGE_SCORE = 0.75
"""Grade 4 of 5."""

Filter = Callable[[str, str], str | None]
"""Question and answer to the reason why the row is rejected, or None."""


@dataclass
class JudgeTokens:
    """Tokens that a judge took since they were last counted; they are part of the budget."""

    num_tokens: int = 0

    def taken(self) -> int:
        taken, self.num_tokens = self.num_tokens, 0
        return taken


def schema_filter(manifest: DatasetManifest) -> Filter:
    """Rejects answers that do not meet the domain's JSON schema; the refusal passes."""
    form = AnswerFormat(manifest.answer.json_schema)

    def reason(question: str, answer: str) -> str | None:
        is_valid = answer == manifest.answer.refusal or form.accepts(answer)
        return None if is_valid else "answer does not meet the schema"

    return reason


def class_filter(manifest: DatasetManifest, seeds: Sequence[DatasetRow]) -> Filter:
    """Rejects answers that no seed has, where the seeds' answers are classes (each stands in five rows on average)."""
    answers = {row.output for row in seeds} | {manifest.answer.refusal}
    is_classes = len(answers) * 5 <= len(seeds)
    return lambda question, answer: "unknown class" if is_classes and answer not in answers else None


def copies_filter(questions: Sequence[str], jaccard: float) -> Filter:
    """Rejects near copies of the given questions and of those accepted since; it must be the last filter."""
    known = [question_answer(question, "") for question in questions]
    index = NearCopies(jaccard, known)
    for row, compared in zip(known, index.compared(known), strict=True):
        index.add(row, compared)

    def reason(question: str, answer: str) -> str | None:
        row = question_answer(question, "")
        [compared] = index.compared([row])
        if index.find(row, compared) is not None:
            return "nearly equals a row"
        index.add(row, compared)
        return None

    return reason


def control_token_filter(tokenizer: PreTrainedTokenizerBase) -> Filter:
    """Rejects texts with control tokens of the base, which would end or forge a turn."""
    pattern = control_pattern(tokenizer)
    return lambda question, answer: "contains a control token" if pattern.search(f"{question}\n{answer}") else None


def length_filter(tokenizer: PreTrainedTokenizerBase, config: DomainConfig) -> Filter:
    """Rejects rows that would not fit `recipe.max_length`, and answers longer than `evaluation.max_new_tokens`."""
    at = noon(date.today())

    def reason(question: str, answer: str) -> str | None:
        turns = [turn.for_template() for turn in conversation(config.chat, question, answer)]
        if len(_ids(tokenizer, render(tokenizer, turns, at, is_prompt=False))) > config.recipe.max_length:
            return "longer than recipe.max_length"
        is_long = len(_ids(tokenizer, answer)) + 1 > config.evaluation.max_new_tokens
        return "answer longer than evaluation.max_new_tokens" if is_long else None

    return reason


def judge_filter(judge: Teacher, manifest: DatasetManifest, rubric: str | None, judged: JudgeTokens) -> Filter:
    """Rejects answers that the judge grades below 4 of 5. A judge that does not answer in form rejects, too."""

    def reason(question: str, answer: str) -> str | None:
        task = grade_task(f"{manifest.chat.system}\n\n{question}", answer, rubric)
        try:
            reply, num_tokens = judge.ask("\n\n".join(message["content"] for message in task.messages), 300)
            judged.num_tokens += num_tokens
            return None if read_grade(reply).score >= MIN_JUDGE_SCORE else "judge's grade below 4"
        except JudgeReplyError:
            return "judge's reply unusable"

    return reason


def repeats(questions: Iterable[str]) -> Filter:
    """Rejects questions that equal an earlier one, those of accepted rows included."""
    seen = {" ".join(question.casefold().split()) for question in questions}

    def reason(question: str, answer: str) -> str | None:
        key = " ".join(question.casefold().split())
        if key in seen:
            return "repeats a row"
        seen.add(key)
        return None

    return reason


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
