"""Build a data set: clean, split, keep held-out rows out of training, check the gates, write a version."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

from adapters.bases import read_base
from adapters.store.manifest import MANIFEST_FILE
from config.data import DataConfig
from config.dataset import DatasetManifest, DatasetType, FileRecord, Split, StepRecord, read_dataset, verify_dataset
from config.domain import DomainConfig, EvaluationConfig
from config.errors import DatasetError
from config.home import Home
from config.private import close_to_others
from config.progress import Progress
from train.data.checks.in_build import label_errors_step, refusals_step
from train.data.checks.pii import clean_pii, redact, unchecked_phones
from train.data.checks.rendered import check_rendered
from train.data.cleaning.contamination import drop_contaminated
from train.data.cleaning.contradictions import resolve_contradictions
from train.data.cleaning.duplicates import drop_exact_duplicates, drop_near_duplicates
from train.data.cleaning.lengths import cut_long_inputs
from train.data.cleaning.packaged import drop_packaged_copies
from train.data.control_tokens import check_control_tokens
from train.data.examples import Example
from train.data.gates import check_gates
from train.data.lengths import check_lengths
from train.data.rows import few_shot_examples, to_row, type_of
from train.data.slices import check_slices
from train.data.sources import SourceData, read_source, source_identity
from train.data.splits import Splits, TooFewRowsError, limit_train, split_examples
from train.data.steps import (
    CONTAMINATION,
    CONTRADICTIONS,
    CONTROL_TOKENS,
    EXACT_DUPLICATES,
    LABEL_ERRORS,
    LENGTHS,
    LONG_INPUTS,
    NEAR_DUPLICATES,
    PACKAGED_COPIES,
    PERSONAL_DATA,
    REFUSALS,
    RENDERED_TEMPLATES,
    SKIPPED_ROWS,
    Finding,
    Step,
    StepResult,
    listed,
)
from train.data.template import run_time
from train.data.versions import write_version
from train.errors import DataError, NothingLeftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 6
"""Increase it with every code change that gives other rows or another manifest for the same settings and sources."""

_FEW_ROWS, _MANY_ROWS = 50, 50_000


@dataclass
class StepLog:
    """Runs steps, shows them as they run, and keeps their counts and times."""

    progress: Progress = field(default_factory=lambda: Progress("build", unit="rows"))
    steps: list[Step] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, step: Callable[[], StepResult], num_rows: int | None = None) -> tuple[Example, ...]:
        """Run a step.

        Args:
            num_rows: Rows that the step reports as it goes, for the time left; None: it is quick.
        """
        with self.phase(name, num_rows):
            result = step()
        self.steps.append(_without_personal_data(result.step))
        return result.examples

    @contextmanager
    def phase(self, name: str, num_rows: int | None = None) -> Iterator[None]:
        """Show work that is not a step of cleaning, and measure it."""
        self.progress.details["step"] = name
        self.progress.total = None
        if num_rows is not None:
            self.progress.begin(num_rows)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def _without_personal_data(step: Step) -> Step:
    """The step with findings that show none: they are kept, printed and pushed even if rows are redacted later."""
    masked = (replace(each, reason=redact(each.reason), text=redact(each.text)) for each in step.findings)
    return replace(step, findings=tuple(masked))


def build_dataset(
    config: DomainConfig, home: Home, *, force: bool = False, log: StepLog | None = None
) -> DatasetManifest:
    """Build a version of `home.datasets/<domain>` and make it the current one.

    A current one of the same configuration and source is used again unless `force` is set.

    Raises:
        DataError: The source is missing or malformed, has too few examples, or the data set fails its gates. The data
            set that was there before is left.
    """
    folder = home.datasets / config.name
    close_to_others((home.datasets, folder, *folder.rglob("*")))
    key = config_sha256(config, home)
    try:
        if not force and read_dataset(folder).config_sha256 == key:
            return verify_dataset(folder)
    except DatasetError:
        pass  # none, or a damaged one: it is built again
    log = log or StepLog()
    with log.phase("read"):
        source = read_source(config.data, config.answer, config.evaluation.slice_by)
        check_slices(source.examples, config.evaluation.slice_by)
        benchmarks = read_benchmarks(config)
    log.steps.append(_skipped_rows(source))
    tokenizer = prepared_tokenizer(config, home)
    examples: Sequence[Example] = source.examples
    if tokenizer is not None:
        examples = log.run(CONTROL_TOKENS, lambda: check_control_tokens(source.examples, config.data, tokenizer))
    fit = None if tokenizer is None else _fitting(config, tokenizer, log)
    splits = make_splits(examples, benchmarks, config.data, log, config.answer.refusal, fit)
    manifest = describe(config, source, splits, log.steps, key)
    by_split: dict[Split, tuple[Example, ...]] = {
        "train": splits.train,
        "validation": splits.validation,
        "test": splits.test,
    }
    with log.phase("write"):
        rows = {
            split: (to_row(config.chat, e, config.evaluation.slice_by) for e in examples)
            for split, examples in by_split.items()
        }
        return write_version(folder, manifest, rows, log.steps)


def prepared_tokenizer(config: DomainConfig, home: Home) -> "PreTrainedTokenizerBase | None":
    """The base's tokenizer; None if the base is not prepared yet, so that training checks the tokens."""
    if not (home.bases / config.base / MANIFEST_FILE).is_file():
        return None
    from transformers import AutoTokenizer  # takes seconds, and only a prepared base needs it

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(home.bases / config.base)
    return tokenizer


def make_splits(
    examples: Sequence[Example],
    benchmarks: Sequence[Example],
    config: DataConfig,
    log: StepLog,
    refusal: str | None = None,
    fit: Callable[[tuple[Example, ...]], tuple[Example, ...]] | None = None,
) -> Splits:
    """Clean, check and split examples, and check the gates.

    Args:
        refusal: The domain's own, `answer.refusal`.
        fit: The last step, which drops rows that are too long for the base; None where there is none.

    Raises:
        DataError: There are too few examples, a step's setting is `error`, or a gate failed.
    """
    rows = check(clean(examples, config, log), config, refusal, log)
    with log.phase("split"):
        splits = _split(rows, config, log.steps)
    train = log.run(
        CONTAMINATION,
        lambda: drop_contaminated(splits.train, splits.held_out, benchmarks, config.cleaning, log.progress.advance),
        len(splits.train),
    )
    train = log.run(
        NEAR_DUPLICATES, lambda: drop_near_duplicates(train, config.cleaning, log.progress.advance), len(train)
    )
    if not train:
        raise NothingLeftError(
            f"All {len(splits.train)} rows left for training are near copies of held-out rows. Give more data, or "
            "see docs/data.md, Cleaning."
        )
    if fit is not None:
        num_before, train = len(train), fit(train)
        if not train:
            raise DataError(
                f"All {num_before} rows left for training exceed `recipe.max_length` tokens, and "
                "`data.cut_long_inputs` is 'drop'. Raise the one, or set the other to 'middle', 'left' or 'right'."
            )
    available, train = train, limit_train(train, config)
    check_gates(config.gates, log.steps, train, splits.held_out)
    notes = () if config.cleaning.pii == "off" else unchecked_phones()
    notes = (*splits.notes, *notes, *_left_over(available, train), *advice(len(train)))
    return Splits(train, splits.validation, splits.test, notes)


def _split(rows: Sequence[Example], config: DataConfig, steps: Sequence[Step]) -> Splits:
    """`split_examples`; an error for want of rows tells where the others went."""
    try:
        return split_examples(rows, config)
    except TooFewRowsError as error:
        dropped = "".join(
            f"\n{step.num_dropped:,} rows were dropped as {step.name}:\n{listed(step.findings)}"
            for step in steps
            if step.num_dropped
        )
        raise DataError(f"{error}{dropped}") from None


def _fitting(
    config: DomainConfig, tokenizer: "PreTrainedTokenizerBase", log: StepLog
) -> Callable[[tuple[Example, ...]], tuple[Example, ...]]:
    """The step that checks lengths in tokens of the base."""
    at = run_time(config.recipe, date.today())

    def fit(train: tuple[Example, ...]) -> tuple[Example, ...]:
        advance = log.progress.advance
        return log.run(LENGTHS, lambda: check_lengths(train, config, tokenizer, at, advance), len(train))

    return fit


def clean(examples: Sequence[Example], config: DataConfig, log: StepLog) -> tuple[Example, ...]:
    """The steps before the split, in order."""
    rows = log.run(LONG_INPUTS, lambda: cut_long_inputs(examples, config))
    if config.source != "files":
        rows = log.run(PACKAGED_COPIES, lambda: drop_packaged_copies(rows))
    rows = log.run(CONTRADICTIONS, lambda: resolve_contradictions(rows, config.cleaning))
    return log.run(EXACT_DUPLICATES, lambda: drop_exact_duplicates(rows, config.cleaning))


def check(examples: Sequence[Example], config: DataConfig, refusal: str | None, log: StepLog) -> tuple[Example, ...]:
    """Personal data is reported, redacted or dropped, as set; the other checks keep all rows."""
    rows, pii = tuple(examples), config.cleaning.pii
    if pii != "off":
        rows = log.run(PERSONAL_DATA, lambda: clean_pii(rows, pii, log.progress.advance), len(rows))
    rows = log.run(REFUSALS, lambda: refusals_step(rows, refusal))
    rows = log.run(RENDERED_TEMPLATES, lambda: check_rendered(rows))
    if config.gates.max_label_errors is not None:
        rows = log.run(LABEL_ERRORS, lambda: label_errors_step(rows))
    return rows


def _skipped_rows(source: SourceData) -> Step:
    num_rows = len(source.examples)
    findings = tuple(Finding(row.origin, row.reason) for row in source.skipped)
    return Step(SKIPPED_ROWS, num_rows + len(findings), num_rows, findings=findings)


def read_benchmarks(config: DomainConfig) -> tuple[Example, ...]:
    """The rows of `data.benchmarks`; read as the data, but for the columns that only splits need."""
    if not config.data.benchmarks:
        return ()
    files = config.data.model_copy(update={"source": "files", "path": config.data.benchmarks, "benchmarks": ()})
    source = read_source(files, config.answer)
    return tuple(e for e in source.examples if e.origin is not None)


def config_sha256(config: DomainConfig, home: Home) -> str:
    """Hash of what decides a data set's rows and manifest: configuration, sources, base, and `FORMAT_VERSION`."""
    parts = [
        config.data.model_dump_json(exclude={"path", "held_out", "benchmarks", "replay"}),
        config.chat.model_dump_json(),
        config.answer.model_dump_json(),
        config.evaluation.model_dump_json(),
        config.defaults.model_dump_json(),
        config.description,
        config.quality.rubric or "",
        source_identity(config.data),
        *_benchmark_identity(config.data),
        *_base_identity(config, home),
        f"format {FORMAT_VERSION}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _benchmark_identity(config: DataConfig) -> list[str]:
    if not config.benchmarks:
        return []
    files = config.model_copy(update={"source": "files", "path": config.benchmarks, "benchmarks": ()})
    return [f"benchmarks {source_identity(files)}"]


def _base_identity(config: DomainConfig, home: Home) -> list[str]:
    """What the steps that look at tokens depend on; they run only where the base is prepared."""
    folder = home.bases / config.base
    if not (folder / MANIFEST_FILE).is_file():
        return []
    return [f"base {read_base(folder).digest}", f"max_length {config.recipe.max_length}"]


def describe(
    config: DomainConfig, source: SourceData, splits: Splits, steps: Sequence[Step], key: str
) -> DatasetManifest:
    """The manifest, but for what follows from the files."""
    return DatasetManifest(
        type=_type_of(splits),
        domain=config.name,
        description=config.description,
        source=source.name,
        source_version=source.version,
        sources=tuple(FileRecord(name=f.name, size_bytes=f.size_bytes, sha256=f.sha256) for f in source.files),
        licence=source.licence,
        chat=config.chat,
        answer=config.answer,
        evaluation=EvaluationConfig.model_validate(config.evaluation.model_dump()),  # as it is read again
        defaults=config.defaults,
        rubric=config.quality.rubric,
        few_shot=few_shot_examples(splits.train, config.evaluation.num_few_shot),
        num_train=len(splits.train),
        num_validation=len(splits.validation),
        num_test=len(splits.test),
        num_test_out_of_scope=sum(not e.in_scope for e in splits.test),
        steps=tuple(map(step_record, steps)),
        notes=(*source.notes, *splits.notes),
        seed=config.data.seed,
        format_version=FORMAT_VERSION,
        config_sha256=key,
        dataset_sha256="",
        created_at="",
    )


def _type_of(splits: Splits) -> DatasetType:
    return type_of([*splits.train, *splits.held_out])


def step_record(step: Step) -> StepRecord:
    """The counts of a step, for the manifest."""
    return StepRecord(
        name=step.name,
        num_before=step.num_before,
        num_after=step.num_after,
        num_changed=step.num_changed,
        num_findings=len(step.findings),
    )


def _left_over(available: Sequence[Example], train: Sequence[Example]) -> tuple[str, ...]:
    """A note on rows that are not trained on; the packaged requests that a refusal adds are not the user's rows."""
    num_before, num_used = (sum(e.in_scope or e.origin is not None for e in rows) for rows in (available, train))
    if num_used == num_before:
        return ()
    return (
        f"{num_used:,} of {num_before:,} rows left for training are used (`data.num_train`, "
        "`data.out_of_scope_share`).",
    )


def advice(num_train: int) -> tuple[str, ...]:
    if num_train < _FEW_ROWS:
        return (
            f"{num_train} training rows are few: give at least {_FEW_ROWS} for a format, hundreds for a task, and "
            "compare the scores with few-shot prompts of the base.",
        )
    if num_train > _MANY_ROWS:
        return (
            f"{num_train:,} training rows are many for one adapter: measure with {_MANY_ROWS:,} first "
            "(`data.num_train`), and drop near duplicates (`data.cleaning.near_duplicates: drop`).",
        )
    return ()
