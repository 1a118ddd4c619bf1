import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from config.dataset import (
    CURRENT_FILE,
    DATASET_MANIFEST_FILE,
    FINDINGS_FILE,
    Message,
    Split,
    read_dataset,
    read_split,
    verify_dataset,
    version_folder,
)
from config.domain import DomainConfig
from config.errors import DatasetError
from config.home import Home
from config.objective import SftObjective
from config.rows import read_rows
from config.terminal import make_console
from tests.datasets_on_disk import write_dataset
from tests.tiny_llama import tiny_domain
from tests.train.data.examples_of import distinct, row
from train.data.build import StepLog, advice, build_dataset, describe, make_splits
from train.data.examples import Example
from train.data.rows import check_type, to_row
from train.data.sources import SourceData
from train.data.versions import list_versions, versions_of, write_version
from train.errors import DataError
from train.tables import dataset_table, versions_table

ANSWER = (Message(role="assistant", content="good"),)
WORSE = (Message(role="assistant", content="bad"),)
TYPES: dict[str, dict[str, Any]] = {
    "language_modeling": {"prompt": (), "completion": ()},
    "prompt_only": {"completion": ()},
    "preference": {"completion": (), "chosen": ANSWER, "rejected": WORSE},
    "unpaired_preference": {"label": True},
}


@pytest.fixture
def domain(tmp_path: Path) -> DomainConfig:
    return with_rows(tmp_path, 60)


def with_rows(folder: Path, count: int, **data: object) -> DomainConfig:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"input": e.question, "output": e.answer}) for e in distinct(count)]
    path.write_text("".join(f"{line}\n" for line in lines))
    config = tiny_domain(path)
    return config.model_copy(update={"data": type(config.data).model_validate(config.data.model_dump() | data)})


def test_names_of_files_and_columns_do_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows\x1b[31m[red].jsonl"
    path.write_text(
        "".join(json.dumps({"input": e.question, "output": "a", "\x1b[1m": 1}) + "\n" for e in distinct(60))
    )
    manifest = build_dataset(tiny_domain(path), Home(tmp_path / "home"))
    for table in (dataset_table(manifest), versions_table([(manifest, True)])):
        make_console().print(table)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "rows\\x1b[31m[red].jsonl: input/output (detected)" in printed
    assert "columns not used: \\x1b[1m" in printed


def test_another_build_keeps_the_version_before(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path / "home")
    first = build_dataset(domain, home)
    second = build_dataset(with_rows(tmp_path, 70), home)
    folder = home.datasets / "colours"
    assert {path.name for path in versions_of(folder)} == {first.version, second.version}
    assert read_dataset(folder) == second
    assert read_dataset(folder / first.version) == first
    assert [(m.version, is_current) for m, is_current in list_versions(home.datasets)] == [
        (first.version, False),
        (second.version, True),
    ]


def test_equal_rows_and_settings_have_one_version(tmp_path: Path, domain: DomainConfig) -> None:
    versions = {build_dataset(domain, Home(tmp_path / name)).version for name in ("one", "two")}
    assert len(versions) == 1


def test_a_setting_that_changes_no_row_is_another_version(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path / "home")
    first = build_dataset(domain, home)
    second = build_dataset(domain.model_copy(update={"description": "Other."}), home)
    assert first.dataset_sha256 == second.dataset_sha256
    assert first.version != second.version


def test_the_manifest_names_the_files_that_were_read(tmp_path: Path, domain: DomainConfig) -> None:
    (source,) = build_dataset(domain, Home(tmp_path / "home")).sources
    content = (tmp_path / "rows.jsonl").read_bytes()
    assert (source.name, source.size_bytes) == ("rows.jsonl", len(content))


def test_findings_name_the_rows_of_each_step(tmp_path: Path, domain: DomainConfig) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    home = Home(tmp_path / "home")
    manifest = build_dataset(domain, home)
    findings = version_folder(home.datasets / "colours") / FINDINGS_FILE
    (found,) = map(json.loads, findings.read_text().splitlines())
    assert (found["step"], found["row"]["line"], found["other"]["line"]) == ("exact duplicates", 61, 1)
    assert next(step for step in manifest.steps if step.name == "exact duplicates").num_dropped == 1


def test_rows_without_an_answer_are_found(tmp_path: Path, domain: DomainConfig) -> None:
    turns = [{"role": "user", "content": "Anyone?"}]
    talks = [[{"role": "user", "content": e.question}, {"role": "assistant", "content": "yes"}] for e in distinct(60)]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in [*talks, turns]))
    home = Home(tmp_path / "home")
    manifest = build_dataset(
        domain.model_copy(update={"data": domain.data.model_copy(update={"path": str(path)})}), home
    )
    assert (manifest.steps[0].name, manifest.steps[0].num_dropped) == ("rows without an answer", 1)
    (found, *_) = (version_folder(home.datasets / "colours") / FINDINGS_FILE).read_text().splitlines()
    assert json.loads(found)["row"]["line"] == 61


def test_a_failed_gate_leaves_the_data_set_before(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path / "home")
    first = build_dataset(domain, home)
    with pytest.raises(DataError, match=r"fails its gates; nothing was written.\nmin_rows 5000"):
        build_dataset(with_rows(tmp_path, 70, gates={"min_rows": 5000}), home)
    assert verify_dataset(home.datasets / "colours") == first
    assert len(versions_of(home.datasets / "colours")) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_an_interrupted_build_leaves_the_data_set_before(
    tmp_path: Path, domain: DomainConfig, error: BaseException
) -> None:
    home = Home(tmp_path / "home")
    first = build_dataset(domain, home)
    folder = home.datasets / "colours"

    def rows() -> Any:
        yield from (to_row(domain.chat, e) for e in distinct(3))
        raise error

    with pytest.raises(type(error)):
        write_version(folder, first, {"train": rows(), "validation": (), "test": ()}, [])
    assert verify_dataset(folder) == first
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [first.version]


def test_what_a_killed_build_left_is_removed(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path / "home")
    left = home.datasets / "colours" / ".staging-x"
    left.mkdir(parents=True)
    build_dataset(domain, home)
    assert not left.exists()


def test_a_data_set_of_before_versions_is_replaced(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path / "home")
    folder = write_dataset(home.datasets / "colours", num_test=3)
    assert len(read_split(folder, "test")) == 3
    build_dataset(domain, home)
    assert len(read_split(folder, "test")) == 8
    assert not (folder / DATASET_MANIFEST_FILE).exists()


@pytest.mark.parametrize("content", ["", "../../etc\n", "0123456789AB\n", "\udcff"])
def test_a_damaged_pointer_is_named(tmp_path: Path, domain: DomainConfig, content: str) -> None:
    home = Home(tmp_path / "home")
    build_dataset(domain, home)
    (home.datasets / "colours" / CURRENT_FILE).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError, match=r"'current' must hold 12 hex digits; got .*data build"):
        read_split(home.datasets / "colours", "test")


def build_of_type(folder: Path, domain: DomainConfig, kind: str) -> list[Example]:
    values = {"type": kind, **TYPES[kind]}
    examples = [row(e.question, "good", n, text=e.question, **values) for n, e in enumerate(distinct(60), start=1)]
    splits = make_splits(examples, (), domain.data, StepLog())
    manifest = describe(domain, SourceData("rows", "1", None, ()), splits, [], "key")
    rows: dict[Split, tuple[Example, ...]] = {
        "train": splits.train,
        "validation": splits.validation,
        "test": splits.test,
    }
    write_version(folder, manifest, {s: [to_row(domain.chat, e) for e in part] for s, part in rows.items()}, [])
    return list(splits.test)


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_is_built_split_written_and_read(tmp_path: Path, domain: DomainConfig, kind: str) -> None:
    test = build_of_type(tmp_path / "set", domain, kind)
    assert read_dataset(tmp_path / "set").type == kind
    assert list(read_rows(tmp_path / "set", "test")) == [to_row(domain.chat, example) for example in test]
    assert verify_dataset(tmp_path / "set").num_test == 8


@pytest.mark.parametrize("kind", TYPES)
def test_reading_answers_of_another_type_says_so(tmp_path: Path, domain: DomainConfig, kind: str) -> None:
    build_of_type(tmp_path / "set", domain, kind)
    with pytest.raises(DatasetError, match=rf"test.jsonl row 1 has type '{kind}'; 'prompt_completion' is wanted"):
        read_split(tmp_path / "set", "test")
    with pytest.raises(DataError, match=rf"rows of type '{kind}', but `objective: sft` trains on 'prompt_completion'"):
        check_type(read_dataset(tmp_path / "set"), SftObjective())


def test_rows_of_several_types_are_refused(domain: DomainConfig) -> None:
    mixed = [*distinct(30), *(row(f"b {n}", line=50 + n, type="unpaired_preference", label=True) for n in range(30))]
    splits = make_splits(mixed, (), domain.data, StepLog())
    with pytest.raises(DataError, match=r"several types.*\n  rows.jsonl line \d+: (unp|prompt_c)(.*)\n  rows.jsonl"):
        describe(domain, SourceData("rows", "1", None, ()), splits, [], "key")


def test_a_row_keeps_its_origin_and_marks() -> None:
    domain = tiny_domain(Path("x.jsonl"))
    example = row("q", "a", 7, is_synthetic=True, in_scope=False)
    made = to_row(domain.chat, example)
    assert made.model_dump(include={"origin", "is_synthetic", "in_scope", "output"}) == {
        "origin": {"file": "rows.jsonl", "line": 7},
        "is_synthetic": True,
        "in_scope": False,
        "output": "a",
    }


@pytest.mark.parametrize(
    ("num_rows", "words"), [(49, "training rows are few"), (50, ""), (50_000, ""), (50_001, "rows are many for one")]
)
def test_few_and_many_rows_get_one_line_of_advice(num_rows: int, words: str) -> None:
    assert words in " ".join(advice(num_rows))
    assert len(advice(num_rows)) == bool(words)


def test_benchmark_rows_are_not_trained_on(tmp_path: Path) -> None:
    domain = with_rows(tmp_path, 60)
    (tmp_path / "benchmark.jsonl").write_text(json.dumps({"input": distinct(60)[7].question, "output": "x"}) + "\n")
    data = domain.data.model_copy(update={"benchmarks": (str(tmp_path / "benchmark.jsonl"),), "num_test": 1})
    home = Home(tmp_path / "home")
    build_dataset(domain.model_copy(update={"data": data}), home)
    trained = {r.input for r in read_split(home.datasets / "colours", "train")}
    assert distinct(60)[7].question not in trained


def test_other_benchmark_rows_are_another_build(tmp_path: Path) -> None:
    domain = with_rows(tmp_path, 60, benchmarks=(str(tmp_path / "benchmark.jsonl"),))
    home = Home(tmp_path / "home")
    keys = []
    for text in ("one", "two"):
        (tmp_path / "benchmark.jsonl").write_text(json.dumps({"input": text, "output": "x"}) + "\n")
        keys.append(build_dataset(domain, home).config_sha256)
    assert keys[0] != keys[1]
    shutil.rmtree(home.root)
