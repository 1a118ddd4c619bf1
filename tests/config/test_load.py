from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import load_domain, load_serve
from quality.metrics.settings import PythonMetric

DOMAINS = Path(__file__).parents[2] / "config" / "domains"
MINIMAL = """
name: support
description: Answers support questions.
data: {source: jsonl, path: support.jsonl}
chat: {system: Be brief.}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "domain.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("domain", ["medical", "finance", "legal"])
def test_the_domains_that_come_with_lorikeet_load_and_test_at_least_200_examples(domain: str) -> None:
    config = load_domain(DOMAINS / f"{domain}.yaml")
    assert config.name == domain
    assert config.data.num_test is not None
    assert config.data.num_test >= 200


def test_a_data_path_starts_at_the_folder_of_its_file(tmp_path: Path) -> None:
    assert load_domain(write(tmp_path, MINIMAL)).data.paths == (str(tmp_path / "support.jsonl"),)


def test_an_unknown_key_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "method: {lora_rank: 8}\n")
    with pytest.raises(ConfigError, match=r"domain.yaml: `method.lora_rank` is not a known key \(value 8\)"):
        load_domain(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canary_probes: true", "`canary_probes` is now `golden_replay`; rename it"),
        ("quality: {probes_at_once: 4}", "`quality.probes_at_once` is now `quality.held_out_at_once`; rename it"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, f"base: tiny\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        load_serve(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`chat` is missing"):
        load_domain(write(tmp_path, MINIMAL.replace("chat: {system: Be brief.}", "")))


def test_a_wrong_value_is_shown_with_the_value_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "method: {r: 0}\n")
    with pytest.raises(ConfigError, match=r"`method.r`: got 0; input should be greater than or equal to 1"):
        load_domain(path)


def test_several_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "method: {r: 0, colour: red}\n")
    with pytest.raises(ConfigError, match=r"method.r.*; .*colour"):
        load_domain(path)


def test_a_file_that_is_not_there_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_serve(tmp_path / "serve.yaml")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not valid YAML.*line 1"):
        load_domain(write(tmp_path, "name: [unclosed"))


@pytest.mark.parametrize("key", ["description", "licence"])
def test_half_a_character_is_refused_with_its_key(tmp_path: Path, key: str) -> None:
    text = MINIMAL.replace("Answers support questions.", '"half \\ud83c"')
    text = text if key == "description" else MINIMAL.replace("jsonl}", 'jsonl, licence: "half \\ud83c"}')
    with pytest.raises(ConfigError, match=rf"{key}`: got 'half \\ud83c', which has half of a surrogate pair"):
        load_domain(write(tmp_path, text))


def test_a_file_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "domain.yaml"
    path.write_bytes(MINIMAL.replace("Answers", "Café").encode("cp1252"))
    with pytest.raises(ConfigError, match=r"domain\.yaml line 3: found byte 0xe9, wanted UTF-8"):
        load_domain(path)


def test_a_value_that_holds_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`x` is not a known key"):
        load_domain(write(tmp_path, MINIMAL + "x: &x [*x]\n"))


def test_a_list_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got list, wanted"):
        load_domain(write(tmp_path, "- name"))


def test_a_schema_as_format_needs_the_schema(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "defaults: {response_format: json_schema}\n")
    with pytest.raises(ConfigError, match=r"requires a schema in `answer.json_schema`"):
        load_domain(path)


def test_requests_are_greedy_unless_the_domain_says_otherwise(tmp_path: Path) -> None:
    assert load_domain(write(tmp_path, MINIMAL)).defaults.temperature == 0.0
    warm = load_domain(write(tmp_path, MINIMAL + "defaults: {temperature: 0.7, top_p: 0.9}\n"))
    assert (warm.defaults.temperature, warm.defaults.top_p) == (0.7, 0.9)


def test_a_moved_setting_is_refused_with_its_new_place(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "recipe: {lora_r: 8}\n")
    with pytest.raises(ConfigError, match=r"`recipe.lora_r` is now `method.r`; move it"):
        load_domain(path)


def test_a_metric_of_ones_own_is_found_beside_the_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "evaluation: {metrics: [macro_f1, 'python: score.py:polite']}\n")
    plain, own = load_domain(path).evaluation.metrics
    assert plain.name == "macro_f1"
    assert isinstance(own, PythonMetric)
    assert own.function == f"{tmp_path / 'score.py'}:polite"


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="perfection"):
        load_domain(write(tmp_path, MINIMAL + "evaluation: {metrics: [perfection]}\n"))
