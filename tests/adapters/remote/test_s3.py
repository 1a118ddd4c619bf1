"""The remote store against a real S3 server on loopback (moto's), through s3fs."""

import fsspec
import pytest

from adapters.errors import AdapterNotFoundError, IntegrityError, RemoteStoreError
from adapters.reference import Target
from adapters.remote.remote import RemoteStore
from tests.peft_folders import draft_for
from tests.remote_stores import FIRST, SECOND

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def options_for(endpoint):
    return {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-west-1"},
        "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2, "read_timeout": 10},
    }


@pytest.fixture
def s3(endpoint):
    return fsspec.filesystem("s3", **options_for(endpoint))


@pytest.fixture
def url(s3, tmp_path):
    """An empty place of the test's own in a bucket."""
    bucket = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    s3.mkdir(bucket)
    yield f"s3://{bucket}/team/adapters"
    s3.rm(bucket, recursive=True)


@pytest.fixture
def connect(endpoint):
    def connect(url, store):
        # Each with its own instance, as other machines have: what one writes the other must not remember otherwise.
        options = options_for(endpoint) | {"skip_instance_cache": True}
        return RemoteStore(url, store, storage_options=options, sleep=lambda s: None)

    return connect


def test_a_version_goes_through_a_bucket_to_another_store(connect, url, origin, mirror):
    assert connect(url, origin).push(FIRST) == (FIRST,)
    remote = connect(url, mirror)
    assert remote.sync() == ("medical",)
    assert remote.locate("medical") == FIRST
    assert mirror.verify(FIRST) == origin.verify(FIRST)


def test_a_listing_of_before_a_push_is_not_remembered(connect, url, origin, mirror, peft_folder):
    connect(url, origin).push(FIRST)
    remote = connect(url, mirror)
    remote.sync()
    remote.fetch(FIRST)
    assert remote.sync() == ()
    origin.promote("medical", 2)
    origin.publish(peft_folder, draft_for(peft_folder, name="legal"))
    connect(url, origin).push(SECOND)
    connect(url, origin).push(Target("legal", 1))
    assert remote.sync() == ("legal", "medical")
    assert remote.locate("medical") == SECOND


def test_only_what_is_new_is_pushed(connect, url, origin):
    connect(url, origin).push(FIRST)
    assert connect(url, origin).push(SECOND) == (SECOND,)
    assert connect(url, origin).push(SECOND) == ()


def test_an_object_that_is_cut_off_is_refused(connect, url, origin, mirror, s3):
    connect(url, origin).push(FIRST)
    path = f"{url}/medical/1/adapter_model.safetensors"
    s3.pipe_file(path, s3.cat_file(path)[:100])
    remote = connect(url, mirror)
    remote.sync()
    with pytest.raises(IntegrityError, match=r"has 100 bytes, its manifest says"):
        remote.fetch(FIRST)
    assert mirror.names() == []


def test_an_empty_place_in_a_bucket_says_to_push_first(connect, url, mirror):
    with pytest.raises(RemoteStoreError, match="push a version there first"):
        connect(url, mirror).sync()


def test_an_adapter_that_the_bucket_lacks_is_not_found(connect, url, origin, mirror):
    connect(url, origin).push(FIRST)
    with pytest.raises(AdapterNotFoundError, match="no 'legal' at"):
        connect(url, mirror).sync("legal")


def test_a_server_that_is_away_is_named(mirror):
    pytest.importorskip("s3fs")
    options = options_for("http://127.0.0.1:9")
    remote = RemoteStore("s3://bucket/x", mirror, storage_options=options, sleep=lambda s: None)
    with pytest.raises(RemoteStoreError, match="Could not list the adapters at 's3://bucket/x'"):
        remote.sync()
