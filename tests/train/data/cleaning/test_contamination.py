import pytest

from config.data import CleaningConfig
from config.dataset import Message
from tests.train.data.examples_of import row, rows
from train.data.cleaning.contamination import drop_contaminated
from train.data.examples import Example

LONG = "Which port do ships from the northern islands call at before the winter storms close the strait for months?"
PROGRAM = "for item in order:\n    check(item)\n    total += price(item)\nsend(total)"


def dropped(train: list[Example], held_out: list[Example], **settings: object) -> list[str]:
    config = CleaningConfig.model_validate(settings)
    result = drop_contaminated(train, held_out, (), config)
    return [finding.reason for finding in result.step.findings]


@pytest.mark.parametrize(
    ("held_out", "copy"),
    [
        ("Same text", "same, text!"),
        ("Hotels & motels", "HOTELS, MOTELS"),
        ("Visa - credit card", "visa (credit) card."),
        ("“Hello” she said", "hello she said"),
        ("Follow-up visit", "follow up visit"),
        ("東京は日本の首都です。", "東京は日本の首都です"),
        ("मैं घर जा रहा हूँ।", "मैं घर जा रहा हूँ"),
        (LONG, LONG.replace("winter", "autumn")),
        (LONG, f"Hello!\n\n{LONG}\n\nThank you, and please answer in a few words, as I have to go."),
        ("if a:\n    b()", "if a:\n  b()"),
        (LONG, f"// {LONG}".replace(" the ", " // * the ")),
        (LONG, LONG.replace(" ", "\n")),
    ],
)
def test_near_copies_of_held_out_rows_are_dropped(held_out: str, copy: str) -> None:
    assert len(dropped([row(copy, line=2)], [row(held_out)])) == 1


@pytest.mark.parametrize(
    ("held_out", "other"),
    [
        ("3 + 4", "3 - 4"),
        ("What is 348 * 27?", "What is 348 * 29?"),
        ("C++", "C#"),
        ("-5 °C", "5 °C"),
        ("(3 + 4) * 2", "3 + (4 * 2)"),
        ("x - y", "x + y"),
        ("alpha * beta", "alpha > beta"),
        ("use C++ or Java", "use C# or Java"),
        ("a != b", "a == b"),
        ("3.5 mg", "35 mg"),
        ("कि", "की"),
        ("Great 👍", "Great 👎"),
        (PROGRAM, PROGRAM.replace("    total", "total")),
    ],
)
def test_texts_that_differ_in_meaning_are_kept(held_out: str, other: str) -> None:
    assert dropped([row(other, line=2)], [row(held_out)]) == []


def test_a_shared_instruction_makes_no_copies() -> None:
    instruction = "Read the review below and say in one word whether its author is satisfied with the product or not."
    reviews = [(f"{instruction}\nReview: {word} arrived {word}ly", "yes") for word in DISTINCT_WORDS]
    examples = rows(reviews)
    assert dropped(examples[5:], examples[:5]) == []


def test_a_shared_instruction_makes_no_copies_of_few_rows() -> None:
    instruction = "Name the department of the item, in capital letters, and write nothing else but that one name."
    examples = rows([(f"{instruction}\n\nWhere does one keep a {word}?", "yes") for word in DISTINCT_WORDS[:6]])
    assert dropped(examples[:2], examples[2:]) == []


def test_a_shared_beginning_of_a_line_makes_no_copies() -> None:
    start = "Please translate the following word from English into the French language, and write nothing else:"
    examples = rows([(f"{start} {word}", "yes") for word in DISTINCT_WORDS])
    assert dropped(examples[5:], examples[:5]) == []


DISTINCT_WORDS = [
    "harbour",
    "marble",
    "lantern",
    "comet",
    "saffron",
    "willow",
    "anvil",
    "glacier",
    "parrot",
    "velvet",
    "thimble",
    "orchard",
    "pebble",
    "quartz",
    "sandal",
    "trumpet",
    "umbrella",
    "violet",
    "walnut",
    "yonder",
    "zephyr",
    "biscuit",
    "cavern",
    "dolphin",
]


def test_a_held_out_question_in_an_earlier_turn_is_found() -> None:
    turns = [
        Message(role="user", content="Where is the key?"),
        Message(role="assistant", content="Here."),
        Message(role="user", content="And the lock?"),
    ]
    assert len(dropped([row("", prompt=tuple(turns))], [row("Where is the key?")])) == 1


def test_the_last_turn_alone_makes_no_copy() -> None:
    def about(what: str) -> Example:
        turns = [("user", f"Tell me about the {what}"), ("assistant", f"The {what} is old."), ("user", "Go on")]
        return row("", prompt=tuple(Message.model_validate({"role": r, "content": c}) for r, c in turns))

    assert dropped([about("lighthouse keeper")], [about("parliament building")]) == []


def test_rows_without_a_question_are_compared_by_their_answers() -> None:
    train = [row("", answer, n, prompt=()) for n, answer in enumerate(("a lake at dawn", "a street at night"), 2)]
    assert dropped(train, [row("", "a lake at dawn", prompt=())]) == ["equal or nearly equal to a held-out row"]


def test_another_task_in_the_system_prompt_makes_no_copy() -> None:
    def in_language(language: str, answer: str) -> Example:
        system = Message(role="system", content=f"Translate to {language}.")
        return row("", answer, prompt=(system, Message(role="user", content="good morning")))

    held_out = in_language("French", "bonjour")
    assert dropped([in_language("German", "guten Morgen")], [held_out]) == []
    assert len(dropped([in_language("Canadian French", "bonjour")], [held_out])) == 1


def test_a_benchmark_row_is_named_as_such() -> None:
    result = drop_contaminated([row(LONG, line=9)], (), [row(LONG.upper())], CleaningConfig())
    (finding,) = result.step.findings
    assert finding.reason == "equal or nearly equal to a benchmark row"
    assert (finding.origin and finding.origin.line, finding.other and finding.other.line) == (9, 1)


def test_word_sequences_common_to_many_rows_are_ignored() -> None:
    licence = "permission is hereby granted free of charge to any person obtaining a copy of this software"
    train = rows([(f"{word} {word}s and {word}ing say that {licence} {word}", "yes") for word in DISTINCT_WORDS])
    assert dropped(train, [row(licence)], near_duplicate_jaccard=1.0) == []


def test_kept_contamination_is_still_listed() -> None:
    config = CleaningConfig(contamination="keep")
    result = drop_contaminated([row(LONG, line=2)], [row(LONG)], (), config)
    assert (len(result.examples), len(result.step.findings)) == (1, 1)


def test_a_paraphrase_is_found_by_its_meaning() -> None:
    pytest.importorskip("sentence_transformers")
    train = rows([("What time does the store close?", "yes"), ("How do I bake bread at home?", "yes")])
    held_out = [row("When does the shop shut?")]
    assert dropped(train, held_out) == []
    (reason,) = dropped(train, held_out, near_duplicate_cosine=0.7)
    assert reason.startswith("by its meaning (cosine 0.")
