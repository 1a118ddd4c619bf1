"""`lorikeet base merge`: an adapter on raw text becomes the base of another adapter's training."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from adapters.bases import read_base, verify_base
from adapters.fingerprint import read_fingerprint
from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from lorikeet import app
from tests.objective_domains import objective_domain
from tests.tiny_llama import prepare_tiny_base, write_tiny_llama
from train.base.merged import merge_into_base
from train.base.quantize import load_causal_lm
from train.errors import ExportError
from train.pipeline import train_and_publish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A tiny base, and `notes@1`, trained on raw text."""
    root = tmp_path_factory.mktemp("merged")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model"))
    train_and_publish(objective_domain(root, {"name": "text"}, name="notes"), home)
    return home


def merge(home: Home, *words: str) -> Result:
    environment = {"COLUMNS": "300", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["base", "merge", *words, "--home", str(home.root)], env=environment)


def test_another_adapter_is_trained_on_the_merged_base(home: Home, tmp_path: Path) -> None:
    result = merge(home, "notes@1", "--name", "noted")
    assert result.exit_code == 0, result.output
    assert "`base: noted`" in result.output
    base = verify_base(home.bases / "noted")
    notes = AdapterStore(home.adapters).manifest(Target("notes", 1))
    assert base.lineage is not None
    assert base.lineage.merged is not None
    assert (base.lineage.made_by, base.lineage.parent) == ("merge", read_base(home.bases / "tiny").ref)
    assert (base.lineage.merged.lora_name, base.lineage.merged.digest) == ("notes@1", notes.digest)
    assert base.lineage.scores == notes.scores
    manifest = train_and_publish(objective_domain(tmp_path, {"name": "sft"}, base="noted"), home).manifest
    assert manifest.base == base.ref
    assert manifest.base.digest != notes.base.digest


def test_the_merged_base_answers_as_the_adapter_did(home: Home) -> None:
    base = merge_into_base("notes@1", home)
    assert base.name == "notes-1"
    fingerprint, model = read_fingerprint(home.bases / base.name), load_causal_lm(home.bases / base.name).float().eval()
    assert base.num_parameters == model.num_parameters()
    assert fingerprint is not None
    assert fingerprint.base_digest == base.digest
    gaps, effects = [], []
    for prompt in fingerprint.prompts:
        ids = torch.tensor([[*prompt.prompt_token_ids, *prompt.answer_token_ids]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        own = logprobs[-len(prompt.answer_token_ids) :]
        gaps.append(float((own - torch.tensor(prompt.adapter_logprobs)).abs().mean()))
        effects.append(float((own - torch.tensor(prompt.base_logprobs)).abs().mean()))
    assert max(gaps) < 0.02
    assert sum(effects) > 4 * sum(gaps)


def test_a_name_that_is_taken_and_a_version_that_is_not_there_are_refused(home: Home) -> None:
    taken, missing = merge(home, "notes@1", "--name", "tiny"), merge(home, "notes@7")
    assert "Base 'tiny' already exists" in taken.output
    assert "no 'notes@7'" in missing.output
    assert (taken.exit_code, missing.exit_code) == (1, 1)
    assert not list(home.bases.glob(".*"))


def test_a_reward_model_is_no_base(home: Home, tmp_path: Path) -> None:
    train_and_publish(objective_domain(tmp_path, {"name": "reward"}, name="judge"), home)
    with pytest.raises(ExportError, match="'judge@1' is a reward model"):
        merge_into_base("judge@1", home)
