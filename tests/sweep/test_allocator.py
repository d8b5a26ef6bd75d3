"""The allocator keeps what was freed for the next step."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from dpobench.sweep.allocator import keep_pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        for millions in (4, 16, 8):
            torch.ones(millions * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
assert keep_pages()
faults()
print(usual, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_blocks_asked_for_again_cost_hardly_a_page_fault_once_pages_are_kept():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    usual, kept = map(int, found.stdout.split())
    assert usual > 100
    assert kept < usual / 10
