"""Compiles our operators and loads them: at set-up, or at first use. Where that cannot be done, plain torch computes.

`python -m serve.kernels.build` compiles it now.
"""

import hashlib
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import SubprocessError
from tempfile import TemporaryDirectory

import torch
from torch.utils import cpp_extension

from config.children import bound

logger = logging.getLogger(__name__)

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.cpp", "linear.cpp", "lora.cpp", "sampling.cpp"))
_HEADERS = tuple(Path(__file__).with_name(name) for name in ("linear_rows.h", "panels_avx2.h", "sampling_rows.h"))
# GCC's own AVX-512 headers trip -Wmaybe-uninitialized.
_FLAGS = ["-O3", "-fopenmp", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
_NAME = "lorikeet_kernels"


@cache
def load_kernels() -> bool:
    """Make `torch.ops.lorikeet` available, compiling it where that was not done yet (about 30 s).

    Returns:
        False where there is no compiler, or it fails: a warning says why.
    """
    library = library_file()
    try:
        if not library.exists():
            _compile(library)
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, SubprocessError) as error:
        logger.warning("LoRA is computed by plain torch, several times slower: %s", _last_line(error))
        return False
    return True


def has_compiler() -> bool:
    """Whether C++ can be compiled here, as torch would do it."""
    return shutil.which(_compiler()) is not None


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def library_file() -> Path:
    """Where the compiled operators lie: in torch's folder for extensions, by what they were made of."""
    sources = b"\0".join(source.read_bytes() for source in (*_SOURCES, *_HEADERS))
    made_of = (sources, " ".join(_FLAGS).encode(), torch.__version__.encode(), sys.version.encode())
    digest = hashlib.sha256(b"\0".join(made_of)).hexdigest()
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return Path(root) / _NAME / f"{digest[:16]}.so"


def _compile(library: Path) -> None:
    """Compile in a folder of its own and move the result: no process sees half of it, and none waits for another.

    Raises:
        RuntimeError: There is no compiler, or it failed.
        SubprocessError: It does not say which version it is.
        OSError: The folder cannot be written.
    """
    if not has_compiler():
        raise RuntimeError(f"there is no C++ compiler ({_compiler()!r}) here")
    library.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=library.parent) as folder, _ninja_on_path(Path(folder)):
        cpp_extension.load(
            _NAME,
            [str(source) for source in _SOURCES],
            extra_cflags=_FLAGS,
            extra_ldflags=["-fopenmp"],
            build_directory=folder,
            is_python_module=False,
        )
        (Path(folder) / f"{_NAME}.so").replace(library)


@contextmanager
def _ninja_on_path(folder: Path) -> Iterator[None]:
    """Torch looks for `ninja` on the path, and it lies beside this Python; here, one that ends with this process."""
    before = os.environ["PATH"]
    path = os.pathsep.join((str(Path(sys.executable).parent), before))
    if ninja := shutil.which("ninja", path=path):
        script = folder / "bin" / "ninja"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shlex.join(bound([ninja]))} "$@"\n')
        script.chmod(0o755)
        path = os.pathsep.join((str(script.parent), path))
    os.environ["PATH"] = path
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    if load_kernels():
        print("LoRA is computed by", torch.ops.lorikeet.instruction_sets()[-1])
