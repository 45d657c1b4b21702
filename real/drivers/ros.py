"""ROS 1 inside the project's Python: rospy from wherever the system has it, a node, a master.

Debian's and Ubuntu's rospy lie among the system's Python packages, next to a numpy and a yaml that
must not take the place of ours. `load` finds ROS's own packages there, by name; what else rospy
needs comes from there only where this Python has none.
"""

import collections
import functools
import glob
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Self
from unittest import mock

import numpy as np

from real.robot import RobotError

ROOTS = ("/usr/lib/python3/dist-packages", "/opt/ros/*/lib/python3/dist-packages")
"""Where rospy may lie, as patterns."""
PACKAGES = (
    *("catkin", "catkin_pkg", "genmsg", "genpy", "geometry_msgs", "message_filters", "roscpp"),
    *("rosgraph", "rosgraph_msgs", "roslib", "rospkg", "rospy", "sensor_msgs", "std_msgs"),
)
"""What is ROS's own."""
NEEDED = (
    *("dateutil", "defusedxml", "distro", "docutils", "em", "netifaces", "pyparsing", "roman"),
    *("six", "yaml"),
)
"""What those import besides; this Python's own come first."""
INSTALL = (
    "scripts/install_ros.sh installs it on Debian; elsewhere source /opt/ros/*/setup.bash first"
)


class RosError(RobotError):
    """ROS is not installed, or its master does not answer."""


class _SystemPackages:
    """Finds the packages of the two tables in the system's folder, after all other finders."""

    def __init__(self, root: str) -> None:
        self.root = root

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a top-level package lies, None if it is not one of ours to find."""
        if path is not None or name not in (*PACKAGES, *NEEDED):
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self.root], target)


def find() -> str | None:
    """Return the folder of the system's Python packages that holds rospy, None if none does."""
    for pattern in ROOTS:
        for root in sorted(glob.glob(pattern), reverse=True):
            if os.path.isfile(os.path.join(root, "rospy", "__init__.py")):
                return root
    return None


def is_installed() -> bool:
    """Return whether `load` has something to import."""
    return importlib.util.find_spec("rospy") is not None or find() is not None


def load() -> Any:
    """Import and return rospy.

    Raises:
        RosError: it is not installed.
    """
    try:
        return _import("rospy")
    except ModuleNotFoundError as missing:
        root = find()
        if missing.name != "rospy" or root is None:
            raise RosError(f"ROS needs the Python package {missing.name}: {INSTALL}") from missing
    sys.meta_path.append(_SystemPackages(root))
    try:
        return _import("rospy")
    except ModuleNotFoundError as missing:
        raise RosError(f"{root} has rospy but not {missing.name}: {INSTALL}") from missing


def messages(package: str) -> Any:
    """Import and return the messages of a ROS package, as `sensor_msgs`.

    Raises:
        RosError: it is not installed.
    """
    load()
    try:
        return _import(f"{package}.msg")
    except ModuleNotFoundError as missing:
        raise RosError(f"ROS has no messages {package}: {INSTALL}") from missing


@functools.cache  # a module of its own each time
def define(kind: str, text: str) -> Any:
    """Return the message class of a ROS type from its definition; its package need not be there.

    kind: as `package/Name`. text: a .msg of plain fields. ROS connects only those whose definitions
    are the same.

    Raises:
        RosError: ROS is not installed.
    """
    load()
    before = list(sys.path)
    try:
        return _import("genpy.dynamic").generate_dynamic(kind, text)[kind]
    finally:
        sys.path[:] = before  # it adds a folder of its own for good


def namespaced(namespace: str, topic: str) -> str:
    """Return a topic in a ROS namespace, as `/left`; empty for none.

    Raises:
        ValueError: ROS has no such names.
    """
    if namespace.strip("/") and not re.fullmatch(r"/*[A-Za-z][A-Za-z0-9_/]*", namespace):
        raise ValueError(f"{namespace!r} is no ROS namespace: letters, digits, _ and /, as left")
    return f"/{namespace.strip('/')}{topic}" if namespace.strip("/") else topic


def start_node(name: str, *, timeout: float = 10.0) -> Any:
    """Make this process a ROS node, once, and return rospy.

    A number is added to the name. Signals stay the process's own, and so does its logging, which
    rospy would replace. A process is one node to one master until it ends.

    timeout: s that the master has to register the node.

    Raises:
        RosError: ROS is not installed, its master does not answer, or the node was shut down.
    """
    rospy = load()
    if rospy.is_shutdown() and rospy.core.is_initialized():
        raise RosError("this process's ROS node was shut down; start a new process")
    uri = check_master()
    if rospy.core.is_initialized():
        return rospy
    failed: list[Exception] = []

    def register() -> None:
        try:
            rospy.init_node(name, argv=[name], anonymous=True, disable_signals=True)
        except (rospy.ROSException, OSError) as error:
            failed.append(error)

    with mock.patch.object(rospy.core, "configure_logging", lambda *_: None):
        thread = threading.Thread(target=register, name="ros-register", daemon=True)
        thread.start()  # rospy itself would wait for ever
        thread.join(timeout)
    if failed or thread.is_alive() or not rospy.core.is_initialized():
        why = failed[0] if failed else f"no answer within {timeout:g} s"
        raise RosError(f"the ROS master at {uri} does not register this node: {why}")
    return rospy


def check_master(timeout: float = 2.0) -> str:
    """Return the address of the ROS master, which accepts connections.

    Raises:
        RosError: it does not.
    """
    uri = os.environ.get("ROS_MASTER_URI", "http://localhost:11311")
    try:
        parts = urllib.parse.urlsplit(uri)
        if parts.hostname is None or parts.port is None:
            raise ValueError("it must be http://HOST:PORT")
    except ValueError as error:
        raise RosError(f"ROS_MASTER_URI={uri!r} is no address: {error}") from error
    try:
        socket.create_connection((parts.hostname, parts.port), timeout).close()
    except OSError as error:
        raise RosError(
            f"no ROS master at {uri} ({error}): start roscore, or set ROS_MASTER_URI to the "
            "machine that runs it"
        ) from error
    return uri


class Tally:
    """What came on a topic: how many messages, how many are missing, how late and how often.

    count: messages; lost: numbers that a publisher gave and that never came. A latched topic also
    gives numbers to the copies for those who come late.
    """

    def __init__(self) -> None:
        self.count = self.lost = 0
        self._first = self._last = 0.0
        self._numbers: dict[str, int] = {}
        self._ages: collections.deque[float] = collections.deque(maxlen=100_000)

    def hear(self, message: Any) -> tuple[float, float]:
        """Note a ROS message with a header; return when it came, s monotonic, and its age, s.

        A message without a stamp is new; the age of one from the future is negative.
        """
        now, stamp = time.monotonic(), message.header.stamp.to_sec()
        age = time.time() - stamp if stamp else 0.0
        connection = getattr(message, "_connection_header", None) or {}
        who = connection.get("callerid", "") + connection.get("topic", "")
        self.add(message.header.seq, now, max(0.0, age), who)
        return now, age

    def add(self, number: int, now: float, age: float, publisher: str = "") -> None:
        """Note a message.

        number: `header.seq`, which rospy and roscpp count up; one that is lower begins anew.
        now: s, monotonic; age: s since its stamp.
        """
        if self.count == 0:
            self._first = now
        last = self._numbers.get(publisher, number)
        self.lost += max(0, number - last - 1)
        self._numbers[publisher] = number
        self._last = now
        self._ages.append(age)
        self.count += 1

    def facts(self) -> dict[str, float]:
        """Return count, lost, rate in Hz and the age's percentiles in ms; zeros for too few."""
        rate, p50, p99, most = 0.0, 0.0, 0.0, 0.0
        if self.count > 1 and self._last > self._first:
            rate = (self.count - 1) / (self._last - self._first)
            ages = np.array(list(self._ages))
            p50, p99, most = (1e3 * float(q) for q in np.percentile(ages, (50, 99, 100)))
        return {
            "count": self.count,
            "lost": self.lost,
            "rate_hz": rate,
            "p50_ms": p50,
            "p99_ms": p99,
            "max_ms": most,
        }


class Master:
    """A ROS master of one's own on a free port of loopback, for as long as the block lasts.

        with Master() as master:
            os.environ.update(master.env)

    env: what the master and its nodes have in their environment.
    """

    def __init__(self, *, patience: float = 20.0) -> None:
        """patience: s that it may take to start."""
        self.patience = patience
        self.env: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Start the master.

        Raises:
            RosError: there is no `rosmaster`, or it does not come up.
        """
        if shutil.which("rosmaster") is None:
            raise RosError(f"there is no program rosmaster: {INSTALL}")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._home = tempfile.TemporaryDirectory(prefix="ros-")
        self.env = {
            "ROS_MASTER_URI": f"http://127.0.0.1:{port}",
            "ROS_HOSTNAME": "127.0.0.1",
            "ROS_HOME": self._home.name,
        }
        self._process = subprocess.Popen(
            ["rosmaster", "--core", "-p", str(port)],
            env={**os.environ, **self.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + self.patience
        while time.monotonic() < until and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise RosError(f"rosmaster did not come up on port {port} within {self.patience:g} s")

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._home.cleanup()


def _import(name: str) -> ModuleType:
    """Import a module without the logger class that ROS gives to all of Python."""
    before = logging.getLoggerClass()
    try:
        return importlib.import_module(name)
    finally:
        logging.setLoggerClass(before)
