from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from config.data import DataConfig
from config.dataset import Origin
from tests.train.data.examples_of import distinct, questions, row
from train.data.examples import Example
from train.data.splits import Splits, limit_train, parse_time, split_examples
from train.errors import DataError


def config(**values: object) -> DataConfig:
    return DataConfig.model_validate({"path": "x.jsonl", "num_validation": 5, "num_test": 20, **values})


def with_fields(count: int, **columns: Sequence[Any]) -> list[Example]:
    """Distinct rows; each column's values are repeated."""
    return [
        replace(example, fields={name: values[number % len(values)] for name, values in columns.items()})
        for number, example in enumerate(distinct(count))
    ]


def values_in(examples: Sequence[Example], column: str) -> set[Any]:
    return {example.fields[column] for example in examples}


def split_of_all(splits: Splits) -> list[str]:
    return questions((*splits.train, *splits.validation, *splits.test))


def test_every_row_is_in_one_split() -> None:
    examples = distinct(100)
    splits = split_examples(examples, config())
    assert sorted(split_of_all(splits)) == sorted(questions(examples))
    assert (len(splits.validation), len(splits.test)) == (5, 20)


def test_the_seed_decides_the_splits() -> None:
    examples = distinct(100)
    first, again, other = (split_examples(examples, config(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert set(questions(first.test)) != set(questions(other.test))


def test_rows_of_a_group_stay_together() -> None:
    patients = with_fields(90, patient=[f"p{n}" for n in range(30)])
    splits = split_examples(patients, config(group_by="patient"))
    parts = [values_in(part, "patient") for part in (splits.train, splits.validation, splits.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len(splits.test) >= 20


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    examples = with_fields(60, patient=["p", None, "", float("nan")])
    splits = split_examples(examples, config(group_by="patient"))
    assert len(splits.test) == 20


@pytest.mark.parametrize("spellings", [("P7", "P7 "), ("p7", "P7"), (7, "7"), (7, 7.0), ("Jose\u0301", "Jos\u00e9")])
def test_spellings_of_one_group_are_one_group(spellings: tuple[Any, Any]) -> None:
    examples = with_fields(60, patient=["a", "b", "c", "d", *spellings])
    splits = split_examples(examples, config(group_by="patient"))
    for value in spellings:
        assert sum(value in values_in(part, "patient") for part in (splits.train, splits.held_out)) == 1


@pytest.mark.parametrize("column", ["message_tree_id", "conversation_id"])
def test_paths_of_a_conversation_stay_together(column: str) -> None:
    splits = split_examples(with_fields(90, **{column: [f"t{n}" for n in range(30)]}), config())
    assert not values_in(splits.train, column) & values_in((*splits.test, *splits.validation), column)


def test_examples_of_one_row_of_a_file_stay_together() -> None:
    examples = [replace(e, origin=Origin(file="a.jsonl", line=n // 3 + 1)) for n, e in enumerate(distinct(90))]
    splits = split_examples(examples, config())
    trained, held_out = ({e.origin for e in part} for part in (splits.train, splits.held_out))
    assert not trained & held_out


def test_a_conversation_ties_two_groups_together() -> None:
    examples = with_fields(90, patient=[f"p{n}" for n in range(30)], conversation_id=[f"c{n}" for n in range(15)])
    splits = split_examples(examples, config(group_by="patient"))
    for column in ("patient", "conversation_id"):
        assert not values_in(splits.train, column) & values_in(splits.held_out, column)


def test_large_groups_leave_some_to_train_on() -> None:
    splits = split_examples(with_fields(90, patient=["a", "b", "c"]), config(group_by="patient"))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [30, 30, 30]


def test_the_newest_rows_are_held_out() -> None:
    days = [f"2026-{1 + n // 28:02}-{1 + n % 28:02}" for n in range(100)]
    splits = split_examples(with_fields(100, day=days), config(time_by="day"))
    assert min(values_in(splits.test, "day")) > max(values_in(splits.validation, "day"))
    assert min(values_in(splits.validation, "day")) > max(values_in(splits.train, "day"))
    assert len(splits.test) == 20


def test_num_train_keeps_the_newest_of_older_rows() -> None:
    examples = with_fields(100, day=list(range(100)))
    settings = config(time_by="day", num_train=10)
    train = limit_train(split_examples(examples, settings).train, settings)
    assert values_in(train, "day") == set(range(65, 75))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1970-01-02", 86400),
        ("1970-01-02T00:00:01Z", 86401),
        ("1970-01-02 01:00:00+01:00", 86400),
        (date(1970, 1, 2), 86400),
        (datetime(1970, 1, 2, tzinfo=UTC), 86400),
        (17, 17),
        ("17.5", 17.5),
    ],
)
def test_dates_and_numbers_are_times(value: Any, seconds: float) -> None:
    assert parse_time(value) == seconds


@pytest.mark.parametrize("value", [None, "", "28.11.2026", "yesterday", "nan", float("inf"), True, [1], 10**400])
def test_other_values_are_no_times(value: Any) -> None:
    assert parse_time(value) is None


def test_a_row_without_a_time_is_named() -> None:
    examples = [*with_fields(30, day=["2026-01-01"]), row("x", line=77, fields={"day": "28.11.2026"})]
    with pytest.raises(DataError, match=r"1 rows have no number or ISO 8601.*\n  rows.jsonl line 77: 'day' is '28.11"):
        split_examples(examples, config(time_by="day"))


@pytest.mark.parametrize("setting", ["group_by", "time_by", "stratify_by"])
def test_a_missing_column_is_named_with_those_found(setting: str) -> None:
    with pytest.raises(DataError, match=rf"`data.{setting}` is 'team', but no row .* found: 'patient'"):
        split_examples(with_fields(60, patient=["p"]), config(**{setting: "team"}))


def test_strata_of_a_column_have_the_same_shares() -> None:
    examples = with_fields(100, team=["red"] * 4 + ["blue"])
    splits = split_examples(examples, config(stratify_by="team"))
    assert Counter(e.fields["team"] for e in splits.test) == {"red": 16, "blue": 4}


def test_repeated_answers_have_the_same_shares() -> None:
    examples = [
        replace(e, completion=row("", "no" if n % 5 else "yes").completion) for n, e in enumerate(distinct(100))
    ]
    assert Counter(e.answer for e in split_examples(examples, config()).test) == {"no": 16, "yes": 4}


def test_strata_that_a_source_names_are_equal_in_number() -> None:
    examples = [replace(e, stratum="ab"[n % 5 == 0]) for n, e in enumerate(distinct(100))]
    assert Counter(e.stratum for e in split_examples(examples, config()).test) == {"a": 10, "b": 10}


def test_a_class_without_test_rows_is_named() -> None:
    rare = [row(f"rare {n}", "rare", 200 + n) for n in range(2)]
    splits = split_examples([*distinct(300), *rare], config(num_test=5))
    assert splits.notes == ("No test row has the answer 'rare': raise `data.num_test`, or give more rows of it.",)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pinned_rows_are_in_no_other_split(split: Any) -> None:
    pinned = [replace(e, split=split) for e in distinct(15)]
    others = [replace(e, prompt=row(f"free {n}").prompt, origin=None) for n, e in enumerate(distinct(60))]
    splits = split_examples([*pinned, *others], config(num_validation=20))
    found = {name: set(questions(getattr(splits, name))) for name in ("train", "validation", "test")}
    elsewhere = set().union(*(part for name, part in found.items() if name != split))
    allowed = {"train": found["test"]}.get(split, elsewhere)
    assert not allowed & set(questions(pinned))


def test_all_pinned_rows_are_used_unless_a_number_is_set() -> None:
    examples = [*distinct(60), *(row(f"pinned {n}", line=100 + n, split="test") for n in range(33))]
    assert len(split_examples(examples, config(num_test=None)).test) == 33
    splits = split_examples(examples, config(num_test=30))
    assert "3 rows pinned to test exceed `data.num_test` and are not used." in splits.notes
    assert not {q for q in questions(splits.train) if q.startswith("pinned")}


def test_synthetic_rows_are_only_trained_on() -> None:
    examples = [*distinct(30), *(row(f"made {n}", line=100 + n, is_synthetic=True) for n in range(60))]
    splits = split_examples(examples, config())
    assert not any(e.is_synthetic for e in splits.held_out)
    assert sum(e.is_synthetic for e in splits.train) == 60


def test_synthetic_rows_do_not_count_as_held_out_ones() -> None:
    made = [replace(e, is_synthetic=True) for e in distinct(60)]
    with pytest.raises(DataError, match=r"test split needs 20 rows, but 0 .*Synthetic rows \(60\) are never held out"):
        split_examples(made, config(out_of_scope_share=0))


def test_few_rows_lower_the_default_sizes_and_say_so() -> None:
    splits = split_examples(distinct(100), config(num_test=None, num_validation=None))
    assert (len(splits.validation), len(splits.test)) == (10, 20)
    assert splits.notes[0] == (
        "Of 100 rows, 20 are held out for test instead of 240. Set `data.num_test` to change that."
    )


def test_packaged_requests_do_not_count_as_rows() -> None:
    refused = [row(f"no {n}", in_scope=False, origin=None) for n in range(200)]
    splits = split_examples([*distinct(50), *refused], config(num_test=None, num_validation=None))
    assert (len(splits.test), len(splits.validation)) == (10, 5)


def test_many_rows_have_the_default_sizes() -> None:
    splits = split_examples(distinct(1500), config(num_test=None, num_validation=None))
    assert (len(splits.validation), len(splits.test), splits.notes) == (64, 240, ())


def test_too_few_rows_for_a_set_number_are_refused() -> None:
    with pytest.raises(DataError, match=r"test split needs 19 rows, but 10 .* Lower `data.num_test`"):
        split_examples([*distinct(10), *(row(f"no {n}", line=50 + n, in_scope=False) for n in range(4))], config())


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"25 distinct rows leave none to train on"):
        split_examples(distinct(25), config(out_of_scope_share=0))


def test_out_of_scope_rows_have_their_share_in_training() -> None:
    examples = [*distinct(100), *(row(f"no {n}", line=200 + n, in_scope=False) for n in range(60))]
    settings = config(out_of_scope_share=0.2, num_train=40)
    train = limit_train(split_examples(examples, settings).train, settings)
    assert Counter(e.in_scope for e in train) == {True: 32, False: 8}
