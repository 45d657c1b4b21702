"""Trainings in processes of their own, and a disk that is full."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from tests.support.small_run import SMALL, environment


@pytest.fixture
def spawn():
    """Start a training in a process of its own; none outlives the test."""
    children = []

    def start(out, *overrides):
        command = [
            sys.executable,
            "-m",
            "penspin_style",
            "train",
            "name=run",
            *SMALL,
            f"out={out}",
            *overrides,
        ]
        children.append(
            subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=out)
        )
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stderr.close()


@pytest.fixture
def full_disk(monkeypatch):
    """A set of names; a file or folder of such a name cannot be published."""
    names, rename, replace = set(), os.rename, os.replace

    def fail(real):
        def call(source, target, *args, **kwargs):
            if pathlib.Path(target).name in names:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            return real(source, target, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "rename", fail(rename))
    monkeypatch.setattr(os, "replace", fail(replace))
    return names
