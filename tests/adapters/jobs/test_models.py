import pytest

from adapters.jobs.errors import UnknownIdError
from adapters.jobs.models import model_name
from tests.jobs_home import JobsHome

JOB_ID = "ftjob-1a2b3c4d5e6f708192a3b4c5"


def trained(home: JobsHome, name: str, version: str, owner: str = "acme") -> None:
    job = home.running(owner=owner)
    home.queue.finish(job.id, "w1", "succeeded", fine_tuned_model=name, version=version)


def test_a_name_says_base_tenant_suffix_and_job():
    assert model_name("smollm2-135m", "acme", "support", JOB_ID) == "ft:smollm2-135m:acme:support:1a2b3c4d"
    assert model_name("smollm2-135m", "acme", None, JOB_ID) == "ft:smollm2-135m:acme::1a2b3c4d"
    assert model_name("b", "acme", "s", JOB_ID, 40) == "ft:b:acme:s:1a2b3c4d:ckpt-step-40"


def test_a_name_is_found_as_soon_as_its_job_ends(home):
    assert home.names.find("ft:b:acme:s:1") is None
    trained(home, "ft:b:acme:s:1", "acme-s@3")
    found = home.names.find("ft:b:acme:s:1")
    assert (found.version, found.owner, found.base) == ("acme-s@3", "acme", "smollm2-135m-nf4")


def test_a_change_by_another_process_is_seen(home):
    with home.again() as other:
        assert other.names.find("ft:b:acme:s:1") is None
        trained(home, "ft:b:acme:s:1", "acme-s@3")
        assert other.names.find("ft:b:acme:s:1") is not None
        home.names.remove("acme", "ft:b:acme:s:1")
        assert other.names.find("ft:b:acme:s:1") is None


@pytest.mark.parametrize("name", ["medical", "medical@3", "", "ft:", "ft:" + "x" * 100_000, "ft:\ud800", "ft:\x00"])
def test_other_names_are_found_to_be_none(home, name):
    assert home.names.find(name) is None
    assert home.names.owner_of(name) is None


@pytest.mark.slow
def test_many_unknown_names_take_no_memory(home):
    for number in range(10_000):
        home.names.find(f"ft:{number}")
    assert len(home.names._cache) <= 4096


def test_no_lookup_waits_for_a_write(home):
    trained(home, "ft:b:acme:s:1", "acme-s@3")
    with home.again() as other, other.database.writing() as connection:
        connection.execute("DELETE FROM models")
        assert home.names.find("ft:b:acme:s:1") is not None
    assert home.names.find("ft:b:acme:s:1") is None


def test_an_adapter_belongs_to_the_tenant_of_its_jobs(home):
    assert home.names.owner_of("acme-support") is None
    home.submitted("acme")
    assert home.names.owner_of("acme-support") == "acme"


def test_models_are_listed_by_owner(home):
    trained(home, "ft:1", "acme-s@1")
    trained(home, "ft:2", "acme-s@2")
    trained(home, "ft:3", "globex-s@1", owner="globex")
    page = home.names.list("acme", limit=1)
    assert ([model.name for model in page.items], page.has_more) == (["ft:2"], True)
    assert [model.name for model in home.names.list("acme", after="ft:2").items] == ["ft:1"]
    assert home.names.names_of("acme-s@2") == ("ft:2",)


def test_only_its_owner_removes_a_name(home):
    trained(home, "ft:1", "acme-s@1")
    for owner, name in (("globex", "ft:1"), ("acme", "ft:2")):
        with pytest.raises(UnknownIdError, match="does not exist") as error:
            home.names.remove(owner, name)
        assert error.value.code == "model_not_found"
    assert home.names.remove("acme", "ft:1").version == "acme-s@1"
    assert home.names.find("ft:1") is None
