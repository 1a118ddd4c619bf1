from pathlib import Path

import pytest

from adapters.errors import UnsupportedAdapterError
from adapters.lint.lint import lint_folder, raise_errors
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from config.rows import PreferenceRow, read_rows
from tests.objective_domains import objective_domain
from tests.tiny_llama import RENDERED_AT, prepare_tiny_base, write_tiny_llama
from train.errors import RecipeError
from train.evaluate.reward import RewardScorer
from train.pipeline import train_and_publish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("reward")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    return home


def test_a_reward_version_scores_answers_and_is_not_served(home: Home, tmp_path: Path) -> None:
    outcome = train_and_publish(objective_domain(tmp_path, {"name": "reward"}, name="judge"), home)
    assert (outcome.is_promoted, outcome.manifest.lora.task) == (False, "SEQ_CLS")
    accuracy = outcome.manifest.scores["pair_accuracy"].adapter
    folder = AdapterStore(home.adapters).folder(Target("judge", 1))
    with pytest.raises(UnsupportedAdapterError, match="it gives scores and no answers"):
        raise_errors(lint_folder(folder, base_folder=home.bases / "tiny", max_lora_rank=16), "judge@1")
    scorer = RewardScorer.load(folder, home.bases / "tiny")
    rows = [row for row in read_rows(home.datasets / "judge", "test") if isinstance(row, PreferenceRow)]
    prompts = [row.prompt for row in rows]
    chosen = scorer.score(prompts, [row.chosen[-1].content for row in rows], RENDERED_AT)
    rejected = scorer.score(prompts, [row.rejected[-1].content for row in rows], RENDERED_AT)
    assert len({*chosen, *rejected}) > 2
    right = sum(good > bad for good, bad in zip(chosen, rejected, strict=True))
    assert abs(right / len(rows) - accuracy.value) <= 1 / len(rows)  # loaded in bf16


def test_training_answers_from_a_reward_model_is_refused(home: Home, tmp_path: Path) -> None:
    train_and_publish(objective_domain(tmp_path, {"name": "reward"}, name="scores"), home)
    domain = objective_domain(tmp_path, {"name": "dpo"}, name="x", **{"from": "scores@1"})
    with pytest.raises(RecipeError, match="reward model 'scores@1', which gives scores"):
        train_and_publish(domain, home)
