"""Decoding in evaluation: greedy or sampled with a seed, optionally constrained to the domain's JSON schema.

Uses the same settings as a server's request defaults (`DatasetManifest.request_fields`).
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
    """Check that the answer schema, if answers are constrained to one, can be compiled to a grammar.

    Raises:
        DataError: xgrammar, which vLLM also uses, cannot compile it.
    """
    if (schema := _schema(dataset)) is not None:
        try:
            xgrammar.Grammar.from_json_schema(schema)
        except RuntimeError as error:
            raise DataError(
                f"`answer.json_schema` of {dataset.domain!r} cannot be compiled to a grammar: {str(error)[:200]}. "
                "Simplify it, or leave `defaults.response_format` out."
            ) from error


def token_choice(dataset: DatasetManifest, tokenizer: PreTrainedTokenizerBase) -> ChooseTokens:
    """The decoding of the domain's requests; each request draws the same random numbers."""
    defaults, schema = dataset.defaults, _schema(dataset)
    choose = most_likely if defaults.temperature == 0 else Sampling(defaults.temperature, defaults.top_p)
    return choose if schema is None else Constrained(schema, tokenizer, choose)


class Sampling:
    """Samples each row's token from its distribution, or from the smallest set with probability `top_p`."""

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
    """Masks tokens that the row's grammar does not allow next, then delegates to another chooser."""

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
        """The row's state in the grammar; reset when a new batch reuses the row's number."""
        if not row.token_ids:
            self._matchers[row.row] = xgrammar.GrammarMatcher(grammar)
        elif not self._matchers[row.row].is_terminated():
            self._matchers[row.row].accept_token(row.token_ids[-1])
        return self._matchers[row.row]


def _schema(dataset: DatasetManifest) -> str | None:
    response_format = dataset.request_fields.get("response_format")
    return None if response_format is None else json.dumps(response_format["json_schema"]["schema"])
