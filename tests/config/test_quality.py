"""A domain's rules for its canaries: the same fields and defaults wherever they are written down."""

import json
from math import nan
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.reference import Target
from adapters.store.integrity import parse_manifest
from adapters.store.manifest import Manifest, QualityRules
from adapters.store.version_files import MAX_BYTES
from config.domain import AnswerConfig, QualityConfig
from quality.evaluated import EVALUATION_FILE, MAX_FILE_BYTES
from quality.held_out import HELD_OUT_FILE
from tests.peft_folders import draft_for


def test_a_version_has_the_rules_and_defaults_of_its_domain():
    domain = QualityConfig().model_dump()
    assert domain.pop("publish_held_out") is True
    assert domain == QualityRules().model_dump(exclude={"held_out_metric"})


def test_the_store_carries_the_file_that_questions_are_read_from():
    assert HELD_OUT_FILE in MAX_BYTES
    assert EVALUATION_FILE in MAX_BYTES
    assert MAX_BYTES[EVALUATION_FILE] >= MAX_FILE_BYTES


@pytest.mark.parametrize("model", [QualityConfig, QualityRules])
@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 5000])
def test_an_answer_pattern_must_compile(model, pattern):
    with pytest.raises(ValidationError, match="answer_pattern"):
        model(answer_pattern=pattern)


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(?<!a)b"])
def test_a_pattern_must_be_matched_in_linear_time(pattern):
    with pytest.raises(ValidationError, match="linear time"):
        QualityConfig(answer_pattern=pattern)
    schemas: list[dict[str, Any]] = [
        {"properties": {"a": {"pattern": pattern}}},
        {"anyOf": [{"patternProperties": {pattern: {}}}]},
    ]
    for schema in schemas:
        with pytest.raises(ValidationError, match="linear time"):
            AnswerConfig(json_schema=schema)


def test_a_property_may_be_called_pattern():
    assert AnswerConfig(json_schema={"properties": {"pattern": {"pattern": "a+"}}}).json_schema


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 1.0},
        {"margin": -0.1},
        {"max_error_increase": 1.0},
        {"max_slow_increase": nan},
        {"alpha": 0.0},
        {"min_pairs": 0},
        {"max_hours": 0},
        {"x": 1},
    ],
)
@pytest.mark.parametrize("model", [QualityConfig, QualityRules])
def test_a_rule_outside_its_bounds_is_refused(model, change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        model(**change)


def test_a_manifest_from_before_there_were_rules_is_read(store, peft_folder):
    manifest = store.publish(peft_folder, draft_for(peft_folder))
    old = json.loads(manifest.model_dump_json())
    del old["quality"]
    read = parse_manifest(json.dumps(old).encode(), Target("medical", 1))
    assert isinstance(read, Manifest)
    assert read.quality is None
