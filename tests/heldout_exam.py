"""A server whose versions are asked their held-out questions, and what came of it."""

import random
from dataclasses import dataclass, field
from typing import Any

from adapters.bases import read_base
from adapters.fingerprint import FINGERPRINT_FILE
from adapters.reference import Target
from adapters.release.trials import Trial
from quality.held_out import GeneralText, HeldOutMessage, HeldOutQuestion, HeldOutSet, write_held_out
from quality.samples.store import QualityStore
from serve.build import monitored_server
from serve.errors import ServeError
from serve.limits.defaults import AnswerLengths
from serve.monitor.trial.heldout import HeldOut, HeldOutPace, held_out
from tests.fake_engine import fingerprint
from tests.peft_folders import draft_for, write_peft_folder
from tests.serving import Serving

FIRST, SECOND, THIRD = (Target("medical", version) for version in (1, 2, 3))
NOW_S = 1_000_000.0
DAY_S = 86_400.0
GENERAL = GeneralText(token_ids=(1, 2, 3, 4, 5), base_nll=3.0, adapter_nll=3.5)


def held_out_set(num: int, *, topic: str = "Term", general: GeneralText | None = None) -> HeldOutSet:
    """Questions 0, 1, 2...; the right answer to each is its number."""
    return HeldOutSet(
        max_tokens=8,
        stop=("}",),
        questions=tuple(
            HeldOutQuestion(messages=(HeldOutMessage(role="user", content=f"{topic} {n}"),), expected=str(n))
            for n in range(num)
        ),
        general=general,
    )


def number_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"].rpartition(" ")[2])


@dataclass
class Scores:
    """A listener that remembers."""

    heard: list[tuple[Target, Target, tuple[float, float]]] = field(default_factory=list)
    counted: set[int] | None = field(default_factory=set)

    def questions_counted(self, name: str, trial: Trial) -> set[int] | None:
        return self.counted

    def question_scored(self, name: str, trial: Trial, question: int, scores: tuple[float, float]) -> None:
        self.heard.append((Target(name, trial.stable), Target(name, trial.canary), scores))


@dataclass
class Exam:
    """A server whose versions are asked, and what came of it."""

    serving: Serving
    store: QualityStore
    scores: Scores
    heldout: HeldOut
    now_s: list[float]
    is_busy: bool = False

    async def resident(self, *targets: Target) -> None:
        for target in targets:
            await self.serving.residency.load(target)
        self.serving.engine.bodies.clear()

    async def turns(self, num: int) -> None:
        for _ in range(num):
            await self.heldout.take_turn()

    def publish(self, held_out: HeldOutSet | None, **changes: Any) -> None:
        folder = write_peft_folder(self.serving.store.root.parent / "made")
        base = read_base(self.serving.base_folder)
        golden = fingerprint(base.digest, base.chat_template_sha256)
        (folder / FINGERPRINT_FILE).write_text(golden.model_dump_json())
        (folder / "held_out.json").unlink(missing_ok=True)
        if held_out is not None:
            write_held_out(held_out, folder)
        self.serving.store.publish(folder, draft_for(folder, base=base.ref, **changes))

    def asked(self) -> list[tuple[str, str]]:
        """(model, question) in order."""
        return [(body["model"], number_of(body)) for body in self.serving.engine.bodies]

    def gauge(self, name: str, target: Target) -> float | None:
        labels = {"adapter": target.name, "version": str(target.version)}
        return self.serving.metrics.registry.get_sample_value(f"lorikeet_{name}", labels)


def make_exam(
    serving: Serving, store: QualityStore, at_once: int = 2, max_model_len: int = 100, *, is_judged: bool = True
) -> Exam:
    scores, now_s = Scores(), [NOW_S]
    lengths = AnswerLengths(default=512, most=2048)
    server = monitored_server(
        serving.engine, serving.residency, serving.store, serving.metrics, lengths, lambda: exam.is_busy
    )
    pace = HeldOutPace(interval_s=0.01, again_s=DAY_S, patience_s=60.0, at_once=at_once)
    clock = lambda: now_s[0]  # noqa: E731 - as an argument
    heldout = held_out(
        server, store, scores if is_judged else None, pace, max_model_len, rng=random.Random(1), clock=clock
    )
    exam = Exam(serving, store, scores, heldout, now_s)
    return exam


def failing(error: ServeError, model: str) -> Any:
    def say(body: dict[str, Any]) -> str:
        if body["model"] == model:
            raise error
        return number_of(body)

    return say


async def on_trial(exam: Exam, num: int = 2) -> None:
    for _ in range(2):
        exam.publish(held_out_set(num))
    exam.serving.store.set_aliases("medical", {"stable": 1, "canary": 2})
    await exam.resident(FIRST, SECOND)
