import json
from pathlib import Path

import pytest

from config.data import DataConfig
from config.dataset import few_shot_messages, read_dataset, read_split
from config.domain import AnswerConfig, DomainConfig
from config.errors import DatasetError
from config.home import Home
from tests.tiny_llama import tiny_domain, write_colour_data
from train.data.build import build_dataset, cut_text, drop_duplicates, split_examples
from train.data.duplicates import NearDuplicates
from train.data.examples import Example
from train.data.sources import normalize, question_answer, read_source
from train.errors import DataError

WORDS = (
    "amber",
    "brook",
    "cedar",
    "delta",
    "ember",
    "frost",
    "grove",
    "harbour",
    "island",
    "jasmine",
    "kernel",
    "lagoon",
    "meadow",
    "nectar",
    "orchid",
)


def distinct_sentences(count: int) -> list[Example]:
    return [
        question_answer(f"{WORDS[i % 15]} {WORDS[i * 7 % 15]} {i * 7919} {WORDS[i // 15 % 15]} {i * 104729}", "yes")
        for i in range(count)
    ]


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


def test_a_built_data_set_is_used_again_and_force_builds_it_again(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    build_dataset(domain, home)
    before = (home.datasets / "colours" / "train.jsonl").stat().st_mtime_ns
    build_dataset(domain, home)
    assert (home.datasets / "colours" / "train.jsonl").stat().st_mtime_ns == before
    build_dataset(domain, home, force=True)
    assert (home.datasets / "colours" / "train.jsonl").stat().st_mtime_ns != before


def test_a_data_set_is_its_owners_and_an_open_one_becomes_so(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    build_dataset(domain, home)
    made = (home.datasets, home.datasets / "colours", *(home.datasets / "colours").iterdir())
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


def test_a_data_set_with_a_changed_row_is_built_again(tmp_path: Path, domain: DomainConfig) -> None:
    home = Home(tmp_path)
    build_dataset(domain, home)
    path = home.datasets / "colours" / "test.jsonl"
    before = path.read_text()
    path.write_text(before.replace("red", "rad"))
    build_dataset(domain, home)
    assert path.read_text() == before


def test_an_unfinished_data_set_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "legal").mkdir()
    with pytest.raises(DatasetError, match=r"lorikeet data build config/domains/legal.yaml"):
        read_dataset(tmp_path / "legal")


def test_near_copies_of_held_out_texts_are_never_trained_on() -> None:
    originals = distinct_sentences(100)
    planted = [question_answer(f"{e.question} indeed", "yes") for e in originals]
    splits = split_examples(originals + planted, jsonl_config(cleaning={"near_duplicate_jaccard": 0.7}))
    held_out = {e.question.removesuffix(" indeed") for e in splits.test + splits.validation}
    assert not held_out & {e.question.removesuffix(" indeed") for e in splits.train}
    assert splits.num_near_duplicates > 0


def test_similarity_is_judged_by_shared_shingles() -> None:
    held_out = NearDuplicates(0.8)
    held_out.add("this program is free software under the gpl version 2")
    assert held_out.has_similar("this program is free software under the gpl version 3")
    assert not held_out.has_similar("permission is hereby granted free of charge")


def test_copies_are_dropped_and_contradictions_are_dropped_altogether() -> None:
    examples = [
        question_answer("Same text", "a"),
        question_answer("same, text!", "a"),
        question_answer("Clash", "a"),
        question_answer("clash", "b"),
    ]
    kept, num_exact, num_conflicts = drop_duplicates(examples)
    assert [e.question for e in kept] == ["Same text"]
    assert (num_exact, num_conflicts) == (1, 2)


def test_long_inputs_are_cut_at_the_end_of_a_word() -> None:
    assert cut_text("one  two\nthree", 9) == "one two"


def test_too_few_examples_name_the_split_and_the_way_out() -> None:
    with pytest.raises(DataError, match=r"test split wants 20 examples .* Lower `data.num_test`"):
        split_examples(distinct_sentences(10), jsonl_config())


def test_strata_are_balanced_in_the_test_split() -> None:
    examples = [
        question_answer(e.question, "x", stratum="ab"[i % 5 == 0]) for i, e in enumerate(distinct_sentences(100))
    ]
    splits = split_examples(examples, jsonl_config())
    assert sorted(e.stratum for e in splits.test).count("b") == 10


def test_out_of_scope_inputs_get_the_agreed_refusal_in_every_split(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"input": e.question, "output": "yes"}) for e in distinct_sentences(80)))
    config = jsonl_config(path=str(path), out_of_scope_share=0.2)
    splits = split_examples(read_source(config, AnswerConfig(refusal="no")).examples, config)
    assert [sum(not e.in_scope for e in split) for split in (splits.test, splits.validation)] == [4, 1]
    assert {e.answer for e in splits.train if not e.in_scope} == {"no"}


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
