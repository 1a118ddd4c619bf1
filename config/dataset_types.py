"""The types of data sets, by TRL's names (TRL documentation, "Dataset formats and types")."""

from typing import Literal

DatasetType = Literal["language_modeling", "prompt_completion", "prompt_only", "preference", "unpaired_preference"]
