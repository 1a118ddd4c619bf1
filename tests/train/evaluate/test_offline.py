"""Answers without a server: base and adapters one after the other on one loaded base."""

from pathlib import Path
from typing import Any

import pytest

from adapters.store.manifest import ComputeRecord
from config.dataset import DatasetManifest, Message, read_dataset
from config.home import Home
from config.offline import OfflineJob, OfflineModel, OfflineQuestion
from tests.datasets_on_disk import write_dataset
from tests.exported import adapted, random_adapter
from tests.soft_prompts import save_soft_prompt
from tests.tiny_llama import RENDERED_AT, prepare_tiny_base, tiny_tokenizer, write_tiny_llama
from train.base.quantize import load_causal_lm
from train.data.encode import encode_prompt
from train.evaluate.local import generate
from train.evaluate.offline import BATCH_SIZE, answers_of

pytestmark = pytest.mark.slow

QUESTIONS = tuple(f"item {n}" for n in range(3))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("offline")
    home = Home(root / "var")
    prepare_tiny_base(home, write_tiny_llama(root / "model", initializer_range=0.2))
    base = home.bases / "tiny"
    random_adapter(base, root / "lora")
    random_adapter(base, root / "dora", seed=1, use_dora=True)
    save_soft_prompt(base, root / "soft", "prompt")
    write_dataset(home.datasets / "medical", num_test=1)
    return home


@pytest.fixture(scope="module")
def dataset(home: Home) -> DatasetManifest:
    return read_dataset(home.datasets / "medical")


def asked(name: str, dataset: DatasetManifest, folder: Path | None = None, questions: Any = QUESTIONS) -> OfflineModel:
    return OfflineModel(
        name=name,
        adapter_folder=folder,
        dataset=dataset,
        template_time=RENDERED_AT,
        questions=tuple(OfflineQuestion(id=text, messages=(Message(role="user", content=text),)) for text in questions),
    )


def float32(*shape: Any) -> ComputeRecord:
    return ComputeRecord(precision="float32", num_threads=1)


def texts(job: OfflineJob) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {model.name: {} for model in job.models}
    for answer in answers_of(job, float32):
        found[answer.model][answer.id] = answer.text
    return found


def test_each_adapter_answers_as_alone_and_leaves_the_base_as_it_was(home: Home, dataset: DatasetManifest) -> None:
    root, base = home.root.parent, home.bases / "tiny"
    kinds = {name: root / name for name in ("lora", "dora", "soft")}
    models = [asked("base", dataset), *(asked(name, dataset, kinds[name]) for name in kinds), asked("last", dataset)]
    found = texts(OfflineJob(base_folder=base, models=tuple(models)))
    tokenizer = tiny_tokenizer()
    prompts = [encode_prompt(tokenizer, (Message(role="user", content=text),), RENDERED_AT) for text in QUESTIONS]
    alone = {name: adapted(base, folder).eval() for name, folder in kinds.items()}
    for name, model in {"base": load_causal_lm(base).float().eval(), **alone}.items():
        assert list(found[name].values()) == [a.text for a in generate(model, tokenizer, prompts, dataset)], name
    assert found["last"] == found["base"]
    assert len({tuple(answers.values()) for answers in found.values()}) == 4


def test_answers_come_batch_by_batch(home: Home, dataset: DatasetManifest) -> None:
    questions = tuple(f"item {n}" for n in range(BATCH_SIZE + 1))
    job = OfflineJob(base_folder=home.bases / "tiny", models=(asked("base", dataset, questions=questions),))
    answers = list(answers_of(job, float32))
    assert {answer.id for answer in answers} == set(questions)
    assert answers[0].num_prompt_tokens <= answers[-1].num_prompt_tokens  # the shortest first
