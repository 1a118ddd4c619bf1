"""Answers to the held-out questions by transformers instead of a server, saved as those of `asking.py` are.

They go into files of their own: bf16 arithmetic differs between transformers and vLLM, so that now and then an answer
does too. A child process of `train` answers; what it has answered when it is killed stays.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from adapters.bases import find_base, list_bases
from adapters.errors import AdapterNotFoundError, InvalidReferenceError
from adapters.fingerprint import read_fingerprint
from adapters.reference import Target
from adapters.store.manifest import BaseManifest, RequestDefaults
from adapters.store.store import AdapterStore
from adapters.template_time import noon
from config.dataset import DatasetManifest, DatasetRow, Message
from config.domain import DefaultsConfig
from config.home import Home
from config.offline import OfflineAnswer, OfflineJob, OfflineModel, OfflineQuestion
from loadtest.bench.children import child
from loadtest.evaluate import EvaluationError, without_system
from loadtest.evaluation.asking import (
    BASE,
    AnsweredBy,
    Answers,
    AnswersFile,
    SavedAnswer,
    check_has_questions,
    prompt_of,
    request_id,
    requests_of,
)

SUFFIX = " offline"
"""After the name of a model that transformers asked."""

COMMAND = (sys.executable, "-P", "-m", "train.evaluate.offline")


@dataclass(frozen=True)
class OfflineSource:
    """A model on this machine.

    Attributes:
        name: `medical@3`, or the name of the base's folder.
        adapter_folder: None: the base itself.
    """

    name: str
    digest: str
    base_folder: Path
    adapter_folder: Path | None = None
    defaults: RequestDefaults = field(default_factory=RequestDefaults)

    @property
    def answered_by(self) -> AnsweredBy:
        name = self.name + SUFFIX
        return AnsweredBy(name, f"{name} {self.digest}", tuple(self.defaults.given))


def find_sources(home: Home, references: Sequence[str]) -> list[OfflineSource]:
    """Versions of the store, and prepared bases by name, each once; `base` is the base of the others.

    Raises:
        EvaluationError: No such model, one that does not answer, or no single base for `base`.
        AdapterError: A version is damaged.
    """
    found = {text: _named(home, text) for text in references if text != BASE}
    if BASE in references:
        found[BASE] = _common_base(home, list(found.values()))
    return list({found[text].name: found[text] for text in references}.values())


def ask_offline(
    manifest: DatasetManifest,
    rows: Sequence[DatasetRow],
    sources: Sequence[OfflineSource],
    folder: Path,
    *,
    few_shot: bool = False,
    on_start: Callable[[int, int], None] = lambda total, done: None,
    on_answers: Callable[[int], None] = lambda count: None,
    command: Sequence[str] = COMMAND,
) -> list[Answers]:
    """Each model's answer to each row; saved ones are not asked again.

    Args:
        folder: Where answers are saved, a file for each version.
        on_start: Called with the number of answers in all, and of those that are saved.
        on_answers: Called with numbers of new answers.
        command: Answers an `OfflineJob` on stdin by lines on stdout.

    Raises:
        EvaluationError: `rows` is empty, rows have tools, or the process failed; answers so far are saved.
    """
    check_has_questions(manifest, rows)
    _check_no_tools(manifest, rows)
    plans = [_Plan.of(source, manifest, rows, folder, few_shot=few_shot) for source in sources]
    on_start(len(rows) * len(plans), sum(own in plan.file.answers for plan in plans for own in plan.ids))
    by_name = {plan.source.name: plan for plan in plans}
    for job in _jobs(manifest, plans):
        for answer in _answers(job, command):
            plan = by_name[answer.model]
            plan.file.add(
                SavedAnswer(answer.id, answer.text, (), answer.num_prompt_tokens, answer.num_answer_tokens, 0.0)
            )
            on_answers(plan.ids.count(answer.id))
    if num_missing := sum(len(plan.missing) for plan in plans):
        raise EvaluationError(f"The process that answers offline left {num_missing} questions out. Run it again.")
    return [plan.file.answers_to(plan.source.name, plan.ids) for plan in plans]


@dataclass(frozen=True)
class _Plan:
    """What one model is asked, and where its answers go."""

    source: OfflineSource
    file: AnswersFile
    ids: list[str]
    turns: list[tuple[Message, ...]]

    @classmethod
    def of(
        cls,
        source: OfflineSource,
        manifest: DatasetManifest,
        rows: Sequence[DatasetRow],
        folder: Path,
        *,
        few_shot: bool,
    ) -> "_Plan":
        by = source.answered_by
        requests = requests_of(manifest, rows, source.name, by.filled, few_shot=few_shot)
        prompts = [prompt_of(manifest, row, few_shot=few_shot) for row in rows]
        turns = [_with_system(manifest, prompt, source.defaults.system) for prompt in prompts]
        return cls(source, AnswersFile(folder, by), list(map(request_id, requests)), turns)

    @property
    def missing(self) -> dict[str, tuple[Message, ...]]:
        return {own: turns for own, turns in zip(self.ids, self.turns, strict=True) if own not in self.file.answers}


def _with_system(manifest: DatasetManifest, prompt: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """As the server gives the version a question: with its own system prompt, unless the row has another one."""
    if system is None:
        return tuple(prompt)
    turns = without_system(manifest, prompt)
    has_own = any(turn.role in ("system", "developer") for turn in turns)
    return turns if has_own else (Message(role="system", content=system), *turns)


def _with_settings(manifest: DatasetManifest, defaults: RequestDefaults) -> DatasetManifest:
    """The data set's settings for requests, where the version's defaults do not name others."""
    settings, answer, requests = manifest.evaluation, manifest.answer, manifest.defaults
    given = defaults.given
    sampling: dict[str, Any] = {name: given[name] for name in ("temperature", "top_p") if name in given}
    if "max_tokens" in given:
        settings = settings.model_copy(update={"max_new_tokens": given["max_tokens"]})
    if "stop" in given:
        settings = settings.model_copy(update={"stop": defaults.stop})
    if defaults.response_format is not None:
        answer = answer.model_copy(update={"json_schema": defaults.response_format["json_schema"]["schema"]})
        sampling["response_format"] = "json_schema"
    own = DefaultsConfig.model_validate(requests.model_dump() | sampling)
    return manifest.model_copy(update={"evaluation": settings, "answer": answer, "defaults": own})


def _jobs(manifest: DatasetManifest, plans: Sequence[_Plan]) -> Iterator[OfflineJob]:
    """One for each base that has questions left."""
    left = [plan for plan in plans if plan.missing]
    for base_folder in dict.fromkeys(plan.source.base_folder for plan in left):
        yield OfflineJob(
            base_folder=base_folder,
            models=tuple(
                OfflineModel(
                    name=plan.source.name,
                    adapter_folder=plan.source.adapter_folder,
                    dataset=_with_settings(manifest, plan.source.defaults),
                    template_time=_template_time(plan.source),
                    questions=tuple(OfflineQuestion(id=own, messages=turns) for own, turns in plan.missing.items()),
                )
                for plan in left
                if plan.source.base_folder == base_folder
            ),
        )


def _template_time(source: OfflineSource) -> datetime:
    """That of the version's fingerprint, which a server uses too; otherwise today."""
    fingerprint = read_fingerprint(source.adapter_folder or source.base_folder)
    at = fingerprint.template_time if fingerprint else None
    return at or noon(datetime.now(UTC).date())


def _answers(job: OfflineJob, command: Sequence[str]) -> Iterator[OfflineAnswer]:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log, child(command, output=log, is_asked=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(job.model_dump_json().encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended already: its exit status is read below
        for line in process.stdout:
            if line.startswith(b"{"):  # libraries may print, too
                yield _answer(line)
        if process.wait() != 0:
            raise EvaluationError(f"The process that answers offline ended: {_last_line(log)}")


def _answer(line: bytes) -> OfflineAnswer:
    try:
        return OfflineAnswer.model_validate_json(line)
    except ValidationError as error:
        raise EvaluationError(f"The process that answers offline must write answers; got {line[:80]!r}.") from error


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    return (log.read().strip().splitlines() or ["killed, without a message; see the kernel's log"])[-1][:500]


def _named(home: Home, text: str) -> OfflineSource:
    bases = {base.name: base for base in list_bases(home.bases)}
    store = AdapterStore(home.adapters)
    try:
        target = store.resolve(text)
    except (InvalidReferenceError, AdapterNotFoundError) as error:
        if text in bases:
            return _of_base(home, bases[text])
        raise EvaluationError(f"{error} Prepared bases: {', '.join(bases) or 'none'}.") from error
    return _of_version(home, store, target)


def _of_version(home: Home, store: AdapterStore, target: Target) -> OfflineSource:
    manifest = store.verify(target)
    if manifest.lora.task != "CAUSAL_LM":
        raise EvaluationError(f"{str(target)!r} is a reward model, which gives scores and no answers.")
    return OfflineSource(
        name=str(target),
        digest=manifest.digest,
        base_folder=home.bases / find_base(home.bases, manifest.base, str(target)).name,
        adapter_folder=store.folder(target),
        defaults=manifest.defaults or RequestDefaults(),
    )


def _of_base(home: Home, base: BaseManifest) -> OfflineSource:
    return OfflineSource(base.name, base.digest, home.bases / base.name)


def _common_base(home: Home, others: Sequence[OfflineSource]) -> OfflineSource:
    bases = {base.name: base for base in list_bases(home.bases)}
    names = {_base_beside(source, bases) for source in others} or set(bases)
    if len(names) != 1:
        raise EvaluationError(
            f"`base` must be one base; got {', '.join(sorted(names)) or 'none'}. Give its name instead of `base`."
        )
    return _of_base(home, bases[names.pop()])


def _base_beside(source: OfflineSource, bases: Mapping[str, BaseManifest]) -> str:
    """The base that a model is compared with: of a base that was trained, the one that it was made from."""
    own = bases[source.base_folder.name]
    parent = own.lineage.parent.digest if own.lineage and source.adapter_folder is None else None
    return next((base.name for base in bases.values() if base.digest == parent), own.name)


def _check_no_tools(manifest: DatasetManifest, rows: Sequence[DatasetRow]) -> None:
    num_with_tools = sum(bool(row.tools) for row in rows)
    if num_with_tools:
        raise EvaluationError(
            f"{num_with_tools} of {len(rows)} questions of {manifest.domain!r} have tools, and only a server parses "
            "calls of them. Start `lorikeet serve`, and leave out `--offline`."
        )
