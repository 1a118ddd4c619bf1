"""README's file tree is true, and its domain can be trained."""

import re
import textwrap

from config.domain import GatesConfig
from config.load import load_domain
from tests.tracked_files import ROOT, tracked_files
from train.data.splits import DEFAULT_NUM_TEST, DEFAULT_NUM_VALIDATION


def tree_lines():
    """Lines of the fenced block under the heading "The house"."""
    section = (ROOT / "README.md").read_text().partition("\n## The house\n")[2]
    return section.split("```")[1].strip("\n").splitlines()


def test_every_line_names_one_entry_and_says_what_it_is():
    assert [line for line in tree_lines() if not re.fullmatch(r"[\w.-]+/? {2,}\S.*", line)] == []


def test_the_tree_names_exactly_what_is_tracked():
    tops = {f"{path.parts[0]}/" if len(path.parts) > 1 else path.name for path in tracked_files()}
    named = [line.split()[0] for line in tree_lines()]
    assert sorted(named) == sorted(top for top in tops if not top.startswith("."))


def test_the_domain_of_ones_own_is_whole_and_asks_for_little(tmp_path):
    section = (ROOT / "README.md").read_text().partition("\n## Your own domain\n")[2]
    file = tmp_path / "support.yaml"
    file.write_text(textwrap.dedent(section.partition("   ```yaml\n")[2].partition("   ```")[0]))
    domain = load_domain(file)
    assert domain.data.paths == (str(tmp_path / "support.jsonl"),)
    assert (domain.gates, domain.answer.refusal) == (GatesConfig(), None)
    assert f"By default {DEFAULT_NUM_TEST} examples are held out and {DEFAULT_NUM_VALIDATION} decide" in section
