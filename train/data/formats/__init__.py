"""Layouts of examples, one file each: a layout is added by writing its file and listing it here."""

from train.data.formats import (
    alpaca,
    chat,
    dolly,
    input_output,
    openai_preference,
    openai_reinforcement,
    openassistant,
    preference,
    prompt_completion,
    prompt_only,
    question_answer,
    sharegpt,
    text,
    text_label,
    unpaired_preference,
)
from train.data.formats.format import Format

FORMATS: tuple[Format, ...] = (
    chat.FORMAT,
    sharegpt.FORMAT,
    alpaca.FORMAT,
    dolly.FORMAT,
    openassistant.FORMAT,
    input_output.FORMAT,
    prompt_completion.FORMAT,
    prompt_only.FORMAT,
    question_answer.FORMAT,
    text_label.FORMAT,
    preference.FORMAT,
    openai_preference.FORMAT,
    openai_reinforcement.FORMAT,
    unpaired_preference.FORMAT,
    text.FORMAT,
)
