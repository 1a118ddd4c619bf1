"""Detection of layouts, mapping of columns, and faults of rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.data.files_on_disk import pairs, read, rows, told, write
from train.data.detect import DETECTION_ROWS
from train.errors import DataError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def fault_of(folder: Path, row: Any, **settings: Any) -> str:
    """The only line of the error of one row."""
    content = row if isinstance(row, bytes) else rows(row)
    with pytest.raises(DataError) as caught:
        read(write(folder, "rows.jsonl", content), **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"input": "a", "output": None, "in_scope": True}, "`output`: found nothing, wanted text or a JSON value"),
        ({"input": "a", "output": " "}, "`output`: found empty text, wanted text or a JSON value"),
        ({"input": 5, "output": "b"}, "`input`: found 5, wanted text"),
        ({"input": "", "output": "b"}, "`input`: found empty text, wanted text"),
        ({"input": "a", "output": "b", "in_scope": "maybe"}, '`in_scope`: found "maybe", wanted true or false'),
        ({"input": "a", "output": "b", "in_scope": ""}, "`in_scope`: found empty text, wanted true or false"),
        ({"input": "a", "output": "b", "in_scope": 2}, "`in_scope`: found 2, wanted true or false"),
        ({"input": "a", "output": "b", "in_scope": []}, "`in_scope`: found [], wanted true or false"),
        ({"input": "a", "output": "b", "system": 1}, "`system`: found 1, wanted text"),
        (b'{"input": "a", "output": NaN}', "`output`: found NaN, wanted a finite number or null"),
        (b'{"input": "a", "output": "b", "x": [-Infinity]}', "`x[0]`: found Infinity, or a number too large"),
        (b'{"input": "a", "output": {"y": 1e999}}', "`output.y`: found Infinity, or a number too large"),
        (b'{"input": "a", "output": 1' + b"0" * 400 + b".5}", "`output`: found Infinity, or a number too large"),
        (b'{"input": "\\ud83c", "output": "b"}', "`input`: found half of a surrogate pair (\\ud83c)"),
        (b'{"input": "a", "output": {"k": ["\\udfa9 x"]}}', "`output.k[0]`: found half of a surrogate pair (\\udfa9)"),
        (b'{"input": "a", "output": "b", "\\ud83c": 1}', "found half of a surrogate pair (\\ud83c)"),
        (b'{"input": "a", "input": "c", "output": "b"}', "`input`: found two values for one key, wanted each key once"),
        (b'{"input": "a", "output": "b"', "found text that is not JSON"),
        (b'["a"]', 'found "a", wanted an object'),
        ({"messages": "Hi"}, '`messages`: found "Hi", wanted a list of turns'),
        ({"messages": []}, "`messages`: found [], wanted at least one turn"),
        ({"messages": ["Hi"]}, '`messages[0]`: found "Hi", wanted a turn'),
        ({"messages": [{"role": "bard", "content": "x"}]}, '`messages[0].role`: found "bard", wanted one of system'),
        ({"messages": [{"content": "x"}]}, "`messages[0].role`: found nothing, wanted one of"),
        ({"messages": [USER, {"role": "assistant"}]}, "`messages[1].content`: found empty text, wanted text"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "`messages[1].content`: found 3, wanted text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]},
            '`messages[0].content[0]`: found {"type": "image_url", "image_url": {}}, wanted a part of type text',
        ),
        ({"messages": [ANSWER]}, 'found ["assistant"], wanted a user turn'),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "`messages[1].weight`: found 0.5, wanted 0 or 1"),
        ({"messages": [USER, {**ANSWER, "train": "no"}]}, '`messages[1].train`: found "no", wanted true or false'),
        ({"messages": [USER, {**ANSWER, "training": False}]}, "found assistant turns of weight 0 only"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "found assistant turns of weight 0 only"),
        (
            {"messages": [{"role": "system", "content": "A"}, USER, ANSWER], "system": "B"},
            '`system`: found "B", wanted',
        ),
        ({"messages": [USER, ANSWER], "tools": [{"x": 1}]}, '`tools[0]`: found {"x": 1}, wanted a definition'),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "`tools`: found text that is not JSON"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "`messages[1].tool_calls[0].function.arguments`: found text that is not JSON",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "3"}}]}]},
            "`messages[1].tool_calls[0].function.arguments`: found 3, wanted a JSON object",
        ),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "`messages[1].tool_calls[0]`: found {}"),
        ({"conversations": [{"from": "me", "value": "x"}]}, '`conversations[0].from`: found "me", wanted one of'),
        (
            {"instruction": "a", "output": "b", "history": [["q"]]},
            '`history[0]`: found ["q"], wanted [question, answer]',
        ),
        ({"prompt": "a", "completion": [USER]}, "`completion`: found a turn of role user"),
        ({"prompt": "a", "completion": [{**ANSWER, "weight": 0}]}, "found assistant turns of weight 0 only"),
        ({"prompt": [USER, ANSWER], "completion": "b"}, "`prompt`: found a last turn of role assistant"),
        ({"prompt": "a", "completion": "b", "label": "spam"}, '`label`: found "spam", wanted true or false'),
        ({"chosen": "a", "rejected": "b"}, "`prompt`: found nothing, wanted a prompt"),
        ({"chosen": [USER, ANSWER], "rejected": [ANSWER]}, "`chosen`: found "),
        (
            {"prompt": "Other", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "x"}]},
            '`prompt`: found "Other", wanted the question of',
        ),
        ({"input": "a", "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]}, '`input`: found "a", wanted'),
        ({"message_tree_id": "t", "prompt": "x"}, '`prompt`: found "x", wanted the first message'),
        ({"text": " "}, "`text`: found empty text, wanted text"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: Any, fault: str) -> None:
    message = fault_of(tmp_path, row)
    assert message.startswith("rows.jsonl line 1: ")
    assert fault in message


@pytest.mark.parametrize("value", ["false", "FALSE", "no", "No ", "0", "n", False, 0, 0.0])
def test_a_flag_that_says_false_is_false(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, "rows.jsonl", rows({"input": "a", "output": "b", "in_scope": value}))
    assert [example.in_scope for example in read(path).examples] == [False]


@pytest.mark.parametrize("value", ["true", "TRUE", "yes", "1", "y", True, 1, None])
def test_a_flag_that_says_true_is_true(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, "rows.jsonl", rows({"input": "a", "output": "b", "in_scope": value}))
    assert [example.in_scope for example in read(path).examples] == [True]


def test_synthetic_rows_are_marked(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", rows({"input": "a", "output": "b", "is_synthetic": True}))
    assert [example.is_synthetic for example in read(path).examples] == [True]


def test_ten_faults_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    good = {"input": "a", "output": "b"}
    write(tmp_path, "1.jsonl", rows(good, *[{"input": "", "output": "b"}] * 8))
    write(tmp_path, "2.csv", b"input,output\na\n" + b",b\n" * 4)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[0] == "1.jsonl line 2: `input`: found empty text, wanted text"
    assert lines[8] == "2.csv line 2: found 1 cells, wanted 2, as in the header"
    assert lines[10] == "and 3 more"


def test_a_broken_list_keeps_the_line_of_its_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", b'[{"input": "a", "output": "b"},\n {"input": "c"\n "output": "d"}]')
    with pytest.raises(DataError, match=r"rows\.json line 2: found text that is not JSON"):
        read(path)


def test_rows_without_an_answer_are_skipped_and_told(tmp_path: Path) -> None:
    content = rows({"messages": [USER, ANSWER]}, {"messages": [USER]}, {"messages": [USER, ANSWER, USER]})
    found = read(write(tmp_path, "rows.jsonl", content))
    assert pairs(found) == [("Hi", "Hello")]
    assert [(row.origin.line, row.reason) for row in found.skipped] == [(2, "no answer"), (3, "no answer")]
    assert found.notes == (
        "rows.jsonl: OpenAI chat (detected), 3 rows, 2 of them skipped: without an answer (lines 2, 3).",
    )


def test_no_answer_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No example in rows\.jsonl: .*without an answer \(line 1\)"):
        read(write(tmp_path, "rows.jsonl", rows({"messages": [USER]})))


def test_columns_and_keys_that_are_not_used_are_told(tmp_path: Path) -> None:
    turn = {**ANSWER, "reasoning_content": "hm"}
    row = {"messages": [USER, turn], "id": 1, "source": "web", "empty": None, "team": "a"}
    found = read(write(tmp_path, "rows.jsonl", rows(row)), group_by="team")
    assert found.notes[1:] == ("rows.jsonl: columns not used: id, messages[].reasoning_content, source.",)


@pytest.mark.parametrize("mask", [{"weight": 0}, {"train": False}, {"training": 0}])
def test_a_masked_answer_is_context(tmp_path: Path, mask: dict[str, object]) -> None:
    turns = [USER, ANSWER | mask, USER, ANSWER | {"train": True}]
    found = read(write(tmp_path, "rows.jsonl", rows({"messages": turns})))
    assert told(found.examples[0]) == "u: Hi | a*: Hello | u: Hi > a: Hello"
    assert len(found.notes) == 1


def test_columns_stay_with_the_example_for_the_splits(tmp_path: Path) -> None:
    row = {"input": "a", "output": "b", "patient": 7, "tags": ["x"]}
    example = read(write(tmp_path, "rows.jsonl", rows(row))).examples[0]
    assert example.fields == {"input": "a", "output": "b", "patient": 7}


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    row = {"query": "a", "reply": "b", "prompt_for_model": "Be brief."}
    columns = {"input": "query", "output": "reply", "system": "prompt_for_model"}
    found = read(write(tmp_path, "rows.jsonl", rows(row)), columns=columns)
    assert [told(example) for example in found.examples] == ["s: Be brief. | u: a > a: b"]
    assert found.notes == ("rows.jsonl: input/output (detected), 1 row.",)


@pytest.mark.parametrize("layout", ["auto", "question_answer"])
def test_names_of_a_spreadsheet_may_have_capitals(tmp_path: Path, layout: str) -> None:
    found = read(write(tmp_path, "rows.csv", b"Question,ANSWER,Team\na,b,c\n"), layout=layout)
    assert pairs(found) == [("a", "b")]
    assert found.notes[1:] == ("rows.csv: columns not used: Team.",)
    with pytest.raises(DataError, match=r"rows\.csv line 2: `Question`: found empty text"):
        read(write(tmp_path, "rows.csv", b"Question,ANSWER\n,b\n"), layout=layout)


def test_a_mapped_column_replaces_one_of_the_same_name(tmp_path: Path) -> None:
    row = {"input": "a", "output": "draft", "final": "b"}
    found = read(write(tmp_path, "rows.jsonl", rows(row)), columns={"output": "final"})
    assert pairs(found) == [("a", "b")]
    assert found.notes[1:] == ("rows.jsonl: columns not used: output.",)


def test_a_fault_names_the_files_own_column(tmp_path: Path) -> None:
    message = fault_of(tmp_path, {"query": "", "reply": "b"}, columns={"input": "query", "output": "reply"})
    assert message == "rows.jsonl line 1: `query`: found empty text, wanted text"


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (
            {"id": 1, "query": "a", "reply": "b"},
            {},
            "no known layout; found the columns id, query, reply. Known: OpenAI chat (messages); ",
        ),
        ({"query": "a", "reply": "b"}, {}, "e.g. `layout: input_output` and `columns: {input: query, output: reply}`"),
        ({"input": "a"}, {}, "no known layout; found the columns input."),
        ({}, {}, "no known layout; found no columns."),
        (
            {"messages": [USER, ANSWER], "instruction": "a", "output": "b"},
            {},
            "the columns fit OpenAI chat (messages) and Alpaca (instruction, output). Set `data.layout` to `chat` or "
            "`alpaca`.",
        ),
        (
            {"input": "a", "output": "b"},
            {"layout": "alpaca"},
            "Alpaca wants the columns instruction, output; found the columns input, output. Name the file's columns",
        ),
        (
            {"input": "a", "output": "b", "system_prompt": "c"},
            {},
            "input/output does not use the columns system_prompt, which may be parts of the question or answer. Name "
            "the file's columns in `data.columns`, or set `layout: input_output` to leave these out.",
        ),
        ({"question": "a", "answer": "b", "choices": ["c"]}, {}, "question/answer does not use the columns choices"),
        ({"input": "a", "output": "b", "prompt": "c"}, {}, "input/output does not use the columns prompt"),
        ({"text": "a", "summary": "b"}, {}, "text does not use the columns summary"),
        ({"prompt": "a", "response": "b"}, {}, "no known layout; found the columns prompt, response."),
        (
            {"Question": "a", "Reply": "b"},
            {},
            "e.g. `layout: input_output` and `columns: {input: Question, output: Reply}`",
        ),
        ({"Input": "a", "INPUT": "b", "Output": "c"}, {}, "no known layout; found the columns INPUT, Input, Output."),
        ({"text": "a", "Label": "b"}, {}, "text does not use the columns Label, which may be parts"),
        ({"a": "x"}, {"columns": {"input": "query"}}, "`data.columns` names 'query'; found the columns a."),
        ({"a": "x"}, {"columns": {"inptu": "a"}}, "'inptu' is not a column of a layout; wanted answer, chosen,"),
    ],
)
def test_an_unclear_layout_is_explained(tmp_path: Path, row: Any, settings: dict[str, Any], message: str) -> None:
    assert message in fault_of(tmp_path, row, **settings)


def test_a_layout_can_be_named_where_several_fit(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "instruction": "a", "output": "b"}
    found = read(write(tmp_path, "rows.jsonl", rows(row)), layout="alpaca")
    assert pairs(found) == [("a", "b")]
    assert found.notes == (
        "rows.jsonl: Alpaca (as set), 1 row.",
        "rows.jsonl: columns not used: messages.",
    )


def test_rows_of_two_layouts_in_one_file_are_refused(tmp_path: Path) -> None:
    content = rows({"input": "a", "output": "b"}, {"question": "c", "answer": "d"})
    with pytest.raises(
        DataError, match=r"several layouts \(input/output first in line 1; question/answer first in line 2"
    ):
        read(write(tmp_path, "rows.jsonl", content))


def test_a_part_that_only_late_rows_have_is_not_left_out(tmp_path: Path) -> None:
    late = {"input": "a", "output": "b", "instruction": "Translate."}
    content = rows(*[{"input": "a", "output": "b"}] * DETECTION_ROWS, late)
    with pytest.raises(DataError, match=r"input/output does not use the columns instruction, which may be parts"):
        read(write(tmp_path, "rows.jsonl", content))


def test_a_fault_in_a_cell_of_turns_has_its_place(tmp_path: Path) -> None:
    content = b'messages\n"[{""role"": ""user"", ""content"": NaN}]"\n'
    with pytest.raises(DataError, match=r"rows\.csv line 2: `messages\[0\]\.content`: found NaN"):
        read(write(tmp_path, "rows.csv", content))


def test_the_rendered_text_beside_turns_is_not_the_example(tmp_path: Path) -> None:
    row = {"text": "<|user|>Hi", "messages": [USER, ANSWER]}
    assert pairs(read(write(tmp_path, "rows.jsonl", rows(row)))) == [("Hi", "Hello")]


@pytest.mark.parametrize(
    "row", [{"text": "a", "label": 0}, {"question": "a", "answer": 0}, {"prompt": "a", "completion": 0}]
)
def test_a_number_is_its_json(tmp_path: Path, row: Any) -> None:
    assert json.loads(pairs(read(write(tmp_path, "rows.jsonl", rows(row))))[0][1]) == 0


def test_a_named_layout_may_leave_parts_out(tmp_path: Path) -> None:
    row = {"input": "a", "output": "b", "history": []}, {"input": "c", "output": "d", "history": [["e", "f"]]}
    found = read(write(tmp_path, "rows.jsonl", rows(*row)), layout="input_output")
    assert pairs(found) == [("a", "b"), ("c", "d")]
    assert found.notes[1:] == ("rows.jsonl: columns not used: history.",)


def test_a_context_stands_before_the_question(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", rows({"context": "Bay C.", "input": "Which bay?", "output": "C"}))
    assert pairs(read(path)) == [("Bay C.\n\nWhich bay?", "C")]
