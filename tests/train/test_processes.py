"""Several processes of one training, on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adapters.store.manifest import Manifest
from config.home import Home
from tests.tiny_llama import prepare_tiny_base, tiny_domain, write_colour_data, write_tiny_llama

pytestmark = pytest.mark.slow


def test_two_processes_train_one_version_that_the_first_publishes(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    prepare_tiny_base(home, write_tiny_llama(tmp_path / "model"))
    config = tiny_domain(write_colour_data(tmp_path / "colours.jsonl"), per_device_train_batch_size=2)
    path = tmp_path / "colours.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    # Without mpirun, `accelerate launch` starts one process on a CPU.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "lorikeet", "train", str(path), "--home", str(home.root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    manifest = Manifest.model_validate_json((home.adapters / "colours" / "1" / "manifest.json").read_text())
    assert manifest.training is not None
    assert manifest.training.device.startswith("2 x ")
    assert [folder.name for folder in (home.adapters / "colours").glob("[0-9]*")] == ["1"]
    assert done.stdout.count("colours@1 written") == 1
    assert not (home.runs / "colours").exists()
