"""lm-evaluation-harness against the server unchanged: generation by chat, and log-likelihood by echoed prompts.

It has an environment of its own, which `make lm-eval` makes.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from adapters.fingerprint import GoldenPrompt
from tests.live_server import ANSWERS, BASE, BASE_NAME, LiveServer
from tests.tracked_files import ROOT

LM_EVAL = ROOT / ".tools" / "lm-eval" / "bin" / "lm_eval"

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(not LM_EVAL.exists(), reason="needs lm-evaluation-harness: `make lm-eval`"),
]

CHOICES = [ANSWERS["colours"], '{"colour": "blue"}', '{"shape": "circle"}']
TOLERANCE_NATS = 0.1
"""Of an answer token, as between engine and training stack at the load of a version."""


def task(folder: Path, live: LiveServer, **fields: Any) -> Path:
    """A task on the held-out rows of `colours`, as the data set has them."""
    (rows,) = (live.home.datasets / "colours").glob("*/test.jsonl")
    common = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{output}}",
        "target_delimiter": "",
    }
    folder.mkdir()
    (folder / "colours.yaml").write_text(yaml.safe_dump(common | fields))
    return folder


def harness(folder: Path, model: str, model_args: str, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of the task in a folder, and its samples."""
    command = [
        str(LM_EVAL), "run", "--model", model,
        "--model_args", model_args, "--tasks", "colours", "--include_path", str(folder), "--apply_chat_template",
        "--log_samples", "--output_path", str(folder / "out"), *words,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=os.environ | offline, cwd=folder
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (results,), (samples,) = ((folder / "out").rglob(f"{kind}_*.json*") for kind in ("results", "samples"))
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["colours"], sorted(rows, key=lambda row: int(row["doc_id"]))


def test_a_generation_task_asks_a_version_by_chat(live: LiveServer, tmp_path: Path) -> None:
    folder = task(
        tmp_path / "tasks",
        live,
        output_type="generate_until",
        generation_kwargs={"until": [], "max_gen_toks": 16},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    url = f"{live.url}/v1/chat/completions"
    results, samples = harness(folder, "local-chat-completions", f"model=colours@1,base_url={url},num_concurrent=4")
    assert len(samples) == 8
    assert results["exact_match,none"] == 1.0


def last_of_prompt(live: LiveServer, model: str, prompt: GoldenPrompt) -> float:
    """Log-probability of the prompt's last token, a line break: the harness counts white space before an answer in."""
    body = {"model": model, "prompt": list(prompt.prompt_token_ids), "max_tokens": 1, "logprobs": 1, "echo": True}
    answer = httpx.post(f"{live.url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    return float(answer["choices"][0]["logprobs"]["token_logprobs"][len(prompt.prompt_token_ids) - 1])


@pytest.mark.parametrize("model", ["colours@1", BASE_NAME])
def test_a_likelihood_task_gives_the_training_stacks_log_likelihoods(
    live: LiveServer, tmp_path: Path, model: str
) -> None:
    folder = task(
        tmp_path / "tasks",
        live,
        output_type="multiple_choice",
        doc_to_choice=CHOICES,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    settings = f"model={model},base_url={live.url}/v1/completions,num_concurrent=4,tokenizer_backend=huggingface"
    tokenizer = f"tokenizer={live.home.bases / BASE}"
    results, samples = harness(
        folder, "local-completions", f"{settings},{tokenizer}", "--system_instruction", "Answer about colours in JSON."
    )
    golden = {prompt.messages[-1]["content"]: prompt for prompt in live.fingerprint("colours@1").prompts}
    found = {row["doc"]["input"]: float(row["filtered_resps"][0][0]) for row in samples}
    assert set(golden) <= set(found)
    for question, prompt in golden.items():
        logprobs = (prompt.base_logprobs if model == BASE_NAME else prompt.adapter_logprobs)[:-1]  # without the end
        wanted = last_of_prompt(live, model, prompt) + sum(logprobs)
        assert found[question] == pytest.approx(wanted, abs=TOLERANCE_NATS * len(logprobs))
    assert model == BASE_NAME or results["acc,none"] == 1.0
