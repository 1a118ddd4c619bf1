"""Ask a judge for the grades and preferences that its metrics need; each reply is saved as it comes.

A reply is kept by the judge and by all that it was shown: rubric, prompt, expected answer, answers. So an interrupted
evaluation continues, and the same answer of another version is not judged again. What has no usable reply is left out
of the figure with its reason; a judge that cannot be reached ends the evaluation.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from openai import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    PermissionDeniedError,
    UnprocessableEntityError,
)

from config.progress import Progress
from loadtest.evaluate import EvaluationError
from loadtest.evaluation.answer_lines import AnswerLines, read_lines
from loadtest.evaluation.asking import base_model, listed_since
from quality.judge import JudgeReplyError, JudgeTask, choice_task, grade_task, preference, read_choice, read_grade
from quality.metrics.item import Item, LeftOut
from quality.metrics.judged import NOT_ASKED, SCORES, Judged, JudgedPairs, JudgeOf, shown
from quality.metrics.settings import JudgeSettings

MAX_REPLY_TOKENS = 300
TIMEOUT_S = 120.0
MAX_FAILURES = 10
"""Requests in a row that fail before the evaluation ends."""

_HOPELESS = (AuthenticationError, PermissionDeniedError, NotFoundError)
_REFUSED = (BadRequestError, UnprocessableEntityError)

_FENCED = re.compile(r"^```(?:json)?\s*(\{.*\})\s*```$", re.DOTALL)

ReadT = TypeVar("ReadT")
WorkT = TypeVar("WorkT")


@dataclass(frozen=True)
class JudgePlace:
    """Where a judge's replies are kept, and how it is asked.

    Attributes:
        server: Client of the server under evaluation; None if no server is evaluated.
        folder: Of the domain's evaluations.
        environ: Environment variables, for API keys.
    """

    server: AsyncOpenAI | None
    folder: Path
    environ: Mapping[str, str]
    concurrency: int = 16


def check_judges(metrics: Sequence[object], environ: Mapping[str, str]) -> None:
    """Check what can be checked before anything is asked.

    Raises:
        EvaluationError: A judge's API key is not set.
    """
    for metric in metrics:
        if isinstance(metric, Judged | JudgedPairs):
            name = metric.settings.api_key_env
            if name is not None and not environ.get(name):
                raise EvaluationError(
                    f"Metric `{metric.name}`: environment variable {name!r} (`api_key_env`) is not set. Set it to the "
                    "judge's API key."
                )


class LiveJudge:
    """The judge of one metric; use it as an async context.

    Args:
        rubric: The domain's, for a metric without one.
    """

    def __init__(
        self, metric: JudgeOf, place: JudgePlace, rubric: str | None, progress: Progress | None = None
    ) -> None:
        self.metric = metric
        self._progress = progress or Progress("judge")
        self._place = place
        self._rubric = metric.settings.rubric or rubric
        self._own_client = _client_of(metric.settings, place.environ)
        self._num_failed = 0

    async def __aenter__(self) -> "LiveJudge":
        client = self._own_client or self._place.server
        assert client is not None
        settings = self.metric.settings
        self._client = client
        self.metric.judge = settings.model or await base_model(client)
        # A base that was prepared again is another judge.
        since = await listed_since(client, self.metric.judge) if settings.url is None else 0
        self._saved = _SavedReplies(self._place.folder / "judged", self.metric.judge, f"{settings.url} {since}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own_client is not None:
            await self._own_client.close()

    async def grade(self, items: Sequence[Item]) -> None:
        """Fill in the grades of items that have none.

        Raises:
            EvaluationError: The judge cannot be reached; grades so far are saved.
        """
        metric = self.metric
        assert isinstance(metric, Judged)

        async def judge(item: Item) -> None:
            task = grade_task(
                item.prompt, item.whole_answer, self._rubric, scale=metric.scale, reference=item.whole_expected or None
            )
            given = await self._ask(task, lambda reply: read_grade(reply, metric.scale).score)
            metric.found[shown(item)] = given

        await self._each(judge, _distinct([item for item in items if shown(item) not in metric.found], shown))

    async def compare(self, firsts: Sequence[Item], seconds: Sequence[Item]) -> None:
        """Fill in the preferences between two answers to each question.

        Raises:
            EvaluationError: As `grade`.
        """
        metric = self.metric
        assert isinstance(metric, JudgedPairs)

        async def judge(pair: tuple[Item, Item]) -> None:
            first, second = pair
            metric.found[first.whole_answer, shown(second)] = await self._preference(first, second)

        pairs = [pair for pair in zip(firsts, seconds, strict=True) if pair[0].whole_answer != pair[1].whole_answer]
        await self._each(judge, _distinct(pairs, lambda pair: (pair[0].whole_answer, shown(pair[1]))))

    def preferred(self, first: Item, second: Item) -> float | LeftOut:
        """What `compare` has found of two answers."""
        assert isinstance(self.metric, JudgedPairs)
        if first.whole_answer == second.whole_answer:
            return SCORES["tie"]
        return self.metric.found.get((first.whole_answer, shown(second)), NOT_ASKED)

    async def _preference(self, first: Item, second: Item) -> float | LeftOut:
        """A preference that the swapped order does not confirm is a tie."""
        texts, reference = (first.whole_answer, second.whole_answer), second.whole_expected or None
        choices = []
        for one, other in (texts, texts[::-1]):
            task = choice_task(second.prompt, one, other, self._rubric, reference=reference)
            choice = await self._ask(task, lambda reply: read_choice(reply).better)
            if isinstance(choice, LeftOut):
                return choice
            choices.append(choice)
        return SCORES[preference(choices[0], choices[1])]

    async def _each(self, judge: Callable[[WorkT], Awaitable[None]], work: Sequence[WorkT]) -> None:
        left = iter(work)
        self._progress.begin(len(work))
        self._progress.details["by"] = self.metric.judge

        async def one_after_the_other() -> None:
            for own in left:
                await judge(own)
                self._progress.advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._place.concurrency):
                    group.create_task(one_after_the_other())
        except* EvaluationError as errors:
            raise errors.exceptions[0] from None

    async def _ask(self, task: JudgeTask, read: Callable[[str], ReadT]) -> ReadT | LeftOut:
        """What the judge says. A reply that cannot be read is asked for once more, without a schema."""
        own_id = _task_id(task)
        if (saved := self._saved.replies.get(own_id)) is not None:
            with suppress(JudgeReplyError):  # of a file that was edited
                return read(saved)
        reason = ""
        for is_held in (True, False):
            try:
                reply = await self._request(task, is_held=is_held)
                found = read(reply)
            except ValueError as error:  # nonsense, or a body that is not JSON
                reason = str(error)
            except APIError as error:
                if isinstance(error, _REFUSED) and is_held:  # it may know no schemas
                    continue
                return self._failure(error)
            else:
                self._num_failed = 0
                self._saved.add(own_id, reply)
                return found
        return LeftOut(reason)

    async def _request(self, task: JudgeTask, *, is_held: bool) -> str:
        completion = await self._client.chat.completions.create(  # type: ignore[call-overload]
            model=self.metric.judge,
            messages=list(task.messages),
            temperature=0.0,
            max_tokens=MAX_REPLY_TOKENS,
            **({"response_format": task.short_format} if is_held else {}),
        )
        choices = getattr(completion, "choices", None)
        if not choices or not isinstance(choices[0].message.content, str):
            raise JudgeReplyError("The judge answered without text.")
        text: str = choices[0].message.content
        return text if is_held else _without_fence(text)

    def _failure(self, error: APIError) -> LeftOut:
        """Why an item has no grade; raises if further requests would fail too."""
        self._num_failed += 1
        is_away = isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError)
        if is_away or isinstance(error, _HOPELESS) or self._num_failed >= MAX_FAILURES:
            raise EvaluationError(
                f"Metric `{self.metric.name}`: judge {self.metric.judge!r} at {self._client.base_url} gives no answer: "
                f"{error.message.rstrip('.')}. What was judged so far is saved: mend it, and run the evaluation again."
            ) from error
        return LeftOut(f"the judge did not answer: {error.message}")


class _SavedReplies:
    """The file of one judge's replies."""

    def __init__(self, folder: Path, judge: str, identity: str) -> None:
        self._lines = AnswerLines(folder, judge, f"{judge} {identity}")
        self.replies = dict(read_lines(self._lines.path, lambda fields: (fields["id"], str(fields["reply"]))))

    def add(self, own_id: str, reply: str) -> None:
        self.replies[own_id] = reply
        self._lines.append({"id": own_id, "reply": reply})


def _client_of(settings: JudgeSettings, environ: Mapping[str, str]) -> AsyncOpenAI | None:
    """A client of the judge's own URL; None: it is on the server under evaluation."""
    if settings.url is None:
        return None
    key = environ[settings.api_key_env] if settings.api_key_env else "none"
    return AsyncOpenAI(base_url=settings.url, api_key=key, max_retries=2, timeout=TIMEOUT_S)


def _task_id(task: JudgeTask) -> str:
    return hashlib.sha256(json.dumps(task.messages, ensure_ascii=False).encode()).hexdigest()[:32]


def _distinct(work: Sequence[WorkT], key: Callable[[WorkT], Hashable]) -> list[WorkT]:
    """The first of each key: the same answer of several models is judged once."""
    return list({key(own): own for own in reversed(work)}.values())[::-1]


def _without_fence(reply: str) -> str:
    """The JSON of a reply that stands in a Markdown fence, as models without a schema write it."""
    found = _FENCED.search(reply.strip())
    return found.group(1) if found else reply
