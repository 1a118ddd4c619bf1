"""`lorikeet base` and `lorikeet train`. Heavy libraries are imported only when a command runs."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapters.cli import DEFAULT_HOME, HomeOption, ReferenceArgument
from config.home import Home
from config.load import load_domain
from config.progress import Progress, shown
from config.signals import exit_code_of, interrupted_by_sigterm
from config.terminal import labelled
from train.options import DomainFiles, ForceOption
from train.runs import last_checkpoint
from train.shell import console, continued_by, shell

if TYPE_CHECKING:
    from train.publication import TrainingOutcome

base_app = typer.Typer(no_args_is_help=True, help="Base models: prepare, merge, sparsify, list, show.")


@base_app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="`smollm2-135m` (packaged), a local model folder, or a hub id.")
    ] = "smollm2-135m",
    name: Annotated[
        str | None, typer.Option(help="Folder name under `bases`; default: derived from source and quantization.")
    ] = None,
    quantization: Annotated[
        Literal["nf4", "int8", "none"] | None,
        typer.Option(help="Quantization of the linear layers; default: nf4, or as the source is quantized already."),
    ] = None,
    storage: Annotated[
        Literal["auto", "dequantized", "bitsandbytes"],
        typer.Option(help="auto: bitsandbytes on a CUDA GPU; on a CPU, quantized once and stored as bf16."),
    ] = "auto",
    chat_template: Annotated[Path | None, typer.Option(help="Jinja chat template, for a base that has none.")] = None,
    force: ForceOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Prepare a base model: quantize it once for both training and serving."""
    with shell():
        from train.base.prepare import prepare_base
        from train.tables import base_table

        words = f"prepare {source}" + (f" ({quantization})" if quantization else "")
        progress = Progress(words, hint="usually less than a minute")
        with shown(progress, console):
            manifest = prepare_base(
                source, name, quantization, storage, home=Home(home), chat_template=chat_template, force=force
            )
        console.print(base_table([manifest]))
        if manifest.template_changes:
            console.print(f"Its chat template was changed ({', '.join(manifest.template_changes)}): see docs/data.md.")
        if manifest.template_writes_time:
            console.print(
                "Its chat template writes the date into prompts: see `recipe.template_date` in docs/training.md.",
                soft_wrap=True,
            )


@base_app.command("list")
def list_bases(home: HomeOption = DEFAULT_HOME) -> None:
    """List the prepared bases."""
    with shell():
        from adapters.bases import list_bases
        from train.tables import base_table

        manifests = list_bases(Home(home).bases)
        console.print(base_table(manifests) if manifests else "No prepared base found. Run `lorikeet base prepare`.")


@base_app.command("show")
def show_base(
    name: Annotated[str, typer.Argument(help="Name of a prepared base (see `lorikeet base list`).")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Verify the files of a base, then show its manifest."""
    with shell():
        from adapters.bases import verify_base

        console.print_json(verify_base(Home(home).bases / name).model_dump_json())


@base_app.command()
def sparsify(
    base: Annotated[str, typer.Argument(help="Name of a prepared base (see `lorikeet base list`).")],
    method: Annotated[
        Literal["magnitude", "wanda"], typer.Option(help="wanda weighs weights by their inputs on calibration text.")
    ] = "wanda",
    sparsity: Annotated[str, typer.Option(help="Share of weights that become zero (0.5), or N:M (2:4).")] = "0.5",
    name: Annotated[str | None, typer.Option(help="Name of the new base; default: BASE-METHOD-1.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Domain whose training rows are the calibration text; default: general English.")
    ] = None,
    domains: Annotated[
        list[str] | None, typer.Option("--domain", help="Ask a domain's held-out questions before and after.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Set a share of a base's weights to zero, as a base of its own; nothing is trained again."""
    with shell():
        from train.base.sparsify import parse_pattern, sparsify_base
        from train.tables import sparsity_table

        pattern = parse_pattern(sparsity)
        with shown(Progress(f"sparsify {base} ({method}, {pattern})"), console):
            manifest = sparsify_base(
                base, Home(home), method, pattern, new_name=name, calibration=calibration, domains=domains or ()
            )
        console.print(sparsity_table(manifest))


@base_app.command()
def merge(
    reference: ReferenceArgument,
    name: Annotated[str | None, typer.Option(help="Name of the new base; default: ADAPTER-1.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Merge a version into its base, as a base of its own: adapters can be trained on it."""
    with shell():
        from train.base.merged import merge_into_base

        with shown(Progress(f"merge {reference}"), console):
            base = merge_into_base(reference, Home(home), name)
        note = f"train on it and serve it with `base: {base.name}`; adapters of other bases do not fit it"
        console.print(labelled(f"{base.name} is a base of its own:", "green", note), soft_wrap=True)


def train(
    files: DomainFiles,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint.")] = False,
    allow_unserved: Annotated[
        bool,
        typer.Option("--allow-unserved", help="Train what cannot be served, for evaluation, into `unserved`."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Promote the version even if its gates fail; the history says so.")
    ] = False,
    cluster: Annotated[
        Literal["ray"] | None,
        typer.Option(help="Train several domains at a time, as tasks of Ray on this machine or at RAY_ADDRESS."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Train a domain's adapter, evaluate and publish it, and promote it if its gates pass."""
    if cluster is None and len(files) > 1:
        raise typer.BadParameter("Several domains are trained in a cluster; add `--cluster ray`.", param_hint="FILE")
    if cluster is not None:
        options = {"--resume": resume, "--allow-unserved": allow_unserved, "--force": force}
        _train_in_cluster(files, Home(home), [name for name, is_given in options.items() if is_given])
        return
    (file,) = files
    with shell(), _resumable(file, Home(home), force=force):
        config = load_domain(file)
        with shown(Progress(f"{config.name}: load training libraries"), console):
            from train.gained_lost import gained_and_lost, gained_lost_table
            from train.pipeline import train_and_publish
            from train.tables import outcome_table

        outcome = train_and_publish(
            config, Home(home), resume=resume, allow_unserved=allow_unserved, force=force, console=console
        )
        console.print(outcome_table(outcome.record, outcome.name))
        if gained_and_lost(outcome.record.figures):
            console.print(gained_lost_table(outcome.record.figures))
        colour = "green" if outcome.is_promoted else "yellow"
        console.print(labelled(f"{outcome.name} {_became(outcome)}:", colour, outcome.reason), soft_wrap=True)
        if outcome.is_servable and not outcome.is_promoted:
            console.print(_after_failed_gates(outcome), soft_wrap=True, markup=False)


def _train_in_cluster(files: list[Path], home: Home, options: list[str]) -> None:
    """Exit code 1 if a domain failed."""

    def show(name: str, line: str) -> None:
        console.print(f"{name}: {line}", soft_wrap=True, markup=False, highlight=False)

    with shell(), continued_by("train --cluster ray"):
        from train.cluster import domain_tasks, train_in_cluster

        codes = train_in_cluster(domain_tasks(files, home, options), os.environ.get("RAY_ADDRESS") or None, show)
        for name, code in codes.items():
            ended = (
                labelled("trained", "green", name) if code == 0 else labelled("failed", "red", f"{name}: exit {code}")
            )
            console.print(ended, soft_wrap=True)
        if any(codes.values()):
            raise typer.Exit(1)


def _became(outcome: "TrainingOutcome") -> str:
    if outcome.is_promoted:
        return "is now stable"
    if outcome.served_as == "a base of its own":
        return "is a base of its own"
    return "cannot be served" if outcome.served_as == "not served" else "was published, but is NOT stable"


def _after_failed_gates(outcome: "TrainingOutcome") -> str:
    return (
        f"Try it as a canary: `lorikeet adapters promote {outcome.name} --alias canary`; or make it stable all the "
        f"same: `lorikeet adapters promote {outcome.name}`."
    )


@contextmanager
def _resumable(file: Path, home: Home, *, force: bool) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, print how to resume, then exit."""
    try:
        with interrupted_by_sigterm():
            yield
    except KeyboardInterrupt as interrupt:
        console.print(f"\ninterrupted; {_next_step(file, home, force=force)}", soft_wrap=True)
        raise typer.Exit(exit_code_of(interrupt)) from None


def _next_step(file: Path, home: Home, *, force: bool) -> str:
    """The command that resumes from a checkpoint, or starts again if none was written."""
    words = ["lorikeet", "train", str(file)] + (["--home", str(home.root)] if home.root != DEFAULT_HOME else [])
    words += ["--force"] if force else []
    if last_checkpoint(home.runs / load_domain(file).name) is None:
        return f"no checkpoint was written yet: run `{shlex.join(words)}` again"
    return f"resume with `{shlex.join([*words, '--resume'])}`"
