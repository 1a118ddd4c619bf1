"""Labels of served answers, as a judge is measured by them."""

from dataclasses import replace
from pathlib import Path

import pytest

from config.home import Home
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.calibration import labels_of_served
from quality.samples.records import Label
from quality.samples.store import QualityStore
from tests.samples import SAMPLE


def test_labels_of_an_adapters_answers_are_averaged(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with QualityStore(home.quality) as store:
        mine, other, textless = store.add_samples(
            [
                replace(SAMPLE, id=0, adapter="medical", prompt="Angina?", answer="I20"),
                replace(SAMPLE, id=0, adapter="legal", prompt="Lease?", answer="Civil"),
                replace(SAMPLE, id=0, adapter="medical", prompt=None, answer=None),
            ]
        )
        for sample, who, score in ((mine, "ann", 1.0), (mine, "bo", 0.5), (other, "ann", 0.0), (textless, "bo", 0.0)):
            store.add_label(Label(sample, who, 1.0, score))
    (label,) = labels_of_served(home, "medical")
    assert (label.item.prompt, label.item.answer, label.item.expected, label.score) == ("Angina?", "I20", "", 0.75)


def test_without_a_store_there_are_no_labels(tmp_path: Path) -> None:
    assert labels_of_served(Home(tmp_path), "medical") == []
    assert not Home(tmp_path).quality.exists()


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    Home(tmp_path).quality.write_bytes(b"not a database" * 100)
    with pytest.raises(EvaluationError, match="Human labels cannot be read"):
        labels_of_served(Home(tmp_path), "medical")
