"""`lorikeet bench methods`: every method and objective for 20 steps on the demo's medical domain, in one table.

Each cell is trained in a process of its own (`train/bench_methods.py`) and kept in `var/bench-methods/cells.json`, so
an interrupted run goes on. Then what can be served answers 100 held-out questions (`loadtest/bench/served_cells.py`).
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.home import Home
from loadtest.bench.children import child
from loadtest.bench.options import BenchOptions
from loadtest.bench.results import BenchResult
from loadtest.bench.served_cells import serve_cells
from loadtest.bench.servers import kept_logs
from loadtest.bench.trainers import BASE, BNB_BASE, INT8_BASE, prepared_base
from loadtest.errors import TargetError
from loadtest.load.files import replace_text

_STORED_AS = {BNB_BASE: ("nf4", "bitsandbytes"), INT8_BASE: ("int8", "bitsandbytes")}
CELLS: tuple[dict[str, Any], ...] = (
    {"name": "lora"},
    {"name": "qlora-nf4", "base": BNB_BASE},
    {"name": "qlora-int8", "base": INT8_BASE},
    {"name": "rslora", "method": {"use_rslora": True}},
    {"name": "loraplus", "method": {"loraplus_lr_ratio": 16.0}},
    {"name": "dora", "method": "dora"},
    {"name": "pissa", "method": {"init_lora_weights": "pissa"}},
    {"name": "olora", "method": {"init_lora_weights": "olora"}},
    {"name": "corda", "method": {"init_lora_weights": "corda"}},
    {"name": "loftq", "method": {"init_lora_weights": "loftq"}},
    {"name": "eva", "method": {"init_lora_weights": "eva"}},
    *({"name": name, "method": {"name": name, "max_conversion_error": 0.1}} for name in ("loha", "lokr")),
    {"name": "lora-ga", "method": {"init_lora_weights": "lora_ga"}},
    *({"name": name.replace("_", "-"), "method": name}
      for name in ("vera", "delora", "fourierft", "ia3", "oft", "full",
                   "prompt_tuning", "p_tuning", "prefix_tuning", "bottleneck")),
    *({"name": name, "objective": name} for name in ("text", "orpo", "reward")),
    *({"name": name, "objective": name, "from": "lora@1"} for name in ("dpo", "kto", "rloo", "grpo")),
    *({"name": f"{method}-{sparsity.replace(':', '-')}", "sparsify": {"method": method, "sparsity": sparsity}}
      for method, sparsity in (("magnitude", "0.5"), ("wanda", "0.5"), ("wanda", "2:4"))),
)  # fmt: skip

_CELLS_FILE = "cells.json"
_TABLE_FILE = "table.md"


def bench_methods(options: BenchOptions) -> tuple[BenchResult, ...]:
    """Train the missing cells, serve all of them, write the table.

    Raises:
        TargetError: The base is not prepared, or the server did not become ready.
    """
    home = _home(options.home)
    cells = _read(home)
    with kept_logs() as folder:
        for cell in CELLS:
            if "error" in cells.get(cell["name"], {"error": "not trained yet"}):
                options.say(f"training {cell['name']}")
                cell = {"base": BASE, **cell}
                _add_base(options, home, cell["base"], folder)
                cells[cell["name"]] = _trained(options, home, cell, folder)
                _write(home, cells)
        bases = {cell["name"]: cell.get("base", BASE) for cell in CELLS}
        for name, served in serve_cells(options, home, bases, cells, folder):
            cells[name] |= served
            _write(home, cells)
    cells = {cell["name"]: cells[cell["name"]] for cell in CELLS}
    table = table_of(cells)
    replace_text(home.root / _TABLE_FILE, table)
    options.say(table)
    return tuple(
        BenchResult(name=name, value=cell["exact_match"]["value"], unit="share, exact match")
        for name, cell in cells.items()
        if cell.get("exact_match")
    )


def table_of(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """The cells as a Markdown table; an empty one says why."""
    head = (
        "| cell | trainable | s | peak MB | exact match | general text | other | served as | conversion | parity "
        "| tokens/s |\n"
        "|---|---:|---:|---:|---|---:|---|---|---:|---:|---:|\n"
    )
    return head + "".join(f"| {' | '.join(_columns(name, cell))} |\n" for name, cell in cells.items())


def _columns(name: str, cell: Mapping[str, Any]) -> list[str]:
    if "error" in cell:
        return [name, *[""] * 6, cell["error"], "", "", ""]
    match = cell.get("exact_match")
    if start := cell.get("started_from"):
        name = f"{name}, from {start}"
    scores = (f"{key} {_before_and_after(score)}" for key, score in (cell.get("scores") or {}).items())
    return [
        name,
        _shown(cell.get("trainable_parameters"), ",.0f"),
        _shown(cell.get("seconds"), ".0f"),
        _shown(cell["peak_bytes"] / 1e6, ",.0f"),
        f"{match['value']:.3f} ({match['ci_low']:.3f} to {match['ci_high']:.3f})" if match else "",
        _shown(cell.get("forgotten_nats"), "+.3f"),
        ", ".join(scores),
        cell["served_as"],
        _shown(cell.get("conversion_nats"), ".4f"),
        _shown(cell.get("parity_nats"), ".4f"),
        _shown(cell.get("tokens_per_s"), ".0f"),
    ]


def _before_and_after(score: Mapping[str, Any]) -> str:
    base = score.get("base")
    return f"{base['value']:.3f} to {score['adapter']['value']:.3f}" if base else f"{score['adapter']['value']:.3f}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _home(home: Home) -> Home:
    """A state folder of its own, with the same base.

    Raises:
        TargetError: The base is not prepared.
    """
    base = home.bases / BASE
    if not base.is_dir():
        raise TargetError(f"Base {BASE!r} not found in {home.bases}. Run `lorikeet base prepare`.")
    own = Home(home.root / "bench-methods")
    own.bases.mkdir(parents=True, exist_ok=True)
    own.runs.mkdir(exist_ok=True)
    return own


def _add_base(options: BenchOptions, home: Home, name: str, logs: Path) -> None:
    """Make a base of the state folder, prepared if need be, one of the cells' folder."""
    if not (home.bases / name).exists():
        quantization, storage = _STORED_AS.get(name, ("nf4", "dequantized"))
        (home.bases / name).symlink_to(prepared_base(options, name, quantization, storage, logs).resolve())


def _read(home: Home) -> dict[str, dict[str, Any]]:
    path = home.root / _CELLS_FILE
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _write(home: Home, cells: Mapping[str, Any]) -> None:
    replace_text(home.root / _CELLS_FILE, json.dumps(cells, indent=1) + "\n")


def _trained(options: BenchOptions, home: Home, cell: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The cell's figures; where training is refused, the reason."""
    command = [sys.executable, "-P", "-m", "train.bench_methods", str(home.root), json.dumps(cell)]
    log = folder / f"{cell['name']}.log"
    with log.open("w") as file, child(command, output=file, is_asked=True, environment=options.environment) as process:
        output, _ = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    if process.returncode != 0 or not lines:
        reason = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        options.say(f"{cell['name']}: {reason}")
        return {"error": reason[:300]}
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures
