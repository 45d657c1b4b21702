"""A simulated robot's ROS node in a process of its own."""

import json
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


class Node:
    """One that is ready; `env` is a master's."""

    def __init__(self, env, module, *argv):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def end(self):
        """End it; return what it says."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return json.loads(self.process.communicate(timeout=10)[0])
        finally:
            self.process.kill()
            self.process.communicate()
