"""General rows among the training rows (`recipe.replay_share`), so that a base keeps what it could do.

They are read from `data.replay`. Without it, they are the base's own sampled answers to general requests, as in
self-synthesized rehearsal (https://arxiv.org/abs/2403.01244): they teach nothing new, and hold the base where it is.
"""

import logging
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from config.data import DataConfig
from config.dataset import DatasetRow, Message
from config.domain import AnswerConfig
from config.rows import row_to_json
from train.compute import Shape, compute_in, measure_inference
from train.data.encode import encode_prompt
from train.data.general import GENERAL_REQUESTS
from train.data.sources import read_source
from train.errors import DataError
from train.evaluate.decoding import Sampling
from train.evaluate.local import Decoding, answer_prompts
from train.objectives.objective import Task

REPLAY_FILE = "replay.jsonl"
"""In the run's folder: a resumed run trains on the same rows."""

_MAX_ANSWER_TOKENS = 96
_MIN_ANSWER_TOKENS = 16
_SENTENCE_END = re.compile(r"^.*[.!?](?=\s|$)", re.DOTALL)

logger = logging.getLogger(__name__)


def with_replay(task: Task, load: Callable[[Path], PreTrainedModel]) -> Task:
    """The task with the general rows that the recipe wants.

    Args:
        load: Loads the base from its folder; called where its own answers are needed.

    Raises:
        DataError: `data.replay` has no questions with answers.
    """
    share = task.config.recipe.replay_share
    if not share:
        return task
    path = task.run_folder / REPLAY_FILE
    if path.is_file():
        rows = [DatasetRow.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        rows = _read(task.config.data.replay) if task.config.data.replay else _own_answers(task, load)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(map(row_to_json, rows)), encoding="utf-8")
        temporary.replace(path)
    wanted = round(share / (1 - share) * len(task.rows["train"]))
    logger.info("%d general rows, from %d different ones, are mixed into training", wanted, min(wanted, len(rows)))
    return replace(task, replay=repeated(rows, wanted, task.config.recipe.seed))


def repeated(rows: Sequence[DatasetRow], wanted: int, seed: int) -> list[DatasetRow]:
    """So many rows: each once, in an order drawn by the seed, then each again."""
    order = random.Random(seed).sample(list(rows), len(rows))
    return [order[number % len(order)] for number in range(wanted)]


def _read(paths: tuple[str, ...]) -> list[DatasetRow]:
    """Conversations as they stand in the files: without the domain's system prompt."""
    examples = read_source(DataConfig(source="files", path=paths), AnswerConfig()).examples
    rows = [
        DatasetRow(
            messages=(*e.prompt, *e.completion), tools=e.tools, input=e.question, output=e.answer, origin=e.origin
        )
        for e in examples
        if e.type == "prompt_completion"
    ]
    if not rows:
        raise DataError(f"`data.replay` {list(paths)} has no questions with answers. Give chats, or leave it out.")
    return rows


def _own_answers(task: Task, load: Callable[[Path], PreTrainedModel]) -> list[DatasetRow]:
    """The base's, sampled at temperature 1 and ended after the last whole sentence."""
    asked = [Message(role="user", content=request) for request in GENERAL_REQUESTS]
    prompts = [encode_prompt(task.tokenizer, (turn,), task.template_time) for turn in asked]
    longest = max(map(len, prompts))
    num_new_tokens = min(_MAX_ANSWER_TOKENS, task.config.recipe.max_length - longest - 2)
    if num_new_tokens < _MIN_ANSWER_TOKENS:
        raise DataError(
            f"`recipe.max_length` {task.config.recipe.max_length} leaves no room for answers to general requests of up "
            f"to {longest} tokens. Raise it, or set `recipe.replay_share` to 0."
        )
    model = load(task.base_folder).eval()
    compute_in(model, measure_inference(model, Shape(len(prompts), longest), num_new_tokens))
    decoding = Decoding(num_new_tokens, choose=Sampling(1.0, None))
    answers = [whole_sentences(a.text) for a in answer_prompts(model, task.tokenizer, prompts, decoding)]
    rows = [
        DatasetRow(
            messages=(turn, Message(role="assistant", content=answer)),
            input=turn.content,
            output=answer,
            is_synthetic=True,
        )
        for turn, answer in zip(asked, answers, strict=True)
        if answer
    ]
    if not rows:
        raise DataError("The base answers general requests with nothing. Give rows in `data.replay`.")
    return rows


def whole_sentences(text: str) -> str:
    """Up to the end of the last sentence; a text without one is taken as it is."""
    found = _SENTENCE_END.match(text.strip())
    return found.group(0) if found else text.strip()
