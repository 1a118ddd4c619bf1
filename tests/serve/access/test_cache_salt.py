"""Tenants are apart in the prefix cache, and no request can name another one's salt."""

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.store.store import AdapterStore
from serve.access.cache_salt import CacheSalts
from serve.access.keys import KeyGrant, KeyRing, create_key
from serve.errors import InvalidRequestError
from tests.serving import BASE_NAME, Serving, make_serving

ENDPOINTS = ("chat/completions", "completions", "responses")


def salt(salts: CacheSalts, tenant: str, given: str | None = None) -> str:
    return salts.salted({} if given is None else {"cache_salt": given}, tenant)["cache_salt"]


def test_a_tenant_has_one_salt() -> None:
    salts = CacheSalts()
    assert salt(salts, "acme") == salt(salts, "acme")
    assert salt(salts, "acme", "chat-7") == salt(salts, "acme", "chat-7")


def test_no_two_of_tenant_and_salt_are_the_same() -> None:
    salts, names = CacheSalts(), ("acme", "acm", "acme.e", "e")
    pairs = [*itertools.product(names, (None, "e", "acme", "\0e", "acme\0"))]
    made = {salt(salts, tenant, given) for tenant, given in pairs}
    assert len(made) == len(pairs)


def test_a_salt_that_was_seen_gives_nothing_away() -> None:
    """A client that sends another tenant's salt, by whatever means it got it, gets one of its own."""
    salts = CacheSalts()
    assert salt(salts, "acme", salt(salts, "globex")) not in {salt(salts, "globex"), salt(salts, "acme")}


def test_another_process_has_other_salts() -> None:
    assert salt(CacheSalts(), "acme") != salt(CacheSalts(), "acme")


def test_what_is_made_is_what_vllm_takes() -> None:
    made = salt(CacheSalts(), "acme", "a/b@c\\d")
    assert len(made) == 64
    assert made.isalnum()


@pytest.mark.parametrize("given", ["", "x" * 129, 7, ["a"], {"a": 1}, False])
def test_a_salt_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 128 characters") as refused:
        CacheSalts().salted({"cache_salt": given}, "acme")
    assert refused.value.param == "cache_salt"


def test_shared_tenants_have_the_same_salt_but_for_their_own() -> None:
    salts = CacheSalts(is_shared=True)
    assert salt(salts, "acme") == salt(salts, "globex")
    assert salt(salts, "acme", "x") == salt(salts, "globex", "x") != salt(salts, "acme")


async def asked(serving: Serving, token: str | None, endpoint: str, **more: Any) -> str:
    async with serving.client(token) as client:
        headers = {"x-user": "globex", "x-tenant": "globex", "openai-organization": "globex"}
        response = await client.post(f"/v1/{endpoint}", json={"model": BASE_NAME, **more}, headers=headers)
    assert response.status_code == 200
    made: str = serving.engine.bodies[-1]["cache_salt"]
    return made


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """Two keys of acme, one of globex."""
    names = {"acme": "acme", "acme-too": "acme", "globex": "globex"}
    now = datetime.now(UTC)
    return {key: create_key(tmp_path / "keys.json", KeyGrant(tenant=t), now=now).token for key, t in names.items()}


@pytest.fixture
def serving(store: AdapterStore, base_folder: Path, tmp_path: Path, tokens: dict[str, str]) -> Serving:
    assert tokens
    return make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"))


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_a_request_goes_to_the_engine_with_its_tenants_salt(
    serving: Serving, tokens: dict[str, str], endpoint: str
) -> None:
    acme, too, globex = [await asked(serving, token, endpoint, user="globex") for token in tokens.values()]
    assert acme == too != globex


@pytest.mark.anyio
async def test_without_keys_all_are_one_tenant(store: AdapterStore, base_folder: Path) -> None:
    serving = make_serving(store, base_folder)
    assert len({await asked(serving, None, endpoint) for endpoint in ENDPOINTS}) == 1


@pytest.mark.anyio
async def test_the_setting_shares_the_cache(
    store: AdapterStore, base_folder: Path, tmp_path: Path, tokens: dict[str, str]
) -> None:
    serving = make_serving(store, base_folder, keys=KeyRing(tmp_path / "keys.json"), share_prefix_cache=True)
    assert len({await asked(serving, token, "completions") for token in tokens.values()}) == 1


@pytest.mark.anyio
async def test_a_shadow_copy_keeps_its_tenants_salt(serving: Serving, tokens: dict[str, str]) -> None:
    serving.publish("medical")
    serving.publish("medical", promote=False)
    serving.store.promote("medical", 2, "canary")
    serving.store.set_aliases("medical", {}, is_shadow=True)
    async with serving.client(tokens["acme"]) as client:
        await client.post("/v1/completions", json={"model": "medical"})
        await serving.parts.shadow.drain()
    answered, copied = serving.engine.bodies
    assert [answered["model"], copied["model"]] == ["medical@1", "medical@2"]
    assert answered["cache_salt"] == copied["cache_salt"]
