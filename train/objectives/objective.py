"""What an objective is: rows to the trainer's data, the trainer, and the scores at the end.

An objective is one class in one file, and one line in `train.objectives.table`. `train.training` runs each of them by
`encode`, `load`, `make_trainer`, then `trainer.train()`; then `train.pipeline` calls `evaluate` and `questions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from adapters.store.evaluation_records import ObjectiveScore
from adapters.store.manifest import ComputeRecord, Manifest
from config.dataset import DatasetManifest, DatasetRow, Split
from config.domain import DomainConfig
from config.rows import AnyRow
from train.data.encode import Encoded
from train.methods.method import Trainable

TRAINED_SPLITS: tuple[Split, ...] = ("train", "validation")

OnAnswers = Callable[[int], None]
"""Called with the number of answers or pairs that were scored since the last call."""


@dataclass(frozen=True)
class StoredVersion:
    """A published version that a run needs: the one it starts from, or a reward model."""

    manifest: Manifest
    folder: Path


@dataclass(frozen=True)
class Task:
    """What is trained: settings, rows and tokenizer of one run; everything known before the base is loaded.

    Attributes:
        template_time: Passed to the chat template; `row_times` varies it where the recipe wants that.
        versions: The published versions that the settings name (`from`, `reward_model`), by their lora_name.
        replay: General rows that are trained on beside those of the data set.
    """

    config: DomainConfig
    dataset: DatasetManifest
    rows: Mapping[Split, Sequence[AnyRow]]
    tokenizer: PreTrainedTokenizerBase
    template_time: datetime
    run_folder: Path
    base_folder: Path
    versions: Mapping[str, StoredVersion] = field(default_factory=dict)
    replay: Sequence[DatasetRow] = ()

    @property
    def start(self) -> StoredVersion | None:
        """The version of `from`."""
        return self.versions[self.config.from_version] if self.config.from_version else None


@dataclass(frozen=True)
class TrainingData:
    """The trainer's data sets, encoded, cut and checked.

    Attributes:
        examples: The training sequences, for what is measured before training: lengths, a method's initialisation.
        num_replay: How many sequences at the end of `train` are of general rows.
    """

    train: Dataset
    validation: Dataset
    examples: Sequence[Encoded]
    num_replay: int = 0


@dataclass(frozen=True)
class Loaded:
    """The base in memory, as a trainer gets it.

    Attributes:
        model: The base; with `from`, the base with the version's adapter, trainable, as the only one.
        peft_config: Of the adapter that the trainer adds; None with `from`.
    """

    model: PreTrainedModel | PeftModel
    peft_config: PeftConfig | None
    compute: ComputeRecord


class Objective:
    """One way to train; all state is in the arguments."""

    gives_answers: ClassVar[bool] = True
    """False: a reward model, which cannot be served."""
    gated_by: ClassVar[str]
    """Name of the score that `gates.min_gain` judges: one of `evaluate`, or `exact_match`."""

    def encode(self, task: Task) -> TrainingData:
        """Encode, cut and check the training and validation rows, and check the test rows.

        Raises:
            DataError: Rows cannot be encoded with the base's chat template, in `recipe.max_length` tokens.
        """
        raise NotImplementedError

    def load(self, base_folder: Path) -> PreTrainedModel:
        """The base, with the head that the objective trains."""
        raise NotImplementedError

    def make_trainer(self, task: Task, data: TrainingData, loaded: Loaded) -> Trainer:
        """The trainer; it ends with the weights of the best `eval_loss` in `trainer.model`, a PeftModel."""
        raise NotImplementedError

    def evaluate(self, task: Task, model: Trainable, on_answers: OnAnswers) -> dict[str, ObjectiveScore]:
        """Scores on the test rows, by name, beside those of `questions`."""
        return {}

    def num_answers(self, task: Task) -> int:
        """How many answers `evaluate` tells `on_answers` of."""
        return 0

    def questions(self, task: Task) -> list[DatasetRow]:
        """Test rows as questions with expected answers, for exact match and held-out questions."""
        raise NotImplementedError

    def golden(self, task: Task) -> list[DatasetRow]:
        """Conversations for the fingerprint; none: the version cannot be verified by a server."""
        return self.questions(task)
