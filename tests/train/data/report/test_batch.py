import pytest

from adapters.store.manifest import ComputeRecord
from config.home import Home
from tests.tiny_llama import prepare_tiny_base, tiny_domain, tiny_tokenizer, write_colour_data, write_tiny_llama
from tests.train.data.report.test_learnt import encoded
from train.base.quantize import load_causal_lm
from train.data.report.learnt import trainer_batch
from train.objectives.objective import Loaded
from train.objectives.sft import make_trainer, sft_data

pytestmark = pytest.mark.slow


def test_the_batch_shown_is_the_one_that_is_trained_on(tmp_path):
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    domain = tiny_domain(write_colour_data(tmp_path / "colours.jsonl"), per_device_train_batch_size=3)
    rows = [encoded(text, "red") for text in ("a rose", "a tulip in a vase", "a pen")]
    compute = ComputeRecord(precision="float32", num_threads=1, layer_ms={})
    model = load_causal_lm(home.bases / "tiny")
    loaded = Loaded(model, None, compute)
    trainer = make_trainer(domain, sft_data(rows, rows), loaded, tiny_tokenizer(), tmp_path / "run")
    (trained_on,) = trainer.get_eval_dataloader()
    shown = trainer_batch(tiny_tokenizer(), rows)
    assert set(shown) == {"input_ids", "labels", "attention_mask"}
    for name in shown:
        assert sorted(shown[name].tolist()) == sorted(trained_on[name].tolist())
