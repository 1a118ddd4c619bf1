"""`lorikeet train`, killed between two checkpoints and resumed, gives what an undisturbed run gives, bit for bit."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from adapters.bases import read_base
from adapters.store.manifest import ComputeRecord, Manifest, TrainingRecord
from config.dataset import SPLITS, read_dataset, read_split
from config.home import Home
from config.load import load_domain
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama
from train.runs import last_checkpoint
from train.training import save_adapter, train_adapter

pytestmark = pytest.mark.slow

EVAL_STEPS = 60


def write_domain(folder: Path) -> Path:
    config = tiny_domain(
        write_colour_data(folder / "colours.jsonl"),
        max_steps=4 * EVAL_STEPS,
        eval_steps=EVAL_STEPS,
        learning_rate=0.01,
        neftune_noise_alpha=5.0,  # random numbers in each step
    )
    path = folder / "colours.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return path


def train(path: Path, home: Home, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lorikeet", "train", str(path), "--home", str(home.root), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def kill_after_a_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    for _ in range(4000):
        if last_checkpoint(run) is not None:
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    time.sleep(0.3)  # some steps into the next part
    process.send_signal(signal.SIGKILL)
    process.communicate()


def undisturbed(path: Path, home: Home, compute: ComputeRecord, folder: Path) -> TrainingRecord:
    """The same training in one piece, in the precision and threads that the other one measured."""
    config, base = load_domain(path), home.bases / "tiny"
    rows = {split: read_split(home.datasets / "colours", split) for split in SPLITS}
    dataset = read_dataset(home.datasets / "colours")
    trained = train_adapter(config, read_base(base), base, dataset, rows, home.runs / "whole", compute=compute)
    save_adapter(trained.model, folder, "tiny")
    return trained.record


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    path = write_domain(tmp_path)
    kill_after_a_checkpoint(train(path, home), home.runs / "colours")
    begun = last_checkpoint(home.runs / "colours")
    assert begun is not None
    assert int(begun.name.partition("-")[2]) < 4 * EVAL_STEPS
    end(train(path, home, "--resume"))
    manifest = home.adapters / "colours" / "1" / "manifest.json"
    version = Manifest.model_validate_json(manifest.read_text())
    assert version.training is not None
    assert version.training.compute is not None
    whole = undisturbed(path, home, version.training.compute, tmp_path / "whole")
    assert version.training.metrics == whole.metrics
    files = [folder / "adapter_model.safetensors" for folder in (home.adapters / "colours" / "1", tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
