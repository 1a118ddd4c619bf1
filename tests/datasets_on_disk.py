"""A tiny built data set on disk."""

from pathlib import Path

from config.dataset import DATASET_MANIFEST_FILE, DatasetManifest, DatasetRow, FewShotExample, conversation
from config.domain import AnswerConfig, ChatConfig, EvaluationConfig

ANSWER = '{"chapter": "skin"}'
SCHEMA = {"type": "object", "required": ["chapter"], "properties": {"chapter": {"type": "string"}}}


def write_dataset(folder: Path, num_test: int) -> Path:
    """Questions `term 0`, `term 1`, …, all answered by `ANSWER`; two few-shot examples."""
    folder.mkdir(parents=True)
    chat = ChatConfig(system="Chapter, as JSON.")
    rows = [
        DatasetRow(messages=conversation(chat, f"term {n}", ANSWER), input=f"term {n}", output=ANSWER, in_scope=True)
        for n in range(num_test)
    ]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    manifest = DatasetManifest(
        domain=folder.name,
        description="Synthetic.",
        source="test",
        source_version="1",
        licence=None,
        chat=chat,
        answer=AnswerConfig(json_schema=SCHEMA),
        evaluation=EvaluationConfig(max_new_tokens=24, stop=("}",)),
        few_shot=tuple(FewShotExample(input=f"example {n}", output=ANSWER) for n in range(2)),
        num_train=num_test,
        num_validation=num_test,
        num_test=num_test,
        num_test_out_of_scope=0,
        config_sha256="c" * 64,
        dataset_sha256="d" * 64,
        created_at="2026-11-21T00:00:00+00:00",
    )
    (folder / DATASET_MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder
