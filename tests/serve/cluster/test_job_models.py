"""Names of jobs' models, and the first line of a batch, lead to their base."""

import json
from pathlib import Path

import pytest

from config.home import Home
from serve.cluster.job_models import JobModels
from tests.jobs_home import JobsHome

MAX_LINE_BYTES = 200


@pytest.fixture
def models(tmp_path: Path) -> JobModels:
    return JobModels(Home(tmp_path), MAX_LINE_BYTES)


@pytest.fixture
def home(tmp_path: Path) -> JobsHome:
    return JobsHome(Home(tmp_path).jobs)


def asked(input_file_id: object) -> bytes:
    return json.dumps({"input_file_id": input_file_id, "endpoint": "/v1/chat/completions"}).encode()


def test_a_fine_tuned_name_stands_for_its_version(models: JobModels, home: JobsHome) -> None:
    job = home.running()
    home.queue.finish(job.id, "w1", "succeeded", fine_tuned_model="ft:b:acme:s:1", version="acme-support@2")
    assert models.reference("ft:b:acme:s:1") == "acme-support@2"
    assert models.reference("ft:b:acme:s:2") == "ft:b:acme:s:2"
    assert models.reference("legal") == "legal"


def test_the_first_line_of_a_batch_has_its_model(models: JobModels, home: JobsHome) -> None:
    lines = [{"custom_id": name, "body": {"model": name}} for name in ("legal", "medical")]
    file = home.stored("\n".join(map(json.dumps, lines)).encode(), purpose="batch")
    assert models.model_of_batch(asked(file.id)) == "legal"


@pytest.mark.parametrize(
    "content",
    [b"", b"no json", b"[]", b'{"body": []}', b'{"body": {"model": 3}}', b'{"body": {"model": "%s"}}' % (b"x" * 300)],
)
def test_a_first_line_without_model_has_none(models: JobModels, home: JobsHome, content: bytes) -> None:
    assert models.model_of_batch(asked(home.stored(content, purpose="batch").id)) == ""


@pytest.mark.parametrize("body", [b"", b"[]", b"{", asked(None), asked("file-unknown"), asked("\ud800")])
def test_a_request_without_a_file_has_no_model(models: JobModels, body: bytes) -> None:
    assert models.model_of_batch(body) == ""
