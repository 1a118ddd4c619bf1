import json
import re
from pathlib import Path

import pytest

from config.data import DataConfig
from config.dataset import (
    DATASET_MANIFEST_FILE,
    few_shot_messages,
    read_dataset,
    read_split,
    verify_dataset,
    version_folder,
)
from config.domain import AnswerConfig, DomainConfig
from config.errors import DatasetError
from config.home import Home
from tests.tiny_llama import tiny_domain, write_colour_data
from tests.train.data.examples_of import sentence
from train.data.build import build_dataset
from train.data.sources import normalize, read_source
from train.data.splits import split_examples
from train.data.versions import versions_of
from train.errors import DataError


def jsonl_config(**values: object) -> DataConfig:
    return DataConfig.model_validate(
        {"source": "jsonl", "path": "x.jsonl", "num_validation": 5, "num_test": 20, "out_of_scope_share": 0, **values}
    )


@pytest.fixture
def domain(tmp_path: Path) -> DomainConfig:
    return tiny_domain(write_colour_data(tmp_path / "colours.jsonl"))


def test_the_same_seed_gives_the_same_dataset_sha256(tmp_path: Path, domain: DomainConfig) -> None:
    first = build_dataset(domain, Home(tmp_path / "one"))
    second = build_dataset(domain, Home(tmp_path / "two"))
    assert first.dataset_sha256 == second.dataset_sha256


def test_another_seed_gives_another_dataset_sha256(tmp_path: Path, domain: DomainConfig) -> None:
    other = domain.model_copy(update={"data": domain.data.model_copy(update={"seed": 99})})
    first = build_dataset(domain, Home(tmp_path / "one"))
    assert build_dataset(other, Home(tmp_path / "two")).dataset_sha256 != first.dataset_sha256


def current(home: Home) -> Path:
    return version_folder(home.datasets / "colours")


def test_a_built_data_set_is_used_again(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    first = build_dataset(domain, home)
    assert build_dataset(domain, home) == first


def test_force_builds_the_same_version_again(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    first = build_dataset(domain, home)
    assert build_dataset(domain, home, force=True).digest == first.digest
    assert versions_of(home.datasets / "colours") == [current(home)]


def test_a_damaged_version_is_built_again(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    first = build_dataset(domain, home)
    (current(home) / "train.jsonl").write_text("")
    build_dataset(domain, home)
    assert verify_dataset(current(home)).digest == first.digest


def test_a_version_is_its_owners_and_an_open_one_becomes_so(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    build_dataset(domain, home)
    made = (home.datasets, *home.datasets.rglob("*"))
    assert not any(path.stat().st_mode & 0o077 for path in made)
    for path in made:
        path.chmod(0o755)
    build_dataset(domain, home)
    assert not any(path.stat().st_mode & 0o077 for path in made)


def test_changed_source_data_is_built_again(tmp_path: Path, domain: DomainConfig) -> None:
    first = build_dataset(domain, Home(tmp_path))
    path = Path(domain.data.paths[0])
    path.write_text(path.read_text().replace("red", "crimson"))
    assert build_dataset(domain, Home(tmp_path)).dataset_sha256 != first.dataset_sha256


def test_equal_rows_of_another_file_give_the_same_dataset_sha256(tmp_path: Path, domain: DomainConfig) -> None:
    first = build_dataset(domain, Home(tmp_path / "one"))
    other = tmp_path / "from-a-spreadsheet.jsonl"
    other.write_bytes(b"\xef\xbb\xbf" + Path(domain.data.paths[0]).read_bytes().replace(b"\n", b"\r\n"))
    data = domain.data.model_copy(update={"path": str(other)})
    second = build_dataset(domain.model_copy(update={"data": data}), Home(tmp_path / "two"))
    assert second.dataset_sha256 == first.dataset_sha256
    assert second.digest != first.digest


def test_rows_are_conversations_and_the_splits_do_not_overlap(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    manifest = build_dataset(domain, home)
    splits = [read_split(home.datasets / "colours", split) for split in ("train", "validation", "test")]
    assert [len(rows) for rows in splits] == [manifest.num_train, 4, 8]
    inputs = [row.input for rows in splits for row in rows]
    assert len(set(inputs)) == len(inputs)
    assert [m.role for m in splits[0][0].messages] == ["system", "user", "assistant"]


def test_few_shot_prompts_share_their_beginning(tmp_path: Path, domain: DomainConfig) -> None:
    manifest = build_dataset(domain, Home(tmp_path))
    one, two = few_shot_messages(manifest, "one"), few_shot_messages(manifest, "two")
    assert one[:-1] == two[:-1]
    assert [m.role for m in one] == ["system", "user", "assistant", "user", "assistant", "user"]


def test_a_changed_row_is_found(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    build_dataset(domain, home)
    path = current(home) / "test.jsonl"
    path.write_text(path.read_text().replace("red", "rad"))
    with pytest.raises(DatasetError, match=r"'colours' changed after it was built: test.jsonl"):
        verify_dataset(home.datasets / "colours")


def test_a_changed_manifest_is_found(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    build_dataset(domain, home)
    path = current(home) / DATASET_MANIFEST_FILE
    path.write_text(path.read_text().replace('"licence": null', '"licence": "MIT"'))
    with pytest.raises(DatasetError, match=r"manifest.json differs from its digest"):
        verify_dataset(home.datasets / "colours")


def test_an_unfinished_data_set_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "legal").mkdir()
    with pytest.raises(DatasetError, match=r"lorikeet data build config/domains/legal.yaml"):
        read_dataset(tmp_path / "legal")


def test_out_of_scope_inputs_get_the_agreed_refusal_in_every_split(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"input": sentence(n), "output": "yes"}) for n in range(80)))
    config = jsonl_config(path=str(path), out_of_scope_share=0.2)
    splits = split_examples(read_source(config, AnswerConfig(refusal="no")).examples, config)
    assert [sum(not e.in_scope for e in split) for split in (splits.test, splits.validation)] == [4, 1]
    assert {e.answer for e in splits.train if not e.in_scope} == {"no"}


def test_rows_that_are_left_over_are_counted(tmp_path: Path, domain: DomainConfig) -> None:
    def notes(num_train: int) -> tuple[str, ...]:
        data = domain.data.model_copy(update={"num_train": num_train})
        return build_dataset(domain.model_copy(update={"data": data}), Home(tmp_path / str(num_train))).notes

    domain = domain.model_copy(update={"answer": AnswerConfig(refusal="no")})  # adds packaged requests
    few, all_used = notes(9), notes(1000)
    assert re.search(r"\n9 of \d\d rows left for training are used \(`data\.num_train`", "\n".join(few))
    assert "left for training" not in " ".join(all_used)


def test_an_error_for_want_of_rows_tells_what_dropped_them(tmp_path: Path, domain: DomainConfig) -> None:
    lines = [json.dumps({"input": "What colour?", "output": f"colour {n}"}) for n in range(40)]
    Path(domain.data.paths[0]).write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"0 distinct .*\n40 rows were dropped as contradictions:\n  colours.jsonl line 1"
    ):
        build_dataset(domain, Home(tmp_path))


def test_a_refusal_adds_no_answers_to_preferences(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "Colour?", "chosen": "red", "rejected": "no"}))
    examples = read_source(jsonl_config(path=str(path), out_of_scope_share=0.2), AnswerConfig(refusal="no")).examples
    assert [e.type for e in examples] == ["preference"]


def test_without_a_refusal_nothing_is_out_of_scope(tmp_path: Path) -> None:
    path = write_colour_data(tmp_path / "x.jsonl")
    assert all(e.in_scope for e in read_source(jsonl_config(path=str(path)), AnswerConfig()).examples)


def test_no_wording_of_a_training_scheme_is_tested_in_finance() -> None:
    config = DataConfig(source="iso18245", num_test=220, num_validation=48)
    splits = split_examples(read_source(config, AnswerConfig()).examples, config)
    trained = {normalize(e.question) for e in splits.train + splits.validation}
    assert not trained & {normalize(e.question) for e in splits.test}
    assert [e.split for e in splits.test] == ["test"] * 220


@pytest.mark.parametrize(("source", "field"), [("icd10cm", "chapter"), ("licensedcode", "licence")])
@pytest.mark.slow
def test_packaged_answers_are_json_with_one_field(source: str, field: str) -> None:
    config = DataConfig.model_validate({"source": source})
    outputs = {e.answer for e in read_source(config, AnswerConfig()).examples}
    assert {tuple(json.loads(output)) for output in outputs} == {(field,)}
