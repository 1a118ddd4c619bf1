"""Sources of examples: three packages with licensed domain data, or the user's files."""

import csv
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import assert_never

from config.data import DataConfig
from config.dataset import Message, Origin, Split
from config.domain import AnswerConfig
from train.data.examples import Example
from train.data.files.paths import digest_of, find_files
from train.data.general import GENERAL_REQUESTS
from train.data.reading import FileExamples, ReadFile, SkippedRow, read_files
from train.data.splits import DEFAULT_NUM_TEST, DEFAULT_NUM_VALIDATION
from train.errors import DataError

# Number of the ICD-10-CM chapter -> its subject in words (short, so that an answer is few tokens).
ICD_CHAPTERS = {
    "1": "infectious diseases",
    "2": "neoplasms",
    "4": "endocrine and metabolic diseases",
    "5": "mental disorders",
    "6": "nervous system",
    "9": "circulatory system",
    "11": "digestive system",
    "12": "skin",
    "13": "musculoskeletal system",
    "14": "genitourinary system",
    "15": "pregnancy and childbirth",
    "17": "congenital malformations",
    "19": "injury and poisoning",
    "20": "external causes",
    "21": "health status and services",
}
# Wordings of these schemes are trained on; those that only the others use are held out.
TRAIN_SCHEMES = ("iso18245_official_list", "usda_list", "visa_list", "alipay_list", "amex_list")
HELD_OUT_SCHEMES = ("stripe_list", "mastercard_list")
NUM_LICENCE_KEYS = 30
# ScanCode's catch-all keys name no licence, so a notice under them has no right answer.
CATCH_ALL_KEYS = frozenset(
    {
        "commercial-license",
        "free-unknown",
        "other-copyleft",
        "other-permissive",
        "proprietary-license",
        "unknown-license-reference",
        "warranty-disclaimer",
    }
)
MIN_INPUT_CHARS = 8
# A domain's out-of-scope inputs come from the other packages, so each data set depends on all of them.
_PACKAGES = ("simple-icd-10-cm", "iso18245", "licensedcode-data")

_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_LICENCE_KEY = re.compile(r"^license_expression: ([\w.+-]+)$", re.MULTILINE)
_PRIVATE_CODES = range(3000, 4000)


@dataclass(frozen=True)
class SourceData:
    """All examples of a source.

    Attributes:
        files: The files that were read; () for a package.
        skipped: Rows that make no example, such as a conversation that ends before an answer.
        notes: What was read and left out, a line each.
    """

    name: str
    version: str
    licence: str | None
    examples: tuple[Example, ...]
    files: tuple[ReadFile, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    notes: tuple[str, ...] = ()


def question_answer(
    text: str,
    answer: str,
    *,
    stratum: str = "",
    split: Split | None = None,
    in_scope: bool = True,
    origin: Origin | None = None,
) -> Example:
    """A prompt-completion example of one question and one answer."""
    return Example(
        "prompt_completion",
        prompt=(Message(role="user", content=text),),
        completion=(Message(role="assistant", content=answer),),
        stratum=stratum,
        split=split,
        in_scope=in_scope,
        origin=origin,
    )


def normalize(text: str) -> str:
    """Lower-case letters and digits only, so that texts that differ in punctuation compare equal."""
    return _NOT_ALPHANUMERIC.sub(" ", text.lower()).strip()


def read_source(config: DataConfig, answer: AnswerConfig, slice_by: Sequence[str] = ()) -> SourceData:
    """All examples of a source, plus out-of-scope ones if they are questions with answers and the domain has a refusal.

    Args:
        slice_by: Columns that are used beside those of the layout.

    Raises:
        DataError: The package is not installed, or a file is missing or malformed.
    """
    if config.source == "files":
        data = _read_files(config, answer, slice_by)
    elif config.source == "icd10cm":
        data = SourceData("ICD-10-CM (simple-icd-10-cm)", _version("simple-icd-10-cm"), "public domain", _icd10cm())
    elif config.source == "iso18245":
        data = SourceData("ISO 18245 (iso18245)", _version("iso18245"), "MIT", _iso18245())
    elif config.source == "licensedcode":
        data = SourceData("ScanCode (licensedcode-data)", _version("licensedcode-data"), "CC-BY-4.0", _licensedcode())
    else:
        assert_never(config.source)
    licence = config.licence or data.licence
    are_answered = all(example.type == "prompt_completion" for example in data.examples)
    others = _out_of_scope(config, answer) if are_answered else ()
    return replace(data, licence=licence, examples=data.examples + others)


def source_identity(config: DataConfig) -> str:
    """Version key of a source's examples, computed without reading a package's files.

    Raises:
        DataError: The package is not installed, or a file is missing.
    """
    if config.source == "files":
        files, _ = find_files(config.paths)
        identity = _identity((file.name, digest_of(file).sha256) for file in files)
        return f"{identity} held out {source_identity(_held_out(config))}" if config.held_out else identity
    return " ".join(f"{package}=={_version(package)}" for package in _PACKAGES)


def _icd10cm() -> tuple[Example, ...]:
    """Inclusion terms of the 15 largest chapters; the answer is the chapter's subject in words."""
    import simple_icd_10_cm as icd

    examples = []
    for chapter, subject in ICD_CHAPTERS.items():
        for code in icd.get_descendants(chapter):
            examples += [
                question_answer(term, json.dumps({"chapter": subject}), stratum=subject)
                for term in icd.get_inclusion_term(code)
                if len(term) >= MIN_INPUT_CHARS
            ]
    return tuple(examples)


def _iso18245() -> tuple[Example, ...]:
    """Descriptions of merchant category codes; a text that a training scheme uses is never held out."""
    folder = _package_folder("iso18245") / "data"
    ranges = [(int(row[0]), int(row[1]), row[2]) for row in _rows(folder / "iso18245_ranges.csv")]
    seen_in_training: set[str] = set()
    examples = []
    for scheme in TRAIN_SCHEMES + HELD_OUT_SCHEMES:
        split: Split = "train" if scheme in TRAIN_SCHEMES else "test"
        for code, description in _descriptions(folder / f"{scheme}.csv"):
            if split == "train":
                seen_in_training.add(normalize(description))
            elif normalize(description) in seen_in_training:
                continue
            group = next(name for first, last, name in ranges if first <= code <= last)
            examples.append(question_answer(description, json.dumps({"group": group}), split=split))
    return tuple(examples)


def _descriptions(path: Path) -> Iterator[tuple[int, str]]:
    for row in _rows(path):
        code, description = int(row[0]), row[1].strip()
        # Private codes are names of single airlines, car rentals and hotels.
        if code not in _PRIVATE_CODES and len(description) >= MIN_INPUT_CHARS:
            yield code, description


def _licensedcode() -> tuple[Example, ...]:
    """Licence notices of the most frequent single keys (no `a OR b` expressions)."""
    notices = list(_notices(_package_folder("licensedcode") / "data" / "rules"))
    frequent = dict(Counter(key for key, _ in notices).most_common(NUM_LICENCE_KEYS))
    return tuple(
        question_answer(text, json.dumps({"licence": key}), stratum=key) for key, text in notices if key in frequent
    )


def _notices(folder: Path) -> Iterator[tuple[str, str]]:
    # 34,859 files: their three front-matter lines are matched, as a YAML parser would take a minute.
    for path in sorted(folder.glob("*.RULE")):
        _, front, text = path.read_text(encoding="utf-8").split("---", 2)
        key = _LICENCE_KEY.search(front)
        if key and key.group(1) not in CATCH_ALL_KEYS and "is_license_notice: yes" in front:
            yield key.group(1), " ".join(text.split())


def _read_files(config: DataConfig, answer: AnswerConfig, slice_by: Sequence[str]) -> SourceData:
    read = read_files(config.paths, config, answer.refusal, slice_by)
    if config.held_out:
        read = _with_held_out(read, read_files(config.held_out, config, answer.refusal, slice_by), config)
    names = [file.name for file in read.files]
    name = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    version = _identity((file.name, file.sha256) for file in read.files)[:12]
    return SourceData(name, version, config.licence, read.examples, read.files, read.skipped, read.notes)


def _held_out(config: DataConfig) -> DataConfig:
    return config.model_copy(update={"path": config.held_out, "held_out": ()})


def _with_held_out(train: FileExamples, held_out: FileExamples, config: DataConfig) -> FileExamples:
    """Rows of both, pinned to their splits; held-out ones come first, so that copies of them are dropped.

    Raises:
        DataError: One row alone cannot decide when training stops, and test it.
    """
    rows = list(held_out.examples)
    names = ", ".join(file.name for file in held_out.files)
    if len(rows) < 2:
        raise DataError(f"{names} has 1 row to hold out; give at least 2: one for early stopping, one for testing.")
    random.Random(config.seed).shuffle(rows)
    num_validation = config.num_validation or min(DEFAULT_NUM_VALIDATION, max(len(rows) // 4, 1))
    num_test = config.num_test or DEFAULT_NUM_TEST
    validation, test = rows[:num_validation], rows[num_validation : num_validation + num_test]
    num_left = len(rows) - len(validation) - len(test)
    note = f"{names}: {num_left} of {len(rows)} rows are not used: set `data.num_test` to test on more."
    return FileExamples(
        (
            *(replace(example, split="validation") for example in validation),
            *(replace(example, split="test") for example in test),
            *(replace(example, split="train") for example in train.examples),
        ),
        train.files + held_out.files,
        train.skipped + held_out.skipped,
        (*train.notes, *held_out.notes, *([note] if num_left else [])),
    )


def _identity(digests: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, sha256 in digests:
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()


def _out_of_scope(config: DataConfig, answer: AnswerConfig) -> tuple[Example, ...]:
    """Out-of-scope inputs: everyday requests, and inputs of the other packaged domains."""
    if answer.refusal is None or config.out_of_scope_share == 0:
        return ()
    inputs = list(GENERAL_REQUESTS)
    if config.source not in ("files", "icd10cm"):
        inputs += [example.question for example in _icd10cm()[::20]]
    if config.source not in ("files", "iso18245"):
        inputs += [example.question for example in _iso18245()[::10]]
    return tuple(question_answer(text, answer.refusal, stratum="out of scope", in_scope=False) for text in inputs)


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _package_folder(name: str) -> Path:
    # Found without importing: licensedcode-data has no code.
    spec = find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise DataError(_not_installed(name))
    return Path(locations[0])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise DataError(_not_installed(package)) from None


def _not_installed(package: str) -> str:
    return (
        f"The example domains' data package {package!r} is not installed. "
        "Run `pip install 'lorikeet[demo]'`, or `make setup` in a checkout. Your own data needs no package."
    )
