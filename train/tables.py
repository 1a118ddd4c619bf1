"""Terminal tables: bases, data sets, the loss mask, and a trained version."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from adapters.figure_table import interval
from adapters.scores import Score
from adapters.store.manifest import BaseManifest, ManifestDraft
from config.dataset import DatasetManifest, StepRecord
from train.data.report.shown import one_line

if TYPE_CHECKING:
    from train.data.encode import Encoded
    from train.data.expand import Expansion
    from train.data.propose import Proposal
    from train.data.sources import SourceData
    from train.sweep.run import Swept


def base_table(manifests: Sequence[BaseManifest]) -> Table:
    table = Table(
        Column("base", no_wrap=True), "quantization", "stored as", "parameters", "source", "licence", "digest"
    )
    for m in manifests:
        size = f"{m.num_parameters / 1e6:.0f}M"
        table.add_row(m.name, m.quantization, m.storage, size, m.source, m.licence or "?", m.digest[:12])
    return table


def sparsity_table(manifest: BaseManifest) -> Table:
    """A sparse base beside the one that it was made from."""
    lineage = manifest.lineage
    assert lineage is not None
    assert lineage.sparsity is not None
    sparse = lineage.sparsity
    table = Table("", lineage.parent.name, manifest.name)
    table.add_row(f"zeros in linear layers ({lineage.made_by}, {sparse.pattern})", "", f"{sparse.share_zero:.1%}")
    table.add_row(
        "weights", f"{sparse.size_bytes / 1e6:.0f} MB", f"{sparse.compressed_bytes / 1e6:.0f} MB without zeros"
    )
    table.add_row("perplexity of general text", f"{sparse.base_perplexity:.2f}", f"{sparse.perplexity:.2f}")
    for domain, scores in lineage.evaluations.items():
        table.add_row(
            f"{domain}: {scores.metric} (n={scores.adapter.n})", *map(_percent, (scores.base, scores.adapter))
        )
    return table


def dataset_table(manifest: DatasetManifest) -> Table:
    title = one_line(f"{manifest.domain}: {manifest.source} {manifest.source_version}")
    table = Table(title=title, show_header=False)
    table.add_row("licence", one_line(manifest.licence or "unknown"))
    table.add_row(
        "train / validation / test", f"{manifest.num_train} / {manifest.num_validation} / {manifest.num_test}"
    )
    table.add_row("out of scope in test", str(manifest.num_test_out_of_scope))
    for step in manifest.steps:
        table.add_row(step.name, _counts(step))
    for note in manifest.notes:
        table.add_row("note", one_line(note))
    table.add_row("version", manifest.version)
    table.add_row("dataset_sha256", manifest.dataset_sha256)
    return table


def proposal_table(source: "SourceData", proposal: "Proposal") -> Table:
    """What `lorikeet init` found and proposes."""
    p = proposal
    answers = f"{len(p.classes)} classes" if p.classes else "JSON of one schema" if p.json_schema else "free text"
    table = Table(title=Text(one_line(source.name)), show_header=False)
    table.add_row("rows", f"{len(source.examples)}, {p.num_rows} different questions")
    table.add_row("answers", answers)
    table.add_row("system prompt", Text(one_line(f"{p.system} ({p.system_reason})")))
    table.add_row("tokens of a row", f"99% at most {p.total_tokens[0]}, longest {p.total_tokens[1]}")
    table.add_row("train / validation / test", f"{p.num_train} / {p.num_validation} / {p.num_test}")
    table.add_row("steps", f"{p.max_steps} of {p.batch_size} rows")
    return table


def _counts(step: StepRecord) -> str:
    """`3 dropped, 2 changed` or `2 found`."""
    counts = {"dropped": step.num_dropped, "changed": step.num_changed}
    shown = [f"{count} {what}" for what, count in counts.items() if count]
    return ", ".join(shown) or (f"{step.num_findings} found" if step.num_findings else "0")


def versions_table(versions: Sequence[tuple[DatasetManifest, bool]]) -> Table:
    """Versions of data sets; the flag marks a domain's current one."""
    table = Table("domain", "version", "current", "type", "train / validation / test", "source", "built")
    for m, is_current in versions:
        rows = f"{m.num_train} / {m.num_validation} / {m.num_test}"
        table.add_row(
            m.domain,
            m.version,
            "yes" if is_current else "",
            m.type,
            rows,
            one_line(f"{m.source} {m.source_version}"),
            m.created_at,
        )
    return table


def expansion_table(made: "Expansion") -> Table:
    """What a teacher wrote in all, and what was rejected."""
    table = Table(title=f"{len(made.rows)} synthetic rows", show_header=False)
    for kind, count in Counter(row["kind"] for row in made.rows).most_common():
        table.add_row(kind, str(count))
    for reason, count in made.rejected.most_common():
        table.add_row(f"rejected: {reason}", str(count))
    table.add_row("requests", str(len(made.requests)))
    table.add_row("tokens", f"{made.num_tokens:,}")
    return table


def token_table(encoded: Sequence["Encoded"], max_length: int) -> Table:
    """Token counts of the training split, and the number of shortened examples."""
    lengths = [len(example) for example in encoded]
    answers = [example.num_learnt for example in encoded]
    num_cut = sum(example.is_cut for example in encoded)
    table = Table("tokens", "mean", "longest", "in all")
    table.add_row("example", f"{mean(lengths):.1f}", str(max(lengths)), f"{sum(lengths):,}")
    table.add_row("learnt (answer)", f"{mean(answers):.1f}", str(max(answers)), f"{sum(answers):,}")
    table.caption = f"{num_cut} of {len(encoded)} examples shortened to max_length {max_length}"
    return table


def outcome_table(manifest: ManifestDraft, name: str) -> Table:
    table = Table("", "base", "adapter", title=name)
    if manifest.evaluation is not None:
        e = manifest.evaluation
        table.add_row(f"{e.metric} (n={e.adapter.n})", _percent(e.base), _percent(e.adapter))
        table.add_row("valid format", _percent(e.base_valid_format), _percent(e.valid_format))
    for figure in manifest.figures:
        if not figure.part and figure.metric not in ("exact_match", "valid_format"):
            table.add_row(f"{figure.metric} (n={figure.adapter.n})", interval(figure.base), interval(figure.adapter))
    for name, score in manifest.scores.items():
        base = "" if score.base is None else f"{score.base.value:.3f}"
        adapter = score.adapter
        shown = f"{adapter.value:.3f} ({adapter.ci_low:.3f} to {adapter.ci_high:.3f})"
        table.add_row(f"{name} (n={adapter.n})", base, shown)
    if manifest.forgetting is not None:
        f = manifest.forgetting
        table.add_row("general text, nats/token", f"{f.base_nll:.3f}", f"{f.adapter_nll:.3f}")
    if manifest.training is not None:
        table.add_row("training", "", f"{manifest.training.duration_s:.0f} s")
        if (conversion := manifest.training.conversion) is not None:
            table.add_row(f"converted to rank {conversion.rank}", "", f"{conversion.error_nats:.4f} nats/token off")
    return table


def sweep_table(swept: "Swept") -> Table:
    """The best trial's settings, and how many trials ended how."""
    states = Counter(trial.state.name.lower() for trial in swept.study.get_trials(deepcopy=False))
    table = Table("setting", f"best: trial {swept.study.best_trial.number}", title=f"sweep {swept.study.study_name}")
    for name, value in swept.best_values.items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    table.add_row("on the validation split", f"{swept.study.best_value:.4f}", style="bold")
    table.caption = ", ".join(f"{count} {state}" for state, count in states.items())
    return table


def _percent(score: Score) -> str:
    return f"{score.value:.1%} ({score.ci_low:.1%} to {score.ci_high:.1%})"
