"""`lorikeet adapters`: what is in the store, what is wrong with a folder, and moving aliases."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from adapters.base import read_base
from adapters.errors import AdapterError
from adapters.lint import lint_folder, raise_errors
from adapters.lint_config import MAX_LORA_RANK, Finding
from adapters.manifest import Manifest, ManifestDraft, Score
from adapters.peft_folder import read_lora_spec
from adapters.reference import DEFAULT_ALIAS, Target
from adapters.store import AdapterStore
from config.home import Home

app = typer.Typer(no_args_is_help=True, help="The adapter store: list, check, promote, roll back.")

HomeOption = Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="Where Lorikeet keeps its state.")]
ReferenceArgument = Annotated[str, typer.Argument(help="`medical`, `medical@3` or `medical@canary`.")]
AliasOption = Annotated[str, typer.Option("--alias", help="The alias to move.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]

DEFAULT_HOME = Path("var")

console = Console()

_STYLES = {"error": "red", "warning": "yellow", "info": "green"}


@app.command("list")
def list_(home: HomeOption = DEFAULT_HOME) -> None:
    """List all versions with their aliases and scores."""
    with _errors_in_one_line():
        store = _store(home)
        manifests = [store.manifest(target) for target in _all_targets(store)]
        if not manifests:
            console.print("The store is empty. Train an adapter with `lorikeet train`, or import one.")
            return
        console.print(_versions_table(store, manifests))


@app.command()
def show(reference: ReferenceArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Show what is known of one version, and the adapter's history."""
    with _errors_in_one_line():
        store = _store(home)
        target = store.resolve(reference)
        console.print(_manifest_table(store.manifest(target)))
        console.print(_history_table(store, target.name))


@app.command()
def verify(
    reference: Annotated[str | None, typer.Argument(help="One version; all of them when left out.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Hash every file again and compare with the manifest."""
    with _errors_in_one_line():
        store = _store(home)
        targets = [store.resolve(reference)] if reference else _all_targets(store)
    outcomes = [_is_verified(store, target) for target in targets]
    if not all(outcomes):
        raise typer.Exit(1)


@app.command()
def promote(
    reference: ReferenceArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Point an alias (`stable`) to a version."""
    with _errors_in_one_line():
        store = _store(home)
        target = store.resolve(reference)
        store.promote(target.name, target.version, alias, reason)
        console.print(f"{target.name}@{alias} is now {target}")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Point an alias back to the version before its last promotion."""
    with _errors_in_one_line():
        target = _store(home).rollback(name, alias, reason)
        console.print(f"{name}@{alias} is now {target}")


@app.command()
def rm(reference: ReferenceArgument, reason: ReasonOption = "", home: HomeOption = DEFAULT_HOME) -> None:
    """Delete a version that no alias points to."""
    with _errors_in_one_line():
        store = _store(home)
        target = store.resolve(reference)
        store.remove(target, reason)
        console.print(f"{target} is removed")


@app.command()
def gc(
    keep_last: Annotated[
        int | None, typer.Option(min=0, help="Also remove versions without alias but the newest N.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Remove what crashed publishers left, and old versions if asked."""
    with _errors_in_one_line():
        collected = _store(home).gc(keep_last=keep_last)
        versions = ", ".join(map(str, collected.removed)) or "no version"
        console.print(f"removed {collected.num_staged} unfinished folders and {versions}")


@app.command()
def lint(
    folder: Annotated[Path, typer.Argument(help="A PEFT folder, ours or not.")],
    base: Annotated[str | None, typer.Option(help="A prepared base to compare with.")] = None,
    max_lora_rank: Annotated[int, typer.Option(min=1, max=MAX_LORA_RANK, help="As in serve.yaml.")] = 16,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Say whether a PEFT folder can be served, and if not, why not."""
    with _errors_in_one_line():
        base_folder = _base_folder(home, base) if base else None
        findings = lint_folder(folder, base_folder=base_folder, max_lora_rank=max_lora_rank)
    for finding in findings:
        _print_finding(finding)
    if any(finding.level == "error" for finding in findings):
        console.print(f"{str(folder)!r} cannot be served.")
        raise typer.Exit(1)
    console.print(f"{str(folder)!r} can be served.")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A PEFT folder that something else trained.")],
    name: Annotated[str, typer.Argument(help="The adapter's name here.")],
    base: Annotated[str, typer.Option(help="The prepared base that it was trained on.")],
    description: Annotated[str, typer.Option(help="One line for people.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Publish a PEFT folder that something else trained."""
    with _errors_in_one_line():
        base_folder = _base_folder(home, base)
        findings = lint_folder(folder, base_folder=base_folder, max_lora_rank=MAX_LORA_RANK)
        raise_errors(findings, f"{folder.name!r}")
        draft = ManifestDraft(
            name=name,
            base=read_base(base_folder).ref,
            lora=read_lora_spec(folder),
            origin="imported",
            description=description,
        )
        manifest = _store(home).publish(folder, draft, base_folder=base_folder)
    for finding in findings:
        _print_finding(finding)
    console.print(
        f"published {manifest.lora_name}, {manifest.digest[:12]}; next: lorikeet adapters promote {manifest.lora_name}"
    )


def _store(home: Path) -> AdapterStore:
    return AdapterStore(Home(home).adapters)


def _base_folder(home: Path, base: str) -> Path:
    folder = Home(home).bases / base
    read_base(folder)
    return folder


def _is_verified(store: AdapterStore, target: Target) -> bool:
    try:
        manifest = store.verify(target)
    except AdapterError as error:
        _print_error(error)
        return False
    console.print(f"{target}: {len(manifest.files)} files as published, {manifest.digest[:12]}")
    return True


def _all_targets(store: AdapterStore) -> list[Target]:
    return [Target(name, version) for name in store.names() for version in store.versions(name)]


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except AdapterError as error:
        _print_error(error)
        raise typer.Exit(1) from error


def _print_error(error: AdapterError) -> None:
    Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)


def _print_finding(finding: Finding) -> None:
    style = _STYLES[finding.level]
    console.print(f"[{style}]{finding.level}[/] {finding.code}: {escape(str(finding))}", soft_wrap=True)


def _versions_table(store: AdapterStore, manifests: list[Manifest]) -> Table:
    """One line a version, narrow enough for 80 columns; `show` has the rest."""
    table = Table("version", "aliases", "base", "r", "base score", "score", "n", box=SIMPLE_HEAD)
    for manifest in manifests:
        aliases = store.aliases(manifest.name).items()
        scores = manifest.evaluation
        table.add_row(
            manifest.lora_name,
            ", ".join(sorted(alias for alias, version in aliases if version == manifest.version)),
            manifest.base.name,
            str(manifest.lora.lora_r),
            f"{scores.base.value:.2f}" if scores else "-",
            f"{scores.adapter.value:.2f}" if scores else "-",
            str(scores.adapter.n) if scores else "-",
        )
    return table


def _manifest_table(manifest: Manifest) -> Table:
    table = Table("what", Column(overflow="fold"), title=manifest.lora_name, show_header=False, box=SIMPLE_HEAD)
    lora, dataset, evaluation = manifest.lora, manifest.dataset, manifest.evaluation
    rows = {
        "description": manifest.description,
        "origin": manifest.origin,
        "created": manifest.created_at,
        "digest": manifest.digest,
        "base": f"{manifest.base.name} ({manifest.base.quantization}, {manifest.base.digest[:12]})",
        "LoRA": f"r {lora.lora_r}, alpha {lora.lora_alpha:g}, {lora.num_modules} modules: "
        + ", ".join(lora.target_modules),
        "data": f"{dataset.source}, {dataset.num_train} examples, {dataset.dataset_sha256[:12]}" if dataset else "-",
        "trained in": f"{manifest.training.duration_s:.0f} s on {manifest.training.device}"
        if manifest.training
        else "-",
        "base score": _score(evaluation.base if evaluation else None),
        "adapter score": _score(evaluation.adapter if evaluation else None),
        "valid format": _score(evaluation.valid_format if evaluation else None),
    }
    for what, value in rows.items():
        table.add_row(what, escape(value))
    return table


def _history_table(store: AdapterStore, name: str) -> Table:
    head = (Column("at", no_wrap=True), "event", "version", "alias", "previous", "reason")
    table = Table(*head, title=f"history of {name}", box=SIMPLE_HEAD)
    for event in store.history(name):
        previous = str(event.previous or "")
        table.add_row(event.at[:16], event.kind, str(event.version), event.alias, previous, escape(event.reason))
    return table


def _score(score: Score | None) -> str:
    """`0.73 (0.67 to 0.78, n 240)`."""
    if score is None:
        return "-"
    return f"{score.value:.2f} ({score.ci_low:.2f} to {score.ci_high:.2f}, n {score.n})"
