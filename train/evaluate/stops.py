"""Where an answer ends: at an end token, or at one of the domain's stop strings."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from train.evaluate.generation import IsFinished


def ends_answer(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> IsFinished:
    """Whether the newest token ends the answer: an end token, or one that completes a stop string."""
    # A token is at least a byte; one more, because decoding may drop a space at the beginning.
    look_back = 1 + max((len(text.encode()) for text in stop), default=0)

    def is_finished(token_ids: list[int]) -> bool:
        if token_ids[-1] == tokenizer.eos_token_id:
            return True
        tail = str(tokenizer.decode(token_ids[-look_back:], skip_special_tokens=True)) if stop else ""
        return any(text in tail for text in stop)

    return is_finished


def until_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to and with the first stop string; the last token may contain more."""
    ends = [text.index(s) + len(s) for s in stop if s in text]
    return text[: min(ends, default=None)]
