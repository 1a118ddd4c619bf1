"""Command-line options laid over a configuration."""

from pathlib import Path
from typing import Any

import pytest

from config.errors import ConfigError
from config.load import read_mapping
from config.loadtest import LoadtestConfig
from loadtest.load.options import RunOptions, parse_mix, with_options

FILE: dict[str, Any] = {
    "mix": {"models": ["a", "b"], "popularity": {"kind": "weights", "weights": [3, 1]}, "base": "m"},
    "arrival": {"kind": "gamma", "rate": 5, "burstiness": 0.5},
    "prompts": {"kind": "synthetic", "num_words": {"kind": "fixed", "value": 8}, "shared_prefix_share": 0.5},
}


def options_over(values: dict[str, Any], **options: Any) -> LoadtestConfig:
    return with_options(values, RunOptions(**options), "load.yaml")


def test_without_options_the_file_stands() -> None:
    assert options_over(FILE) == LoadtestConfig.model_validate(FILE)


def test_a_model_alone_is_a_load_test() -> None:
    config = options_over({}, models=("medical",))
    assert (config.mix.models, config.arrival.kind) == (("medical",), "poisson")


def test_no_model_at_all_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="--model"):
        options_over({}, rate=3)


@pytest.mark.parametrize(
    ("options", "arrival"),
    [
        ({"rate": 9}, {"kind": "gamma", "rate": 9, "burstiness": 0.5}),
        ({"arrival": "constant"}, {"kind": "constant", "rate": 5}),
        ({"arrival": "poisson", "rate": 9}, {"kind": "poisson", "rate": 9}),
        ({"concurrency": 4}, {"kind": "closed", "concurrency": 4}),
        ({"arrival": "closed", "concurrency": 4}, {"kind": "closed", "concurrency": 4}),
        ({"trace": Path("t.csv")}, {"kind": "trace", "path": Path("t.csv"), "speed": 1.0}),
        ({"rate": 1, "rate_to": 8}, {"kind": "ramp", "rate_from": 1, "rate_to": 8}),
        ({"burstiness": 2.0}, {"kind": "gamma", "rate": 5, "burstiness": 2.0}),
    ],
)
def test_options_of_arrival_change_its_kind_and_keep_its_rate(options: Any, arrival: dict[str, Any]) -> None:
    assert options_over(FILE, **options).arrival.model_dump() == arrival


def test_other_models_are_asked_evenly_unless_a_mix_is_given() -> None:
    assert options_over(FILE, models=("x", "y", "z")).mix.popularity.kind == "uniform"
    assert options_over(FILE, models=("x", "y", "z"), mix="zipf:1.5").mix.popularity.model_dump()["s"] == 1.5


@pytest.mark.parametrize(
    ("text", "popularity"),
    [
        ("zipf", {"kind": "zipf"}),
        ("zipf:0.8", {"kind": "zipf", "s": 0.8}),
        ("uniform", {"kind": "uniform"}),
        ("weights:3,1", {"kind": "weights", "weights": (3.0, 1.0)}),
        ("hot-set:2", {"kind": "hot_set", "size": 2.0}),
        ("hot-set:2,0.8,50", {"kind": "hot_set", "size": 2.0, "share": 0.8, "rotate_after": 50.0}),
        ("one-shot", {"kind": "one_shot"}),
    ],
)
def test_a_mix_in_one_word(text: str, popularity: dict[str, Any]) -> None:
    assert parse_mix(text) == popularity


@pytest.mark.parametrize("text", ["zipfy", "zipf:a", "uniform:3", "hot-set:1,2,3,4"])
def test_a_mix_that_is_none_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match="one-shot"):
        parse_mix(text)


@pytest.mark.parametrize(
    ("dataset", "prompts"),
    [("own", {"kind": "dataset", "domain": None}), ("legal", {"kind": "dataset", "domain": "legal"})],
)
def test_prompts_may_come_from_data_sets(dataset: str, prompts: dict[str, Any]) -> None:
    assert options_over(FILE, dataset=dataset).prompts.model_dump() == prompts


def test_lengths_are_set_in_words_and_tokens() -> None:
    config = options_over(FILE, prompt_words=7, max_tokens=9)
    assert config.prompts.model_dump()["num_words"] == {"kind": "fixed", "value": 7}
    assert config.prompts.model_dump()["shared_prefix_share"] == 0.5
    assert config.max_tokens is not None
    assert config.max_tokens.model_dump() == {"kind": "fixed", "value": 9}


def test_a_wrong_value_is_named_with_its_file_and_key() -> None:
    with pytest.raises(ConfigError, match=r"load\.yaml: `arrival\.gamma\.rate`: got 0"):
        options_over(FILE, rate=0.0)


def test_the_example_file_takes_options() -> None:
    values = read_mapping(Path(__file__).parents[3] / "config" / "loadtest.yaml")
    config = options_over(values, rate=7.0, duration_s=3.0, url="http://x/v1", seed=1, num_requests=5, base_share=0.5)
    assert (config.duration_s, config.url, config.num_requests, config.seed) == (3.0, "http://x/v1", 5, 1)
    assert config.arrival.model_dump()["rate"] == 7.0
