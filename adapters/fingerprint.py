"""The fingerprint: reference log-probabilities of the training stack, which a server must reproduce."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, FiniteFloat, NaiveDatetime, NonNegativeInt, ValidationError, model_validator

from adapters.errors import InvalidAdapterError
from adapters.store.record import Record

FINGERPRINT_FILE = "fingerprint.json"


class GoldenPrompt(Record):
    """One conversation with its teacher-forced log-probabilities."""

    messages: tuple[dict[str, Any], ...] = Field(
        description="The turns before the answer, as chat templates take them."
    )
    tools: tuple[dict[str, Any], ...] = Field((), description="Tool definitions.")
    prompt_token_ids: tuple[NonNegativeInt, ...] = Field(description="(P,) the messages in the chat template.")
    answer_token_ids: tuple[NonNegativeInt, ...] = Field(description="(A,) the reference answer, with its end token.")
    adapter_logprobs: tuple[FiniteFloat, ...] = Field(description="(A,) nats, by transformers + peft.")
    base_logprobs: tuple[FiniteFloat, ...] = Field(description="(A,) nats, the same base without the adapter.")

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        lengths = len(self.answer_token_ids), len(self.adapter_logprobs), len(self.base_logprobs)
        if len(set(lengths)) > 1:
            raise ValueError(f"an answer has {lengths} token ids, adapter and base log-probabilities")
        return self


class Fingerprint(Record):
    """`fingerprint.json` of a version folder."""

    schema_version: Literal[1] = 1
    base_digest: str
    chat_template_sha256: str
    template_time: NaiveDatetime | None = Field(
        None,
        description="The time passed to the chat template. None: the template does not use it, or the file is older.",
    )
    stop_token_ids: tuple[int, ...]
    modules: tuple[str, ...] = Field(description="Full names of the base's layers that carry LoRA weights.")
    prompts: tuple[GoldenPrompt, ...]

    @property
    def adapter_effect_nats(self) -> float:
        """Effect size of the adapter: mean |adapter − base| log-probability per answer token, nats."""
        gaps = [abs(a - b) for p in self.prompts for a, b in zip(p.adapter_logprobs, p.base_logprobs, strict=True)]
        return sum(gaps) / max(len(gaps), 1)


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint of a version folder, or None where the adapter was imported without one.

    Raises:
        InvalidAdapterError: The file is not a valid fingerprint.
    """
    path = folder / FINGERPRINT_FILE
    if not path.exists():
        return None
    try:
        return Fingerprint.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidAdapterError(
            f"{FINGERPRINT_FILE} of {folder.name!r} is broken at {'.'.join(map(str, problem['loc'])) or 'top'}: "
            f"{problem['msg']}. Write it again."
        ) from error
