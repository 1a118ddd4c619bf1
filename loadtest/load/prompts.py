"""Prompts and answer lengths: random words, or the questions of a built data set."""

import random
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from config.dataset import DatasetManifest, DatasetRow, Message, read_dataset, read_split
from config.loadtest import FixedLength, Length, LoadtestConfig, SyntheticPrompts, UniformLength

DEFAULT_MAX_TOKENS = FixedLength(value=32)

# Short and common, so that a word is about one token in every vocabulary.
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money",
    "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side",
    "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member", "law",
    "car", "city", "name", "team", "minute", "idea", "body", "back", "parent", "face", "level", "office", "door",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """One prompt. `stop` and `is_natural_end` are set for questions whose answers end by themselves."""

    messages: tuple[Message, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    is_natural_end: bool = False


class PromptSource(Protocol):
    def draw(self, model: str, rng: random.Random) -> Prompt: ...


class SyntheticSource:
    """Random words after a prefix common to all requests for a model."""

    def __init__(self, prompts: SyntheticPrompts, max_tokens: Length | None, seed: int) -> None:
        self._prompts = prompts
        self._max_tokens = max_tokens or DEFAULT_MAX_TOKENS
        self._seed = seed

    def draw(self, model: str, rng: random.Random) -> Prompt:
        num_words = draw_length(self._prompts.num_words, rng)
        num_shared = round(num_words * self._prompts.shared_prefix_share)
        shared = random.Random(f"prefix {model} {self._seed}").choices(_WORDS, k=num_shared)
        words = shared + rng.choices(_WORDS, k=num_words - num_shared)
        return Prompt((Message(role="user", content=" ".join(words)),), draw_length(self._max_tokens, rng))


class DatasetSource:
    """A random question of a held-out split per request."""

    def __init__(
        self, splits: Mapping[str, tuple[DatasetManifest, list[DatasetRow]]], max_tokens: Length | None
    ) -> None:
        """`splits` by model reference."""
        self._splits = splits
        self._max_tokens = max_tokens

    def draw(self, model: str, rng: random.Random) -> Prompt:
        manifest, rows = self._splits[model]
        messages = rng.choice(rows).prompt
        if self._max_tokens is not None:
            return Prompt(messages, draw_length(self._max_tokens, rng))
        return Prompt(messages, manifest.evaluation.max_new_tokens, manifest.evaluation.stop, is_natural_end=True)


def prompt_source(config: LoadtestConfig, models: Set[str], datasets: Path) -> PromptSource:
    """The configured prompt source for these models; the only function here that reads files.

    Raises:
        DatasetError: A data set that it names is not built.
    """
    if isinstance(config.prompts, SyntheticPrompts):
        return SyntheticSource(config.prompts, config.max_tokens, config.seed)
    # The base has no domain of its own: it is asked what the first adapter is asked.
    own = {model: config.mix.models[0] if model == config.mix.base else model for model in models}
    domains = {model: config.prompts.domain or _domain_of(adapter) for model, adapter in own.items()}
    built = {domain: _read(datasets / domain) for domain in sorted(set(domains.values()))}
    return DatasetSource({model: built[domain] for model, domain in domains.items()}, config.max_tokens)


def draw_length(length: Length, rng: random.Random) -> int:
    if isinstance(length, FixedLength):
        return length.value
    if isinstance(length, UniformLength):
        return rng.randint(length.low, length.high)
    drawn = length.median * rng.lognormvariate(0.0, length.sigma)
    return max(1, min(length.max, round(drawn)))


def _domain_of(model: str) -> str:
    """Domain of a model reference: `medical@3` gets the questions of `medical`."""
    return model.partition("@")[0]


def _read(folder: Path) -> tuple[DatasetManifest, list[DatasetRow]]:
    return read_dataset(folder), read_split(folder, "test")
