import json

import pytest
from peft import LoraConfig
from safetensors.torch import load_file

from tests.exported import publish, random_adapter


def test_the_folder_has_only_pefts_files_and_a_readme(home, tmp_path, lorikeet):
    assert lorikeet("export", "peft", "colours@1", "--output", tmp_path / "out").exit_code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == (
        load_file(tmp_path / "colours" / "adapter_model.safetensors").keys()
    )


@pytest.mark.slow
def test_the_configuration_has_no_key_that_other_programs_do_not_need(home, tmp_path, lorikeet):
    publish(
        home, random_adapter(home.bases / "tiny", tmp_path / "rs", use_rslora=True, rank_pattern={"v_proj": 2}), "rs"
    )
    lorikeet("export", "peft", "rs@1", "--output", tmp_path / "out", "--base-model", "ada/Tiny-1B")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "ada/Tiny-1B"
    assert (config["use_rslora"], config["rank_pattern"], config["r"]) == (True, {"v_proj": 2}, 4)
    assert not {"corda_config", "eva_config", "use_dora", "lora_bias", "peft_version"} & config.keys()
    assert LoraConfig.from_pretrained(str(tmp_path / "out")).r == 4


@pytest.mark.slow
def test_dora_keeps_its_magnitudes_and_says_what_it_is(home, tmp_path, lorikeet):
    folder = random_adapter(home.bases / "tiny", tmp_path / "dora", use_dora=True)
    publish(home, folder, "dora")
    lorikeet("export", "peft", "dora@1", "--output", tmp_path / "out")
    assert LoraConfig.from_pretrained(str(tmp_path / "out")).use_dora
    weights = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert weights == (folder / "adapter_model.safetensors").read_bytes()
    assert not (tmp_path / "out" / "dora.safetensors").exists()
    assert "It is DoRA" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["colours@7"], "There is no 'colours@7'"),
        (["nobody"], "There is no 'nobody"),
        (["../x"], "is not a model reference"),
    ],
)
def test_an_unknown_version_writes_nothing(lorikeet, tmp_path, words, message):
    result = lorikeet("export", "peft", *words, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_stays_unless_forced(lorikeet, tmp_path):
    out = tmp_path / "out[/final] [v2]"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("keep")
    refused = lorikeet("export", "peft", "colours@1", "--output", out)
    assert refused.exit_code == 1
    assert f"'{out}' exists. Choose another `--output`, or replace it with `--force`." in refused.stderr
    assert (out / "mine.txt").read_text() == "keep"
    forced = lorikeet("export", "peft", "colours@1", "--output", out, "--force")
    assert f"colours@1 written to {out} as peft" in forced.stdout
    assert not (out / "mine.txt").exists()


def test_a_file_in_the_way_is_refused(lorikeet, tmp_path):
    (tmp_path / "out").write_text("")
    assert "is not a folder" in lorikeet("export", "peft", "colours@1", "--output", tmp_path / "out", "--force").stderr
    below = lorikeet("export", "peft", "colours@1", "--output", tmp_path / "out" / "deeper")
    assert "Cannot write" in below.stderr
    assert below.stderr.count("\n") == 1


def test_a_base_that_is_not_prepared_here_is_named(home, lorikeet, tmp_path):
    (home.bases / "tiny").rename(home.bases / ".gone")
    result = lorikeet("export", "peft", "colours@1", "--output", tmp_path / "out")
    assert "was trained on the base 'tiny' with digest" in result.stderr
    assert result.stderr.count("\n") == 1
