import pytest

from config.errors import ConfigError
from config.load import validate
from config.monitor import MonitorConfig
from config.serve import ServeConfig


def read(quality: object) -> MonitorConfig:
    return validate({"base": "tiny", "quality": quality}, ServeConfig, "serve.yaml").quality


def test_the_monitor_watches_and_tells_but_moves_nothing_by_default() -> None:
    quality = ServeConfig(base="tiny").quality
    assert (quality.enabled, quality.privacy, quality.verdict) == (True, "features", "dry_run")


def test_an_adapter_has_its_own_rate() -> None:
    quality = read({"sample_rate": 0.25, "rates": {"medical": 1}})
    assert (quality.rate_of("medical"), quality.rate_of("legal")) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("quality", "problem"),
    [
        ({"rates": {"medical": 1.5}}, "`quality.rates.medical`: got 1.5; input should be less than or equal to 1"),
        ({"privacy": "some"}, "`quality.privacy`: got 'some'"),
        ({"judge": {}}, "`judge` requires samples with text (`privacy: redacted` or `full`); got 'features'"),
        ({"privacy": "full", "judge": {"url": "http://judge/v1"}}, "`model` and `url` must be set together"),
        ({"privacy": "full", "judge": {"api_key_env": "KEY"}}, "`api_key_env` requires `url`; got 'KEY' and no url"),
        ({"privacy": "full", "judge": {"url": "judge", "model": "large"}}, "`quality.judge.url`: got 'judge'"),
    ],
)
def test_what_cannot_be_meant_is_refused(quality: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(quality)
    assert problem in str(caught.value)


def test_the_servers_own_base_may_judge_redacted_samples() -> None:
    judge = read({"privacy": "redacted", "judge": {}}).judge
    assert judge is not None
    assert judge.url is None


@pytest.mark.parametrize("privacy", ["none", "features"])
def test_scheduled_trainings_need_stored_corrections(privacy: str) -> None:
    given = {"base": "tiny", "quality": {"privacy": privacy}, "jobs": {"schedule": {"medical": {}}}}
    with pytest.raises(ConfigError, match="schedule` requires corrections"):
        validate(given, ServeConfig, "serve.yaml")
    given["quality"] = {"privacy": "redacted"}
    assert validate(given, ServeConfig, "serve.yaml").jobs.schedule["medical"].after_corrections == 200
