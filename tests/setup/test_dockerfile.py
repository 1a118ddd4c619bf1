"""The Dockerfile names nothing that does not exist. (No Docker engine is needed to know that.)"""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_group

import lorikeet
from tests.deploy.commands import unknown_words

ROOT = Path(__file__).parents[2]


def instructions():
    """(keyword, rest) of each instruction, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of_kind(keyword):
    return [rest for kind, rest in instructions() if kind == keyword]


def stages():
    """Instructions by the stage that they belong to."""
    found: dict[str, list[tuple[str, ...]]] = {}
    name = ""
    for keyword, rest in instructions():
        if keyword == "FROM":
            name = rest.split()[-1]
        found.setdefault(name, []).append((keyword, rest))
    return found


def chain(stage):
    """Instructions of a stage with those of the stages below it."""
    own = stages()[stage]
    below = own[0][1].split()[0]
    return [*(chain(below) if below in stages() else []), *own]


def installed_by_apt(stage):
    """Debian packages in a stage."""
    text = " ".join(rest for keyword, rest in chain(stage) if keyword == "RUN")
    calls = re.findall(r"apt-get install --yes --no-install-recommends ([\w+. -]+?) *&&", text)
    return {name for call in calls for name in call.split()}


def last(stage, keyword):
    return [rest for kind, rest in chain(stage) if kind == keyword][-1]


IMAGES = ["cpu", "cpu-compiler", "gpu"]


def test_it_has_its_images_on_one_pinned_python():
    assert list(stages()) == ["base", "build", "build-cpu", "build-gpu", "gpu", "cpu", "cpu-compiler"]
    outside = {rest.split()[0] for rest in of_kind("FROM")} - set(stages())
    assert len(outside) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", outside.pop())


def test_everything_that_it_copies_exists():
    words = [shlex.split(rest)[:-1] for rest in of_kind("COPY") if "--from" not in rest]
    assert words
    assert [word for line in words for word in line if not (ROOT / word).exists()] == []


def test_what_it_copies_between_stages_is_of_the_same_device():
    copied = {name: rest for name in IMAGES for kind, rest in stages()[name] if kind == "COPY"}
    assert copied == {"cpu": "--from=build-cpu /app /app", "gpu": "--from=build-gpu /app /app"}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_what_its_libraries_are_linked_to(image):
    assert {"libgomp1", "libnuma1"} <= installed_by_apt(image)


def test_only_images_that_need_a_compiler_have_one():
    compilers = {"g++", "gcc", "clang"}
    assert {image: installed_by_apt(image) & compilers for image in IMAGES} == {
        "cpu": set(),
        "cpu-compiler": {"g++"},
        "gpu": {"gcc"},
    }


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_in_particular(image):
    assert last(image, "USER") == "10001"
    assert f"useradd --uid {last(image, 'USER')} " in last("base", "RUN")


@pytest.mark.parametrize("image", IMAGES)
def test_only_the_volume_is_writable(image):
    owned = [rest for kind, rest in chain(image) if "--owner" in rest or "--chown" in rest or "chown" in rest]
    assert owned == [f"install --directory --owner lorikeet --group lorikeet --mode 700 {last(image, 'VOLUME')}"]


@pytest.mark.parametrize("image", IMAGES)
def test_health_is_whether_it_is_ready(image):
    assert "/ready" in last(image, "HEALTHCHECK")


def test_what_changes_least_comes_first():
    for device in ("cpu", "gpu"):
        steps = [rest for _, rest in chain(f"build-{device}")]
        order = [
            next(i for i, rest in enumerate(steps) if text in rest) for text in ("g++", "setup.sh packages", ". .")
        ]
        assert order == sorted(order)
        assert steps[-1].startswith("scripts/setup.sh && ")


def test_the_operators_lie_outside_the_volume():
    settings = dict(word.split("=", 1) for rest in of_kind("ENV") for word in shlex.split(rest))
    assert not Path(settings["TORCH_EXTENSIONS_DIR"]).is_relative_to(last("cpu", "VOLUME"))
    assert Path(settings["VLLM_CACHE_ROOT"]).is_relative_to(last("cpu", "VOLUME"))


def test_every_script_that_it_runs_exists_and_is_executable():
    scripts = [word for rest in of_kind("RUN") for word in rest.split() if word.startswith("scripts/")]
    assert scripts
    assert [script for script in scripts if not (ROOT / script).stat().st_mode & 0o100] == []


def test_a_lock_exists_for_each_device_that_it_sets_up():
    devices = re.findall(r"LORIKEET_DEVICE=(\w+)", (ROOT / "Dockerfile").read_text())
    assert sorted(devices) == ["cpu", "gpu"]
    assert [device for device in devices if not (ROOT / "requirements" / f"{device}.lock").is_file()] == []


def test_its_command_is_one_of_ours_with_a_configuration_that_exists():
    assert len(set(of_kind("CMD"))) == 1
    program, command, config_file, *options = json.loads(of_kind("CMD")[0])
    known = get_group(lorikeet.app).commands[command]
    assert program == "lorikeet"
    assert (ROOT / config_file).is_file()
    assert [option for option in options if option.startswith("--")] == ["--host"]
    assert "--host" in {name for parameter in known.params for name in parameter.opts}


def test_the_commands_of_its_head_comment_are_ours():
    head = (ROOT / "Dockerfile").read_text().partition("\nFROM ")[0]
    commands = [found.split() for found in re.findall(r"(lorikeet (?:base|keys) .*)", head)]
    assert [unknown_words(command) for command in commands] == [[], []]


def test_what_is_big_or_private_stays_out_of_the_image():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "var", "tests"} <= set(ignored)
    needed = [
        word for rest in of_kind("COPY") if "--from" not in rest for word in shlex.split(rest)[:-1] if word != "."
    ]
    assert not set(needed) & set(ignored)
