"""How evaluation chooses tokens: greedily or sampled with a seed, held to the domain's JSON schema where it says so.

The same settings that a server gives to requests which name none (`DatasetManifest.request_fields`).
"""

import json
from collections.abc import Sequence

import torch
import xgrammar
from transformers import PreTrainedTokenizerBase

from config.dataset import DatasetManifest
from train.errors import DataError
from train.evaluate.generation import ChooseTokens, Continuation, most_likely

_SEED = 13


def check_format(dataset: DatasetManifest) -> None:
    """Do nothing where answers are not held to a schema, or to one that a grammar can follow.

    Raises:
        DataError: xgrammar, which vLLM uses too, cannot follow it.
    """
    if (schema := _schema(dataset)) is not None:
        try:
            xgrammar.Grammar.from_json_schema(schema)
        except RuntimeError as error:
            raise DataError(
                f"`answer.json_schema` of {dataset.domain!r} cannot become a grammar: {str(error)[:200]}. "
                "Simplify it, or leave `defaults.response_format` out."
            ) from error


def token_choice(dataset: DatasetManifest, tokenizer: PreTrainedTokenizerBase) -> ChooseTokens:
    """The choice that the domain's requests get; each one draws the same random numbers."""
    defaults, schema = dataset.defaults, _schema(dataset)
    choose = most_likely if defaults.temperature == 0 else Sampling(defaults.temperature, defaults.top_p)
    return choose if schema is None else Constrained(schema, tokenizer, choose)


class Sampling:
    """Draws each row's token from its distribution, or from its likeliest tokens that are `top_p` likely together."""

    def __init__(self, temperature: float, top_p: float | None) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator().manual_seed(_SEED)

    def __call__(self, logits: torch.Tensor, rows: Sequence[Continuation]) -> torch.Tensor:
        ordered, token_ids = (logits / self._temperature).softmax(-1).sort(-1, descending=True)
        if self._top_p is not None:
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self._top_p, 0.0)
        drawn = torch.multinomial(ordered.cpu(), 1, generator=self._generator).to(logits.device)
        return token_ids.gather(-1, drawn).squeeze(-1)


class Constrained:
    """Leaves each row the tokens that its grammar allows next, for another choice to choose from."""

    def __init__(self, schema: str, tokenizer: PreTrainedTokenizerBase, choose: ChooseTokens) -> None:
        self._schema = schema
        self._tokenizer = tokenizer
        self._choose = choose
        self._grammar: xgrammar.CompiledGrammar | None = None
        self._matchers: dict[int, xgrammar.GrammarMatcher] = {}

    def __call__(self, logits: torch.Tensor, rows: Sequence[Continuation]) -> torch.Tensor:
        num_rows, vocab_size = logits.shape  # of the model, which may be more than the tokenizer's
        grammar = self._grammar = self._grammar or self._compiled(vocab_size)
        bitmask = xgrammar.allocate_token_bitmask(num_rows, vocab_size)
        for position, row in enumerate(rows):
            matcher = self._matcher(row, grammar)
            if matcher.is_terminated():
                bitmask[position] = -1  # all tokens
            else:
                matcher.fill_next_token_bitmask(bitmask, position)
        allowed = logits.clone()  # the model's own are still needed
        xgrammar.apply_token_bitmask_inplace(allowed, bitmask.to(logits.device))
        return self._choose(allowed, rows)

    def _compiled(self, vocab_size: int) -> xgrammar.CompiledGrammar:
        tokens = xgrammar.TokenizerInfo.from_huggingface(self._tokenizer, vocab_size=vocab_size)
        return xgrammar.GrammarCompiler(tokens).compile_json_schema(self._schema)

    def _matcher(self, row: Continuation, grammar: xgrammar.CompiledGrammar) -> xgrammar.GrammarMatcher:
        """Where the row's answer is in the grammar; rows of the next batch have the same numbers, and no tokens yet."""
        if not row.token_ids:
            self._matchers[row.row] = xgrammar.GrammarMatcher(grammar)
        elif not self._matchers[row.row].is_terminated():
            self._matchers[row.row].accept_token(row.token_ids[-1])
        return self._matchers[row.row]


def _schema(dataset: DatasetManifest) -> str | None:
    response_format = dataset.request_fields.get("response_format")
    return None if response_format is None else json.dumps(response_format["json_schema"]["schema"])
