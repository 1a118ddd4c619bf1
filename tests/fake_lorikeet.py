"""Stands in for `python -m lorikeet` where the demo itself is on trial: the same files and answers, in milliseconds.

Copied as `lorikeet.py` into the folder that the demo runs in, beside `made/base` and `made/adapter`. Training takes as
long as a file `slow` is there. It imports no torch: a demo is six processes.
"""

import json
import os
import shutil
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from adapters.bases import read_base
from adapters.errors import AdapterNotFoundError
from adapters.lint.peft_folder import read_lora_spec
from adapters.store.manifest import DatasetRef, ManifestDraft, RequestDefaults, TrainingRecord
from adapters.store.store import AdapterStore
from config.dataset import read_dataset
from config.home import Home
from config.load import load_domain
from tests.datasets_on_disk import ANSWER, write_dataset
from train.runs import run_key, start_run

BASE_NAME = "tiny-base"


def prepare(home):
    shutil.copytree("made/base", home.bases / "tiny", dirs_exist_ok=True)


def build(home, files):
    for file in files:
        if not (home.datasets / Path(file).stem).exists():
            write_dataset(home.datasets / Path(file).stem, num_test=80)


def train(home, file, is_resumed):
    domain, base = load_domain(Path(file)), read_base(home.bases / "tiny")
    dataset, run = read_dataset(home.datasets / domain.name), home.runs / domain.name
    if not is_resumed:
        shutil.rmtree(run, ignore_errors=True)
        start_run(run, run_key(domain, base, dataset))
    checkpoint = run / "checkpoint-5"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    print(f"training {domain.name}{' from its checkpoint' if is_resumed else ''}", flush=True)
    while Path("slow").exists():
        time.sleep(0.02)
    folder, store = Path("made/adapter"), AdapterStore(home.adapters)
    sizes = dataset.model_dump(include={"num_train", "num_validation", "num_test", "licence", "dataset_sha256"})
    draft = ManifestDraft(
        name=domain.name,
        base=base.ref,
        lora=read_lora_spec(folder),
        dataset=DatasetRef(source="test", **sizes),
        training=TrainingRecord(
            arguments=domain.training_arguments, metrics={}, duration_s=1, device="cpu", libraries={}
        ),
        answer_schema=dataset.answer.json_schema,
        defaults=RequestDefaults.model_validate(dataset.version_defaults),
    )
    store.publish(folder, draft)
    if not Path("failing").exists():
        store.promote(domain.name, store.versions(domain.name)[-1])


def answer_to(home, model):
    """Who answers, and what: adapters know, the base does not."""
    if model == BASE_NAME:
        return BASE_NAME, "I do not know}"
    return str(AdapterStore(home.adapters).resolve(model)), ANSWER


def serve(home, port):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(200, "text/plain", b"")

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                who, text = answer_to(home, body["model"])
            except AdapterNotFoundError as error:
                self.reply(404, "application/json", json.dumps({"error": {"message": str(error)}}).encode())
                return
            common = {"id": "c", "created": 1, "model": who}
            usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop"}
            if body.get("stream"):
                chunk = common | {"object": "chat.completion.chunk", "usage": usage}
                events = json.dumps(chunk | {"choices": [choice | {"delta": message}]})
                self.reply(200, "text/event-stream", f"data: {events}\n\ndata: [DONE]\n\n".encode())
            else:
                whole = common | {"object": "chat.completion", "choices": [choice | {"message": message}]}
                self.reply(200, "application/json", json.dumps(whole).encode())

        def reply(self, status, kind, content):
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    Path("server.pid").write_text(str(os.getpid()))
    ThreadingHTTPServer.request_queue_size = 64
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def main(words):
    words, home = list(words), Home(Path(words[words.index("--home") + 1]))
    with Path("commands.txt").open("a") as log:
        log.write(" ".join(words[: words.index("--home")]) + "\n")
    match words:
        case ["base", *_]:
            prepare(home)
        case ["data", "build", *rest]:
            build(home, [word for word in rest[: rest.index("--home")] if word != "--force"])
        case ["train", file, *rest]:
            Path("train.pid").write_text(str(os.getpid()))
            train(home, file, "--resume" in rest)
        case ["serve", *_]:
            serve(home, int(words[-1]))


if __name__ == "__main__":
    main(sys.argv[1:])
