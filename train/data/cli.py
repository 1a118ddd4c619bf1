"""`lorikeet data` and `lorikeet init`. Heavy libraries are imported only when a command runs."""

import os
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli import DEFAULT_HOME, HomeOption
from config.data import DataConfig
from config.domain import DomainConfig
from config.errors import ConfigError
from config.home import Home
from config.load import check_name, load_domain, validate
from config.progress import Progress, shown
from config.terminal import make_console
from train.options import DomainFile, ForceOption
from train.shell import console, continued_by, shell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from config.dataset import DatasetManifest

data_app = typer.Typer(no_args_is_help=True, help="Domain data sets: build, list, show, report, diff, push, pull.")

DomainFiles = Annotated[list[Path], typer.Argument(help="Domain configurations (YAML), e.g. config/domains/*.yaml.")]
DEFAULT_BASE: str = DomainConfig.model_fields["base"].default
DomainName = Annotated[str, typer.Argument(help="Domain of a built data set (see `lorikeet data list`).")]
UrlArgument = Annotated[str, typer.Argument(help="Remote folder: s3://, gs://, hf://, file:// or another fsspec URL.")]
VersionOption = Annotated[
    str | None, typer.Option(help="Version (see `lorikeet data list`); default: the current one.")
]
DatasetArgument = Annotated[str, typer.Argument(help="Data set: `support`, `support@<version>`, or a domain's YAML.")]


@data_app.command()
def build(files: DomainFiles, force: ForceOption = False, home: HomeOption = DEFAULT_HOME) -> None:
    """Build domain data sets: load, clean, split, hash."""
    with shell():
        from train.data.build import StepLog, build_dataset
        from train.tables import dataset_table

        for config in [load_domain(file) for file in files]:
            with shown(Progress(f"build {config.name}", unit="rows"), console) as progress:
                manifest = build_dataset(config, Home(home), force=force, log=StepLog(progress))
            console.print(dataset_table(manifest))


@data_app.command("list")
def list_data(home: HomeOption = DEFAULT_HOME) -> None:
    """List the versions of all data sets."""
    with shell():
        from train.data.versions import list_versions
        from train.tables import versions_table

        versions = list_versions(Home(home).datasets)
        console.print(versions_table(versions) if versions else "No data set found. Run `lorikeet data build`.")


@data_app.command("prune")
def prune_data(
    yes: Annotated[bool, typer.Option("--yes", help="Delete them. Without it they are only listed.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """List, or delete, versions that are neither current nor what a published adapter was trained on."""
    with shell():
        from adapters.store.store import AdapterStore
        from train.data.prune import remove_version, unneeded_versions

        datasets = Home(home).datasets
        unneeded = unneeded_versions(datasets, AdapterStore(Home(home).adapters))
        for each in unneeded:
            is_removed = yes and remove_version(datasets, each)
            console.print(f"{'deleted' if is_removed else 'not needed:'} {each.domain} {each.version}", soft_wrap=True)
        if not unneeded:
            console.print("Every version is current, or an adapter was trained on it.")
        elif not yes:
            console.print("Nothing was deleted; run `lorikeet data prune --yes` to delete these versions.")


@data_app.command("push")
def push_data(
    domain: DomainName, url: UrlArgument, version: VersionOption = None, home: HomeOption = DEFAULT_HOME
) -> None:
    """Push a version of a data set to a remote folder, and make it the current one there."""
    with shell():
        from adapters.remote.files import RemoteFiles
        from train.data.remote import push_dataset

        remote = RemoteFiles(url, storage_options={})
        manifest = push_dataset(Home(home).datasets / check_name(domain), remote, version)
        console.print(f"pushed {domain} {manifest.version} to {remote.url}", soft_wrap=True)


@data_app.command("pull")
def pull_data(
    url: UrlArgument, domain: DomainName, version: VersionOption = None, home: HomeOption = DEFAULT_HOME
) -> None:
    """Pull a version of a data set, verify it by its digest, and make it the current one here."""
    with shell():
        from adapters.remote.files import RemoteFiles
        from train.data.remote import pull_dataset

        remote = RemoteFiles(url, storage_options={})
        manifest = pull_dataset(remote, Home(home).datasets / check_name(domain), version)
        console.print(f"{domain} {manifest.version} is here", soft_wrap=True)


@data_app.command("expand")
def expand_data(
    file: DomainFile,
    teacher: Annotated[
        str, typer.Option(help="Base URL of an OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1.")
    ],
    model: Annotated[str, typer.Option(help="Model to ask.")],
    num_rows: Annotated[int, typer.Option("--num-rows", min=1, help="Synthetic rows wanted in all.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Budget: tokens of prompts and answers in all.")] = 1_000_000,
    kinds: Annotated[str, typer.Option(help="Kinds of rows, separated by commas.")] = "paraphrase,new,edge,refusal",
    judge: Annotated[
        bool, typer.Option("--judge", help="Let the same model grade each row; below 4 of 5 it is dropped.")
    ] = False,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the endpoint's key.")] = "OPENAI_API_KEY",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Let a teacher model write more training rows from the training split; run again to continue."""
    with shell(), continued_by("data expand"):
        from train.data.expand import ROWS_FILE, Budget, expand_domain, kinds_of
        from train.data.teacher import make_teacher
        from train.tables import expansion_table

        config = load_domain(file)
        wanted = kinds_of(kinds)
        asked = make_teacher(teacher, model, os.environ.get(api_key_env))
        console.print(f"sends training rows of {config.name} to {asked.client.base_url.host}", soft_wrap=True)
        with shown(Progress(f"expand {config.name}", unit="rows"), console) as progress:
            made = expand_domain(
                config,
                Home(home),
                asked,
                Budget(num_rows, max_tokens),
                kinds=wanted,
                is_judged=judge,
                progress=progress,
            )
        console.print(expansion_table(made))
        console.print(f"to train on them, add {made.folder / ROWS_FILE} to `data.path`", soft_wrap=True)


@data_app.command("from-samples")
def from_samples(
    adapter: Annotated[str, typer.Argument(help="Adapter whose sampled answers to use; its data set must be built.")],
    since: Annotated[
        str | None,
        typer.Option(help="Use feedback, labels and grades of this time only: 7d, 12h or 90m. Default: all."),
    ] = None,
    kind: Annotated[str, typer.Option(help="sft: questions with answers; preference: better and worse answers.")] = (
        "sft"
    ),
    min_score: Annotated[
        float, typer.Option(help="Minimum score of a good answer, 0 to 1; 0.75 is grade 4 of 5.")
    ] = 0.75,
    max_user_share: Annotated[
        float, typer.Option(help="Maximum share of the rows that rest on one user's votes alone.")
    ] = 0.05,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Build a data set of sampled answers, selected and corrected by users, labels and judges."""
    with shell():
        from train.data.build import StepLog
        from train.data.feedback.build import FromSamples, build_from_samples, seconds_of
        from train.tables import dataset_table

        given = {"kind": kind, "min_score": min_score, "max_user_share": max_user_share}
        settings = validate(given, FromSamples, "data from-samples")
        since_s = None if since is None else time.time() - seconds_of(since)
        with shown(Progress(f"from-samples {adapter}", unit="rows"), console) as progress:
            built = build_from_samples(Home(home), check_name(adapter), settings, since_s, StepLog(progress))
        console.print(dataset_table(built.manifest))
        console.print(f"to train on it, set `data.path` to {built.train_file}", soft_wrap=True)
        console.print(f"and `data.held_out` to {built.held_out_file} (docs/feedback.md)", soft_wrap=True)


@data_app.command("show")
def show_data(
    file: DomainFile,
    num_examples: Annotated[int, typer.Option("--num-examples", "-n", min=0, help="Number of examples to show.")] = 3,
    row: Annotated[int | None, typer.Option("--row", min=1, help="Show one row: the number of a training row.")] = None,
    line: Annotated[
        str | None, typer.Option("--line", help="Show one row: its source, as support.jsonl:12; also a dropped one.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show examples as the trainer gets them, with the trained tokens in colour; of one row, also what was found."""
    with shell():
        from config.rows import read_rows
        from train.data.build import build_dataset
        from train.data.report.encoding import base_tokenizer, first_learnt, sequences_of, times_of
        from train.data.report.terminal import learnt_text
        from train.tables import dataset_table, token_table

        config = load_domain(file)
        manifest = build_dataset(config, Home(home))
        if row is not None or line is not None:
            _show_row(config, manifest, Home(home), row, line)
            return
        tokenizer = base_tokenizer(config, Home(home))
        rows = list(read_rows(Home(home).datasets / config.name, "train"))
        times = times_of(config, len(rows), "train", date.today())
        encoded = [sequence for _, sequence in sequences_of(tokenizer, rows, config, times)]
        console.print(dataset_table(manifest))
        console.print(token_table(encoded, config.recipe.max_length))
        for learnt in first_learnt(tokenizer, rows, config, times, num_examples):
            console.print(learnt_text(learnt))


@data_app.command("report")
def report_data(
    file: DomainFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures and findings as JSON.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Check a data set and report it, here and as an HTML page: steps, lengths, classes, findings, what is learnt."""
    with shell():
        from train.data.build import StepLog, build_dataset
        from train.data.report.encoding import report_tokens
        from train.data.report.gather import make_report
        from train.data.report.page import write_page
        from train.data.report.terminal import report_tables

        config = load_domain(file)
        log = StepLog(Progress(f"report {config.name}", unit="rows"))
        with shown(log.progress, make_console(stderr=True)):
            manifest = build_dataset(config, Home(home), log=log)
            with log.phase("tokens"):
                tokens = report_tokens(config, manifest, Home(home), date.today())
            report = make_report(Home(home).datasets / config.name, tokens, log)
        page = write_page(report, Home(home).data_reports)
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
            return
        for table in report_tables(report):
            console.print(table)
        console.print(f"page: {page}", soft_wrap=True)


@data_app.command("diff")
def diff_data(
    before: DatasetArgument,
    after: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print all differences as JSON.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Compare two built data sets: rows added, removed, changed or moved, and settings."""
    with shell():
        from train.data.diff import dataset_folder, diff_datasets
        from train.data.report.diff_tables import diff_tables

        folders = [dataset_folder(Home(home).datasets, name) for name in (before, after)]
        found = diff_datasets(*folders)
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
            return
        for table in diff_tables(found):
            console.print(table)


def init(
    name: Annotated[str, typer.Argument(help="Name of the domain, and of its adapter.")],
    files: Annotated[list[str], typer.Argument(help="Its data: files, folders, globs or URLs (docs/data.md).")],
    base: Annotated[str, typer.Option(help="Prepared base model (see `lorikeet base list`).")] = DEFAULT_BASE,
    layout: Annotated[str, typer.Option(help="Layout of the rows, if it is not detected (docs/data.md).")] = "auto",
    folder: Annotated[Path, typer.Option(help="Folder of the YAML file.")] = Path("config/domains"),
    force: Annotated[bool, typer.Option("--force", help="Replace the YAML file if it exists.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Look at a domain's data and write its YAML file, with comments; then `lorikeet train` needs no edit."""
    with shell():
        from config.domain import AnswerConfig
        from train.data.propose import data_settings, propose, write_domain
        from train.data.report.shown import one_line
        from train.data.sources import read_source
        from train.tables import proposal_table

        path = folder / f"{check_name(name)}.yaml"
        if path.exists() and not force:
            raise ConfigError(f"{path} exists. Choose another name, or replace the file with `--force`.")
        config = validate({"path": files, "layout": layout}, DataConfig, "data")
        tokenizer = _tokenizer(base, Home(home))
        with shown(Progress(f"read {name}"), console):
            source = read_source(config, AnswerConfig())
            proposal = propose(source.examples, tokenizer)
        write_domain(name, base, data_settings(config, folder), proposal, path)
        for note in source.notes:
            console.print(one_line(note), soft_wrap=True)
        console.print(proposal_table(source, proposal))
        console.print(f"wrote {path}; next: lorikeet train {path}", soft_wrap=True)


def _show_row(
    config: DomainConfig, manifest: "DatasetManifest", home: Home, number: int | None, line: str | None
) -> None:
    """Print one row: where it is, what steps found, and what is learnt of it."""
    from train.data.report.encoding import base_tokenizer, learnt_of, times_of
    from train.data.report.one_row import account_of_line, account_of_row, parse_line
    from train.data.report.terminal import learnt_text, row_table

    folder = home.datasets / config.name
    account = account_of_line(folder, parse_line(line)) if line is not None else account_of_row(folder, number or 1)
    console.print(row_table(account))
    if account.row is not None:
        tokenizer = base_tokenizer(config, home)
        assert account.split is not None
        at = times_of(config, account.index + 1, account.split, date.today())[account.index]
        for learnt in learnt_of(tokenizer, [account.row], config, [at]):
            console.print(learnt_text(learnt))


def _tokenizer(base: str, home: Home) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    from adapters.bases import read_base

    folder = home.bases / base
    read_base(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
