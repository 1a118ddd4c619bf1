"""A domain's YAML proposed from its data: `lorikeet init`. Every value has a comment that says where it comes from."""

import math
import os
import random
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from genson import SchemaBuilder
from transformers import PreTrainedTokenizerBase

from adapters.template_time import noon
from config.data import DataConfig
from config.dataset import Message, full_prompt
from config.domain import ChatConfig
from config.load import load_domain
from train.data.encode import encode_prompt, encode_turns
from train.data.examples import Example
from train.data.files.strict_json import JsonError, parse_json
from train.data.lengths import encoding_error
from train.data.rows import type_of
from train.errors import DataError

MAX_CLASSES = 50
MIN_ROWS_PER_CLASS = 5
"""Answers are classes if there are at most 50 and each stands in five rows on average."""
NUM_MEASURED = 2000
"""Rows whose tokens are counted; the 99th percentile of a random sample of this size is sure to about 0.2 points."""
NUM_EPOCHS, MIN_STEPS, MAX_STEPS = 3, 20, 200
TEST_SHARE, MAX_TEST = 0.15, 240
VALIDATION_SHARE, MAX_VALIDATION = 0.05, 64


OBJECTIVES = {
    "prompt_completion": "sft",
    "preference": "dpo",
    "unpaired_preference": "kto",
    "language_modeling": "text",
}
"""What is proposed for each type of data set; reinforcement is for a person to decide."""


@dataclass(frozen=True)
class Proposal:
    """What the data show, and what follows from it for training.

    Attributes:
        json_schema: Schema of the answers if all are JSON objects or lists, else None.
        classes: The distinct answers if they are classes, most frequent first, else ().
        total_tokens, answer_tokens: (99th percentile, maximum) of the rendered rows and of their answers.
    """

    num_rows: int
    system: str
    system_reason: str
    json_schema: dict[str, Any] | None
    classes: tuple[str, ...]
    total_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    num_test: int
    num_validation: int
    batch_size: int
    max_steps: int
    objective: str = "sft"

    @property
    def num_train(self) -> int:
        return self.num_rows - self.num_test - self.num_validation

    @property
    def max_length(self) -> int:
        return max(_rounded_up(self.total_tokens[0], 16), 64)

    @property
    def max_new_tokens(self) -> int:
        return _rounded_up(math.ceil(self.answer_tokens[0] * 1.25), 8)


def propose(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, objective: str | None = None) -> Proposal:
    """Measure the examples of a source.

    Args:
        objective: What trains on them; None: the usual one of their type.

    Raises:
        DataError: Nothing trains on their type by itself, they are too few to hold any out, or the base's chat template
            rejects them.
    """
    data_type = type_of(examples)
    if objective is None and data_type not in OBJECTIVES:
        raise DataError(
            f"These are {data_type} examples; `lorikeet init` needs prompts with answers, preferences or texts. "
            "Write the YAML by hand, with `objective: grpo`: docs/training.md."
        )
    num_rows = len({example.text or example.prompt for example in examples})
    if num_rows < 10:
        raise DataError(f"{num_rows} different questions are too few to train and to hold some out; give at least 10.")
    has_answers = data_type != "prompt_only"
    labelled = [_answer_of(example) for example in examples if has_answers and example.label is not False]
    answers = [text for text in labelled if text.strip()]
    json_schema = schema_of(answers) if answers else None
    classes = () if json_schema else classes_of(answers)
    system, reason = _system_prompt(examples, json_schema, classes)
    totals, of_answers = _token_counts(tokenizer, examples, ChatConfig(system=system))
    num_test = max(min(round(num_rows * TEST_SHARE), MAX_TEST), 2)
    num_validation = max(min(round(num_rows * VALIDATION_SHARE), MAX_VALIDATION), 1)
    num_train = num_rows - num_test - num_validation
    smallest = 2 if data_type == "unpaired_preference" else 1  # KTO estimates a mean over the other rows of a batch
    batch_size = min(16, max(num_train // 8, smallest))
    max_steps = min(max(math.ceil(num_train * NUM_EPOCHS / batch_size), MIN_STEPS), MAX_STEPS)
    return Proposal(
        num_rows=num_rows,
        system=system,
        system_reason=reason,
        json_schema=json_schema,
        classes=classes,
        total_tokens=_p99_and_max(totals),
        answer_tokens=_p99_and_max(of_answers),
        num_test=num_test,
        num_validation=num_validation,
        batch_size=batch_size,
        max_steps=max_steps,
        objective=objective or OBJECTIVES[data_type],
    )


def _answer_of(example: Example) -> str:
    """The answer that is asked for: of a preference the chosen one."""
    return example.chosen[-1].content if example.chosen else example.answer


def schema_of(answers: Iterable[str]) -> dict[str, Any] | None:
    """JSON schema that every answer meets; None unless there are some, and all are JSON objects or lists.

    Strings with few distinct values become an `enum`.
    """
    values = []
    for answer in answers:
        try:
            value = parse_json(answer.encode())
        except JsonError:
            return None
        if not isinstance(value, dict | list):
            return None
        values.append(value)
    if not values:
        return None
    builder = SchemaBuilder(schema_uri=None)
    for value in values:
        builder.add_object(value)
    schema: dict[str, Any] = builder.to_schema()
    _narrow(schema, values)
    return schema


def classes_of(answers: Sequence[str]) -> tuple[str, ...]:
    """The distinct answers, most frequent first, if there are few enough to be classes; else ()."""
    counts = Counter(answers)
    is_few = len(counts) <= min(MAX_CLASSES, len(answers) / MIN_ROWS_PER_CLASS)
    return tuple(answer for answer, _ in counts.most_common()) if is_few else ()


def data_settings(config: DataConfig, folder: Path) -> dict[str, Any]:
    """`data` of the YAML: the paths relative to its folder, and the layout unless it is detected."""
    paths = [path if "://" in path else os.path.relpath(path, folder) for path in config.paths]
    layout = {} if config.layout == "auto" else {"layout": config.layout}
    return {"path": paths[0] if len(paths) == 1 else paths} | layout


def write_domain(name: str, base: str, data: dict[str, Any], proposal: Proposal, path: Path) -> None:
    """Write the proposal as a domain's YAML, complete or not at all.

    Args:
        data: `data` of the YAML, except the splits; paths are relative to its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(domain_yaml(name, base, data, proposal), encoding="utf-8")
        load_domain(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def domain_yaml(name: str, base: str, data: dict[str, Any], proposal: Proposal) -> str:
    """The text of the YAML, with comments."""
    p = proposal
    source = "".join(f"  {key}: {_inline(value)}\n" for key, value in data.items())
    return (
        f"# Proposed by `lorikeet init` from {p.num_rows} rows. Edit it freely; every key: config/domain.py.\n"
        f"name: {_inline(name)}\n"
        f"description: {_inline(f'Adapter for {name}.')}\n"
        f"base: {_inline(base)}\n\n"
        f"data:\n{source}"
        f"  num_test: {p.num_test}  # held out, never trained on\n"
        f"  num_validation: {p.num_validation}  # decide when training stops\n"
        f"  num_train: {p.num_train}  # the rest; fewer if copies are found\n\n"
        f"chat:\n  system: {_inline(p.system)}  # {p.system_reason}\n\n"
        f"{_answer_yaml(p)}"
        f"{_objective_yaml(p)}"
        "recipe:\n"
        f"  max_length: {p.max_length}  # tokens: 99% of the rows have at most {p.total_tokens[0]}, the longest "
        f"{p.total_tokens[1]}\n"
        f"  per_device_train_batch_size: {p.batch_size}\n"
        f"  max_steps: {p.max_steps}  # {_passes(p)}\n"
        f"  eval_steps: {max(p.max_steps // 4, 5)}\n\n"
        "evaluation:\n"
        f"  metric: exact_match  # {_metric_reason(p)}\n"
        f"  max_new_tokens: {p.max_new_tokens}  # 99% of the answers have at most {p.answer_tokens[0]} tokens, the "
        f"longest {p.answer_tokens[1]}\n"
    )


def _objective_yaml(proposal: Proposal) -> str:
    """Only where it is not the default."""
    if proposal.objective == "sft":
        return ""
    return f"objective: {proposal.objective}  # by the type of the data: docs/training.md\n\n"


def _answer_yaml(proposal: Proposal) -> str:
    if proposal.json_schema is None:
        return ""
    schema = yaml.safe_dump({"json_schema": proposal.json_schema}, sort_keys=False, allow_unicode=True)
    return f"answer:  # every answer of the file meets this schema\n{textwrap.indent(schema, '  ')}\n"


def _passes(proposal: Proposal) -> str:
    passes = proposal.max_steps * proposal.batch_size / max(proposal.num_train, 1)
    return f"steps of {proposal.batch_size} rows: {passes:.1f} passes over the training rows"


def _metric_reason(proposal: Proposal) -> str:
    if proposal.classes:
        return f"the answers are {len(proposal.classes)} classes"
    if proposal.json_schema is not None:
        return "JSON answers are compared as values"
    return "strict for free text: an answer counts only if it is equal"


def _system_prompt(
    examples: Sequence[Example], schema: dict[str, Any] | None, classes: Sequence[str]
) -> tuple[str, str]:
    """A system prompt, and the comment that says where it comes from."""
    own = Counter(turn.content for example in examples for turn in example.prompt if turn.role == "system")
    if own:
        text, count = own.most_common(1)[0]
        return text, f"that of {count} of {len(examples)} rows; rows keep their own"
    if classes:
        return f"Answer with one of: {', '.join(classes)}.", "say in your words what the task is"
    keys = list((schema or {}).get("properties", {}))
    if keys:
        return (
            f"Answer as JSON with the keys {', '.join(keys)}.",
            "say in your words what the task is",
        )
    return "Answer the question.", "say in your words what the task is"


def _narrow(schema: dict[str, Any], values: Sequence[Any]) -> None:
    """Forbid other keys, and turn strings with few distinct values into an `enum`, in place."""
    if schema.get("type") == "object":
        schema["additionalProperties"] = False
        for key, part in schema.get("properties", {}).items():
            _narrow(part, [value[key] for value in values if isinstance(value, dict) and key in value])
    elif schema.get("type") == "string" and (classes := classes_of([str(value) for value in values])):
        schema.clear()
        schema["enum"] = sorted(classes)


def _token_counts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], chat: ChatConfig
) -> tuple[list[int], list[int]]:
    """Tokens of whole conversations and of their answers, for a sample of the rows.

    Raises:
        DataError: The base's chat template rejects rows, or leaves out texts of theirs.
    """
    at = noon(date.today())
    sample = random.Random(0).sample(list(examples), min(len(examples), NUM_MEASURED))
    totals, answers = [], []
    faults: list[tuple[str, DataError]] = []
    for example in sample:
        if example.text:
            totals.append(len(tokenizer(example.text, add_special_tokens=False)["input_ids"]) + 1)
            answers.append(1)
            continue
        longest = max((example.completion, example.chosen, example.rejected), key=_num_chars)
        prompt = full_prompt(chat, example.prompt)
        try:
            if longest:
                totals.append(max(map(len, encode_turns(tokenizer, [*prompt, *longest], at, example.tools))))
            else:
                totals.append(len(encode_prompt(tokenizer, prompt, at, example.tools)))
        except DataError as error:
            faults.append((str(example.origin or repr(example.question[:40])), error))
            continue
        answers.append(len(tokenizer(_answer_of(example), add_special_tokens=False)["input_ids"]) + 1)
    if faults:
        raise encoding_error(faults)
    return totals, answers


def _num_chars(turns: Sequence[Message]) -> int:
    return sum(len(turn.content) for turn in turns)


def _p99_and_max(counts: Sequence[int]) -> tuple[int, int]:
    ordered = sorted(counts)
    return ordered[math.ceil(0.99 * len(ordered)) - 1], ordered[-1]


def _rounded_up(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple


def _inline(value: Any) -> str:
    """A value on one line of YAML; only text that needs it is quoted."""
    plain = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=math.inf)
    text = plain.removesuffix("\n").removesuffix("\n...")
    is_one_line = len(text.splitlines()) <= 1
    return text if is_one_line else yaml.safe_dump(value, default_style='"', width=math.inf).removesuffix("\n")
