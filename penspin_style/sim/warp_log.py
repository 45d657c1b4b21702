"""What a user sees of Warp: kernels being compiled, warnings and errors; no banner."""

import sys
import warnings

import warp as wp


class CompileLog:
    """Warp's log, cut down to what a user waits for: kernels being compiled."""

    def __init__(self) -> None:
        self._explained = False

    def debug(self, message: str) -> None:
        """Drop it."""

    def info(self, message: str) -> None:
        """Print compilations; drop the banner and the loading of cached kernels."""
        if not message.endswith("(compiled)"):
            return
        if not self._explained:
            folder = wp.config.kernel_cache_dir
            print(f"warp: compiling kernels, once; {folder} keeps them", file=sys.stderr)
            self._explained = True
        print(f"warp: {message.strip()}", file=sys.stderr)

    def warning(
        self, message: str, category: type[Warning] | None = None, stacklevel: int = 1
    ) -> None:
        """Hand it to Python's warnings."""
        warnings.warn(message, category, stacklevel=stacklevel)

    def error(self, message: str) -> None:
        """Print it."""
        print(f"warp: {message}", file=sys.stderr)


def start_warp() -> None:
    """Start Warp, once in a process, with this log."""
    wp.set_logger(_LOG)
    wp.init()


_LOG = CompileLog()
