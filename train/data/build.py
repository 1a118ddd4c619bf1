"""Build a data set folder from a source: truncate, deduplicate, split by seed, hash."""

import hashlib
import os
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from config.data import DataConfig
from config.dataset import (
    DATASET_MANIFEST_FILE,
    DatasetManifest,
    DatasetRow,
    FewShotExample,
    full_prompt,
    hash_splits,
    read_dataset,
    rows_to_jsonl,
)
from config.domain import DomainConfig
from config.errors import DatasetError
from config.home import Home
from config.private import close_to_others, make_private_folder, write_private
from train.data.duplicates import NearDuplicates
from train.data.examples import Example
from train.data.sources import SourceData, normalize, read_source, source_identity
from train.errors import DataError

FORMAT_VERSION = 1
"""Increase it with every code change that gives other rows or another manifest for the same settings and sources."""


@dataclass(frozen=True)
class Splits:
    """The three splits and the counts of dropped examples."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    num_exact_duplicates: int = 0
    num_conflicts: int = 0
    num_near_duplicates: int = 0
    num_cut: int = 0


def build_dataset(config: DomainConfig, home: Home, *, force: bool = False) -> DatasetManifest:
    """Build `home.datasets/<domain>`; a data set of the same configuration and source is reused unless `force` is set.

    Raises:
        DataError: The source is missing or malformed, or has too few examples.
    """
    folder = home.datasets / config.name
    close_to_others((home.datasets, folder, *folder.glob("*")))
    key = config_sha256(config)
    if not force and _built_from(folder) == key:
        return read_dataset(folder)
    source = read_source(config.data, config.answer)
    splits = split_examples(source.examples, config.data)
    return _write(folder, config, source, splits, key)


def split_examples(examples: Sequence[Example], config: DataConfig) -> Splits:
    """Clean and split: test and validation first, then up to `num_train` of the remaining examples.

    Raises:
        DataError: Too few examples for the requested splits.
    """
    rng = random.Random(config.seed)
    cut = [_cut(example, config.max_input_chars) for example in examples]
    num_cut = sum(after is not before for after, before in zip(cut, examples, strict=True))
    unique, num_exact, num_conflicts = drop_duplicates(cut)
    in_scope = _shuffled(rng, [e for e in unique if e.in_scope])
    refused = _shuffled(rng, [e for e in unique if not e.in_scope])

    test, in_scope, refused = _take(in_scope, refused, config.num_test, config, "test")
    validation, in_scope, refused = _take(in_scope, refused, config.num_validation, config, "validation")
    held_out = NearDuplicates(config.cleaning.near_duplicate_jaccard)
    for example in test + validation:
        held_out.add(normalize(example.question))
    candidates = [e for e in in_scope if e.split in (None, "train")]
    kept = [e for e in candidates if not held_out.has_similar(normalize(e.question))]
    train = _interleave(kept)[: config.num_train]
    refused = [e for e in refused if not held_out.has_similar(normalize(e.question))]
    train = _mix(train, refused, config)
    if not train:
        raise DataError(
            f"{len(unique)} distinct examples leave none to train on after num_test {config.num_test} and "
            f"num_validation {config.num_validation}. Give more data, or lower those numbers."
        )
    rng.shuffle(train)
    return Splits(
        tuple(train),
        tuple(validation),
        tuple(_shuffled(rng, test)),
        num_exact,
        num_conflicts,
        len(candidates) - len(kept),
        num_cut,
    )


def cut_text(text: str, max_chars: int) -> str:
    """Collapse white space, and truncate at a word boundary to at most `max_chars` characters."""
    text = " ".join(text.split())
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    return head.rsplit(" ", 1)[0] if " " in head else head


def _cut(example: Example, max_chars: int | None) -> Example:
    if max_chars is None or len(example.question) <= max_chars:
        return example
    *context, question = example.prompt
    shorter = question.model_copy(update={"content": cut_text(question.content, max_chars)})
    return replace(example, prompt=(*context, shorter))


def drop_duplicates(examples: Iterable[Example]) -> tuple[list[Example], int, int]:
    """Keep the first of equal inputs, and drop inputs with conflicting answers.

    Returns the kept examples, the number of dropped duplicates, and the number of dropped conflicting rows. Of equal
    examples, one pinned to training is preferred to one that may be held out.
    """
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[normalize(example.question)].append(example)
    kept, num_exact, num_conflicts = [], 0, 0
    for group in groups.values():
        if len({example.answer for example in group}) > 1:
            num_conflicts += len(group)
            continue
        kept.append(next((e for e in group if e.split == "train"), group[0]))
        num_exact += len(group) - 1
    return kept, num_exact, num_conflicts


def config_sha256(config: DomainConfig) -> str:
    """Hash of everything that decides a data set's rows and manifest: configuration, source, and `FORMAT_VERSION`."""
    parts = [
        config.data.model_dump_json(exclude={"path"}),
        config.chat.model_dump_json(),
        config.answer.model_dump_json(),
        config.evaluation.model_dump_json(),
        config.defaults.model_dump_json(),
        config.description,
        source_identity(config.data),
        f"format {FORMAT_VERSION}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _take(
    in_scope: list[Example], refused: list[Example], wanted: int, config: DataConfig, split: str
) -> tuple[list[Example], list[Example], list[Example]]:
    """Pick one held-out split, balanced over strata; returns it and the rest of the two pools."""
    num_refused = round(wanted * config.out_of_scope_share) if refused else 0
    # An example pinned to training may serve early stopping, never the test.
    allowed = (None, "test") if split == "test" else (None, "train")
    pool = _interleave([e for e in in_scope if e.split in allowed])
    if len(pool) < wanted - num_refused or len(refused) < num_refused:
        raise DataError(
            f"The {split} split wants {wanted - num_refused} examples and {num_refused} out-of-scope ones, but "
            f"{len(pool)} and {len(refused)} distinct ones are there. Lower `data.num_{split}`, or give more data."
        )
    picked = pool[: wanted - num_refused]
    taken = set(map(id, picked))
    return picked + refused[:num_refused], [e for e in in_scope if id(e) not in taken], refused[num_refused:]


def _mix(train: list[Example], refused: list[Example], config: DataConfig) -> list[Example]:
    """Replace the last training examples by out-of-scope ones, up to their configured share."""
    share = config.out_of_scope_share
    total = min(config.num_train, round(len(train) / (1 - share)))
    num_refused = min(len(refused), round(total * share))
    return train[: config.num_train - num_refused] + refused[:num_refused]


def _interleave(examples: Sequence[Example]) -> list[Example]:
    """Interleave the strata round-robin, so that every prefix is balanced as far as the data allows."""
    queues: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        queues[example.stratum].append(example)
    ranked = [(rank, stratum, e) for stratum, queue in queues.items() for rank, e in enumerate(queue)]
    return [example for _, _, example in sorted(ranked, key=lambda item: item[:2])]


def _shuffled(rng: random.Random, examples: Sequence[Example]) -> list[Example]:
    shuffled = list(examples)
    rng.shuffle(shuffled)
    return shuffled


def _built_from(folder: Path) -> str | None:
    try:
        manifest = read_dataset(folder)
        return manifest.config_sha256 if hash_splits(folder) == manifest.dataset_sha256 else None
    except (DatasetError, FileNotFoundError):
        return None


def _write(folder: Path, config: DomainConfig, source: SourceData, splits: Splits, key: str) -> DatasetManifest:
    make_private_folder(folder.parent)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, examples in (
            ("train", splits.train),
            ("validation", splits.validation),
            ("test", splits.test),
        ):
            rows = [_row(config, example) for example in examples]
            write_private(staging / f"{name}.jsonl", rows_to_jsonl(rows))
        manifest = _describe(staging, config, source, splits, key)
        # Written last: its presence marks the folder complete.
        write_private(staging / DATASET_MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _row(config: DomainConfig, example: Example) -> DatasetRow:
    return DatasetRow(
        messages=(*full_prompt(config.chat, example.prompt), *example.completion),
        tools=example.tools,
        input=example.question,
        output=example.answer,
        in_scope=example.in_scope,
        is_synthetic=example.is_synthetic,
        origin=example.origin,
    )


def _describe(folder: Path, config: DomainConfig, source: SourceData, splits: Splits, key: str) -> DatasetManifest:
    return DatasetManifest(
        domain=config.name,
        description=config.description,
        source=source.name,
        source_version=source.version,
        licence=source.licence,
        chat=config.chat,
        answer=config.answer,
        evaluation=config.evaluation,
        defaults=config.defaults,
        few_shot=few_shot_examples(splits.train, config.evaluation.num_few_shot),
        num_train=len(splits.train),
        num_validation=len(splits.validation),
        num_test=len(splits.test),
        num_test_out_of_scope=sum(not e.in_scope for e in splits.test),
        num_exact_duplicates=splits.num_exact_duplicates,
        num_conflicts=splits.num_conflicts,
        num_near_duplicates=splits.num_near_duplicates,
        num_cut=splits.num_cut,
        config_sha256=key,
        dataset_sha256=hash_splits(folder),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def few_shot_examples(train: Sequence[Example], wanted: int) -> tuple[FewShotExample, ...]:
    """Few-shot examples: the first in-scope training examples, with distinct answers where possible."""
    in_scope = [e for e in train if e.in_scope]
    first_of_answer = list({e.answer: e for e in reversed(in_scope)}.values())[::-1]
    rest = [e for e in in_scope if e not in first_of_answer]
    return tuple(FewShotExample(input=e.question, output=e.answer) for e in (first_of_answer + rest)[:wanted])
