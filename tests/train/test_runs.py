"""The folder of a training run."""

import json
from pathlib import Path

from adapters.store.manifest import ComputeRecord
from train.runs import RUN_FILE, is_run_of, read_compute, start_run, write_compute


def test_a_run_file_is_replaced_and_not_written_over(tmp_path: Path) -> None:
    run, compute = tmp_path / "run", ComputeRecord(precision="float32", num_threads=1)
    start_run(run, "k")
    with (run / RUN_FILE).open() as before:
        write_compute(run, compute)
        assert json.loads(before.read()) == {"key": "k"}
    assert is_run_of(run, "k")
    assert read_compute(run) == compute
    assert [path.name for path in run.iterdir()] == [RUN_FILE]
