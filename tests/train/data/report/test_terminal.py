import pytest

from config.terminal import make_console
from tests.train.data.report.built import HOSTILE, build_support
from train.data.build import StepLog
from train.data.report.figures import LearntRow, LearntSpan, ListedFinding, TokenReport
from train.data.report.gather import make_report
from train.data.report.shown import one_line, shown_text
from train.data.report.terminal import learnt_text, report_tables


def printed(*tables: object) -> str:
    console = make_console()
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


def test_markup_and_escape_codes_print_as_they_are(tmp_path):
    report = make_report(build_support(tmp_path), TokenReport(), StepLog())
    hostile = ListedFinding(where="[bold] a.jsonl line 1", reason="odd", text=HOSTILE, other="[/b] line 2")
    groups = (report.groups[0].model_copy(update={"findings": (hostile,)}),)
    text = printed(*report_tables(report.model_copy(update={"groups": groups})))
    assert "[bold] a.jsonl line 1" in text
    assert "odd ([/b] line 2)" in text
    assert r"[/bold] [red]order[/red] \x1b[31m" in text
    assert "\x1b" not in text


def test_learnt_tokens_are_green():
    spans = (LearntSpan(text="user [/dim]\n", is_learnt=False), LearntSpan(text="Yes", is_learnt=True))
    row = LearntRow(where="a.jsonl line 3", spans=spans, num_context_tokens=4, num_learnt_tokens=1)
    text = learnt_text(row)
    assert text.plain == "user [/dim]\nYes\n[a.jsonl line 3: 4 context tokens, 1 trained]\n"
    assert [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)] == ["Yes"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[2Jclear", r"\x1b[2Jclear"),
        ("ab\u202ecd", r"ab\u202ecd"),
        ("half \ud83c", r"half \ud83c"),
        ("🎉 é हि", "🎉 é हि"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert shown_text(text) == shown


def test_a_line_break_is_shown_in_one_line():
    assert one_line("a\nb") == "a⏎ b"
