"""Saved answers of earlier evaluations: found by model, by report, or all of a data set; nothing is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from adapters.errors import AdapterNotFoundError, InvalidReferenceError
from adapters.store.reader import StoreReader
from config.dataset import DatasetManifest, DatasetRow, read_dataset
from config.errors import DatasetError
from config.home import Home
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.asking import BASE, AnsweredBy, Answers, SavedAnswer, read_answers, request_id, requests_of
from loadtest.evaluation.offline import SUFFIX
from loadtest.evaluation.report import EvaluationReport


@dataclass(frozen=True)
class SavedSelection:
    """What is looked for: the first rows of a data set, and the models by name and, from a report, digest.

    Attributes:
        models: None: all that answered every row.
        num_rows: None: all.
    """

    folder: Path
    domain: str
    models: tuple[tuple[str, str | None], ...] | None
    num_rows: int | None
    few_shot: bool


def selection_of(
    home: Home, what: Sequence[str], models: Sequence[str], limit: int | None, *, few_shot: bool
) -> SavedSelection:
    """Models of a domain, or those of several reports.

    Args:
        what: A domain, or paths of reports.
        models: Of the domain; empty: all.

    Raises:
        EvaluationError: Not reports, reports of different questions, or options of a domain with reports.
        DatasetError: The reports' data set is gone.
    """
    if len(what) == 1 and not what[0].endswith(".json"):
        named = tuple((name, None) for name in models) or None
        return SavedSelection(home.datasets / what[0], what[0], named, limit, few_shot)
    if models or few_shot or limit:
        raise EvaluationError("--model, --few-shot and --limit belong to a domain. Leave them out for reports.")
    return _of_reports([Path(path) for path in what], home)


def _of_reports(paths: Sequence[Path], home: Home) -> SavedSelection:
    """The models of all reports, in order, on the rows that all of them have."""
    reports = [_read_report(path) for path in paths]
    first = reports[0]
    folder = home.datasets / first.domain
    for report in reports[1:]:
        if (report.domain, report.few_shot) != (first.domain, first.few_shot):
            raise EvaluationError(
                f"Reports of the same questions are wanted; got {_asked(first)} and {_asked(report)}."
            )
    rows = {_dataset(folder, report).dataset_sha256 for report in reports}
    if len(rows) > 1:
        raise EvaluationError(
            f"Reports of the same rows are wanted; got those of {len(rows)} data sets "
            f"{', '.join(report.dataset for report in reports)}. Run `lorikeet eval run` for each model on one of them."
        )
    models = dict.fromkeys((model.served_by, model.digest) for report in reports for model in report.models)
    return SavedSelection(
        folder / first.dataset, first.domain, tuple(models), min(r.num_items for r in reports), first.few_shot
    )


def find_answers(
    home: Home, manifest: DatasetManifest, rows: Sequence[DatasetRow], asked: SavedSelection
) -> list[Answers]:
    """The saved answers of each model to all rows.

    Raises:
        EvaluationError: A model has none, or not to all rows.
    """
    saved = _Saved.all_of(home.evaluations / manifest.domain / manifest.dataset_sha256[:12], manifest, rows, asked)
    if asked.models is None:
        complete = [each for each in saved if not each.num_missing]
        if not complete:
            raise EvaluationError(
                f"No model has saved answers to all {len(rows)} questions. Run "
                f"`lorikeet eval run {manifest.domain} --against base`."
            )
        newest = {each.by.served_by: each for each in complete}
        return [each.answers for each in sorted(newest.values(), key=_base_first)]
    return [_find(home, saved, name, digest, manifest, asked).answers for name, digest in asked.models]


@dataclass(frozen=True)
class _Saved:
    """One file: who answered, and the answers to the rows that are asked for."""

    by: AnsweredBy
    ids: tuple[str, ...]
    found: dict[str, SavedAnswer]

    @classmethod
    def all_of(
        cls, folder: Path, manifest: DatasetManifest, rows: Sequence[DatasetRow], asked: SavedSelection
    ) -> "list[_Saved]":
        """Oldest first; of a file that does not say who answered, nothing."""
        read = [read_answers(path) for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)]
        return [
            cls(by, tuple(map(request_id, requests_of(manifest, rows, "", by.filled, few_shot=asked.few_shot))), found)
            for by, found in read
            if by is not None
        ]

    @property
    def num_missing(self) -> int:
        return sum(own not in self.found for own in self.ids)

    @property
    def answers(self) -> Answers:
        by = self.by
        return Answers(by.served_by, by.served_by, by.digest, tuple(self.found[own] for own in self.ids))


def _find(
    home: Home, saved: Sequence[_Saved], name: str, digest: str | None, manifest: DatasetManifest, asked: SavedSelection
) -> _Saved:
    is_offline, model = name.endswith(SUFFIX), name.removesuffix(SUFFIX)
    wanted = name if digest else _resolved(home, model) + SUFFIX * is_offline
    found = [each for each in saved if _is(each.by, wanted) and digest in (None, each.by.digest)]
    if model == BASE and len({each.by.served_by for each in found}) > 1:
        raise EvaluationError(
            f"Several bases have answers: {', '.join(sorted({each.by.served_by for each in found}))}. Name one instead "
            f"of {name!r}."
        )
    # The newest of those that answered most.
    best = min(reversed(found), key=lambda each: each.num_missing, default=None)
    if best is not None and not best.num_missing:
        return best
    limit = f" --limit {asked.num_rows}" if asked.num_rows else ""
    options = f" --domain {manifest.domain}{' --offline' * is_offline}{' --few-shot' * asked.few_shot}{limit}"
    num_asked = len(best.ids) if best else 0
    have = f"{num_asked - best.num_missing} of {num_asked} answers" if best else "no answers"
    raise EvaluationError(f"{name!r} has {have} saved to these questions. Run `lorikeet eval run {model}{options}`.")


def _is(by: AnsweredBy, wanted: str) -> bool:
    is_offline, model = by.served_by.endswith(SUFFIX), by.served_by.removesuffix(SUFFIX)
    if wanted.removesuffix(SUFFIX) == BASE:
        return "@" not in model and is_offline == wanted.endswith(SUFFIX)
    return by.served_by == wanted


def _resolved(home: Home, model: str) -> str:
    """The version of `medical` or `medical@canary` in the store; another name is its own."""
    try:
        return model if model == BASE else str(StoreReader(home.adapters).recorded(model))
    except (InvalidReferenceError, AdapterNotFoundError):
        return model


def _base_first(saved: _Saved) -> tuple[bool, str, int, str]:
    model, _, rest = saved.by.served_by.removesuffix(SUFFIX).partition("@")
    return bool(rest), model, int(rest) if rest.isdigit() else 0, saved.by.served_by


def _read_report(path: Path) -> EvaluationReport:
    try:
        return EvaluationReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror}. Give a domain, or reports of `lorikeet eval run`.") from error
    except ValidationError as error:
        raise EvaluationError(f"{path} must be a report of `lorikeet eval run`: {error.errors()[0]['msg']}.") from error


def _dataset(folder: Path, report: EvaluationReport) -> DatasetManifest:
    try:
        return read_dataset(folder / report.dataset)
    except DatasetError as error:
        raise DatasetError(
            f"Data set {report.dataset!r} of {report.domain!r}, which the report of {report.started_at} is on, is not "
            f"in {folder}. Run `lorikeet eval run` for its models again."
        ) from error


def _asked(report: EvaluationReport) -> str:
    return f"{report.domain}{', few-shot' * report.few_shot} ({report.started_at})"
