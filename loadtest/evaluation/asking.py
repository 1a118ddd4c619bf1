"""Ask a live server the held-out questions of a data set, and save each answer as it comes.

An answer is kept by the digest of the version that gave it and by the question, so that an interrupted evaluation goes
on where it ended, and a second one asks only what is new.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from openai import APIConnectionError, APIError, AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion

from config.dataset import DatasetManifest, DatasetRow, Message, few_shot_messages
from loadtest.evaluate import EvaluationError, filled_by_server, request_arguments
from loadtest.evaluation.answer_lines import AnswerLines, read_lines

BASE = "base"
"""Names the server's base model, whatever it is called there."""

DIGEST_HEADER = "x-lorikeet-digest"
NAME_HEADER = "x-lorikeet-adapter"


@dataclass(frozen=True)
class SavedAnswer:
    """One answer: its question's id, what came, and what it cost; `e2e_s` is 0 where no server was asked."""

    id: str
    text: str
    calls: tuple[dict[str, Any], ...]
    num_prompt_tokens: int
    num_answer_tokens: int
    e2e_s: float


@dataclass(frozen=True)
class AnsweredBy:
    """Who gave the answers of a file.

    Attributes:
        served_by: Name of the version that answered.
        digest: Of the version; for a server that tells none, its name.
        filled: Fields of a request that the version's defaults fill in, so that questions leave them out.
    """

    served_by: str
    digest: str
    filled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """All answers of one model, in the order of the rows.

    Attributes:
        served_by: Name of the version that answered.
        digest: Of the version; for a server that tells none, its name.
        refused: Indices of the rows that the server refused, with what it said; their answers are empty.
    """

    model: str
    served_by: str
    digest: str
    answers: tuple[SavedAnswer, ...]
    refused: Mapping[int, str] = field(default_factory=dict)

    def first(self, count: int) -> "Answers":
        """Those to the first rows."""
        return replace(self, answers=self.answers[:count])


async def base_model(client: AsyncOpenAI) -> str:
    """The name under which a server lists its base: the first model without a parent.

    Raises:
        EvaluationError: The server lists no base model.
    """
    try:
        async for card in client.models.list():
            if (card.model_extra or {}).get("parent") is None:
                return card.id
    except APIConnectionError as error:
        raise EvaluationError(unreachable(client)) from error
    except APIError as error:
        raise EvaluationError(f"The server does not list its models: {error.message}") from error
    raise EvaluationError("The server lists no base model. Name the model to compare with.")


async def ask_all(
    client: AsyncOpenAI,
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    model: str,
    folder: Path,
    *,
    few_shot: bool = False,
    concurrency: int = 16,
    num_required: int | None = None,
    filled: Collection[str] | None = None,
    is_over: Callable[[Collection[SavedAnswer]], bool] = lambda saved: False,
    on_answers: Callable[[int], None] = lambda count: None,
) -> Answers:
    """The model's answer to each row; saved ones are not asked again.

    Args:
        folder: Where answers are saved, a file for each version.
        filled: Fields to leave out of requests. None: those that the model card says the server fills in.
        is_over: Called with all saved answers before a question; True asks no more, and what is left has no answer.
        num_required: Rows after the first so many may be refused by the server (a 400). None: no row may.
        on_answers: Called with numbers of answers, in all one for each row.

    Raises:
        EvaluationError: A request failed, or several versions answered; answers so far are saved.
    """
    check_has_questions(manifest, rows)
    filled = await filled_by_server(client, model) if filled is None else filled
    since = await listed_since(client, model)
    requests = requests_of(manifest, rows, model, filled, few_shot=few_shot)
    ids = [request_id(request) for request in requests]
    required, refused = set(ids[:num_required]), dict[str, str]()
    with one_error(f"{model!r} on {manifest.domain!r}", f"{model!r}: {unreachable(client)}"):
        asked = await _ask(client, ids[0], requests[0], since)
        saved = AnswersFile(folder, AnsweredBy(asked.served_by, asked.digest, tuple(filled)))
        if ids[0] not in saved.answers:
            saved.add(asked.answer)
        on_answers(sum(own in saved.answers for own in ids))
        numbered = zip(ids, requests, strict=True)
        left = iter({own: request for own, request in numbered if own not in saved.answers}.items())

        async def ask_one_after_the_other() -> None:
            for own, request in left:
                if is_over(saved.answers.values()):
                    return
                try:
                    found = await _ask(client, own, request, since)
                    _check_same(model, saved.answered_by, found)
                    saved.add(found.answer)
                except BadRequestError as error:
                    if own in required:
                        raise
                    refused[own] = error.message
                on_answers(1)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(ask_one_after_the_other())
    by_row = {number: refused[own] for number, own in enumerate(ids) if own in refused}
    return replace(saved.answers_to(model, ids), refused=by_row)


@contextmanager
def one_error(subject: str, unreachable: str) -> Iterator[None]:
    """Of the requests that fail together, raise the first error.

    Args:
        unreachable: The message if the server does not answer.

    Raises:
        EvaluationError: A request failed.
    """
    try:
        yield
    except* APIConnectionError as errors:
        raise EvaluationError(unreachable) from errors
    except* APIError as errors:
        error = errors.exceptions[0]
        assert isinstance(error, APIError)
        raise EvaluationError(f"{subject}: {error.message}") from errors
    except* EvaluationError as errors:
        raise errors.exceptions[0] from None


def check_has_questions(manifest: DatasetManifest, rows: Sequence[DatasetRow]) -> None:
    """Check that there is something to ask.

    Raises:
        EvaluationError: `rows` is empty.
    """
    if not rows:
        raise EvaluationError(
            f"Data set {manifest.domain!r} has no held-out questions. Set `data.num_test`, and build it."
        )


def requests_of(
    manifest: DatasetManifest, rows: Sequence[DatasetRow], model: str, filled: Collection[str], *, few_shot: bool
) -> list[dict[str, Any]]:
    """The request of each row, without the fields that the version's defaults fill in."""
    return [
        request_arguments(model, prompt_of(manifest, row, few_shot=few_shot), manifest, filled)
        | ({"tools": list(row.tools)} if row.tools else {})
        for row in rows
    ]


def prompt_of(manifest: DatasetManifest, row: DatasetRow, *, few_shot: bool) -> tuple[Message, ...]:
    """The turns of a question; few-shot: the examples and the question, after the row's system prompt."""
    if not few_shot:
        return row.prompt
    own = tuple(turn for turn in row.prompt if turn.role in ("system", "developer"))
    return own + few_shot_messages(manifest, row.input)[1:]


def request_id(request: Mapping[str, Any]) -> str:
    """A hash of what is asked, whatever the model."""
    asked = {name: value for name, value in request.items() if name != "model"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


async def listed_since(client: AsyncOpenAI, model: str) -> int:
    """`created` of the model card: of our server's base, when it was prepared; vLLM sends the current time."""
    try:
        return (await client.models.retrieve(model)).created
    except APIError:
        return 0


@dataclass(frozen=True)
class _Asked:
    answer: SavedAnswer
    served_by: str
    digest: str


def _check_same(model: str, first: AnsweredBy, asked: _Asked) -> None:
    if asked.digest != first.digest:
        raise EvaluationError(
            f"{model!r} was answered by {first.served_by} and {asked.served_by}. Name one version, as "
            f"{first.served_by!r}."
        )


class AnswersFile:
    """The file of one version's answers: a line that says who answered, then a line for each answer."""

    def __init__(self, folder: Path, answered_by: AnsweredBy) -> None:
        self.answered_by = answered_by
        self._lines = AnswerLines(folder, answered_by.served_by, answered_by.digest)
        known, self.answers = read_answers(self._lines.path)
        if known != answered_by:
            self._lines.append(asdict(answered_by))

    def add(self, answer: SavedAnswer) -> None:
        self.answers[answer.id] = answer
        self._lines.append(asdict(answer))

    def answers_to(self, model: str, ids: Sequence[str]) -> Answers:
        """The saved answers to these questions; an empty one where none is saved."""
        by, none = self.answered_by, SavedAnswer("", "", (), 0, 0, 0.0)
        found = tuple(self.answers.get(own, replace(none, id=own)) for own in ids)
        return Answers(model, by.served_by, by.digest, found)


def read_answers(path: Path) -> tuple[AnsweredBy | None, dict[str, SavedAnswer]]:
    """Who answered, unless the file is older than that line, and the answers."""
    answered_by, found = None, {}
    for line in read_lines(path, _parse_line):
        if isinstance(line, AnsweredBy):
            answered_by = line
        else:
            found[line.id] = line
    return answered_by, found


def _parse_line(fields: Any) -> AnsweredBy | SavedAnswer:
    if "digest" in fields:
        return AnsweredBy(**{**fields, "filled": tuple(fields["filled"])})
    return SavedAnswer(**{**fields, "calls": tuple(fields["calls"])})


async def _ask(client: AsyncOpenAI, own_id: str, request: dict[str, Any], since: int) -> _Asked:
    start = time.perf_counter()
    response = await client.chat.completions.with_raw_response.create(**request)
    e2e_s = time.perf_counter() - start
    completion = response.parse()
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise EvaluationError(
            f"{request['model']!r}: the answer must be a chat completion; got {str(completion)[:80]!r}."
        )
    message = completion.choices[0].message
    usage = completion.usage
    answer = SavedAnswer(
        own_id,
        message.content or "",
        tuple(call.model_dump(include={"function"})["function"] for call in message.tool_calls or ()),
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        round(e2e_s, 4),
    )
    served_by = response.headers.get(NAME_HEADER) or completion.model
    digest = response.headers.get(DIGEST_HEADER, BASE)
    return _Asked(answer, served_by, f"{served_by} {since if digest == BASE else digest}")


def unreachable(client: AsyncOpenAI) -> str:
    """What to say of a server that does not answer."""
    return f"{client.base_url} does not answer. Start the server, or give its `--url`."
