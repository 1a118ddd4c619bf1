"""`objective: text`: language modelling on raw text, in packed rows whose documents do not attend to each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, Trainer
from trl.trainer.sft_trainer import SFTTrainer

from adapters.store.evaluation_records import ObjectiveScore
from config.dataset import DatasetRow, Message, Split, full_prompt
from config.rows import TextRow
from train.base.quantize import load_causal_lm
from train.data.documents import PackedRow, encode_documents, packed
from train.data.encode import Encoded
from train.evaluate.perplexity import perplexity
from train.lora_linear import fuse_lora
from train.methods.method import Trainable
from train.objectives.objective import Loaded, Objective, OnAnswers, Task, TrainingData
from train.objectives.packing import packed_batch
from train.objectives.sft import sft_config
from train.processes import num_processes

_NUM_GOLDEN = 6
_GOLDEN_CHARS = 200


class Text(Objective):
    """Raw text; judged by the perplexity of the test documents."""

    gated_by: ClassVar[str] = "perplexity"

    def encode(self, task: Task) -> TrainingData:
        train, validation = (self._packed(task, "train"), self._packed(task, "validation"))
        examples = [Encoded((), tuple(token for piece in row.pieces for token in piece)) for row in train]
        encode_documents(task.tokenizer, _texts(task, "test"), task.config)
        return TrainingData(_to_dataset(train), _to_dataset(validation), examples)

    def _packed(self, task: Task, split: Split) -> list[PackedRow]:
        documents = encode_documents(task.tokenizer, _texts(task, split), task.config)
        return packed([piece for pieces in documents for piece in pieces], task.config.recipe.max_length)

    def load(self, base_folder: Path) -> PreTrainedModel:
        return load_causal_lm(base_folder)

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> Trainer:
        loaded.model.config.use_cache = False
        recipe = task.config.recipe
        trainer = SFTTrainer(
            model=loaded.model,
            args=sft_config(recipe, task.run_folder, loaded.compute, loaded.model),
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=task.tokenizer,
            peft_config=loaded.peft_config,
            data_collator=packed_batch,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=recipe.early_stopping_patience)],
        )
        trainer.remove_callback(PrinterCallback)
        if not torch.cuda.is_available() and num_processes() == 1:
            assert trainer.model is not None
            fuse_lora(trainer.model)
        return trainer

    def evaluate(self, task: Task, model: Trainable, on_answers: OnAnswers) -> dict[str, ObjectiveScore]:
        documents = encode_documents(task.tokenizer, _texts(task, "test"), task.config)
        return {"perplexity": perplexity(model, documents)}

    def questions(self, task: Task) -> list[DatasetRow]:
        return []

    def golden(self, task: Task) -> list[DatasetRow]:
        """The beginning of a test document as the question, and what follows as the answer."""
        return [_conversation(task, row.text[: 2 * _GOLDEN_CHARS]) for row in _texts(task, "test")[:_NUM_GOLDEN]]


def _to_dataset(rows: Sequence[PackedRow]) -> Dataset:
    columns = [
        {
            "input_ids": [token for piece in row.pieces for token in piece],
            "labels": [token for piece in row.pieces for token in piece],
            "seq_lengths": list(map(len, row.pieces)),
        }
        for row in rows
    ]
    return Dataset.from_list(columns)


def _texts(task: Task, split: Split) -> list[TextRow]:
    return [row for row in task.rows.get(split, ()) if isinstance(row, TextRow)]


def _conversation(task: Task, text: str) -> DatasetRow:
    middle = text.find(" ", len(text) // 2)
    begin, end = (text[:middle], text[middle + 1 :]) if middle > 0 else (text, text)
    prompt = full_prompt(task.config.chat, (Message(role="user", content=begin),))
    return DatasetRow(messages=(*prompt, Message(role="assistant", content=end)), input=begin, output=end)
