"""Chat templates of real model families after `base prepare`: what is learnt, and what had to be changed.

`python -m tests.train.base.test_chat_template` writes the table into docs/data.md.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from config.dataset import FunctionCall, Message, ToolCall
from tests.model_templates import FOLDER, NAMES, source_of, tokenizer_of
from tests.tiny_llama import CHAT_TEMPLATE, RENDERED_AT, tiny_tokenizer
from tests.tracked_files import ROOT
from train.base.chat_template import TOOL, FittedTemplate, fit_template
from train.data.encode import Encoded, encode_prompt, encode_turns
from train.errors import DataError, PrepareBaseError

PAGE = ROOT / "docs" / "data.md"
BEGIN = "<!-- table of chat templates: python -m tests.train.base.test_chat_template -->\n\n"
END = "\n<!-- end -->"

SYSTEM, QUESTION, NEXT_QUESTION = "Name the colour.", "What is a rose?", "And grass?"
TURNS = (
    Message(role="system", content=SYSTEM),
    Message(role="user", content=QUESTION),
    Message(role="assistant", content="Red as wine."),
    Message(role="user", content=NEXT_QUESTION),
    Message(role="assistant", content="Green."),
)
CALLING = (
    Message(role="user", content=QUESTION),
    Message(
        role="assistant",
        tool_calls=(ToolCall(id="a1b2c3d4e", function=FunctionCall(name="probe_tool", arguments={"city": "Ulm"})),),
    ),
    Message(role="tool", content="It is red.", name="probe_tool", tool_call_id="a1b2c3d4e"),
    Message(role="assistant", content="Red as wine."),
)
MARKED = [
    name
    for name in NAMES
    if (FOLDER / f"{name}_training.jinja").is_file() or re.search(r"\{%-?\s*generation\b", source_of(name))
]
HEADERS = {
    "",
    "<｜Assistant｜>",
    "<think></think>",
    "<think></think>\n",
    "<think>\n\n</think>\n\n",
    "<|start|>assistant<|channel|>final<|message|>",
    "<|start|>assistant to=user<|message|>",
}
OTHER_ENDS = {"glm4moe": "<|user|>"}
"""GLM writes no end of turn; TRL takes the next turn's header for it."""
WITHOUT_TOOLS = {
    *("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "idefics3", "lfm2"),
    *("llama3", "llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm"),
}
ALIKE = {
    *("deepseekv3", "gemma4_v2", "gemma4_v3", "gemma4_v4", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_v2", "llama3_1"),
    *("nemotron_3_nano", "nemotron_3_super", "phi3_5", "qwen2_5_vl", "qwen3", "qwen3_5_nothink", "qwen3_6"),
    *("qwen3_instruct_2507",),
}
"""Of families that the fast tests try another template of."""
LEADS = {"gptoss": "<|channel|>final<|message|>", "muse_glimmer": "to=user<|message|>"}
"""What a model of this family generates before the text of its answer."""


@dataclass(frozen=True)
class Prepared:
    """A tokenizer after `base prepare`."""

    tokenizer: PreTrainedTokenizerFast
    fit: FittedTemplate

    @property
    def end(self) -> str:
        return str(self.tokenizer.eos_token)

    def learnt(self, sequences: list[Encoded]) -> list[str]:
        return [
            str(self.tokenizer.decode(sequence.input_ids[start:end])).strip()
            for sequence in sequences
            for start, end in sequence.learnt
        ]

    def encode(self, turns: tuple[Message, ...]) -> list[Encoded]:
        tools = (TOOL,) if turns is CALLING else ()
        return encode_turns(self.tokenizer, turns, RENDERED_AT, tools)


@cache
def prepared(name: str) -> Prepared:
    tokenizer = tokenizer_of(name)
    return Prepared(tokenizer, fit_template(tokenizer))


def mostly_fast(names: Iterable[str]) -> list[Any]:
    """Parameters of a test."""
    return [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in names]


def table() -> str:
    """In Markdown, one row a template."""
    rows = ["| Template | Changed by `base prepare` | End of turn | Turns | Tools |", "| --- | --- | --- | --- | --- |"]
    for name in NAMES:
        changes = ", ".join(f"`{change}`" for change in prepared(name).fit.changes) or "nothing"
        end = prepared(name).end.replace("|", "\\|")
        is_one = len(prepared(name).encode(TURNS)) == 1
        rows.append(
            f"| `{name}` | {changes} | `{end}` "
            f"| {'together' if is_one else 'one by one'} | {'yes' if learns_tools(name) else 'refused'} |"
        )
    return "\n".join(rows) + "\n"


def learns_tools(name: str) -> bool:
    try:
        return bool(prepared(name).encode(CALLING))
    except DataError:
        return False


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


def masked_by_template(name: str) -> str:
    """What TRL's variant of a template masks as the assistant's, of one question and its answer."""
    variant = FOLDER / f"{name}_training.jinja"
    tokenizer = tokenizer_of(name)
    source = variant.read_text(encoding="utf-8") if variant.is_file() else source_of(name)
    parts = "content_parts" in prepared(name).fit.changes
    turns: Any = [
        {"role": turn.role, "content": [{"type": "text", "text": turn.content}] if parts else turn.content}
        for turn in TURNS[1:3]
    ]
    found: Any = tokenizer.apply_chat_template(
        turns, chat_template=source, return_dict=True, return_assistant_tokens_mask=True, enable_thinking=False
    )
    mask = zip(found["input_ids"], found["assistant_masks"], strict=True)
    return str(tokenizer.decode([token for token, is_learnt in mask if is_learnt])).strip()


@pytest.mark.parametrize("name", mostly_fast(NAMES))
def test_exactly_the_answers_are_learnt(name: str) -> None:
    end, lead = prepared(name).end, LEADS.get(name, "")
    first, second = prepared(name).learnt(prepared(name).encode(TURNS))
    first, second = (text.replace("<|END_RESPONSE|>", "") for text in (first, second))
    assert (first, second) == (f"{lead}Red as wine.{end}", f"{lead}Green.{end}")


@pytest.mark.parametrize("name", mostly_fast(NAMES))
def test_every_text_of_the_prompt_is_rendered(name: str) -> None:
    prompt = str(prepared(name).tokenizer.decode(list(encode_prompt(prepared(name).tokenizer, TURNS[:4], RENDERED_AT))))
    assert [text for text in (SYSTEM, QUESTION, "Red as wine.", NEXT_QUESTION) if text not in prompt] == []


@pytest.mark.parametrize("name", mostly_fast(NAMES))
def test_what_is_before_an_answer_is_the_servers_prompt(name: str) -> None:
    sequences = prepared(name).encode(TURNS)
    prompts = {sequence.prompt_ids for sequence in sequences}
    tokenizer = prepared(name).tokenizer
    wanted = [encode_prompt(tokenizer, TURNS[:end], RENDERED_AT) for end in (2, 4)]
    assert prompts == set(wanted[-len(sequences) :])


@pytest.mark.parametrize("name", mostly_fast(MARKED))
def test_the_mask_agrees_with_generation_markers(name: str) -> None:
    """But for headers and empty thoughts, which TRL masks as the assistant's and a server's prompt has."""
    before, answer, after = masked_by_template(name).partition("Red as wine.")
    assert (before in HEADERS, answer) == (True, "Red as wine.")
    assert OTHER_ENDS.get(name, prepared(name).end) in after


@pytest.mark.parametrize("name", mostly_fast(name for name in NAMES if name not in WITHOUT_TOOLS))
def test_tool_calls_are_learnt_and_results_are_not(name: str) -> None:
    calling, answering = prepared(name).learnt(prepared(name).encode(CALLING))
    assert ("probe_tool" in calling, "Ulm" in calling) == (True, True)
    assert answering.endswith(f"Red as wine.{prepared(name).end}")
    assert "It is red." not in calling + answering


@pytest.mark.parametrize("name", mostly_fast(sorted(WITHOUT_TOOLS)))
def test_rows_with_tool_calls_are_refused_elsewhere(name: str) -> None:
    with pytest.raises(DataError, match="base's chat template"):
        prepared(name).encode(CALLING)


@pytest.mark.parametrize("name", mostly_fast(NAMES))
def test_a_server_stops_where_training_ends(name: str) -> None:
    stops = {prepared(name).tokenizer.eos_token_id, *prepared(name).fit.end_token_ids}
    conversations = [TURNS, CALLING][: 1 + learns_tools(name)]
    taught = [sequence for turns in conversations for sequence in prepared(name).encode(turns)]
    assert {sequence.input_ids[end - 1] for sequence in taught for _, end in sequence.learnt} <= stops


def test_a_system_prompt_is_put_into_the_first_question() -> None:
    tokenizer = prepared("gemma").tokenizer
    prompt = str(tokenizer.decode(list(encode_prompt(tokenizer, TURNS[:2], RENDERED_AT))))
    wanted = f"<start_of_turn>user\n{SYSTEM}\n\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n"
    assert prompt == f"<bos>{wanted}"


@pytest.mark.parametrize("name", ["gemma4", "gemma4_v2", "gemma3", "qwen3_vl", "smolvlm", "glm4moe", "lfm2_2_5_vl"])
def test_texts_and_lists_of_parts_give_the_same_prompt(name: str) -> None:
    """vLLM sends parts where a template reads them."""
    texts: Any = [turn.for_template() for turn in TURNS[:4]]
    parts: Any = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in texts]
    first, second = (prepared(name).tokenizer.apply_chat_template(turns, tokenize=False) for turns in (texts, parts))
    assert first == second


def test_a_template_that_needs_nothing_stays_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    assert fit_template(tokenizer).changes == ()
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_each_variant_of_a_template_is_changed() -> None:
    tokenizer = tokenizer_of("gemma")
    tokenizer.chat_template = {"default": source_of("gemma"), "tool_use": source_of("gemma") + "!"}
    assert "system_in_user" in fit_template(tokenizer).changes
    default, tool_use = tokenizer.chat_template.values()
    assert tool_use == default + "!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "{{ messages | length }}" + CHAT_TEMPLATE,
        "{{ raise_exception('nothing') }}",
        CHAT_TEMPLATE.replace("m.content", "m.content | upper"),
    ],
)
def test_a_template_without_a_right_mask_is_refused(template: str) -> None:
    with pytest.raises(PrepareBaseError, match="Give another template with `--chat-template FILE"):
        fit_template(tiny_tokenizer(template))


def test_a_turn_needs_a_token_that_ends_it() -> None:
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE.replace("<|im_end|>", "").replace("<|im_start|>", "#"))
    tokenizer.eos_token = None
    with pytest.raises(PrepareBaseError, match="ends a turn by a token"):
        fit_template(tokenizer)


def test_another_end_of_a_call_leaves_that_of_an_answer() -> None:
    calls = CHAT_TEMPLATE.replace(
        "<|im_end|>", "{{ m.tool_calls[0].function.name if m.tool_calls else '<|endoftext|>' }}"
    )
    tokenizer = tiny_tokenizer(calls)
    assert fit_template(tokenizer).changes == ("end_of_turn",)
    assert tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.slow
def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text()
    assert with_table(page) == page, "run: python -m tests.train.base.test_chat_template"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
