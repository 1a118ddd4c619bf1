import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from peft import LoraConfig

from adapters.reference import Target
from adapters.store.store import AdapterStore
from config.home import Home
from tests.exported import publish, random_adapter


@pytest.fixture
def other(tmp_path, home) -> Home:
    """Another home with the same base, and no adapter."""
    other = Home(tmp_path / "other")
    other.root.mkdir()
    other.bases.symlink_to(home.bases)
    return other


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/hub/ada/colours"


@pytest.mark.slow
def test_a_pushed_version_is_a_peft_folder_with_a_card(lorikeet, url, tmp_path):
    result = lorikeet("export", "hub", "push", "colours@1", url)
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    folder = tmp_path / "hub" / "ada" / "colours"
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "manifest.json"}
    assert LoraConfig.from_pretrained(str(folder)).r == 4


def test_a_pull_publishes_the_same_files_and_records(lorikeet, url, home, other):
    lorikeet("export", "hub", "push", "colours@1", url)
    result = lorikeet("export", "hub", "pull", url, "--home", other.root)
    assert "colours@1 is here" in result.stdout, result.stderr
    got, sent = (AdapterStore(each.adapters).verify(Target("colours", 1)) for each in (other, home))
    assert (got.digest, got.defaults, got.base) == (sent.digest, sent.defaults, sent.base)
    again = lorikeet("export", "hub", "pull", url, "--home", other.root)
    assert "colours@1 is here" in again.stdout
    renamed = lorikeet("export", "hub", "pull", url, "--name", "tints", "--home", other.root)
    assert "tints@1 is here" in renamed.stdout


def test_files_with_examples_stay_unless_asked_for(lorikeet, url, home, tmp_path):
    folder = random_adapter(home.bases / "tiny", tmp_path / "source")
    (folder / "held_out.json").write_text("{}")
    publish(home, folder, "secret")
    hub = tmp_path / "hub" / "ada" / "colours"
    lorikeet("export", "hub", "push", "secret@1", url)
    assert not (hub / "held_out.json").exists()
    refused = lorikeet("export", "hub", "push", "secret@1", url, "--include-private")
    assert "holds secret@1" in refused.stderr
    assert lorikeet("export", "hub", "push", "secret@1", url, "--include-private", "--force").exit_code == 0
    assert (hub / "held_out.json").exists()


def test_another_version_is_not_replaced_unless_forced(lorikeet, url, home, tmp_path):
    publish(home, random_adapter(home.bases / "tiny", tmp_path / "source", seed=5), "colours")
    lorikeet("export", "hub", "push", "colours@1", url)
    assert lorikeet("export", "hub", "push", "colours@1", url).exit_code == 0
    refused = lorikeet("export", "hub", "push", "colours@2", url)
    assert refused.exit_code == 1
    assert "holds colours@1" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "pushed colours@2" in lorikeet("export", "hub", "push", "colours@2", url, "--force").stdout


@pytest.mark.slow
def test_changed_bytes_publish_nothing(lorikeet, url, other, tmp_path):
    lorikeet("export", "hub", "push", "colours@1", url)
    path = tmp_path / "hub" / "ada" / "colours" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = lorikeet("export", "hub", "pull", url, "--home", other.root)
    assert "has SHA-256" in result.stderr
    assert AdapterStore(other.adapters).names() == []


def test_a_path_out_of_the_folder_is_refused(lorikeet, url, other, tmp_path):
    lorikeet("export", "hub", "push", "colours@1", url)
    path = tmp_path / "hub" / "ada" / "colours" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["path"] = "../../evil"
    path.write_text(json.dumps(manifest))
    result = lorikeet("export", "hub", "pull", url, "--home", other.root)
    assert "its manifest lists '../../evil'" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("content", "message"), [(None, "There is no manifest.json at"), ("{}", "is no manifest of")])
def test_a_folder_that_is_no_version_is_refused(lorikeet, tmp_path, content, message):
    (tmp_path / "hub").mkdir()
    if content is not None:
        (tmp_path / "hub" / "manifest.json").write_text(content)
    result = lorikeet("export", "hub", "pull", f"file://{tmp_path}/hub")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_version_is_pulled_from_an_http_server(lorikeet, url, other, tmp_path):
    lorikeet("export", "hub", "push", "colours@1", url)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "hub"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/ada/colours"
        result = lorikeet("export", "hub", "pull", address, "--home", other.root)
    finally:
        server.shutdown()
        server.server_close()
    assert "colours@1 is here" in result.stdout, result.stderr
