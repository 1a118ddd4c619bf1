"""Differences of two built data sets: rows added, removed, answered differently or moved, and settings."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.reference import is_adapter_name
from config.dataset import DIGEST_CHARS, SPLITS, DatasetManifest, DatasetRow, Split, read_dataset
from config.errors import DatasetError
from config.load import load_domain
from config.model import Config
from config.rows import AnyRow, PromptRow, TextRow, read_rows
from train.data.steps import excerpt
from train.data.versions import versions_of

_NOT_SETTINGS = frozenset(
    {"config_sha256", "dataset_sha256", "digest", "created_at", "files", "few_shot", "steps", "notes"}
)


class RowDifference(Config):
    """One row, by its question.

    Attributes:
        where: File and line in the later data set, or in the earlier one if the row was removed.
        before: The earlier answer, or split if the row was moved.
        after: The later one.
    """

    split: Split
    where: str
    question: str
    before: str | None = None
    after: str | None = None


class SettingDifference(Config):
    """Values as JSON; None: the field is not there."""

    name: str
    before: str | None
    after: str | None


class DatasetDiff(Config):
    """From data set `before` to `after`.

    Attributes:
        changed: The same question with another answer.
        moved: The same question and answer in another split.
    """

    before: str
    after: str
    num_before: dict[Split, int]
    num_after: dict[Split, int]
    num_equal: int
    added: tuple[RowDifference, ...]
    removed: tuple[RowDifference, ...]
    changed: tuple[RowDifference, ...]
    moved: tuple[RowDifference, ...]
    settings: tuple[SettingDifference, ...]


@dataclass(frozen=True)
class _Row:
    """One row of a data set: `answer` is all that follows the prompt, as JSON."""

    split: Split
    answer: str
    row: AnyRow


def dataset_folder(datasets: Path, name: str) -> Path:
    """The folder that a name means: `support` for its current version, `support@<version>`, or a domain's YAML.

    Raises:
        ConfigError: The YAML cannot be read.
        DatasetError: There is no such data set or version.
    """
    if name.endswith((".yaml", ".yml")):
        name = load_domain(Path(name)).name
    domain, _, version = name.partition("@")
    if not is_adapter_name(domain) or (version and not re.fullmatch(r"[0-9a-f]{4,64}", version)):
        raise DatasetError(
            f"{name!r} does not name a data set. Give a domain (support) or a version (support@1a2b3c4d5e6f)."
        )
    if not version:
        return datasets / domain
    versions = versions_of(datasets / domain)
    found = [path for path in versions if path.name.startswith(version[:DIGEST_CHARS])]
    if len(found) != 1:
        there = ", ".join(path.name for path in versions) or "none"
        raise DatasetError(f"Data set {domain!r} has {len(found)} versions {version!r}. Built are: {there}.")
    return found[0]


def diff_datasets(before: Path, after: Path) -> DatasetDiff:
    """Compare two built data sets: folders of domains, or of versions.

    Raises:
        DatasetError: One is missing or damaged.
    """
    left, right = read_dataset(before), read_dataset(after)
    pairs = list(_paired(_by_prompt(before), _by_prompt(after)))
    return DatasetDiff(
        before=_name(left),
        after=_name(right),
        num_before=_num_rows(left),
        num_after=_num_rows(right),
        num_equal=sum(_is_equal(old, new) for old, new in pairs),
        added=tuple(_difference(new) for old, new in pairs if new and not old),
        removed=tuple(_difference(old) for old, new in pairs if old and not new),
        changed=tuple(
            _difference(new, _answer(old), _answer(new))
            for old, new in pairs
            if old and new and old.answer != new.answer
        ),
        moved=tuple(
            _difference(new, old.split, new.split)
            for old, new in pairs
            if old and new and old.answer == new.answer and old.split != new.split
        ),
        settings=tuple(_setting_differences(left, right)),
    )


def _by_prompt(folder: Path) -> dict[str, list[_Row]]:
    rows = defaultdict(list)
    for split in SPLITS:
        for row in read_rows(folder, split):
            prompt, answer = _parts(row)
            rows[prompt].append(_Row(split, answer, row))
    return rows


def _parts(row: AnyRow) -> tuple[str, str]:
    """Prompt and what follows it, as JSON; of raw text, the text is the prompt."""
    fields = row.model_dump(mode="json")
    if isinstance(row, TextRow):
        return row.text, ""
    if isinstance(row, DatasetRow):
        return _json([fields["messages"][:-1], fields["tools"]]), _json([fields["messages"][-1], row.in_scope])
    prompt = fields["messages"] if isinstance(row, PromptRow) else fields["prompt"]
    answer = [fields.get(name) for name in ("completion", "label", "chosen", "rejected")]
    return _json([prompt, fields["tools"]]), _json(answer)


def _paired(
    old: Mapping[str, Sequence[_Row]], new: Mapping[str, Sequence[_Row]]
) -> Iterator[tuple[_Row | None, _Row | None]]:
    """Rows with the same prompt, equal ones first, then those with the same answer, then in their order."""
    for prompt in dict.fromkeys([*old, *new]):
        left, right = list(old.get(prompt, ())), list(new.get(prompt, ()))
        for is_pair in (_is_equal, _has_same_answer, _is_any):
            for one in list(left):
                other = next((each for each in right if is_pair(one, each)), None)
                if other is not None:
                    left.remove(one)
                    right.remove(other)
                    yield one, other
        yield from ((one, None) for one in left)
        yield from ((None, one) for one in right)


def _is_equal(old: _Row | None, new: _Row | None) -> bool:
    return old is not None and new is not None and (old.split, old.answer) == (new.split, new.answer)


def _has_same_answer(old: _Row, new: _Row) -> bool:
    return old.answer == new.answer


def _is_any(old: _Row, new: _Row) -> bool:
    return True


def _difference(row: _Row, before: str | None = None, after: str | None = None) -> RowDifference:
    question = row.row.text if isinstance(row.row, TextRow) else row.row.input
    origin = row.row.origin
    return RowDifference(
        split=row.split,
        where=str(origin) if origin else f"{row.split}.jsonl",
        question=excerpt(question),
        before=before,
        after=after,
    )


def _answer(row: _Row) -> str:
    return excerpt(row.row.output if isinstance(row.row, DatasetRow) else row.answer)


def _name(manifest: DatasetManifest) -> str:
    return f"{manifest.domain}@{manifest.version or manifest.dataset_sha256[:12]}"


def _num_rows(manifest: DatasetManifest) -> dict[Split, int]:
    return {"train": manifest.num_train, "validation": manifest.num_validation, "test": manifest.num_test}


def _setting_differences(left: DatasetManifest, right: DatasetManifest) -> Iterator[SettingDifference]:
    before, after = (dict(_flat(_settings(each))) for each in (left, right))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield SettingDifference(name=name, before=before.get(name), after=after.get(name))


def _settings(manifest: DatasetManifest) -> dict[str, Any]:
    fields = manifest.model_dump(mode="json", exclude=set(_NOT_SETTINGS))
    return {name: value for name, value in fields.items() if not name.startswith("num_")}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested objects as (`chat.system`, JSON)."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else key)
    else:
        yield name, _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
