"""`data` of a domain: where its examples come from, and how they are cleaned and split."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from config.model import Config


class DataConfig(Config):
    """Source and split of a domain's examples."""

    source: Literal["icd10cm", "iso18245", "licensedcode", "jsonl"]
    path: Path | None = Field(None, description="JSONL file of `{input, output}` rows (with `source: jsonl`).")
    licence: str | None = Field(None, description="Licence of the data; default: the packaged source's own.")
    num_train: int = Field(2000, ge=1, description="Maximum number of training examples.")
    num_validation: int = Field(64, ge=1, description="Number of examples for early stopping.")
    num_test: int = Field(240, ge=1, description="Number of held-out examples; never trained on.")
    out_of_scope_share: float = Field(0.06, ge=0, lt=1, description="Share of inputs that must be refused.")
    max_input_chars: int = Field(400, ge=1, description="Longer inputs are truncated.")
    near_duplicate_jaccard: float = Field(
        0.8, gt=0, le=1, description="MinHash similarity at which a training example is dropped as a duplicate."
    )
    seed: int = 13

    @model_validator(mode="after")
    def _jsonl_needs_a_path(self) -> "DataConfig":
        if (self.source == "jsonl") != (self.path is not None):
            raise ValueError(f"`path` requires `source: jsonl`; got source {self.source!r}, path {self.path}")
        return self
