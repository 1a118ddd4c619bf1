"""A version's figures by columns of its data, without the judges that training cannot ask."""

import json
import logging
from pathlib import Path

import pytest

from config.domain import EvaluationConfig
from config.home import Home
from tests.tiny_llama import NO_PROBES, prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.pipeline import train_and_publish


@pytest.mark.slow
def test_training_slices_figures_and_leaves_judges_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home, path = Home(tmp_path / "var"), write_colour_data(tmp_path / "colours.jsonl")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"region": "north"}) + "\n" for row in rows))
    domain = tiny_domain(path, max_steps=1)
    settings = {"metrics": ["judge", "exact_match"], "slice_by": ["region"], "max_new_tokens": 4} | NO_PROBES
    domain = domain.model_copy(update={"evaluation": EvaluationConfig.model_validate(settings)})
    with caplog.at_level(logging.INFO):
        manifest = train_and_publish(domain, home).manifest
    keys = [figure.key for figure in manifest.figures if figure.kind == "metric"]
    assert "exact_match[region: north]" in keys
    assert not [key for key in keys if key.startswith("judge")]
    assert "Metrics of a judge are left out of training" in caplog.text
