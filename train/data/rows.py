"""Examples as the rows of a data set folder, by their type."""

from collections.abc import Sequence

from config.dataset import DatasetManifest, DatasetRow, DatasetType, FewShotExample, full_prompt
from config.domain import ChatConfig
from config.objective import ObjectiveConfig, objectives_for
from config.rows import AnyRow, PreferenceRow, PromptRow, TextRow, UnpairedPreferenceRow
from train.data.examples import Example
from train.data.slices import slice_values
from train.data.steps import MAX_LISTED
from train.errors import DataError


def to_row(chat: ChatConfig, example: Example, slice_by: Sequence[str] = ()) -> AnyRow:
    """The row of an example, with the domain's system prompt and `chat.user` applied.

    Args:
        slice_by: Columns of the source whose values a row with an answer keeps.
    """
    origin, is_synthetic = example.origin, example.is_synthetic
    if example.type == "language_modeling":
        return TextRow(text=example.text, is_synthetic=is_synthetic, origin=origin)
    prompt = full_prompt(chat, example.prompt)
    if example.type == "prompt_only":
        return PromptRow(
            messages=prompt,
            tools=example.tools,
            input=example.question,
            item=dict(example.item),
            is_synthetic=is_synthetic,
            origin=origin,
        )
    if example.type == "preference":
        return PreferenceRow(
            prompt=prompt,
            chosen=example.chosen,
            rejected=example.rejected,
            tools=example.tools,
            input=example.question,
            is_synthetic=is_synthetic,
            origin=origin,
        )
    if example.type == "unpaired_preference":
        assert example.label is not None
        return UnpairedPreferenceRow(
            prompt=prompt,
            completion=example.completion,
            label=example.label,
            tools=example.tools,
            input=example.question,
            is_synthetic=is_synthetic,
            origin=origin,
        )
    return DatasetRow(
        messages=(*prompt, *example.completion),
        tools=example.tools,
        input=example.question,
        output=example.answer,
        in_scope=example.in_scope,
        is_synthetic=is_synthetic,
        fields=slice_values(example.fields, slice_by),
        origin=origin,
    )


def type_of(examples: Sequence[Example]) -> DatasetType:
    """The one type of all examples.

    Raises:
        DataError: There are several.
    """
    first = {example.type: example for example in reversed(examples)}
    if len(first) > 1:
        named = "\n".join(f"  {e.origin or 'a packaged row'}: {kind}" for kind, e in list(first.items())[:MAX_LISTED])
        raise DataError(f"The rows are of several types; a data set has one. The first of each:\n{named}")
    return next(iter(first), "prompt_completion")


def few_shot_examples(train: Sequence[Example], wanted: int) -> tuple[FewShotExample, ...]:
    """Few-shot examples: the first in-scope training examples of one turn, with distinct answers where possible."""
    usable = [e for e in train if e.in_scope and e.type == "prompt_completion" and len(e.prompt) == 1]
    first_of_answer = list({e.answer: e for e in reversed(usable)}.values())[::-1][:wanted]
    chosen = set(map(id, first_of_answer))
    rest = [e for e in usable[: 2 * wanted] if id(e) not in chosen]
    return tuple(FewShotExample(input=e.question, output=e.answer) for e in (first_of_answer + rest)[:wanted])


def check_type(dataset: DatasetManifest, objective: ObjectiveConfig) -> None:
    """Check that an objective can train on a data set.

    Raises:
        DataError: Its rows are of another type.
    """
    if dataset.type not in objective.data_types:
        wanted = " or ".join(map(repr, objective.data_types))
        fitting = ", ".join(f"`{name}`" for name in objectives_for(dataset.type))
        raise DataError(
            f"Data set {dataset.domain!r} has rows of type {dataset.type!r}, but `objective: {objective.name}` trains "
            f"on {wanted}. Set `objective` to {fitting}, or give other data (docs/data.md)."
        )
