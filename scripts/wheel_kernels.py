"""Build hook of the wheel: take the compiled CPU kernels along where they can be compiled, else stay pure Python."""

from __future__ import annotations

import importlib.util
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles ops/cpu and marks the wheel as one for this platform; torch's stable interface serves any Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or importlib.util.find_spec("torch") is None:
            return
        file = Path(self.root) / "src" / "tokensieve" / "ops" / "cpu" / "build.py"
        spec = importlib.util.spec_from_file_location("tokensieve_native_build", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            module.build()
        except (RuntimeError, OSError) as error:
            print(f"the wheel goes without CPU kernels: {str(error).splitlines()[0]}", file=sys.stderr)
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def _platform_tag() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_") or platform.machine()
