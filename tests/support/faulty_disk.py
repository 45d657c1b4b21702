"""A disk that fails on demand: the calls that write, rename and flush, with an error at call k."""

import os
import pathlib

ERRORS = ("ENOSPC", "EIO", "EROFS")
_REAL = {
    (os, "fsync"): os.fsync,
    (os, "rename"): os.rename,
    (os, "replace"): os.replace,
    (os, "mkdir"): os.mkdir,
    (pathlib.Path, "write_bytes"): pathlib.Path.write_bytes,
    (pathlib.Path, "write_text"): pathlib.Path.write_text,
}


class FaultyDisk:
    """Count the calls in `calls`; the one with number `fail_at` fails, or all from it on."""

    def __init__(self, monkeypatch, fail_at=None, error=0, *, lasting=False):
        self.calls = []
        self.fail_at, self.error, self.lasting = fail_at, error, lasting
        for (owner, name), real in _REAL.items():
            monkeypatch.setattr(owner, name, self._wrap(name, real))

    def _wrap(self, name, real):
        def call(*args, **kwargs):
            k = len(self.calls)
            self.calls.append((name, _place(args[0])))
            if self.fail_at is None or not (
                k == self.fail_at or (self.lasting and k > self.fail_at)
            ):
                return real(*args, **kwargs)
            if name.startswith("write"):
                real(args[0], args[1][: len(args[1]) // 2])  # a full disk leaves half a file
            raise OSError(self.error, f"{os.strerror(self.error)} at call {k}, {name}")

        return call


def _place(target):
    if isinstance(target, int):
        return pathlib.Path(os.readlink(f"/proc/self/fd/{target}"))
    return pathlib.Path(target)
