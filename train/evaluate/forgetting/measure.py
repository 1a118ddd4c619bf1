"""The probes of `evaluation.forgetting`: general texts, general tasks, and other domains' held-out questions."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from config.dataset import DatasetManifest, DatasetRow, Message, few_shot_messages, read_dataset, read_split
from config.errors import DatasetError
from config.forgetting import ForgettingConfig, TaskName
from quality.metrics.answers import ByItem, exact_match, numeric
from quality.metrics.item import Item
from train.data.encode import encode_prompt, token_ids
from train.errors import DataError
from train.evaluate.forgetting.arithmetic import EXAMPLES, arithmetic_questions
from train.evaluate.forgetting.cloze import cloze_choices
from train.evaluate.forgetting.instructions import PLAIN_ANSWER, instructions
from train.evaluate.forgetting.texts import TEXTS
from train.evaluate.local import Decoding, decoding_of
from train.evaluate.probes import AnswerProbe, AskedQuestions, ChoiceProbe, Probe, TextProbe, most_frequent_share

MAX_DOMAINS = 3
"""With `other_domains: auto`."""
_SEED = 13
_MAX_NUMBER_TOKENS = 5
_MAX_INSTRUCTION_TOKENS = 24
_MAX_PROMPT_TOKENS, _MAX_ANSWER_TOKENS = 1024, 64
"""Of another domain's question; a longer one is not asked, a longer answer is cut."""

logger = logging.getLogger(__name__)


def forgetting_probes(
    config: ForgettingConfig,
    tokenizer: PreTrainedTokenizerBase,
    at: datetime,
    others: Sequence[tuple[DatasetManifest, Sequence[DatasetRow]]],
) -> list[Probe]:
    """What base and adapter are asked; general tasks without a system prompt, as of a model of no domain.

    Args:
        at: The time passed to the chat template.
        others: Other domains' data sets with the held-out rows that are asked.
    """
    probes: list[Probe] = [
        TextProbe(name, tuple(tokenizer(TEXTS[name], add_special_tokens=False)["input_ids"])) for name in config.texts
    ]
    for name in config.tasks:
        try:
            probes.append(_TASKS[name](tokenizer, at, config.num_questions))
        except DataError as error:  # a chat template that takes no conversation without a system prompt
            logger.warning("forgetting is not measured on %s: %s", name, error)
    domains = [_domain(tokenizer, at, dataset, rows) for dataset, rows in others]
    return [*probes, *(probe for probe in domains if probe.num_asked)]


def other_domains(config: ForgettingConfig, own: str, datasets: Path) -> list[tuple[DatasetManifest, list[DatasetRow]]]:
    """The data sets of other domains, each with a seeded sample of its held-out questions.

    Raises:
        DatasetError: A domain that the settings name has none, or one without questions.
    """
    if config.other_domains == "none":
        return []
    if config.other_domains != "auto":
        return [_read(datasets / name, config.num_questions) for name in config.other_domains if name != own]
    found = []
    for folder in sorted(path for path in datasets.glob("*") if path.is_dir() and path.name != own):
        try:
            dataset, rows = _read(folder, config.num_questions)
            if not dataset.is_of_samples:  # its questions are those of its domain
                found.append((dataset, rows))
        except DatasetError as error:
            logger.info("forgetting is not measured on %r: %s", folder.name, error)
        if len(found) == MAX_DOMAINS:
            break
    return found


def _read(folder: Path, num_questions: int) -> tuple[DatasetManifest, list[DatasetRow]]:
    dataset = read_dataset(folder)
    if dataset.type != "prompt_completion":
        raise DatasetError(f"Data set {folder.name!r} must have questions with answers; its type is {dataset.type!r}.")
    rows = [row for row in read_split(folder, "test") if row.in_scope]
    return dataset, random.Random(_SEED).sample(rows, min(num_questions, len(rows)))


def _domain(
    tokenizer: PreTrainedTokenizerBase, at: datetime, dataset: DatasetManifest, rows: Sequence[DatasetRow]
) -> AnswerProbe:
    """With the domain's few-shot examples: without them a base knows neither its format nor its classes."""
    kept, prompts = [], []
    for row in rows:
        try:
            prompt = _prompt(tokenizer, at, dataset, row)
        except DataError as error:  # built for a base with another chat template
            logger.warning("a question of %r is left out of forgetting: %s", dataset.domain, error)
            continue
        if len(prompt) <= _MAX_PROMPT_TOKENS:
            kept.append(row)
            prompts.append(prompt)
    items = [Item(str(n), row.input, row.output, "") for n, row in enumerate(kept, 1)]
    own = decoding_of(dataset, tokenizer)
    decoding = replace(own, max_new_tokens=min(own.max_new_tokens, _MAX_ANSWER_TOKENS))
    questions = AskedQuestions(items, prompts, decoding, tokenizer)
    chance = most_frequent_share([row.output for row in kept])
    return AnswerProbe("forgetting", f"domain: {dataset.domain}", exact_match(), questions, chance)


def _prompt(
    tokenizer: PreTrainedTokenizerBase, at: datetime, dataset: DatasetManifest, row: DatasetRow
) -> tuple[int, ...]:
    """With the examples, unless the prompt has turns of its own or becomes too long."""
    if dataset.few_shot and len(row.prompt) == 2 and not row.tools:
        prompt = encode_prompt(tokenizer, few_shot_messages(dataset, row.input), at)
        if len(prompt) <= _MAX_PROMPT_TOKENS:
            return prompt
    return encode_prompt(tokenizer, row.prompt, at, row.tools)


def _arithmetic(tokenizer: PreTrainedTokenizerBase, at: datetime, num_questions: int) -> AnswerProbe:
    asked = arithmetic_questions(num_questions)
    prompts = [tuple(token_ids(tokenizer, EXAMPLES + question)) for question, _ in asked]
    items = [Item(str(n), question, answer, "") for n, (question, answer) in enumerate(asked, 1)]
    questions = AskedQuestions(items, prompts, Decoding(_MAX_NUMBER_TOKENS, stop=("\n",)), tokenizer)
    chance = most_frequent_share([answer for _, answer in asked])
    return AnswerProbe("forgetting", "arithmetic", numeric(0.0, 0.0), questions, chance)


def _cloze(tokenizer: PreTrainedTokenizerBase, at: datetime, num_questions: int) -> ChoiceProbe:
    return ChoiceProbe("cloze", tokenizer, [(c.beginning, c.words) for c in cloze_choices(num_questions)])


def _instructions(tokenizer: PreTrainedTokenizerBase, at: datetime, num_questions: int) -> AnswerProbe:
    asked = instructions(num_questions)
    rules = {str(n): instruction.is_followed for n, instruction in enumerate(asked, 1)}
    metric = ByItem("instruction_followed", lambda item: float(rules[item.id](item.answer)))
    items = [Item(str(n), instruction.text, "", "") for n, instruction in enumerate(asked, 1)]
    prompts = [encode_prompt(tokenizer, (_user(instruction.text),), at) for instruction in asked]
    questions = AskedQuestions(items, prompts, Decoding(_MAX_INSTRUCTION_TOKENS), tokenizer)
    chance = sum(rule(PLAIN_ANSWER) for rule in rules.values()) / len(rules)
    return AnswerProbe("forgetting", "instructions", metric, questions, chance)


_TASKS: dict[TaskName, Callable[[PreTrainedTokenizerBase, datetime, int], Probe]] = {
    "arithmetic": _arithmetic,
    "cloze": _cloze,
    "instructions": _instructions,
}


def _user(text: str) -> Message:
    return Message(role="user", content=text)
