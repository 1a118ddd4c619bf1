"""Each layout's sample of ten rows, and what they are read as."""

import re
from pathlib import Path

import pytest

from tests.tracked_files import ROOT
from tests.train.data.files_on_disk import SAMPLES, read, rows, told, write
from train.data.formats import FORMATS
from train.errors import DataError

EXPECTED = {
    "alpaca.jsonl": [
        "u: Name the stop.\n\nIt is beside the museum. > a: Museum Square",
        "u: Say how many zones the trip crosses.\n\nHarbour to airport > a: 3",
        "u: Greet the passenger. > a: Good morning!",
        "u: Is the ticket valid? Answer with true or false.\n\nDay ticket, bought yesterday > a: false",
        'u: Give the fare as JSON.\n\nadult, two zones > a: {"fare": 3.6, "currency": "EUR"}',
        'u: List the lines.\n\ntown hall > a: ["1", "7"]',
        "u: When is the first bus? | a: At 04:50. | u: And the last one? > a: At 00:40.",
        "s: You translate signs. | u: Translate into French.\n\nMind the step > a: Attention à la marche",
        "u: Rewrite politely.\n\nNo food! > a: Please do not eat here.",
        "u: Keep the layout.\n\na  b\n  c > a: a  b\n  c",
    ],
    "chat.jsonl": [
        "u: Which bus goes to the harbour? > a: Line 7.",
        "s: Answer as a conductor. | u: When does it leave? > a: At ten past.",
        "d: One sentence. | u: May I take a bicycle? > a: Yes, after nine.",
        "u: A ticket, please. | a: Single or return? | u: Return. > a: That is 4.20.",
        "u: Hello | a*: Hi! | u: Is the 7 late? > a: By three minutes.",
        "u: Where do I change? > a: At the town hall.",
        'u: Delay of line 7? > a: delay{"line": 7} | t: 3 | a: Three minutes.',
        'u: Delay of line 9? > a: delay{"line": 9}',
        "u: Delay of line 1? > a: delay{} | t: 0 | a: None.",
        "u: Lost: a red umbrella ☂ > a: Ask at the depot.",
    ],
    "dolly.jsonl": [
        "u: Who may ride free?\n\nChildren under six ride free. > a: Children under six.",
        "u: What is a zone? > a: An area with one fare.",
        "u: Summarise.\n\nThe depot closes at noon on Sundays. > a: Sunday: until noon.",
        "u: Name three lines. > a: 1, 7 and 9.",
        "u: Is a dog allowed?\n\nDogs need a muzzle. > a: Yes, with a muzzle.",
        "u: Classify: 1, 7, N2. > a: Day: 1, 7. Night: N2.",
        "u: Extract the time.\n\nDeparts 12:05 from bay C. > a: 12:05",
        "u: Write a short notice. > a: Stop closed. Use Market Street.",
        "u: How long is the ride?\n\nAirport: 34 minutes. > a: 34 minutes.",
        "u: What does N mean? > a: A night line.",
    ],
    "input_output.jsonl": [
        "u: kettle > a: kitchen",
        "u: hammer > a: workshop",
        "u: 2 + 2 > a: 4",
        "u: Is 7 prime? > a: true",
        'u: Parse: 3 pens > a: {"item": "pen", "count": 3, "colour": null}',
        'u: Split: a b > a: ["a", "b"]',
        "u: half > a: 0.5",
        "s: Answer in capitals. | u: spoon > a: KITCHEN",
        "u: What is the capital of Peru? > a: REFUSED",
        "u: stapler > a: office",
    ],
    "openai_preference.jsonl": [
        "u: Say hello. > a: Hello! > a: What?",
        "s: One word. | u: Name a tree. > a: Oak. > a: Rose.",
        "u: Hi | a*: Hi! | u: Name a bird. > a: Wren. > a: Bat.",
        "u: Name a fish. > a: Trout. > a: Whale.",
        "u: Name a stone. > a: Granite. > a: Wood.",
        "u: Name a river. > a: The Po. > a: The sea.",
        "u: Name a month. > a: May. > a: Monday.",
        "u: Name a metal. > a: Tin. > a: Glass.",
        "u: Name a town. > a: Bath. > a: Kent.",
        "u: Name a star. > a: Vega. > a: Moon.",
    ],
    "openassistant.jsonl": [
        "u: Where is the fuse box? | a: Behind the cellar door. | u: And the water tap? > a: Under the sink.",
        "u: Who has the key? > a: The caretaker.",
    ],
    "openassistant_trees.jsonl": [
        "u: Is it open? > a: Until six.",
        "u: Entry fee? | a: Free. | u: For all? > a: For all.",
        "u: Cloakroom? > a: On the left.",
        "u: Photos? > a: Without flash.",
        "u: Café? > a: Upstairs.",
        "u: Lift? > a: At the back.",
        "u: Guided tour? > a: At three.",
        "u: Audio guide? > a: At the till.",
        "u: Closing day? > a: Monday.",
    ],
    "preference.jsonl": [
        "u: Say hello. > a: Hello! > a: What?",
        "s: Be polite. | u: Say no. > a: No, thank you. > a: No.",
        "u: Name a tree. > a: Oak. > a: Rose.",
        "u: Name a bird. > a: Wren. > a: Bat.",
        "u: Name a fish. > a: Trout. > a: Whale.",
        "u: Name a stone. > a: Granite. > a: Wood.",
        "u: Name a river. > a: The Po. > a: The sea.",
        "u: Translate.\n\nchat > a: cat > a: talk",
        "u: Largest planet? > a: Jupiter > a: Mars",
        "u: Hi | a*: Hi! | u: Bye > a: Goodbye! > a: Hi!",
    ],
    "prompt_completion.jsonl": [
        "u: The sky is > a:  blue.",
        "u: Grass is > a:  green.",
        "u: 2 + 2 = > a: 4",
        "s: Finish the sentence. | u: Snow is > a:  white.",
        "u: Colour of coal? > a: Black.",
        "s: Be exact. | u: Colour of brass? > a: Golden yellow.",
        "u: A fruit? | a*: Plum. | u: Its colour? > a: Purple.",
        "u: Mix red and white. > a: Pink.",
        "u: Mix blue and yellow. > a: Green.",
        "u: Milk is > a:  white.",
    ],
    "question_answer.csv": [
        "u: A letter, signed by Ada.\n\nWho wrote it? > a: Ada",
        "u: The third of May.\n\nWhen? > a: 3 May",
        "u: How many? > a: 12",
        'u: He said "Mill Lane".\n\nWhich street? > a: Mill Lane',
        "u: bread\nmilk\n\nWhat is on the list? > a: bread and milk",
        "u: Bay C.\n\nWhich bay? > a: C",
        "u: Is it open? > a: yes",
        "u: Bo's.\n\nWhose dog? > a: Bo",
        "u: Two miles.\n\nHow far? > a: 2 miles",
        "u: The red one.\n\nWhich door? > a: the red one",
    ],
    "sharegpt.jsonl": [
        "u: Which platform? > a: Platform 2.",
        "s: Be brief. | u: First train? > a: 04:50.",
        "s: Be kind. | u: I missed it. > a: The next one leaves soon.",
        "u: A seat? | a: Window or aisle? | u: Window. > a: 12A.",
        "u: Wifi? > a: On board, free.",
        "u: Lost ticket? > a: Buy a new one.",
        "u: Toilets? > a: In coach 3.",
        'u: Free seats? > a: seats{"coach": 3} | t: 4 | a: Four in coach 3.',
        "a: Welcome aboard. | u: Thanks. Dining car? > a: Coach 5.",
    ],
    "text.jsonl": [
        "The first entry of the log.",
        "Wind from the west.\nSea calm.",
        "Saw two sails at noon.",
        "Mended the net.",
        "Rain, then sun.",
        "  An indented line stays indented.",
        "Caught nine herring.",
        "Fog. No sail.",
        "The cat ate one herring.",
        "Home by dusk.",
    ],
    "text_label.csv": [
        "u: The soup was cold. > a: bad",
        "u: Lovely staff! > a: good",
        "u: Too loud > a: bad",
        "u: Best cake in town > a: good",
        "u: Fine, but slow > a: mixed",
        "u: We will be back > a: good",
        "u: Never again > a: bad",
        "u: Nice view and poor coffee > a: mixed",
        "u: Clean and friendly > a: good",
        "u: Overpriced > a: bad",
    ],
    "unpaired_preference.jsonl": [
        "u: Say hello. > a: Hello! True",
        "u: Say hello. > a: Go away. False",
        "u: Name a tree. > a: Oak. True",
        "u: Name a tree. > a: Rose. False",
        "u: Name a bird. > a: Wren. True",
        "u: Name a bird. > a: Bat. False",
        "u: Name a fish. > a: Trout. True",
        "u: Name a fish. > a: Whale. False",
        "u: Name a stone. > a: Granite. True",
        "u: Name a stone. > a: Wood. False",
    ],
}
NOTES = {
    "alpaca.jsonl": ["alpaca.jsonl: Alpaca (detected), 10 rows."],
    "dolly.jsonl": ["dolly.jsonl: Dolly (detected), 10 rows.", "dolly.jsonl: columns not used: category."],
    "openassistant.jsonl": [
        "openassistant.jsonl: OpenAssistant (detected), 10 rows, 1 of them skipped: without an answer (line 9).",
        "openassistant.jsonl: 3 trees, of each the best-ranked replies; 3 other messages not used.",
        "openassistant.jsonl: columns not used: lang.",
    ],
    "openai_preference.jsonl": [
        "openai_preference.jsonl: OpenAI preference (detected), 10 rows.",
        "openai_preference.jsonl: columns not used: input.parallel_tool_calls.",
    ],
    "sharegpt.jsonl": [
        "sharegpt.jsonl: ShareGPT (detected), 10 rows, 1 of them skipped: without an answer (line 9).",
        "sharegpt.jsonl: columns not used: id.",
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_row_of_a_sample_is_read(name: str) -> None:
    assert [told(example) for example in read(SAMPLES / name, refusal="REFUSED").examples] == EXPECTED[name]


def test_each_layout_has_a_sample_of_ten_rows() -> None:
    files = [read(path, refusal="REFUSED").files[0] for path in sorted(SAMPLES.iterdir())]
    assert {file.layout for file in files} == {layout.layout for layout in FORMATS if layout.is_detected}
    assert {file.num_rows for file in files} == {10}


@pytest.mark.parametrize("name", NOTES)
def test_layout_and_unused_columns_are_told(name: str) -> None:
    assert list(read(SAMPLES / name).notes) == NOTES[name]


def test_tools_are_kept_as_requests_take_them() -> None:
    told_tools = [example.tools for example in read(SAMPLES / "chat.jsonl").examples if example.tools]
    assert [tool[0]["type"] for tool in told_tools] == ["function"] * 3
    assert [tool[0]["function"]["name"] for tool in told_tools] == ["delay"] * 3


def test_a_call_and_its_result_keep_their_identity() -> None:
    call, result, _ = read(SAMPLES / "chat.jsonl").examples[6].completion
    assert (call.tool_calls[0].id, result.tool_call_id) == ("call_1", "call_1")


def test_rows_keep_file_and_line() -> None:
    origins = [str(example.origin) for example in read(SAMPLES / "question_answer.csv").examples]
    assert origins[4:6] == ["question_answer.csv line 6", "question_answer.csv line 8"]


def test_labels_balance_the_splits() -> None:
    assert {example.stratum for example in read(SAMPLES / "text_label.csv").examples} == {"good", "bad", "mixed"}


def test_prompts_alone_are_read_by_name(tmp_path: Path) -> None:
    questions = [{"prompt": f"Question {number}?"} for number in range(9)]
    path = write(tmp_path, "prompts.jsonl", rows(*questions, {"prompt": [{"role": "user", "content": "Turn?"}]}))
    examples = read(path, layout="prompt_only").examples
    assert [(example.type, example.question) for example in examples[-2:]] == [
        ("prompt_only", "Question 8?"),
        ("prompt_only", "Turn?"),
    ]
    assert len(examples) == 10


def test_rows_for_graders_keep_their_other_columns(tmp_path: Path) -> None:
    question = {"messages": [{"role": "user", "content": "2 + 2?"}], "reference_answer": "4", "points": {"max": 3}}
    no_question = {"messages": [{"role": "assistant", "content": "4"}]}
    path = write(tmp_path, "rows.jsonl", rows(question))
    [example] = read(path, layout="openai_reinforcement").examples
    assert (example.type, example.question) == ("prompt_only", "2 + 2?")
    assert example.item == {"reference_answer": "4", "points": {"max": 3}}
    with pytest.raises(DataError, match="a last turn of role assistant"):
        read(write(tmp_path, "wrong.jsonl", rows(no_question)), layout="openai_reinforcement")


def test_the_page_has_a_row_for_each_layout() -> None:
    section = (ROOT / "docs" / "data.md").read_text().partition("\n## Layouts\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", section, re.MULTILINE)
    assert {name for name, _ in found} == {layout.layout for layout in FORMATS}
    wanted = {f.layout: ", ".join(" or ".join(f"`{n}`" for n in group) for group in f.required) for f in FORMATS}
    assert [name for name, how in found if not how.startswith((wanted[name], "must be named"))] == []


PAGE_EXAMPLES = re.findall(r"^\| `(\w+)` \| [^|]*\| `({.*})` \|", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("layout", "row"), PAGE_EXAMPLES)
def test_an_example_of_the_page_is_detected(tmp_path: Path, layout: str, row: str) -> None:
    settings = {"layout": layout} if layout in ("prompt_only", "openai_reinforcement") else {}
    message_of_a_tree = '{"message_id": "1", "parent_id": null, "text": "Hi", "role": "prompter"}\n'
    content = (message_of_a_tree if layout == "openassistant" else "") + row
    assert read(write(tmp_path, "rows.jsonl", content.encode()), **settings).files[0].layout == layout
