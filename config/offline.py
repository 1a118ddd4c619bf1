"""What `lorikeet eval run --offline` and the process that answers tell each other, as JSON."""

from pathlib import Path

from pydantic import Field, NaiveDatetime

from config.dataset import DatasetManifest, Message
from config.model import Config


class OfflineQuestion(Config):
    """A question by its id, with all turns that the model gets."""

    id: str
    messages: tuple[Message, ...]


class OfflineModel(Config):
    """Questions for one model."""

    name: str
    adapter_folder: Path | None = Field(description="None: the base itself.")
    dataset: DatasetManifest = Field(description="Its settings are those that the model answers with.")
    template_time: NaiveDatetime
    questions: tuple[OfflineQuestion, ...] = Field(min_length=1)


class OfflineJob(Config):
    """Models of one base, to be asked one after the other."""

    base_folder: Path
    models: tuple[OfflineModel, ...]


class OfflineAnswer(Config):
    """A line of the answering process: one answer."""

    model: str
    id: str
    text: str
    num_prompt_tokens: int
    num_answer_tokens: int
