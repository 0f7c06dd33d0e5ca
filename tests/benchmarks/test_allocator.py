"""Memory that a process has freed and keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HELD = """
import ctypes
from benchmarks.allocator import keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
block = libc.malloc(64 << 20)
ctypes.memset(ctypes.c_void_p(block), 1, 64 << 20)
libc.free(block)
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * 4096 >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_freed_block_stays_with_the_process() -> None:
    root = Path(__file__).parents[2]
    call = subprocess.run([sys.executable, "-c", HELD], cwd=root, capture_output=True, text=True, check=True)
    assert int(call.stdout) >= 64
