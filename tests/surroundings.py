"""Run as a program: make a base, a data set and a fingerprint in a folder, and print what identifies each, as JSON."""

import json
import sys
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from config.dataset import read_split
from config.home import Home
from tests.tiny_llama import DATED_TEMPLATE, prepare_tiny_base, tiny_domain, tiny_tokenizer, write_tiny_llama
from train.base.quantize import load_causal_lm
from train.data.build import build_dataset
from train.evaluate.fingerprint import make_fingerprint, write_fingerprint
from train.training import save_adapter

TEMPLATE = DATED_TEMPLATE.replace("Date: {{", "Heute ist für uns {{ strftime_now('%c, %A, %s') }}, {{")


def main(folder: Path) -> None:
    home, made = Home(folder / "var"), folder / "made"
    made.mkdir(parents=True)
    base = prepare_tiny_base(home, write_tiny_llama(folder / "model", TEMPLATE))
    rows = [{"input": f"Größe {number} ist {'rot' if number % 2 else 'grün'}", "output": "ü"} for number in range(60)]
    data_file = folder / "data.jsonl"
    data_file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    domain = tiny_domain(data_file, max_length=256).model_copy(update={"description": "Größen."})
    dataset = build_dataset(domain, home)
    model = get_peft_model(load_causal_lm(home.bases / "tiny"), LoraConfig(r=2, target_modules="all-linear"))
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.fill_(0.01)
    test = read_split(home.datasets / "colours", "test")
    write_fingerprint(make_fingerprint(model, tiny_tokenizer(TEMPLATE), base, test, datetime(2026, 11, 28, 12)), made)
    save_adapter(model, made, base.name)
    files = {
        path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(made.iterdir()) if path.name != "README.md"
    }
    template = sha256((home.bases / "tiny" / "chat_template.jinja").read_bytes()).hexdigest()
    found = {"base": base.digest, "template": template, "dataset": dataset.dataset_sha256, "key": dataset.config_sha256}
    print(json.dumps(found | files))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
