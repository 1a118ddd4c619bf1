import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState
from trl.trainer.sft_trainer import SFTTrainer

from adapters.lint.peft_folder import MAGNITUDE
from adapters.store.manifest import BaseManifest, ComputeRecord, Precision
from config.dataset import DatasetManifest, DatasetRow, Split, read_split
from config.domain import DomainConfig
from config.home import Home
from config.method import DoraMethod, MethodConfig
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.base.quantize import load_causal_lm
from train.compute import unmeasured
from train.data.build import build_dataset
from train.errors import DivergenceError, ResumeError
from train.methods.method import Trainable, base_of
from train.objectives.answer_loss import AnswerLossTrainer
from train.training import Trained, save_adapter, train_adapter

pytestmark = pytest.mark.slow

PRECISIONS = [pytest.param("bfloat16", marks=pytest.mark.exhaustive), "float32", "mixed"]


class Bench:
    """A tiny base and a tiny data set, to train on again and again."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "var")
        self.base: BaseManifest = prepare_tiny_base(self.home, write_tiny_llama(root / "model"))
        self.domain: DomainConfig = tiny_domain(write_colour_data(root / "colours.jsonl"))
        self.dataset: DatasetManifest = build_dataset(self.domain, self.home)
        folder = self.home.datasets / "colours"
        self.rows: dict[Split, list[DatasetRow]] = {s: read_split(folder, s) for s in ("train", "validation", "test")}

    def train(
        self,
        run: str,
        *,
        resume: bool = False,
        compute: ComputeRecord | None = None,
        method: MethodConfig | None = None,
        callbacks: tuple[TrainerCallback, ...] = (),
        **recipe: object,
    ) -> Trained:
        changed = {"recipe": self.domain.recipe.model_copy(update=recipe), "method": method or self.domain.method}
        config = self.domain.model_copy(update=changed)
        folder = self.home.bases / "tiny"
        run_folder = self.home.runs / run
        return train_adapter(
            config,
            self.base,
            folder,
            self.dataset,
            self.rows,
            run_folder,
            resume=resume,
            compute=compute,
            callbacks=callbacks,
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def plain(bench: Bench) -> Trained:
    """A run by the recipe as it is, to look at."""
    return bench.train("plain")


def lora_weights(model: Trainable) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def base_weights(model: Trainable) -> dict[str, torch.Tensor]:
    """By the names that they have in the base's own file."""
    named = ((name, p) for name, p in base_of(model).named_parameters() if "lora_" not in name)
    return {name.replace(".base_layer", ""): p.detach().clone() for name, p in named}


def test_training_changes_the_adapter_and_nothing_else(bench: Bench, plain: Trained) -> None:
    weights = lora_weights(plain.model)
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)
    assert all(torch.equal(tensor, tensor.bfloat16().to(tensor.dtype)) for tensor in weights.values())
    base = load_file(bench.home.bases / "tiny" / "model.safetensors")
    assert base_weights(plain.model).keys() == base.keys()
    assert all(torch.equal(tensor, base[name]) for name, tensor in base_weights(plain.model).items())
    assert plain.record.metrics["steps"] == 3
    assert plain.record.arguments == bench.domain.training_arguments


def test_the_same_seed_gives_the_same_adapter_byte_for_byte(bench: Bench, tmp_path: Path) -> None:
    save_adapter(bench.train("one", compute=unmeasured()).model, tmp_path / "one", "tiny")
    save_adapter(bench.train("two", compute=unmeasured()).model, tmp_path / "two", "tiny")
    files = ("adapter_model.safetensors", "adapter_config.json")
    assert [(tmp_path / "one" / f).read_bytes() for f in files] == [(tmp_path / "two" / f).read_bytes() for f in files]


def test_a_saved_adapter_names_its_base_and_no_path_of_this_machine(plain: Trained, tmp_path: Path) -> None:
    save_adapter(plain.model, tmp_path, "tiny")
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "tiny"
    assert saved["target_modules"] == sorted(saved["target_modules"])
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_doras_magnitudes_are_trained_and_saved_in_float32(bench: Bench, tmp_path: Path) -> None:
    method = DoraMethod(r=4, lora_alpha=8)
    trained = bench.train("dora", method=method, learning_rate=0.003)
    save_adapter(trained.model, tmp_path, "tiny")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    magnitudes = {name: tensor for name, tensor in weights.items() if name.endswith(MAGNITUDE)}
    assert len(magnitudes) == len(weights) // 3 == 14
    assert {tensor.dtype for tensor in magnitudes.values()} == {torch.float32}
    base = load_file(bench.home.bases / "tiny" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    untrained = base[f"{name}.weight"].float().norm(dim=1)
    found = magnitudes[f"base_model.model.{name}.{MAGNITUDE}"]
    assert 1e-4 < (found / untrained - 1).abs().max() < 0.1
    reloaded = PeftModel.from_pretrained(load_causal_lm(bench.home.bases / "tiny", dtype=torch.float32), str(tmp_path))
    ids = torch.arange(3, 63).reshape(2, 30)
    with torch.inference_mode():
        got = trained.model(input_ids=ids).logits.float()
        torch.testing.assert_close(got, reloaded.eval()(input_ids=ids).logits, rtol=0.02, atol=0.05)


def test_an_interrupted_run_resumes_where_it_stopped(bench: Bench) -> None:
    """At a rate at which each step makes a difference: two steps are not done again, the third gives what it gave."""
    whole = lora_weights(bench.train("resumed", learning_rate=0.01).model)
    run = bench.home.runs / "resumed"
    (run / "checkpoint-3").rename(run / "lost")
    stopped_at = run / "checkpoint-2" / "trainer_state.json"
    written_ns = stopped_at.stat().st_mtime_ns
    resumed = bench.train("resumed", resume=True, learning_rate=0.01)
    assert stopped_at.stat().st_mtime_ns == written_ns
    assert resumed.record.metrics["steps"] == 3
    torch.testing.assert_close(lora_weights(resumed.model), whole, atol=1e-5, rtol=0.01)


def test_the_weights_of_the_best_held_out_loss_are_kept(bench: Bench) -> None:
    trained = bench.train("best", learning_rate=10.0)
    run = bench.home.runs / "best"
    history = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    losses = {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    assert best < 3, losses
    assert trained.record.metrics["eval_loss"] == pytest.approx(losses[best], abs=1e-4)
    saved = load_file(run / f"checkpoint-{best}" / "adapter_model.safetensors")
    weights = lora_weights(trained.model)
    assert {name.replace(".default", "") for name in weights} == saved.keys()
    kept = {name: saved[name.replace(".default", "")].bfloat16().to(w.dtype) for name, w in weights.items()}
    torch.testing.assert_close(weights, kept, atol=0, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_computes_as_it_began(bench: Bench, precision: Precision) -> None:
    begun = ComputeRecord(precision=precision, num_threads=1, layer_ms={"as measured": 1.5})
    trained = bench.train("computed", compute=begun)
    (bench.home.runs / "computed" / "checkpoint-3").rename(bench.home.runs / "computed" / "lost")
    resumed = bench.train("computed", resume=True)
    assert trained.record.compute == resumed.record.compute == begun
    assert {p.dtype for p in resumed.model.parameters()} == {p.dtype for p in trained.model.parameters()}


def test_what_a_run_computes_in_is_measured(plain: Trained) -> None:
    compute = plain.record.compute
    assert compute is not None
    assert len(compute.layer_ms) >= 3


def test_resuming_without_a_checkpoint_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(ResumeError, match=r"No checkpoint found for 'never'.*without `--resume`"):
        bench.train("never", resume=True)


def test_a_checkpoint_of_another_recipe_is_not_resumed(bench: Bench) -> None:
    bench.train("other", max_steps=1)
    with pytest.raises(ResumeError, match="another base, data set or recipe"):
        bench.train("other", resume=True, max_steps=2)


def test_training_stops_early_when_the_held_out_loss_stops_falling(bench: Bench) -> None:
    trained = bench.train("early", max_steps=12, learning_rate=1e-12, early_stopping_patience=1)
    assert trained.record.metrics["steps"] < 12


def test_the_answer_only_loss_equals_trls(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = bench.train("ours")
    monkeypatch.setattr(AnswerLossTrainer, "compute_loss", SFTTrainer.compute_loss)
    theirs = bench.train("theirs")
    assert ours.record.metrics["train_loss"] == pytest.approx(theirs.record.metrics["train_loss"], rel=0.01)
    assert ours.record.metrics["eval_loss"] == pytest.approx(theirs.record.metrics["eval_loss"], rel=0.01)


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
def test_smoothed_labels_train_as_in_trl(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = ComputeRecord(precision="float32", num_threads=1)
    ours = bench.train("ours", compute=compute, label_smoothing_factor=0.3).record.metrics
    plain = bench.train("plain", compute=compute).record.metrics
    monkeypatch.setattr(AnswerLossTrainer, "compute_loss", SFTTrainer.compute_loss)
    theirs = bench.train("theirs", compute=compute, label_smoothing_factor=0.3).record.metrics
    assert ours == pytest.approx(theirs, rel=2e-4)
    assert ours != pytest.approx(plain, rel=2e-3)


def test_noise_on_the_embeddings_changes_the_weights(bench: Bench) -> None:
    compute = unmeasured()
    plain = lora_weights(bench.train("plain", compute=compute, learning_rate=0.01).model)
    noisy = lora_weights(bench.train("noisy", compute=compute, learning_rate=0.01, neftune_noise_alpha=50.0).model)
    assert any(not torch.allclose(plain[name], noisy[name], rtol=0.05, atol=1e-3) for name in plain)


def test_activations_computed_twice_give_the_same_weights(bench: Bench) -> None:
    compute = ComputeRecord(precision="float32", num_threads=1)
    once = bench.train("once", compute=compute, learning_rate=0.01, gradient_checkpointing=False)
    twice = bench.train("twice", compute=compute, learning_rate=0.01, gradient_checkpointing=True)
    torch.testing.assert_close(lora_weights(twice.model), lora_weights(once.model), atol=1e-3, rtol=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_weights_of_the_best_score_are_kept(bench: Bench, precision: Precision) -> None:
    compute = ComputeRecord(precision=precision, num_threads=1)
    trained = bench.train(
        "scored", compute=compute, metric_for_best_model="exact_match", learning_rate=0.02, max_steps=8
    )
    last = max((bench.home.runs / "scored").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    scores = {log["step"]: log["eval_exact_match"] for log in state["log_history"] if "eval_exact_match" in log}
    assert list(scores) == list(range(1, 9))
    assert state["best_metric"] == max(scores.values()) == trained.record.metrics["eval_exact_match"]
    assert state["best_global_step"] == max(scores, key=lambda step: scores[step])


def test_a_score_that_stays_ends_the_run_early(bench: Bench) -> None:
    trained = bench.train(
        "stays", metric_for_best_model="exact_match", learning_rate=1e-12, max_steps=9, early_stopping_patience=2
    )
    assert trained.record.metrics["steps"] == 3


class Interrupt(TrainerCallback):
    """Ends the run in its fourth step, after three checkpoints."""

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_a_resumed_run_counts_on_to_its_early_stop(bench: Bench) -> None:
    stuck: dict[str, Any] = {"learning_rate": 1e-12, "max_steps": 9, "early_stopping_patience": 3}
    with pytest.raises(KeyboardInterrupt):
        bench.train("stuck", callbacks=(Interrupt(),), **stuck)
    assert (bench.home.runs / "stuck" / "checkpoint-3").exists()
    assert bench.train("stuck", resume=True, **stuck).record.metrics["steps"] == 4


def test_the_loss_of_a_resumed_run_is_of_all_steps(bench: Bench) -> None:
    whole = bench.train("means", compute=unmeasured())
    run = bench.home.runs / "means"
    (run / "checkpoint-3").rename(run / "lost")
    assert bench.train("means", resume=True).record.metrics == whole.record.metrics


@pytest.mark.parametrize("learning_rate", [pytest.param(1e20, marks=pytest.mark.exhaustive), 1e38])
def test_a_run_that_diverges_ends_with_the_step(bench: Bench, learning_rate: float) -> None:
    with pytest.raises(DivergenceError, match="not finite at step 1"):
        bench.train("diverges", learning_rate=learning_rate, max_steps=6, warmup_steps=0.0)
    saved = sorted((bench.home.runs / "diverges").glob("checkpoint-*/adapter_model.safetensors"))
    assert all(tensor.isfinite().all() for path in saved for tensor in load_file(path).values())


def test_rows_that_were_trained_on_are_known(plain: Trained) -> None:
    kept = plain.record.losses.kept_step if plain.record.losses else None
    assert plain.seen is not None
    assert kept is not None
    assert len(plain.seen) == len(set(plain.seen)) == 4 * kept


def test_general_rows_are_trained_on_beside_the_domains(bench: Bench) -> None:
    trained = bench.train("replay", replay_share=0.25, max_length=192, max_steps=10)
    assert len(trained.task.replay) == 10
    assert trained.record.arguments["replay_share"] == 0.25
    assert trained.seen is not None
    assert max(trained.seen) < len(bench.rows["train"])
