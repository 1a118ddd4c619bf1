import json

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from adapters.cli import app
from adapters.reference import Target
from adapters.scores import Score
from adapters.store.evaluation_records import FigureRecord, GateOutcome
from adapters.store.manifest import DatasetRef, Manifest, SourceFile
from adapters.store.store import AdapterStore
from tests.narrowing import not_none
from tests.peft_folders import MODULES, draft_for, lora_tensors, write_base_folder, write_peft_folder


@pytest.fixture
def home(tmp_path):
    """A home with a prepared base and two versions of `medical`, the first one stable."""
    home = tmp_path / "home"
    write_base_folder(home / "bases" / "tiny")
    source = write_peft_folder(tmp_path / "source")
    store = AdapterStore(home / "adapters")
    store.publish(source, draft_for(source, description="codes [of] diseases"))
    store.publish(source, draft_for(source))
    store.promote("medical", 1)
    return home


@pytest.fixture
def lorikeet(home):
    def run(*arguments):
        return CliRunner().invoke(app, [*arguments, "--home", str(home)], env={"COLUMNS": "200", "NO_COLOR": "1"})

    return run


def test_list_shows_versions_and_aliases(lorikeet):
    lines = lorikeet("list").stdout.splitlines()
    assert any("medical@1" in line and "stable" in line for line in lines)
    assert any("medical@2" in line and "stable" not in line for line in lines)


def test_list_of_an_empty_home_says_what_to_do(tmp_path):
    result = CliRunner().invoke(app, ["list", "--home", str(tmp_path / "nothing")])
    assert result.exit_code == 0
    assert "lorikeet train" in result.stdout


def test_show_has_the_manifest_and_the_history(lorikeet):
    output = lorikeet("show", "medical").stdout
    assert "codes [of] diseases" in output
    assert "r 2, alpha 4, 4 modules: q_proj, v_proj" in output
    assert "promoted" in output


FIGURES = (
    FigureRecord(
        kind="metric",
        metric="macro_f1",
        part="class: a|b",
        adapter=Score(value=0.8, ci_low=0.75, ci_high=0.85, n=240),
        base=Score(value=0.1, ci_low=0.05, ci_high=0.15, n=240),
        difference=Score(value=0.7, ci_low=0.65, ci_high=0.75, n=240),
        num_left_out=2,
    ),
    FigureRecord(
        kind="robustness", metric="macro_f1", part="typos", adapter=Score(value=0.5, ci_low=0.4, ci_high=0.6, n=50)
    ),
)
GATES = (
    GateOutcome(is_met=True, finding="valid format 1.000 is not below that of the base, 0.500"),
    GateOutcome(is_met=False, finding="gain of macro_f1 +0.000 is not above zero beyond chance"),
)


@pytest.fixture
def judged(home, peft_folder):
    """`support@1`, with figures and a gate that it failed."""
    draft = draft_for(peft_folder, name="support", figures=FIGURES, gates=GATES)
    return AdapterStore(home / "adapters").publish(peft_folder, draft)


def test_show_has_the_figures_and_the_gates(lorikeet, judged):
    output = lorikeet("show", "support@1").stdout
    row = next(line for line in output.splitlines() if "macro_f1[class: a|b]" in line)
    assert all(part in row for part in ("0.100 (0.050 to 0.150)", "+0.700 (+0.650 to +0.750) *", "240, 2 left out"))
    assert "robustness[typos], macro_f1" in output
    assert "NOT met: gain of macro_f1 +0.000" in output


def test_show_as_json_is_whole(lorikeet, judged):
    record = json.loads(lorikeet("show", "support@1", "--json").stdout)
    assert Manifest.model_validate({k: record[k] for k in Manifest.model_fields}) == judged
    assert (record["aliases"], [event["kind"] for event in record["history"]]) == ([], ["published"])


def test_promoting_by_hand_is_allowed_and_the_history_names_the_failed_gates(lorikeet, home, judged):
    result = lorikeet("promote", "support@1", "--reason", "it is wanted")
    assert "support@stable is now support@1" in result.stdout
    assert "note: it had failed its gates: gain of macro_f1 +0.000" in result.stdout
    event = AdapterStore(home / "adapters").history("support")[-1]
    assert event.reason == "it is wanted; gates had failed: gain of macro_f1 +0.000 is not above zero beyond chance"


def test_a_canary_needs_no_gates(lorikeet, home, judged):
    lorikeet("promote", "support@1", "--alias", "canary")
    assert AdapterStore(home / "adapters").history("support")[-1].reason == ""


def test_show_walks_back_to_the_files_of_the_rows(lorikeet, home, peft_folder):
    dataset = DatasetRef(
        dataset_sha256="d" * 64,
        source="tickets [old].csv 1",
        licence=None,
        num_train=512,
        num_validation=64,
        num_test=240,
        digest="0123456789ab" + "c" * 52,
        files=(SourceFile(name="tickets [old].csv", size_bytes=48_123, sha256="e" * 64),),
    )
    AdapterStore(home / "adapters").publish(peft_folder, draft_for(peft_folder, name="support", dataset=dataset))
    output = lorikeet("show", "support@1").stdout
    assert "tickets [old].csv 1, 512 examples, datasets/support/0123456789ab" in output
    assert f"tickets [old].csv (48,123 bytes, SHA-256 {'e' * 12})" in output


def test_verify_goes_through_all_versions_and_names_the_broken_one(lorikeet, home):
    path = home / "adapters" / "medical" / "1" / "README.md"
    path.unlink()
    result = lorikeet("verify")
    assert result.exit_code == 1
    assert "medical@1 lacks its file 'README.md'" in result.stderr
    assert "medical@2: 3 files as published" in result.stdout


def test_promote_and_rollback_move_the_alias(lorikeet):
    assert "medical@stable is now medical@2" in lorikeet("promote", "medical@2").stdout
    assert "medical@stable is now medical@1" in lorikeet("rollback", "medical", "--reason", "slow").stdout


def test_promote_moves_stable_to_where_canary_is(lorikeet):
    lorikeet("promote", "medical@2", "--alias", "canary")
    assert "medical@stable is now medical@2" in lorikeet("promote", "medical@canary").stdout


def test_split_and_pin_are_shown(lorikeet):
    lorikeet("promote", "medical@2", "--alias", "canary")
    assert (
        "medical: the canary now gets 0.1 of the traffic"
        in lorikeet("split", "medical", "--canary-weight", "0.1").stdout
    )
    assert "medical@1 is pinned" in lorikeet("pin", "medical").stdout
    lines = lorikeet("list").stdout.splitlines()
    assert any("medical@1" in line and "stable, pinned" in line for line in lines)
    assert any("medical@2" in line and "canary 0.1" in line for line in lines)
    output = lorikeet("show", "medical").stdout
    assert "stable, pinned" in output
    assert "canary 0.1" in output


def test_a_shadow_is_shown_as_one(lorikeet):
    lorikeet("promote", "medical@2", "--alias", "canary")
    result = lorikeet("split", "medical", "--canary-weight", "0", "--shadow", "--reason", "try it")
    assert "medical: the canary is now a shadow" in result.stdout
    assert "canary shadow: try it" in lorikeet("show", "medical").stdout


def test_unpin_takes_the_pin_off(lorikeet):
    lorikeet("pin", "medical@2")
    assert "medical@2 is not pinned" in lorikeet("unpin", "medical@2").stdout
    assert "pinned" not in lorikeet("list").stdout


def test_rm_removes_a_version_without_alias(lorikeet, home):
    assert lorikeet("rm", "medical@2").exit_code == 0
    assert AdapterStore(home / "adapters").versions("medical") == [1]


def test_gc_keeps_what_is_asked(lorikeet):
    assert "no version" in lorikeet("gc").stdout
    assert "medical@2" in lorikeet("gc", "--keep-last", "0").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "legal"], "There is no 'legal'"),
        (["show", "../x"], "is not a model reference"),
        (["rm", "medical@1"], "'medical@1' is stable"),
        (["rollback", "medical"], "no earlier one"),
        (["split", "medical", "--canary-weight", "0.5"], "Cannot split traffic without a canary"),
        (["lint", ".", "--base", "other"], "There is no base 'other'"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(lorikeet, arguments, message):
    result = lorikeet(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_lint_says_that_a_folder_can_be_served(lorikeet, peft_folder):
    result = lorikeet("lint", str(peft_folder), "--base", "tiny")
    assert result.exit_code == 0
    assert "4/4 modules apply to 'tiny'" in result.stdout
    assert "can be served" in result.stdout


def test_lint_says_why_a_folder_cannot_be_served(lorikeet, tmp_path):
    result = lorikeet("lint", str(write_peft_folder(tmp_path / "qalora", use_qalora=True)))
    assert result.exit_code == 1
    assert "use-qalora" in result.stdout
    assert "Leave use_qalora out." in result.stdout


def test_import_publishes_a_foreign_folder_bound_to_its_base(lorikeet, peft_folder, home):
    result = lorikeet("import", str(peft_folder), "foreign", "--base", "tiny")
    assert "published foreign@1" in result.stdout
    manifest = AdapterStore(home / "adapters").manifest(Target("foreign", 1))
    assert (manifest.origin, manifest.base.name, manifest.lora.num_modules) == (
        "imported",
        "tiny",
        len(MODULES),
    )


DEFAULTS = """
system: Answer in JSON.
temperature: 0
stop: ["}"]
response_format: {type: json_schema, json_schema: {name: answer, schema: {type: object}}}
"""


@pytest.mark.parametrize("text", [DEFAULTS, json.dumps(yaml.safe_load(DEFAULTS))], ids=["yaml", "json"])
def test_import_takes_request_defaults_and_show_shows_them(lorikeet, peft_folder, home, tmp_path, text):
    file = tmp_path / "defaults"
    file.write_text(text)
    assert lorikeet("import", str(peft_folder), "foreign", "--base", "tiny", "--defaults", str(file)).exit_code == 0
    defaults = not_none(AdapterStore(home / "adapters").manifest(Target("foreign", 1)).defaults)
    assert (defaults.system, defaults.temperature, defaults.stop) == ("Answer in JSON.", 0.0, ("}",))
    output = lorikeet("show", "foreign@1").stdout
    assert 'system "Answer in JSON."; temperature 0.0; stop ["}"]; response_format {"type": "json_schema"' in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature: 0", "`temprature`: got 0; Extra inputs are not permitted"),
        ("temperature: hot", "`temperature`: got 'hot'"),
        ("stop: [a, b, c, d, e]", "`stop`: got ['a', 'b', 'c', 'd', 'e']"),
        ("response_format: {type: text}", "`response_format`: got {'type': 'text'}; must be {"),
        (
            "response_format: {type: json_schema, json_schema: {name: a, schema: {type: 7}}}",
            "`response_format` must hold a valid JSON schema: 7",
        ),
        ("- system", "got list, wanted a mapping with some of system, temperature"),
        ("{", "not valid YAML or JSON"),
        (None, "cannot be read"),
    ],
)
def test_import_refuses_defaults_that_make_no_sense(lorikeet, peft_folder, home, tmp_path, text, message):
    file = tmp_path / "defaults.yaml"
    if text is not None:
        file.write_text(text)
    result = lorikeet("import", str(peft_folder), "foreign", "--base", "tiny", "--defaults", str(file))
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert AdapterStore(home / "adapters").names() == ["medical"]


def test_import_refuses_a_folder_for_another_base(lorikeet, tmp_path, home):
    write_base_folder(home / "bases" / "gpt", modules=("transformer.h.0.attn.c_attn",))
    result = lorikeet("import", str(write_peft_folder(tmp_path / "llama")), "foreign", "--base", "gpt")
    assert result.exit_code == 1
    assert "would answer as the base" in result.stderr
    assert AdapterStore(home / "adapters").names() == ["medical"]


BRACKETS = "best[/final] [v2]"


def test_brackets_in_paths_and_texts_are_printed_as_they_are(lorikeet, tmp_path):
    folder = write_peft_folder(tmp_path / "best[" / "final] [v2]")
    result = lorikeet("lint", str(folder))
    assert (result.exit_code, result.exception) == (0, None)
    assert f"'{folder}' can be served." in result.stdout
    assert lorikeet("import", str(folder), "foreign", "--base", "tiny", "--description", BRACKETS).exit_code == 0
    assert BRACKETS in lorikeet("show", "foreign@1").stdout
    assert "foreign@stable is now" in lorikeet("promote", "foreign@1", "--reason", BRACKETS).stdout
    assert BRACKETS in lorikeet("show", "foreign").stdout


def test_import_leaves_a_trainers_files_with_warnings(lorikeet, peft_folder, home):
    for name in ("scaler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        (peft_folder / name).write_bytes(b"")
    result = lorikeet("import", str(peft_folder), "foreign", "--base", "tiny")
    assert "warning trainer-file: 'scaler.pt' belongs to a trainer and is not copied." in result.stdout
    assert "'rng_state_0.pth' … 'rng_state_1.pth' (2 files)" in result.stdout
    assert not list((home / "adapters" / "foreign" / "1").glob("*.pt*"))


def odd_folder(path, old=".weight", new=".default.weight"):
    return write_peft_folder(path, tensors={name.replace(old, new): t for name, t in lora_tensors().items()})


def twice_folder(path):
    tensors = {f"{prefix}{name}": t.clone() for prefix in ("", "_orig_mod.") for name, t in lora_tensors().items()}
    return write_peft_folder(path, tensors=tensors)


def test_import_renames_tensors_where_it_is_asked_to(lorikeet, peft_folder, tmp_path, home):
    folder = odd_folder(tmp_path / "odd")
    refused = lorikeet("import", str(folder), "foreign", "--base", "tiny")
    assert refused.exit_code == 1
    assert "the adapter's name 'default' (8 of 8)" in refused.stderr
    assert "--rename" in refused.stderr
    result = lorikeet("import", str(folder), "foreign", "--base", "tiny", "--rename")
    assert "renamed 8 tensors, as base_model" in result.stdout
    published = home / "adapters" / "foreign" / "1" / "adapter_model.safetensors"
    assert load_file(published).keys() == load_file(peft_folder / published.name).keys()
    assert list((home / "adapters" / ".staging").glob("[!.]*")) == []
    assert lorikeet("lint", str(published.parent), "--base", "tiny").exit_code == 0


def test_a_rename_of_good_names_changes_nothing(lorikeet, peft_folder):
    result = lorikeet("import", str(peft_folder), "foreign", "--base", "tiny", "--rename")
    assert "renamed" not in result.stdout
    assert "published foreign@1" in result.stdout


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: twice_folder(path), "would have the same name", id="collision"),
        pytest.param(lambda path: odd_folder(path, ".layers.", ".blocks."), "would answer as the base", id="no layer"),
        pytest.param(lambda path: write_peft_folder(path, use_qalora=True), "not serve QA-LoRA", id="unsupported"),
        pytest.param(lambda path: path, "There is no folder", id="no folder"),
    ],
)
def test_a_rename_that_does_not_help_publishes_nothing(lorikeet, tmp_path, home, make, message):
    result = lorikeet("import", str(make(tmp_path / "odd")), "foreign", "--base", "tiny", "--rename")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert AdapterStore(home / "adapters").names() == ["medical"]


def test_another_base_is_a_warning_at_lint_and_import(lorikeet, tmp_path):
    folder = str(write_peft_folder(tmp_path / "other", base_model_name_or_path="ada/Other-1B"))
    for words in (["lint", folder], ["import", folder, "foreign"]):
        result = lorikeet(*words, "--base", "tiny")
        assert result.exit_code == 0
        assert (
            "warning other-base: It was trained on 'ada/Other-1B' according to its configuration, but this base is"
            in result.stdout
        )
