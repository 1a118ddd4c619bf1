"""`lorikeet data from-samples`: a data set of sampled answers and what was said of them, held-out rows kept out."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from config.data import CleaningConfig, DataConfig
from config.dataset import FEEDBACK_SUFFIX, DatasetManifest, Split, read_dataset, samples_source
from config.errors import DatasetError
from config.home import Home
from config.load import check_name
from config.model import Config
from config.private import make_private_folder, write_private
from config.rows import AnyRow, read_rows
from quality.samples.store import QualityStore
from train.data.build import FORMAT_VERSION, StepLog, check, clean, step_record
from train.data.cleaning.contamination import drop_contaminated
from train.data.cleaning.duplicates import drop_near_duplicates
from train.data.examples import Example
from train.data.feedback.shares import USER_SHARES, cap_users, lone_owners
from train.data.feedback.votes import Vote, answer_votes, newest_votes, preference_votes, read_judged
from train.data.report.examples import to_example
from train.data.rows import to_row
from train.data.splits import split_examples
from train.data.steps import CONTAMINATION, NEAR_DUPLICATES
from train.data.versions import write_version
from train.errors import DataError


class FromSamples(Config):
    """What becomes of the samples."""

    kind: Literal["sft", "preference"] = Field(
        "sft", description="Questions with answers, or pairs of a better and a worse answer."
    )
    min_score: float = Field(
        0.75, gt=0, le=1, description="Score from which an answer is good, 0 to 1; 0.75 is grade 4 of 5."
    )
    max_user_share: float = Field(
        0.05, gt=0, le=1, description="Maximum share of the rows that rest on one user's votes alone."
    )


@dataclass(frozen=True)
class FeedbackData:
    """A built data set, and its rows as files to train on."""

    manifest: DatasetManifest
    train_file: Path
    held_out_file: Path


def build_from_samples(
    home: Home, name: str, settings: FromSamples, since_s: float | None = None, log: StepLog | None = None
) -> FeedbackData:
    """Build a version of the data set `<name>-feedback`, and write its rows as files.

    Its held-out rows are those of the domain's own data set, so that figures can be compared; nearly equal rows are
    not trained on. Preferences are held out among themselves.

    Args:
        since_s: Feedback, labels and grades from then on count, seconds since the epoch.

    Raises:
        DataError: There are no samples, or nothing usable was said of them.
        DatasetError: The domain's data set is not built.
        QualityStoreError: The store of samples cannot be read.
    """
    log, folder = log or StepLog(), home.datasets / check_name(name + FEEDBACK_SUFFIX)
    domain = read_dataset(home.datasets / name)
    _check_name_is_free(folder)
    votes = _read_votes(home, domain, settings, since_s)
    held_out = _held_out(home, domain)
    every = [row for split in ("test", "validation") for row in held_out[split]]
    rows = _clean(votes, every, settings, domain.answer.refusal, log)
    if not rows:
        raise DataError(
            f"Of {len(votes)} votes on answers of {name!r} no row is left: they contradict each other, or repeat "
            f"held-out rows. {_ADVICE}"
        )
    splits = held_out | {"train": rows}
    if settings.kind == "preference":
        parts = split_examples(rows, _data_config())
        splits = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    manifest = _describe(domain, settings, splits, len(votes), log)
    written: dict[Split, Iterable[AnyRow]] = {
        split: [to_row(domain.chat, example) for example in examples] for split, examples in splits.items()
    }
    manifest = write_version(folder, manifest, written, log.steps)
    return _write_files(home.feedback / name, manifest, splits)


def seconds_of(span: str) -> float:
    """Seconds of `7d`, `12h` or `90m`.

    Raises:
        DataError: It is none.
    """
    if re.fullmatch(r"[1-9][0-9]{0,5}[dhm]", span) is None:
        raise DataError(f"--since {span[:40]!r} must be a number with d, h or m, as 7d.")
    return float(int(span[:-1]) * _UNITS_S[span[-1]])


_UNITS_S = {"d": 86_400, "h": 3600, "m": 60}
_ADVICE = (
    "Feedback comes through POST /v1/feedback, labels from `lorikeet quality label`, grades from `quality.judge` "
    "(docs/feedback.md)."
)


def _check_name_is_free(folder: Path) -> None:
    try:
        is_ours = read_dataset(folder).is_of_samples
    except DatasetError:
        return  # none, or a damaged one
    if not is_ours:
        raise DataError(
            f"{folder.name!r} is the data set of a domain, and would be that of samples. Rename that domain, and move "
            f"{folder} away."
        )


def _read_votes(home: Home, domain: DatasetManifest, settings: FromSamples, since_s: float | None) -> list[Vote]:
    if domain.type != "prompt_completion":
        raise DataError(f"Data set {domain.domain!r} must have questions with answers; it has type {domain.type!r}.")
    if not home.quality.is_file():
        raise DataError(f"No server has stored samples in {home.quality}. Set `quality.privacy: redacted` and serve.")
    with QualityStore(home.quality) as store:
        judged = read_judged(store, domain.domain, since_s)
    of_kind = answer_votes if settings.kind == "sft" else preference_votes
    votes = newest_votes(of_kind(judged, domain.chat, settings.min_score))
    if not votes:
        raise DataError(
            f"Nothing that makes a row was said of answers of {domain.domain!r}; {len(judged)} samples with their "
            f"conversation have feedback, labels or grades. {_ADVICE}"
        )
    return votes


def _held_out(home: Home, domain: DatasetManifest) -> dict[Split, Sequence[Example]]:
    folder = home.datasets / domain.domain
    splits: tuple[Split, ...] = ("test", "validation")
    return {split: [to_example(row, domain.chat) for row in read_rows(folder, split)] for split in splits}


def _data_config() -> DataConfig:
    cleaning = CleaningConfig(contradictions="majority", near_duplicates="drop")
    return DataConfig(path="samples", cleaning=cleaning)


def _clean(
    votes: Sequence[Vote], held_out: Sequence[Example], settings: FromSamples, refusal: str | None, log: StepLog
) -> tuple[Example, ...]:
    """The steps of every data set, then the bound on single users: it counts the rows that are left."""
    config, owners = _data_config(), lone_owners(votes)
    rows = check(clean([vote.example for vote in votes], config, log), config, refusal, log)
    advance = log.progress.advance
    train = log.run(CONTAMINATION, lambda: drop_contaminated(rows, held_out, (), config.cleaning, advance), len(rows))
    train = log.run(NEAR_DUPLICATES, lambda: drop_near_duplicates(train, config.cleaning, advance), len(train))
    return log.run(USER_SHARES, lambda: cap_users(train, owners, settings.max_user_share))


def _describe(
    domain: DatasetManifest,
    settings: FromSamples,
    splits: dict[Split, Sequence[Example]],
    num_votes: int,
    log: StepLog,
) -> DatasetManifest:
    """The manifest, but for what follows from the files; the same rows give the same version, whenever they are
    read."""
    key = hashlib.sha256(f"{settings.model_dump_json()}\n{domain.version}\n".encode())
    for example in splits["train"]:
        key.update(f"{example.origin}\n".encode())
    return domain.model_copy(
        update={
            "type": "preference" if settings.kind == "preference" else "prompt_completion",
            "domain": domain.domain + FEEDBACK_SUFFIX,
            "description": f"Sampled answers of {domain.domain}, as people and judges found them.",
            "source": samples_source(domain.domain),
            "source_version": key.hexdigest()[:12],
            "sources": (),
            "licence": None,
            "few_shot": domain.few_shot if settings.kind == "sft" else (),
            "num_train": len(splits["train"]),
            "num_validation": len(splits["validation"]),
            "num_test": len(splits["test"]),
            "num_test_out_of_scope": sum(not example.in_scope for example in splits["test"]),
            "steps": tuple(map(step_record, log.steps)),
            "notes": (f"{num_votes} votes, one of each voter on a question.",),
            "format_version": FORMAT_VERSION,
            "config_sha256": key.hexdigest(),
        }
    )


def _write_files(folder: Path, manifest: DatasetManifest, splits: dict[Split, Sequence[Example]]) -> FeedbackData:
    """The rows in OpenAI's formats, for `data.path` and `data.held_out` or a job; each names its sample."""
    make_private_folder(folder)
    paths = [folder / f"{manifest.version}{ending}.jsonl" for ending in ("", "-held-out")]
    held_out = (*splits["test"], *splits["validation"])
    for path, examples in zip(paths, (splits["train"], held_out), strict=True):
        lines = [json.dumps(_fields(example), ensure_ascii=False) + "\n" for example in examples]
        write_private(path, "".join(lines))
    return FeedbackData(manifest, *paths)


def _fields(example: Example) -> dict[str, Any]:
    def turns(of: Iterable[Any]) -> list[dict[str, Any]]:
        return [turn.for_request() for turn in of]

    origin = {"origin": str(example.origin)} if example.origin else {}
    tools = {"tools": list(example.tools)} if example.tools else {}
    if example.type == "preference":
        asked = {"messages": turns(example.prompt)} | tools
        answers = {"preferred_output": turns(example.chosen), "non_preferred_output": turns(example.rejected)}
        return {"input": asked} | answers | origin
    scope = {} if example.in_scope else {"in_scope": False}
    return {"messages": turns((*example.prompt, *example.completion))} | tools | scope | origin
