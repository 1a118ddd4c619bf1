"""Parity check: compare a fingerprint from training with the engine's own answers."""

import asyncio
import math
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass

from adapters.fingerprint import Fingerprint, GoldenPrompt
from adapters.reference import Target
from serve.engine.protocol import Engine
from serve.errors import not_finite_error
from serve.residency.template_time import Renderings

_NO_EFFECT_SHARE = 0.1  # of the effect that training measured: less is rounding


@dataclass(frozen=True)
class Parity:
    """Mean |log-probability difference| per answer token, nats; `reason` is None where all is well."""

    adapter_error_nats: float
    base_error_nats: float
    reason: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class Tolerance:
    """Most mean |log-probability difference| to the training stack, nats per answer token."""

    adapter_nats: float
    base_nats: float
    """Of the base on the same answers, which it finds unlikely: there a rounded base is further away."""


@dataclass(frozen=True)
class Replay:
    """What the engine says of the golden answers, in the order of the fingerprint's prompts."""

    adapter_logprobs: tuple[tuple[float, ...], ...]
    base_logprobs: tuple[tuple[float, ...], ...]
    rendered_token_ids: tuple[tuple[int, ...], ...]
    """Of the golden prompts, at the time of the fingerprint."""


async def replay(fingerprint: Fingerprint, engine: Engine, target: Target) -> Replay:
    """Teacher-force every golden answer through the engine, with the adapter and without, in one mixed batch.

    Raises:
        BaseNotFiniteError: A log-probability of the base is not finite.
        NotFiniteError: One of the version is not finite, and all of the base are.
    """
    prompts = fingerprint.prompts
    asked = [_answer_logprobs(prompt, engine, who) for who in (None, target) for prompt in prompts]
    logprobs = await _all_of(asked)  # the base's first: where they are not finite, no version is to blame
    rendered = tuple(_rendered(prompt, fingerprint, engine) for prompt in prompts)
    return Replay(tuple(logprobs[len(prompts) :]), tuple(logprobs[: len(prompts)]), rendered)


async def finite_logprobs(engine: Engine, token_ids: Sequence[int], target: Target | None) -> list[float]:
    """As the engine's `logprobs`, proved finite.

    Raises:
        BaseNotFiniteError: Of the base, one is not.
        NotFiniteError: Of a version, one is not.
    """
    logprobs = await engine.logprobs(token_ids, target)
    if not all(map(math.isfinite, logprobs)):
        raise not_finite_error(str(target) if target else None)
    return logprobs


def judge_parity(fingerprint: Fingerprint, served: Replay, tolerance: Tolerance) -> Parity:
    """Compare the engine's figures with the training stack's; the first thing wrong is the reason."""
    adapter_error = _mean_gap([p.adapter_logprobs for p in fingerprint.prompts], served.adapter_logprobs)
    base_error = _mean_gap([p.base_logprobs for p in fingerprint.prompts], served.base_logprobs)
    return Parity(adapter_error, base_error, _fault(fingerprint, served, adapter_error, base_error, tolerance))


def _fault(
    fingerprint: Fingerprint, served: Replay, adapter_error: float, base_error: float, tolerance: Tolerance
) -> str | None:
    for prompt, rendered in zip(fingerprint.prompts, served.rendered_token_ids, strict=True):
        if rendered != prompt.prompt_token_ids:
            return (
                f"the server's chat template or tokenizer turns a golden prompt into other tokens ({len(rendered)} "
                f"instead of {len(prompt.prompt_token_ids)}); serve the base it was trained on"
            )
    if not math.isfinite(base_error + adapter_error):  # no comparison with NaN holds
        return "a log-probability is not finite (NaN or infinity)"
    if base_error > tolerance.base_nats:
        return (
            f"the base model's log-probabilities differ by {base_error:.3f} nats per token from the base it was "
            f"trained on (at most {tolerance.base_nats:g} allowed); serve the base it was trained on"
        )
    effect = fingerprint.adapter_effect_nats
    if effect > tolerance.adapter_nats and _gap_to_base(served) < _NO_EFFECT_SHARE * effect:
        return (
            f"its log-probabilities equal the base model's, but training measured a difference of {effect:.3f} "
            "nats per token: no module was applied; see `lorikeet adapters lint`"
        )
    if adapter_error > tolerance.adapter_nats:
        return (
            f"its log-probabilities differ by {adapter_error:.3f} nats per token from those measured in training "
            f"(at most {tolerance.adapter_nats:g} allowed); its weights or its scaling are applied wrongly"
        )
    return None


def _rendered(prompt: GoldenPrompt, fingerprint: Fingerprint, engine: Engine) -> tuple[int, ...]:
    """A golden prompt's tokens by the engine, at the time that training gave the chat template.

    A fingerprint that does not say at which time counts as rendered alike where all but the time is.
    """
    rendered = tuple(engine.render(prompt.messages, fingerprint.template_time, prompt.tools))
    if rendered == prompt.prompt_token_ids or fingerprint.template_time is not None:
        return rendered
    is_same = Renderings.of(engine, prompt.messages, prompt.tools).is_of_another_time(prompt.prompt_token_ids)
    return prompt.prompt_token_ids if is_same else rendered


def _gap_to_base(served: Replay) -> float:
    """Nats per token; not quite 0 where nothing is applied, for a row's rounding depends on its batch."""
    return _mean_gap(served.base_logprobs, served.adapter_logprobs)


def _mean_gap(want: Sequence[Sequence[float]], got: Sequence[Sequence[float]]) -> float:
    gaps = [abs(w - g) for ws, gs in zip(want, got, strict=True) for w, g in zip(ws, gs, strict=True)]
    return sum(gaps) / max(len(gaps), 1)


async def _answer_logprobs(prompt: GoldenPrompt, engine: Engine, target: Target | None) -> tuple[float, ...]:
    token_ids = (*prompt.prompt_token_ids, *prompt.answer_token_ids)
    logprobs = await finite_logprobs(engine, token_ids, target)
    return tuple(logprobs[-len(prompt.answer_token_ids) :])


async def _all_of(work: Iterable[Awaitable[tuple[float, ...]]]) -> list[tuple[float, ...]]:
    """All results, once the last one is there; else the first error in their order."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
