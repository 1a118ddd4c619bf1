"""Jobs that cannot be: each is an error with OpenAI's code, and puts nothing into the queue."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.store.store import AdapterStore
from tests.jobs_serving import chat_rows, make_jobs_serving
from tests.serving import BASE_NAME, Serving

pytestmark = pytest.mark.anyio

USER, ASSISTANT = {"role": "user", "content": "A tree?"}, {"role": "assistant", "content": "Oak."}
PREFERENCE = {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]}
GRADER = {"type": "string_check", "name": "exact", "input": "{{sample.output_text}}", "reference": "{{item.reference}}",
          "operation": "eq"}  # fmt: skip


def rows_of(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {
    "good": chat_rows(),
    "nine": chat_rows(9),
    "unanswered": rows_of(*[{"messages": [USER, ASSISTANT]}] * 11, {"messages": [USER]}),
    "preferences": rows_of(*[PREFERENCE] * 10),
}


@pytest.fixture
def serving(tmp_path: Path, store: AdapterStore, base_folder: Path) -> Serving:
    serving = make_jobs_serving(tmp_path, store, base_folder)
    serving.publish("medical")
    return serving


async def create(serving: Serving, file: str = "good", **body: Any) -> tuple[int, dict[str, Any]]:
    """The answer to a request for a job with one of `FILES`."""
    async with serving.client() as client:
        form = {"file": (f"{file}.jsonl", FILES[file])}
        uploaded = (await client.post("/v1/files", data={"purpose": "fine-tune"}, files=form)).json()
        wanted = {"model": BASE_NAME, "training_file": uploaded["id"]} | body
        response = await client.post("/v1/fine_tuning/jobs", json=wanted)
        jobs = (await client.get("/v1/fine_tuning/jobs")).json()["data"]
    assert len(jobs) == (response.status_code == 200)
    return response.status_code, response.json().get("error") or response.json()


@pytest.mark.parametrize(
    ("file", "body", "code", "param", "message"),
    [
        ("nine", {}, "invalid_n_examples", "training_file", "has 9 example(s), but must have at least 10"),
        ("unanswered", {}, "invalid_training_file", "training_file", "Line 12 of the training file has no turn"),
        ("preferences", {}, "invalid_training_file", "training_file", "takes conversations"),
        ("good", {"method": {"type": "dpo"}}, "invalid_training_file", "training_file", "takes preferences"),
        ("good", {"model": "gpt-9"}, "model_not_available", "model", "'gpt-9' is not available for fine-tuning"),
        ("good", {"model": "medical@7"}, "model_not_available", "model", "'medical@7' is not available"),
        ("good", {"model": "ft:tiny-base:x:y:z"}, "model_not_available", "model", "does not exist"),
        ("good", {"suffix": "bäume"}, "invalid_suffix", "suffix", "letters, digits and hyphens only"),
        ("good", {"suffix": "a/b"}, "invalid_suffix", "suffix", "Got 'a/b'"),
        ("good", {"suffix": "-a"}, "invalid_suffix", "suffix", "begin and end with a letter or digit"),
        ("good", {"suffix": BASE_NAME}, "invalid_suffix", "suffix", "the name of a base model"),
        ("good", {"suffix": "a" * 64}, "invalid_suffix", "suffix", "must have at most 63 characters. Got 64"),
    ],
)
async def test_a_job_that_cannot_be_has_openais_code(
    serving: Serving, file: str, body: dict[str, Any], code: str, param: str, message: str
) -> None:
    status, error = await create(serving, file, **body)
    assert (status, error["code"], error["param"], error["type"]) == (400, code, param, "invalid_request_error")
    assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"suffix": "a" * 65}, "body.suffix: String should have at most 64 characters"),
        ({"seed": -1}, "body.seed"),
        ({"lorikeet": {"gate": {"min_gain": 0.1}}}, "'gate' is not known; `lorikeet` takes alias, domain, gates"),
        ({"epochs": 3}, "body.epochs: Extra inputs are not permitted"),
        ({"metadata": {str(n): "" for n in range(17)}}, "body.metadata: Dictionary should have at most 16 items"),
        ({"metadata": {"k": "x" * 513}}, "body.metadata.k: String should have at most 512 characters"),
        ({"hyperparameters": {"n_epochs": 0}}, "body.hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, "body.hyperparameters.n_epochs"),
        ({"hyperparameters": {}, "method": {"type": "supervised"}}, "under `method` only"),
        ({"method": {"type": "dpo", "supervised": {}}}, "`method.supervised` does not match"),
        ({"method": {"type": "reinforcement"}}, "`method.reinforcement` with a `grader` is required"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "body.integrations"),
        (
            {
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {"grader": GRADER, "hyperparameters": {"eval_interval": 10**400}},
                }
            },
            "eval_interval",
        ),
        (
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "python", "source": "1"}}}},
            "does not run code of clients",
        ),
    ],
)
async def test_a_body_that_is_none_is_a_400_that_names_the_field(
    serving: Serving, body: dict[str, Any], message: str
) -> None:
    status, error = await create(serving, **body)
    assert status == 400
    assert message in error["message"]


@pytest.mark.slow
async def test_an_unknown_file_is_a_404(serving: Serving) -> None:
    status, error = await create(serving, training_file="file-1")
    assert (status, error["code"], error["param"]) == (404, "invalid_training_file", "training_file")


async def test_a_validation_file_is_checked_too(serving: Serving) -> None:
    status, error = await create(serving, validation_file="file-1")
    assert (status, error["code"], error["param"]) == (404, "invalid_validation_file", "validation_file")


async def test_a_file_of_another_purpose_is_no_training_file(serving: Serving) -> None:
    async with serving.client() as client:
        form = {"file": ("a.jsonl", chat_rows())}
        file = (await client.post("/v1/files", data={"purpose": "user_data"}, files=form)).json()["id"]
    status, error = await create(serving, training_file=file)
    assert (status, error["code"]) == (400, "invalid_training_file")
    assert "upload it with the purpose 'fine-tune'" in error["message"]


async def test_a_graders_model_must_be_this_servers(serving: Serving) -> None:
    grader = {"type": "score_model", "name": "judge", "model": "gpt-9",
              "input": [{"role": "user", "content": "{{sample.output_text}}"}]}  # fmt: skip
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    status, error = await create(serving, method=method)
    assert (status, error["param"]) == (400, "method.reinforcement.grader.model")
    grader["model"] = "medical"
    assert (await create(serving, method=method))[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "file"),
    [
        ({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}, "good"),
        ({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}, "preferences"),
        ({"type": "reinforcement", "reinforcement": {"grader": GRADER}}, "good"),
    ],
)
async def test_every_method_is_taken_with_its_settings(serving: Serving, method: dict[str, Any], file: str) -> None:
    status, job = await create(serving, file, method=method)
    assert (status, job["method"]["type"]) == (200, method["type"])
    settings = job["method"][method["type"]]["hyperparameters"]
    assert settings["batch_size"] == "auto"
    assert job["hyperparameters"] == settings


@pytest.mark.slow
async def test_the_older_place_of_hyperparameters_still_counts(serving: Serving) -> None:
    _, job = await create(serving, hyperparameters={"n_epochs": 4})
    assert job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 4


async def test_facts_of_a_file_are_read_again_after_a_restart(
    serving: Serving, tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    async with serving.client() as client:
        form = {"file": ("a.jsonl", chat_rows(9))}
        file = (await client.post("/v1/files", data={"purpose": "fine-tune"}, files=form)).json()["id"]
    restarted = make_jobs_serving(tmp_path, store, base_folder)
    async with restarted.client() as client:
        response = await client.post("/v1/fine_tuning/jobs", json={"model": BASE_NAME, "training_file": file})
    assert response.json()["error"]["code"] == "invalid_n_examples"


@pytest.mark.slow
@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
async def test_an_unknown_job_is_a_404_with_openais_code(serving: Serving, action: str) -> None:
    async with serving.client() as client:
        response = await client.post(f"/v1/fine_tuning/jobs/ftjob-1/{action}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "fine_tune_not_found", "fine_tune_id")


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "after=ftjob-1", "&".join(f"metadata[k{n}]=v" for n in range(1500))],
    ids=["none", "many", "word", "unknown", "metadata"],
)
async def test_a_page_that_is_none_is_an_error(serving: Serving, query: str) -> None:
    async with serving.client() as client:
        response = await client.get(f"/v1/fine_tuning/jobs?{query}")
    assert response.status_code in (400, 404)


async def test_more_unfinished_jobs_than_allowed_are_a_429(
    tmp_path: Path, store: AdapterStore, base_folder: Path
) -> None:
    serving = make_jobs_serving(tmp_path, store, base_folder, jobs={"max_jobs_per_tenant": 1})
    await create(serving)
    async with serving.client() as client:
        file = (await client.get("/v1/files")).json()["data"][0]["id"]
        response = await client.post("/v1/fine_tuning/jobs", json={"model": BASE_NAME, "training_file": file})
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(response.headers["retry-after"]) > 0
