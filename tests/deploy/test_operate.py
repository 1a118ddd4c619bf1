"""docs/operate.md names commands, files, alerts and folders that exist."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import lorikeet
from adapters.store.store import AdapterStore
from config.home import Home
from tests.deploy.commands import unknown_words
from tests.peft_folders import draft_for
from tests.tracked_files import ROOT

PAGE = (ROOT / "docs" / "operate.md").read_text()
ALERTS = yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.rules.yml").read_text())["groups"]


@pytest.mark.slow
def test_its_commands_are_ours():
    text = PAGE.replace("\\\n", " ")
    commands = re.findall(r"(?m)(?:^ *|`)(lorikeet [a-z][^`#\n]*)", text)
    assert len(commands) > 8
    assert {command: words for command in commands if (words := unknown_words(command.split()))} == {}


def test_its_alerts_exist_and_every_group_is_there():
    named = set(re.findall(r"`(Lorikeet\w+)`", PAGE))
    assert named
    assert named <= {rule["alert"] for group in ALERTS for rule in group["rules"]}
    assert set(re.findall(r"(?m)^\| `(lorikeet-\w+)` \|", PAGE)) == {group["name"] for group in ALERTS}


def test_its_files_exist():
    named = set(re.findall(r"`((?:deploy|config|requirements|tests)/[\w./-]+|Dockerfile)`", PAGE))
    assert "deploy/compose.yaml" in named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_what_it_says_of_the_state_folder_is_in_it():
    section = PAGE.partition("\n## Back up and restore\n")[2].partition("\n```")[0]
    rows = re.findall(r"(?m)^\| ((?:`[\w.-]+`(?:, )?)+) \|", section)
    named = {name for row in rows for name in re.findall(r"`([\w.-]+)`", row)}
    home = Home(Path("var"))
    there = {
        getattr(home, each).relative_to("var").parts[0]
        for each, kind in vars(Home).items()
        if isinstance(kind, property)
    }
    assert named - there == {"cache"}  # of the image: VLLM_CACHE_ROOT
    assert {"adapters", "bases", "keys.json", "quality.key", "quality.sqlite3", "staged", "int8-bases"} <= named


def test_a_copied_store_serves_what_it_served(store: AdapterStore, peft_folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        store.publish(peft_folder, draft_for(peft_folder))
    store.promote("medical", 1)
    copy = Home(tmp_path / "backup")
    shutil.copytree(store.root, copy.adapters)
    finished = CliRunner().invoke(lorikeet.app, ["adapters", "verify", "--home", str(copy.root)])
    assert finished.exit_code == 0, finished.output
    assert AdapterStore(copy.adapters).resolve("medical").version == 1
