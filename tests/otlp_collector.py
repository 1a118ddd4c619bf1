"""A collector of traces and log records on loopback, which keeps what it is sent by OTLP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Taken:
    """What came."""

    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    logs: list[ExportLogsServiceRequest] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [
            span for sent in self.traces for part in sent.resource_spans for scope in part.scope_spans
            for span in scope.spans
        ]  # fmt: skip

    @property
    def log_records(self) -> list[LogRecord]:
        return [
            record for sent in self.logs for part in sent.resource_logs for scope in part.scope_logs
            for record in scope.log_records
        ]  # fmt: skip


class Collector(BaseHTTPRequestHandler):
    """What takes traces and log records by OTLP over HTTP."""

    taken: Taken

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.taken.traces.append(ExportTraceServiceRequest.FromString(body))
        else:
            self.taken.logs.append(ExportLogsServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def collector() -> Iterator[tuple[str, Taken]]:
    taken = Taken()
    server = HTTPServer(("127.0.0.1", 0), type("Taking", (Collector,), {"taken": taken}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
