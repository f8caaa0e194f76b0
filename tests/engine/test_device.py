"""The device to compute on, and memory that stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from refcli.engine.device import FOR_INFERENCE, keep_freed_pages, resolve_device
from refcli.errors import UsageError

COUNT_FAULTS = """
import resource, torch
from refcli.engine.device import keep_freed_pages
if {keep}: assert keep_freed_pages()
def step():
    for _ in range(16): torch.ones(16 * 2**20)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_pages_are_not_faulted_in_again():
    faults = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)], capture_output=True, check=True
            ).stdout
        )
        for keep in (False, True)
    }

    assert faults[True] < 0.1 * faults[False]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))

    assert keep_freed_pages() is False


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:256", "cuda:9999"])
def test_an_unknown_device_is_a_usage_error(name):
    with pytest.raises(UsageError, match="no device called"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_a_usage_error(monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)

    with pytest.raises(UsageError, match=f"no usable {name.upper()}"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["xpu", "hpu", "meta", "cuda:99"])
def test_a_device_that_this_torch_cannot_compute_on_is_a_usage_error(name):
    with pytest.raises(UsageError, match=rf"no usable {name.partition(':')[0].upper()} device( 99)?\n"):
        resolve_device(name)


def test_auto_is_the_first_device_that_is_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)

    assert resolve_device("auto") == torch.device("cpu"), "training has no use for MPS"
    assert resolve_device("auto", automatic=FOR_INFERENCE) == torch.device("mps")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto", automatic=FOR_INFERENCE) == torch.device("cuda")
