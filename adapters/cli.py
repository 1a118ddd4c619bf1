"""`lorikeet adapters`: list and verify versions, lint and import folders, move aliases, push and pull."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.bases import read_base
from adapters.defaults import read_defaults
from adapters.errors import AdapterError, AdapterNotFoundError
from adapters.figure_table import figures_table
from adapters.lint.config import MAX_LORA_RANK, LintFinding
from adapters.lint.importable import importable
from adapters.lint.lint import lint_folder
from adapters.lint.peft_folder import read_lora_spec
from adapters.lint.words import examples
from adapters.reference import DEFAULT_ALIAS, Target, parse_reference
from adapters.store.manifest import ManifestDraft
from adapters.store.store import AdapterStore
from adapters.tables import history_table, manifest_table, version_record, versions_table
from config.home import Home
from config.terminal import labelled, make_console, print_error

if TYPE_CHECKING:
    from adapters.remote.remote import RemoteStore

app = typer.Typer(no_args_is_help=True, help="Adapter store: list, verify, promote, roll back, import, push and pull.")

HomeOption = Annotated[Path, typer.Option("--home", envvar="LORIKEET_HOME", help="State folder.")]
ReferenceArgument = Annotated[str, typer.Argument(help="`medical`, `medical@3` or `medical@canary`.")]
NameArgument = Annotated[str, typer.Argument(help="Adapter name.")]
UrlArgument = Annotated[str, typer.Argument(help="Remote store: s3://bucket/adapters, gs://…, hf://… or file:///….")]
AliasOption = Annotated[str, typer.Option("--alias", help="Alias to move.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Reason, recorded in the history.")]

DEFAULT_HOME = Path("var")

console = make_console()

_STYLES = {"error": "red", "warning": "yellow", "info": "green"}


@app.command("list")
def list_(home: HomeOption = DEFAULT_HOME) -> None:
    """List all versions with their aliases, traffic, pins and scores."""
    with _errors_in_one_line():
        store = _store(home)
        targets = _all_targets(store)
        if not targets:
            console.print("The store is empty. Train an adapter with `lorikeet train`, or import one.")
            return
        console.print(versions_table(store, targets))


@app.command()
def show(
    reference: ReferenceArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest, aliases and history as JSON.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show a version's manifest with its figures, and the adapter's history."""
    with _version(home, reference) as (store, target):
        if as_json:
            console.print_json(json.dumps(version_record(store, target)))
            return
        console.print(manifest_table(store, target))
        if figures := store.manifest(target).figures:
            console.print(figures_table(figures))
        console.print(history_table(store, target.name))


@app.command()
def verify(
    reference: Annotated[str | None, typer.Argument(help="One version; default: all.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Verify files against the SHA-256 hashes in the manifest."""
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
    """Point an alias (default `stable`) to a version; the history says which gates it had failed."""
    with _version(home, reference) as (store, target):
        failed = "; ".join(store.manifest(target).unmet_gates) if alias == DEFAULT_ALIAS else ""
        told = f"{reason or 'by hand'}; gates had failed: {failed}" if failed else reason
        store.promote(target.name, target.version, alias, told)
        console.print(f"{target.name}@{alias} is now {target}")
        if failed:
            console.print(labelled("note:", "yellow", f"it had failed its gates: {failed}"), soft_wrap=True)


@app.command()
def rollback(
    name: NameArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Point an alias back to its version before the last promotion."""
    with _errors_in_one_line():
        target = _store(home).rollback(name, alias, reason)
        console.print(f"{name}@{alias} is now {target}")


@app.command()
def split(
    name: NameArgument,
    canary_weight: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of requests for the canary, 0 to 1.")],
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Send requests to the canary too, but answer with stable.")
    ] = False,
    reason: ReasonOption = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Split the requests for NAME between stable and canary."""
    with _errors_in_one_line():
        store = _store(home)
        store.set_aliases(name, {}, canary_weight=canary_weight, is_shadow=shadow, reason=reason)
        shown = store.split(name)
        share = "is now a shadow" if shown.is_shadow else f"now gets {shown} of the traffic"
        console.print(f"{name}: the canary {share}")


@app.command()
def pin(reference: ReferenceArgument, reason: ReasonOption = "", home: HomeOption = DEFAULT_HOME) -> None:
    """Keep a version loaded in every server, and exclude it from `gc --keep-last`."""
    with _version(home, reference) as (store, target):
        store.pin(target, reason)
        console.print(f"{target} is pinned")


@app.command()
def unpin(reference: ReferenceArgument, reason: ReasonOption = "", home: HomeOption = DEFAULT_HOME) -> None:
    """Remove a pin."""
    with _version(home, reference) as (store, target):
        store.unpin(target, reason)
        console.print(f"{target} is not pinned")


@app.command()
def rm(reference: ReferenceArgument, reason: ReasonOption = "", home: HomeOption = DEFAULT_HOME) -> None:
    """Delete a version; no alias may point to it."""
    with _version(home, reference) as (store, target):
        store.remove(target, reason)
        console.print(f"{target} is removed")


@app.command()
def gc(
    keep_last: Annotated[
        int | None, typer.Option(min=0, help="Also remove versions with neither alias nor pin, except the newest N.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Remove leftovers of interrupted publishes and, with --keep-last, old versions."""
    with _errors_in_one_line():
        collected = _store(home).gc(keep_last=keep_last)
        versions = ", ".join(map(str, collected.removed)) or "no version"
        console.print(f"removed {collected.num_staged} unfinished folders and {versions}")


@app.command()
def push(reference: ReferenceArgument, url: UrlArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Push a version, the versions its adapter's aliases point to, and the history to a remote store."""
    with _version(home, reference) as (store, target):
        remote = _remote(store, url)
        pushed = remote.push(target)
        console.print(f"pushed {', '.join(map(str, pushed)) or 'the history'} to {remote.url}", soft_wrap=True)


@app.command()
def pull(
    url: UrlArgument,
    reference: Annotated[str | None, typer.Argument(help="One adapter or version; default: all.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Pull histories from a remote store, and the named version, or all versions with an alias or a pin."""
    with _errors_in_one_line():
        store = _store(home)
        remote = _remote(store, url)
        remote.sync(parse_reference(reference).name if reference else None)
        for target in _wanted(store, remote, reference):
            remote.fetch(target)
            console.print(f"{target} is here, {store.manifest(target).digest[:12]}")


@app.command()
def lint(
    folder: Annotated[Path, typer.Argument(help="PEFT folder, from Lorikeet or elsewhere.")],
    base: Annotated[str | None, typer.Option(help="Prepared base to check against.")] = None,
    max_lora_rank: Annotated[int, typer.Option(min=1, max=MAX_LORA_RANK, help="`max_lora_rank` of serve.yaml.")] = 16,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Check whether a PEFT folder can be served, and report every problem."""
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
    folder: Annotated[Path, typer.Argument(help="PEFT folder trained with another tool.")],
    name: Annotated[str, typer.Argument(help="Adapter name in the store.")],
    base: Annotated[str, typer.Option(help="Prepared base that it was trained on.")],
    description: Annotated[str, typer.Option(help="One-line description.")] = "",
    defaults: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file with request defaults: system, temperature, top_p, max_tokens, stop, "
            "response_format."
        ),
    ] = None,
    rename: Annotated[
        bool, typer.Option("--rename", help="Rename the tensors to PEFT's names before publishing.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Publish a PEFT folder that was trained with another tool."""
    with _errors_in_one_line():
        base_folder = _base_folder(home, base)
        filled = read_defaults(defaults) if defaults else None
        store = _store(home)
        store.folders.adapter(name)
        with importable(folder, base_folder, store.folders, rename=rename) as source:
            draft = ManifestDraft(
                name=name,
                base=read_base(base_folder).ref,
                lora=read_lora_spec(source.folder),
                origin="imported",
                description=description,
                defaults=filled,
            )
            manifest = store.publish(source.folder, draft, base_folder=base_folder)
    for finding in source.findings:
        _print_finding(finding)
    if source.renamed:
        old, new = next(iter(source.renamed.items()))
        console.print(
            f"renamed {len(source.renamed)} tensors, as {examples([old])} to {examples([new])}", soft_wrap=True
        )
    console.print(
        f"published {manifest.lora_name}, {manifest.digest[:12]}; next: lorikeet adapters promote {manifest.lora_name}"
    )


def _store(home: Path) -> AdapterStore:
    return AdapterStore(Home(home).adapters)


@contextmanager
def _version(home: Path, reference: str) -> Iterator[tuple[AdapterStore, Target]]:
    """The store and the version that a reference names."""
    with _errors_in_one_line():
        store = _store(home)
        yield store, store.resolve(reference)


def _remote(store: AdapterStore, url: str) -> "RemoteStore":
    from adapters.remote.remote import RemoteStore  # fsspec and its kind take a while to import

    return RemoteStore(url, store)


def _wanted(store: AdapterStore, remote: "RemoteStore", reference: str | None) -> list[Target]:
    """Versions that `pull` fetches."""
    if reference is not None and "@" in reference:
        return [store.recorded(reference)]
    names = store.folders.names() if reference is None else [reference]
    targets = [target for name in names for target in remote.in_traffic(name)]
    if reference is not None and not targets:
        raise AdapterNotFoundError(f"Adapter {reference!r} has no alias. Give a version: `{reference}@1`.")
    return targets


def _base_folder(home: Path, base: str) -> Path:
    folder = Home(home).bases / base
    read_base(folder)
    return folder


def _is_verified(store: AdapterStore, target: Target) -> bool:
    try:
        manifest = store.verify(target)
    except AdapterError as error:
        print_error(error)
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
        print_error(error)
        raise typer.Exit(1) from error


def _print_finding(finding: LintFinding) -> None:
    style = _STYLES[finding.level]
    console.print(labelled(finding.level, style, f"{finding.code}: {finding}"), soft_wrap=True)
