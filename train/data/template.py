"""Use of the time by a base's chat template, and the time that training renders it with."""

import random
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from adapters.template_time import APART, noon, strftime_at
from config.dataset import Split
from config.training import RecipeConfig
from train.errors import PrepareBaseError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VARIED_YEARS = 3
_NUM_TRIES = 8  # a template that draws lots may draw the same twice

_USER, _SYSTEM = {"role": "user", "content": "Hello"}, {"role": "system", "content": "Be brief."}
_ASSISTANT = {"role": "assistant", "content": "Hello!"}
_CONVERSATIONS = ([_USER], [_SYSTEM, _USER], [_SYSTEM, _USER, _ASSISTANT, _USER])
_TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


def render(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[dict[str, Any]],
    at: datetime,
    *,
    is_prompt: bool,
    **extra: Any,
) -> str:
    """Render a conversation to text, with `at` as the current time.

    Args:
        is_prompt: Whether to append the header of the assistant's turn.
    """
    text = tokenizer.apply_chat_template(
        list(turns), tokenize=False, add_generation_prompt=is_prompt, strftime_now=strftime_at(at), **extra
    )
    return str(text)


def run_time(recipe: RecipeConfig, today: date) -> datetime:
    """Template time of a run's held-out questions and, unless dates are varied, of all its rows."""
    return noon(recipe.template_date if isinstance(recipe.template_date, date) else today)


def row_times(recipe: RecipeConfig, at: datetime, num_rows: int, split: Split) -> list[datetime]:
    """Template time of each training or validation row; varied times are drawn with the recipe's seed."""
    if recipe.template_date != "varied":
        return [at] * num_rows
    rng = random.Random(f"{recipe.seed} {split}")
    span = timedelta(days=365 * VARIED_YEARS)
    return [at + timedelta(seconds=rng.randrange(int(span.total_seconds()))) for _ in range(num_rows)]


def names_time(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the template can depend on the time: only one that names the function can."""
    return "strftime_now" in tokenizer.get_chat_template()


def writes_time(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the template renders common conversations differently at two different times.

    Raises:
        PrepareBaseError: Renderings differ even at the same time.
    """
    early, late = ([_rendered(tokenizer, *case, moment) for case in _cases()] for moment in APART)
    for _ in range(_NUM_TRIES):
        if [_rendered(tokenizer, *case, APART[0]) for case in _cases()] != early:
            raise PrepareBaseError(
                "The base's chat template renders one conversation differently each time, so a server cannot verify an "
                "adapter against its training. Give another template with `--chat-template FILE.jinja`."
            )
    return early != late


def _cases() -> list[tuple[list[dict[str, str]], dict[str, Any]]]:
    return [(turns, extra) for turns in _CONVERSATIONS for extra in ({}, {"tools": [_TOOL]})]


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]], extra: dict[str, Any], at: datetime
) -> str | None:
    """None if the template rejects such a conversation."""
    try:
        return render(tokenizer, turns, at, is_prompt=True, **extra)
    except Exception:  # boundary: a template is a program from a file, and may raise what it likes
        return None
