"""The report on the terminal: tables, and the first findings with their file and line."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from train.data.report.figures import BalanceFigures, DataReport, FindingGroup, LearntRow
from train.data.report.gather import where_of
from train.data.report.one_row import RowAccount
from train.data.report.shown import num_rows, one_line, shown_text
from train.data.steps import MAX_LISTED

LEARNT = "bold green"
_MAX_CLASSES = 10
_BAR_CELLS = 24


def report_tables(report: DataReport) -> Iterator[RenderableType]:
    """What `lorikeet data report` prints, from the counts to what is learnt."""
    yield _summary(report)
    if report.steps:
        yield _steps(report)
    yield _lengths(report)
    yield _languages(report)
    if report.balance:
        yield _classes(report.balance)
    for group in report.groups:
        yield _findings(group)
    if not report.groups:
        yield Text("Nothing was found.", style="green")
    for row in report.learnt[:1]:
        yield learnt_text(row)
    for note in report.notes:
        yield Text.assemble(("note: ", "yellow"), one_line(note))


def row_table(account: RowAccount) -> Table:
    """Where a row is, and what steps found about it."""
    table = Table(show_header=False)
    table.add_row("row", Text(one_line(where_of(account.origin))))
    table.add_row("split", account.split or "dropped")
    for step, found in account.findings:
        other = f" ({found.other})" if found.other else ""
        table.add_row(step, Text(one_line(found.reason + other)))
    return table


def learnt_text(row: LearntRow) -> Text:
    """One row as the trainer gets it, with the tokens that the loss covers in green."""
    text = Text()
    for span in row.spans:
        text.append(shown_text(span.text), style=LEARNT if span.is_learnt else "dim")
    counts = f"{row.num_context_tokens} context tokens, {row.num_learnt_tokens} trained"
    text.append(f"\n[{row.where}: {counts}]\n", style="italic dim")
    return text


def _summary(report: DataReport) -> Table:
    table = Table(title=Text(one_line(f"{report.domain}: {report.source}")), show_header=False)
    version = report.version or report.dataset_sha256[:12]
    for name, value in (
        ("version", version),
        ("type", report.type),
        ("licence", report.licence or "unknown"),
        ("train / validation / test", " / ".join(f"{count:,}" for count in report.num_rows.values())),
        ("out of scope", f"{report.num_out_of_scope:,}"),
        ("synthetic", f"{report.num_synthetic:,}"),
        ("answers that refuse", f"{report.num_refusals:,} of {report.num_answers:,}"),
    ):
        table.add_row(name, one_line(value))
    return table


def _steps(report: DataReport) -> Table:
    table = Table("step", _right("rows"), _right("dropped"), _right("changed"), _right("found"), "")
    most = max(step.num_before for step in report.steps)
    for step in report.steps:
        counts = [step.num_dropped, step.num_changed, step.num_findings]
        bar = "█" * round(_BAR_CELLS * step.num_after / max(most, 1))
        table.add_row(step.name, f"{step.num_after:,}", *(f"{count:,}" if count else "" for count in counts), bar)
    return table


def _lengths(report: DataReport) -> Table:
    table = Table("lengths", *map(_right, ("shortest", "median", "95%", "99%", "longest", "in all")))
    tokens = report.tokens
    for each in (*report.lengths, *((tokens.rows, tokens.learnt) if tokens else ())):
        values = (each.smallest, each.median, each.p95, each.p99, each.largest, each.total)
        table.add_row(f"{each.part}, {each.unit}", *(f"{value:,}" for value in values))
    if tokens:
        table.caption = (
            f"{tokens.num_cut} of {tokens.num_checked:,} training sequences exceed max_length {tokens.max_length}"
        )
    return table


def _languages(report: DataReport) -> Table:
    table = Table("language of the", "rows")
    for each in report.languages:
        shares = [f"{language} {count:,}" for language, count in each.counts.items()]
        unknown = [f"too short to tell {each.num_unknown:,}"] if each.num_unknown else []
        table.add_row(each.part, ", ".join(shares + unknown))
    return table


def _classes(balance: BalanceFigures) -> Table:
    table = Table("answer", *map(_right, ("train", "validation", "test")))
    for each in balance.classes[:_MAX_CLASSES]:
        table.add_row(one_line(each.answer), *(f"{count:,}" for count in each.counts.values()))
    more = balance.num_classes - _MAX_CLASSES
    table.caption = f"{balance.num_classes} classes" + (f", {more} of them not shown" if more > 0 else "")
    table.caption += f"; evenness {balance.evenness:.2f} of 1"
    return table


def _findings(group: FindingGroup) -> Table:
    num_findings = len(group.findings)
    more = f", the first {MAX_LISTED}" if num_findings > MAX_LISTED else ""
    title = Text(f"{group.name}: {num_rows(num_findings)}{more}", style="bold")
    table = Table(Column("row", overflow="fold"), "found", Column("text", overflow="fold"), title=title)
    table.title_justify = "left"
    for each in group.findings[:MAX_LISTED]:
        other = f" ({each.other})" if each.other else ""
        table.add_row(*(Text(one_line(text)) for text in (each.where, each.reason + other, each.text)))
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")
