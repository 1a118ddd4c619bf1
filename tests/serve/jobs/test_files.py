"""Files and uploads over HTTP: what is stored, what is refused and why, and that nothing half is left."""

import asyncio
import hashlib
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request
from starlette.types import Message

from adapters.store.store import AdapterStore
from serve.errors import BodyTooLargeError
from serve.jobs.forms import FormReader
from tests.jobs_serving import chat_rows, make_jobs_serving, running_server, sdk_of
from tests.serving import COMPLETION_SCOPE, Serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def serving(tmp_path: Path, store: AdapterStore, base_folder: Path) -> Serving:
    return make_jobs_serving(tmp_path, store, base_folder)


def stored(folder: Path) -> list[Path]:
    """All content on disk, whole or not."""
    return [path for path in (folder / "jobs").rglob("*") if path.is_file() and path.parent.name != "jobs"]


@pytest.mark.slow
async def test_a_file_comes_back_byte_by_byte(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        made = await client.files.create(file=("Bäume.jsonl", chat_rows()), purpose="fine-tune")
        found = await client.files.retrieve(made.id)
        content = await client.files.content(made.id)
    assert content.read() == chat_rows()
    assert content.response.headers["x-content-type-options"] == "nosniff"
    assert (found.filename, found.bytes, found.purpose) == ("Bäume.jsonl", len(chat_rows()), "fine-tune")
    assert (found.object, found.status, found.expires_at) == ("file", "processed", None)


@pytest.mark.slow
async def test_files_are_listed_in_pages_by_purpose_and_order(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        made = [(await client.files.create(file=(f"{n}.bin", b"x"), purpose="user_data")).id for n in range(5)]
        other = await client.files.create(file=("a.jsonl", chat_rows()), purpose="fine-tune")
        newest = [file.id async for file in client.files.list(limit=2)]
        oldest = [file.id async for file in client.files.list(limit=2, order="asc", purpose="user_data")]
    assert newest == [other.id, *made[::-1]]
    assert oldest == made


@pytest.mark.slow
async def test_a_deleted_file_is_gone(serving: Serving, tmp_path: Path) -> None:
    async with sdk_of(serving) as client:
        made = await client.files.create(file=("a.jsonl", chat_rows()), purpose="fine-tune")
        deleted = await client.files.delete(made.id)
        with pytest.raises(openai.NotFoundError, match="No such File object") as gone:
            await client.files.content(made.id)
    assert (deleted.deleted, deleted.object) == (True, "file")
    assert (gone.value.param, gone.value.code, gone.value.type) == ("id", None, "invalid_request_error")
    assert stored(tmp_path) == []


@pytest.mark.slow
async def test_a_file_expires_as_its_upload_says(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        made = await client.files.create(
            file=("a.bin", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert made.expires_at == made.created_at + 3600


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "Line 1 is not JSON .* 'a,b'"),
        (chat_rows(3) + b"[]\n" + chat_rows(3), "Line 4 must be a JSON object"),
        (chat_rows(3) + b'{"messages": [{"role": "user"}]}\n', "Line 4 must have text as `content`"),
        (b"", "has no examples"),
    ],
)
async def test_a_file_that_is_no_training_data_is_refused(
    serving: Serving, tmp_path: Path, content: bytes, message: str
) -> None:
    async with sdk_of(serving) as client:
        with pytest.raises(openai.BadRequestError, match=message) as refused:
            await client.files.create(file=("a.jsonl", content), purpose="fine-tune")
        listed = [file async for file in client.files.list()]
    assert (refused.value.code, refused.value.param) == ("invalid_file_format", "file")
    assert (listed, stored(tmp_path)) == ([], [])


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    """A multipart body with the boundary `b`; each part has the parameters of its `content-disposition`."""
    head = b"--b\r\ncontent-disposition: form-data; %s\r\n\r\n%s\r\n"
    return b"".join(head % (name.encode(), value) for name, value in parts) + end


FORM = {"content-type": "multipart/form-data; boundary=b"}
FILE = 'name="file"; filename="a.jsonl"'
PURPOSE = ('name="purpose"', b"fine-tune")


async def post(serving: Serving, content: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    async with serving.client() as client:
        return await client.post("/v1/files", content=content, headers=headers or FORM)


async def test_the_purpose_may_come_after_the_file(serving: Serving) -> None:
    response = await post(serving, form((FILE, chat_rows()), PURPOSE, ('name="expires_after[anchor]"', b"created_at"),
                                        ('name="expires_after[seconds]"', b"7200")))  # fmt: skip
    file = response.json()
    assert (file["purpose"], file["expires_at"] - file["created_at"]) == ("fine-tune", 7200)


async def test_lines_of_other_purposes_are_not_looked_at(serving: Serving) -> None:
    response = await post(serving, form((FILE, b"\x00\xff not JSON"), ('name="purpose"', b"user_data")))
    assert response.json()["purpose"] == "user_data"


def expiry(seconds: bytes) -> tuple[tuple[str, bytes], ...]:
    return ('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', seconds)


@pytest.mark.parametrize(
    ("content", "param", "message"),
    [
        (form((FILE, chat_rows())), "purpose", "`purpose` must be one of 'fine-tune', .* It is missing"),
        (form(('name="purpose"', b"assistants"), (FILE, b"x")), "purpose", "Got 'assistants'"),
        (form(('name="purpose"', b"batch_output"), (FILE, b"x")), "purpose", "Got 'batch_output'"),
        (form(PURPOSE), "file", "no file in its field 'file'"),
        (form(PURPOSE, (FILE, chat_rows()), (FILE, chat_rows())), "file", "two files"),
        (form(PURPOSE, (FILE, b"[1]\n")), "file", "Line 1 must be a JSON object"),
        (form((FILE, b"[1]\n"), PURPOSE), "file", "Line 1 must be a JSON object"),
        (form(PURPOSE, ('name="file"; filename="a\nb"', b"x")), "file", "1 to 255 printable"),
        (form(PURPOSE, (f'name="file"; filename="{"x" * 300}"', chat_rows())), "file", "1 to 255 printable"),
        (form(PURPOSE, (FILE, chat_rows()), end=b""), None, "The form is incomplete"),
        (form(('name="purpose"', b"x" * 9000), (FILE, b"x")), "purpose", "longer than 8192 bytes"),
        (form(*[(f'name="f{n}"', b"x") for n in range(20)]), None, "more than 16 fields"),
        (form(*[('name="f"', b"x")] * 20, PURPOSE, (FILE, chat_rows())), None, "more than 16 fields"),
        (form(PURPOSE, ('name="expires_after[seconds]"', b"7200"), (FILE, b"x")), "expires_after.anchor", "anchor"),
        (form(PURPOSE, *expiry(b"3600".zfill(20) + b"9" * 30), (FILE, b"x")), "expires_after.seconds", "3600 to"),
        (form(PURPOSE, *expiry(b"9" * 6000), (FILE, b"x")), "expires_after.seconds", "3600 to"),
        (form((FILE, chat_rows()), PURPOSE, *expiry(b"7200.0")), "expires_after.seconds", "3600 to"),
        (b"no form at all", None, "not a form"),
        (b"", None, "incomplete"),
    ],
)
async def test_a_form_that_is_none_is_a_400_that_says_why(
    serving: Serving, tmp_path: Path, content: bytes, param: str | None, message: str
) -> None:
    response = await post(serving, content)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert message.split(" .* ")[-1] in error["message"]
    assert stored(tmp_path) == []


async def test_a_form_without_a_boundary_is_a_400(serving: Serving) -> None:
    response = await post(serving, b"x", {"content-type": "multipart/form-data"})
    assert (response.status_code, "names no boundary" in response.json()["error"]["message"]) == (400, True)


@pytest.mark.slow
async def test_json_is_no_upload(serving: Serving) -> None:
    response = await post(serving, b"{}", {"content-type": "application/json"})
    assert response.status_code == 415
    assert "multipart/form-data" in response.json()["error"]["message"]


async def test_a_path_in_a_filename_is_left_out(serving: Serving) -> None:
    response = await post(serving, form(('name="purpose"', b"evals"), ('name="file"; filename="../../etc/x"', b"x")))
    assert response.json()["filename"] == "x"


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_file_over_the_limit_is_a_413(
    tmp_path: Path, store: AdapterStore, base_folder: Path, is_announced: bool
) -> None:
    serving = make_jobs_serving(tmp_path, store, base_folder, jobs={"max_file_bytes": 1000})
    body = form(('name="purpose"', b"user_data"), (FILE, b"x" * (3 << 20)))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    response = await post(serving, body if is_announced else pieces())
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert stored(tmp_path) == []


async def test_a_body_that_arrives_cut_off_is_a_413(serving: Serving, tmp_path: Path) -> None:
    """As the ingress of a cluster sends it."""
    assert serving.jobs is not None

    async def sink(_: str, __: dict[str, str]) -> io.BytesIO:
        return io.BytesIO()

    body = form(('name="purpose"', b"user_data"), (FILE, b"x" * 100_000))[:20_001]
    scope = COMPLETION_SCOPE | {"headers": [(b"content-type", FORM["content-type"].encode())]}

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    reader = FormReader(10.0, serving.jobs.run, max_bytes=20_000)
    with pytest.raises(BodyTooLargeError):
        await reader.read(Request(scope, receive), "acme", "file", 1 << 20, sink)


async def test_a_tenant_over_its_bytes_is_told_so(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    serving = make_jobs_serving(tmp_path, store, base_folder, jobs={"max_bytes_per_tenant": 1000})
    body = form(('name="purpose"', b"user_data"), (FILE, b"x" * 800))
    first, second = await post(serving, body), await post(serving, body)
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["error"]["code"] == "quota_exceeded"


@pytest.mark.slow
async def test_a_client_that_leaves_in_the_middle_leaves_nothing(serving: Serving, tmp_path: Path) -> None:
    body = form(PURPOSE, (FILE, chat_rows(60_000)))
    async with running_server(serving) as url:
        port = int(url.split(":")[2].split("/")[0])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
        writer.write((head + f"content-type: {FORM['content-type']}\r\n\r\n").encode() + body[: 5 << 20])
        await writer.drain()
        async with asyncio.timeout(20):
            while not stored(tmp_path):
                await asyncio.sleep(0.01)
            writer.close()
            while stored(tmp_path):
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_an_upload_that_stalls_is_a_408(tmp_path: Path, store: AdapterStore, base_folder: Path) -> None:
    serving = make_jobs_serving(tmp_path, store, base_folder, body_timeout_s=0.3)

    async def stalling() -> AsyncIterator[bytes]:
        yield form(PURPOSE, (FILE, chat_rows()), end=b"")
        await asyncio.sleep(2)  # httpx reads no answer before

    async with running_server(serving) as url, httpx.AsyncClient() as client:
        response = await client.post(f"{url}/files", content=stalling(), headers=FORM)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "body_timeout")
    assert stored(tmp_path) == []


@pytest.mark.slow
async def test_a_large_file_is_never_held_in_memory(serving: Serving) -> None:
    """In process: the largest piece of 64 MB that Python holds at a time is far smaller."""
    line = json.dumps({"messages": [{"role": "user", "content": "x" * 4000}, {"role": "assistant", "content": "y"}]})
    block = (line + "\n").encode() * 250

    async def pieces() -> AsyncIterator[bytes]:
        yield form(PURPOSE, end=b"") + f"--b\r\ncontent-disposition: form-data; {FILE}\r\n\r\n".encode()
        for _ in range(64):
            yield block
        yield b"\r\n--b--\r\n"

    tracemalloc.start()
    try:
        response = await post(serving, pieces())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.json()["bytes"] == 64 * len(block)
    assert peak < 20 << 20


async def test_a_large_file_comes_in_parts(serving: Serving) -> None:
    content = chat_rows(40)
    async with sdk_of(serving) as client:
        upload = await client.uploads.create(
            bytes=len(content), filename="a.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
        parts = [await client.uploads.parts.create(upload.id, data=each) for each in (content[:999], content[999:])]
        done = await client.uploads.complete(
            upload.id, part_ids=[part.id for part in parts], md5=hashlib.md5(content).hexdigest()
        )
        assert done.file is not None
        found = await client.files.content(done.file.id)
        again = await client.files.retrieve(done.file.id)
    assert (upload.status, upload.object, done.status) == ("pending", "upload", "completed")
    assert parts[0].upload_id == upload.id
    assert (found.read(), again.purpose) == (content, "fine-tune")


@pytest.mark.slow
async def test_the_sdks_chunked_upload_works(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_bytes(chat_rows(500))
    async with sdk_of(serving) as client:
        done = await client.uploads.upload_file_chunked(
            file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=10_000
        )
    assert done.file is not None
    assert (done.file.bytes, done.file.filename) == (path.stat().st_size, "big.jsonl")


@pytest.mark.slow
async def test_an_upload_is_completed_or_cancelled_once(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        upload = await client.uploads.create(bytes=3, filename="a", mime_type="x", purpose="user_data")
        part = await client.uploads.parts.create(upload.id, data=b"abc")
        with pytest.raises(openai.BadRequestError, match="MD5") as wrong:
            await client.uploads.complete(upload.id, part_ids=[part.id], md5="0" * 32)
        cancelled = await client.uploads.cancel(upload.id)
        with pytest.raises(openai.BadRequestError, match="cancelled, not pending"):
            await client.uploads.complete(upload.id, part_ids=[part.id])
        with pytest.raises(openai.BadRequestError, match="cancelled, not pending"):
            await client.uploads.parts.create(upload.id, data=b"abc")
        with pytest.raises(openai.NotFoundError, match="No such Upload object"):
            await client.uploads.cancel("upload_1")
    assert (wrong.value.param, cancelled.status) == ("md5", "cancelled")


async def test_parts_that_are_no_training_data_leave_the_upload_pending(serving: Serving) -> None:
    async with sdk_of(serving) as client:
        upload = await client.uploads.create(bytes=3, filename="a", mime_type="x", purpose="fine-tune")
        part = await client.uploads.parts.create(upload.id, data=b"abc")
        with pytest.raises(openai.BadRequestError, match="Line 1 is not JSON"):
            await client.uploads.complete(upload.id, part_ids=[part.id])
        assert (await client.uploads.cancel(upload.id)).status == "cancelled"
