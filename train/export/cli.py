"""`lorikeet export`, one command per format, and `lorikeet adapters merge`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli import DEFAULT_HOME, HomeOption, ReferenceArgument
from adapters.lint.config import MAX_LORA_RANK
from config.home import Home
from config.progress import Progress, shown
from config.terminal import labelled
from train.shell import console, shell

if TYPE_CHECKING:
    from train.export.version import Version

logger = logging.getLogger(__name__)

export_app = typer.Typer(no_args_is_help=True, help="Versions for other programs: merge, peft, gguf, ollama, hub.")

hub_app = typer.Typer(no_args_is_help=True, help="One version at a URL, with its model card: push and pull.")
export_app.add_typer(hub_app, name="hub")

UrlArgument = Annotated[str, typer.Argument(help="A folder or repository: file:///…, s3://bucket/name, hf://org/name.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must not exist.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the output folder if it exists.")]


@export_app.command()
def merge(
    reference: ReferenceArgument, output: OutputOption, force: ForceOption = False, home: HomeOption = DEFAULT_HOME
) -> None:
    """Write a full model folder: the base with the adapter added to its weights."""
    with _exported("merge", reference, output, home, force=force) as (version, folder):
        from train.export.merge import merge_version

        merge_version(version, folder)


@export_app.command()
def peft(
    reference: ReferenceArgument,
    output: OutputOption,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id or path of the base for the other program; default: the base's source.")
    ] = None,
    force: ForceOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write a PEFT folder without files of Lorikeet, as vLLM, SGLang, LoRAX and TensorRT-LLM take it."""
    with _exported("peft", reference, output, home, force=force) as (version, folder):
        from train.export.peft import export_peft

        export_peft(version, folder, base_model=base_model)


@export_app.command()
def gguf(
    reference: ReferenceArgument, output: OutputOption, force: ForceOption = False, home: HomeOption = DEFAULT_HOME
) -> None:
    """Write base and adapter as GGUF files for llama.cpp."""
    with _exported("gguf", reference, output, home, force=force) as (version, folder):
        from train.export.gguf import export_gguf

        export_gguf(version, folder)


@export_app.command()
def ollama(
    reference: ReferenceArgument, output: OutputOption, force: ForceOption = False, home: HomeOption = DEFAULT_HOME
) -> None:
    """Write GGUF files and a Modelfile for Ollama, with the version's request defaults."""
    notes: tuple[str, ...] = ()
    with _exported("ollama", reference, output, home, force=force) as (version, folder):
        from train.export.ollama import export_ollama

        notes = export_ollama(version, folder)
    for note in notes:
        console.print(labelled("note", "yellow", note), soft_wrap=True)


@hub_app.command()
def push(
    reference: ReferenceArgument,
    url: UrlArgument,
    include_private: Annotated[
        bool, typer.Option("--include-private", help="Also push held-out questions and the fingerprint.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another version at the URL.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Push one version with its model card: PEFT's files and the manifest."""
    with shell():
        from train.export.hub import push_version

        with shown(Progress(f"push {reference}"), console):
            manifest, shown_url = push_version(
                Home(home), reference, url, is_private_included=include_private, force=force
            )
        names = ", ".join(file.path for file in manifest.files)
        console.print(f"pushed {manifest.lora_name} to {shown_url}: {names}", soft_wrap=True)


@hub_app.command()
def pull(
    url: UrlArgument,
    name: Annotated[str | None, typer.Option(help="Another name for the adapter.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Publish the version at a URL as the next version of its name."""
    with shell():
        from train.export.hub import pull_version

        with shown(Progress(f"pull {url}"), console):
            manifest = pull_version(Home(home), url, name)
        console.print(f"{manifest.lora_name} is here, {manifest.digest[:12]}", soft_wrap=True)


def merge_adapters(
    weighted: Annotated[list[str], typer.Argument(help="Versions with weights: `medical@3:0.7 legal@2:0.3`.")],
    name: Annotated[str, typer.Option(help="Adapter name of the combination.")],
    method: Annotated[
        str, typer.Option(help="linear, ties, dare_linear, dare_ties, svd or cat (PEFT's names).")
    ] = "svd",
    density: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of the numbers that ties and dare keep.")
    ] = 0.5,
    max_lora_rank: Annotated[int, typer.Option(min=1, max=MAX_LORA_RANK, help="`max_lora_rank` of serve.yaml.")] = 16,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Combine versions of one base into a new version, and evaluate it on the held-out sets of their domains."""
    with shell():
        from train.export.combine import CombineRecipe, combine_versions, parse_method, parse_weighted

        recipe = CombineRecipe(parse_method(method), density, max_lora_rank)
        parts = [parse_weighted(text) for text in weighted]
        with shown(Progress(f"merge into {name}"), console):
            manifest = combine_versions(Home(home), name, parts, recipe, lambda text: logger.info("%s", text))
        for domain, scores in manifest.combination.evaluations.items() if manifest.combination else ():
            console.print(
                f"{domain}: {scores.metric} {scores.adapter.value:.3f}, base {scores.base.value:.3f}, "
                f"{scores.adapter.n} held-out rows",
                soft_wrap=True,
            )
        console.print(
            f"published {manifest.lora_name}, rank {manifest.lora.lora_r}, {manifest.digest[:12]}; "
            f"next: lorikeet adapters promote {manifest.lora_name}",
            soft_wrap=True,
        )


@contextmanager
def _exported(name: str, reference: str, output: Path, home: Path, *, force: bool) -> Iterator[tuple["Version", Path]]:
    """The verified version and the folder to fill; prints what was written."""
    with shell():
        with shown(Progress(f"export {reference} as {name}"), console):
            from train.export.folder import check_output, output_folder
            from train.export.version import open_version

            check_output(output, force=force)
            version = open_version(Home(home), reference)
            with output_folder(output, force=force) as folder:
                yield version, folder
        size_mb = sum(path.stat().st_size for path in output.iterdir()) / 1e6
        console.print(f"{version.target} written to {output} as {name}, {size_mb:.1f} MB", soft_wrap=True)
