"""Who may reach a local Ray, and what is said where there is none."""

import pytest

from config.errors import RayError
from config.local_ray import check_ray, set_local_environment


def test_a_local_ray_stays_on_loopback_with_a_token_of_its_own():
    one, two = {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "old"}
    set_local_environment(one)
    set_local_environment(two)
    assert one["RAY_AUTH_MODE"] == "token"
    assert one["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert one["RAY_AUTH_TOKEN"] != two["RAY_AUTH_TOKEN"]


def test_rays_processes_have_the_commands_own_priority():
    environment: dict[str, str] = {}
    set_local_environment(environment)
    assert environment["RAY_worker_niceness"] == "0"


def test_without_ray_one_is_told_how_to_install_it(monkeypatch):
    monkeypatch.setattr("config.local_ray.find_spec", lambda name: None)
    with pytest.raises(RayError, match=r'not installed\. Install it: pip install "lorikeet\[ray\]"'):
        check_ray(None)


def test_an_address_where_nobody_answers_is_refused_at_once():
    with pytest.raises(RayError, match=r"No Ray cluster answers at '127\.0\.0\.1:1'.*unset it"):
        check_ray("127.0.0.1:1")
