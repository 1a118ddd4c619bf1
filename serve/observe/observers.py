"""Who is told of requests and generations: the metrics, and what the quality monitor adds beside them."""

from typing import Protocol

from serve.background import Failures
from serve.records import AnsweredRequest, GenerationObserver, GenerationRecord


class RequestObserver(Protocol):
    """Who wants to know of answered requests; called on the event loop, so it must be quick."""

    def request_finished(self, record: AnsweredRequest) -> None: ...


class Observers:
    """Tells each of several observers, in their order; what one of them gets wrong is not the client's error."""

    def __init__(self, failures: Failures | None = None) -> None:
        self.failures = failures or Failures()
        self.of_generations: list[GenerationObserver] = []
        self.of_requests: list[RequestObserver] = []

    def generation_started(self, lora_name: str | None) -> None:
        for observer in self.of_generations:
            try:
                observer.generation_started(lora_name)
            except Exception as error:  # boundary
                self.failures.note("observers", error, f"{type(observer).__name__} fails at the start of a generation")

    def generation_finished(self, record: GenerationRecord) -> None:
        for observer in self.of_generations:
            try:
                observer.generation_finished(record)
            except Exception as error:  # boundary
                self.failures.note("observers", error, f"{type(observer).__name__} fails at the end of a generation")

    def request_finished(self, record: AnsweredRequest) -> None:
        for observer in self.of_requests:
            try:
                observer.request_finished(record)
            except Exception as error:  # boundary
                self.failures.note("observers", error, f"{type(observer).__name__} fails at the end of a request")
