"""Compile the CPU kernels: ``python -m tokensieve.ops.cpu``.

They use torch's stable C++ interface, so that one build serves every torch from 2.10 on and every Python. The file's
name carries a digest of the sources and flags: a build of others is never loaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = [
    "-O3",
    "-fopenmp-simd",
    "-fno-trapping-math",  # nobody looks at floating-point flags: branches may become selections, in vectors
    "-fno-math-errno",
    "-Wall",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]


def sources() -> list[Path]:
    """The C++ files, by name."""
    return sorted(FOLDER.glob("*.cpp"))


def library_path() -> Path:
    """Where the compiled library of these sources lies, whether or not it has been built."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for file in (*sources(), *sorted(FOLDER.glob("*.h"))):
        digest.update(file.read_bytes())
    return FOLDER / f"kernels-{platform.system().lower()}-{platform.machine().lower()}-{digest.hexdigest()[:12]}.so"


def build(verbose: bool = False) -> Path:
    """Compile the kernels beside their sources, if that has not been done; needs a C++17 compiler and ninja.

    Raises:
        RuntimeError: the compiler failed or there is none; OSError: the folder cannot be written.
    """
    path = library_path()
    if path.exists():
        return path
    # On a machine without a GPU importing it logs that there is no CUDA, which was not asked for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension  # slow to import, and needed only here

    with tempfile.TemporaryDirectory() as folder:
        name = "tokensieve_kernels"
        # ninja from the wheel of that name lies beside the interpreter, which need not be on the path.
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        previous = os.environ.get("PATH", "")
        os.environ["PATH"] = search
        try:
            cpp_extension.load(
                name,
                [str(file) for file in sources()],
                extra_cflags=FLAGS,
                build_directory=folder,
                is_python_module=False,
                verbose=verbose,
            )
        finally:
            os.environ["PATH"] = previous
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copyfile(Path(folder) / f"{name}.so", beside)
        beside.replace(path)
    for old in FOLDER.glob("kernels-*.so"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def main() -> int:
    """Build and say where; 0 on success."""
    try:
        print(f"built {build(verbose='--verbose' in sys.argv)}")
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        print(f"could not build the CPU kernels, the plain torch operators stay in use: {reason}", file=sys.stderr)
        return 1
    return 0
