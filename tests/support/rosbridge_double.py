"""A stand-in for a rosbridge server with a robot behind it: joints that follow their targets.

It speaks version 2 of the protocol in JSON: advertise, unadvertise, publish, subscribe,
unsubscribe, call_service of three services of rosapi, and status for what it does not understand.
"""

import contextlib
import itertools
import json
import threading
import time

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from real.drivers.followers import Followers

POSITIONS, TRAJECTORY = "std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory"


class Controller:
    """Joints of one controller: its topics, their names, where they are."""

    def __init__(self, state, command, kind, names, home):
        self.state, self.command, self.kind, self.names = state, command, kind, list(names)
        self.joints = Followers(home, [-1e3] * len(names), [1e3] * len(names), time_constant=0.03)

    def take(self, message):
        """Follow a command as ros2_control's controllers read it."""
        if self.kind == POSITIONS:
            return self.joints.command(np.array(message["data"], float))
        (point,) = message["points"]
        reach = point["time_from_start"]
        assert reach["sec"] + 1e-9 * reach["nanosec"] > 0
        order = [message["joint_names"].index(name) for name in self.names]
        return self.joints.command(np.array(point["positions"], float)[order])


class Bridge:
    """The server, for as long as the block lasts.

    said: what clients published, as (topic, message). edit: changes each state message before it is
    sent. silent: sends no states. unheard: nobody listens to commands. has_rosapi: whether it
    answers services. unread: reads nothing that comes.
    """

    def __init__(self, *controllers, rate=100.0, port=0):
        self.controllers, self.period, self.port = controllers, 1.0 / rate, port
        self.said, self.complaints, self.advertised = [], [], {}
        self.edit, self.has_rosapi = (lambda message: message), True
        self.silent = self.unheard = self.unread = False
        self._clients, self._lock, self._over = {}, threading.Lock(), threading.Event()
        self._numbers = itertools.count()

    def __enter__(self):
        self._server = serve(self._talk, "127.0.0.1", self.port, compression=None)
        self.port = self._server.socket.getsockname()[1]
        self._threads = [
            threading.Thread(target=self._server.serve_forever),
            threading.Thread(target=self._publish_states),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.unread = False
        self._server.shutdown()
        self.drop()
        for thread in self._threads:
            thread.join()

    def drop(self):
        """Cut all connections, without a word."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                client.socket.shutdown(2)

    def commands(self, topic):
        """Return what was published on a topic."""
        return [message for said, message in self.said if said == topic]

    def send(self, topic, message):
        """Publish a message to those who have subscribed."""
        text = json.dumps({"op": "publish", "topic": topic, "msg": message})
        with self._lock:
            there = [client for client, topics in self._clients.items() if topic in topics]
        for client in there:
            with contextlib.suppress(ConnectionClosed, OSError):
                client.send(text)

    def state_of(self, controller):
        """Return the newest state message of a controller's joints."""
        now = time.time()
        return {
            "header": {"stamp": {"sec": int(now), "nanosec": int(now % 1 * 1e9)}, "frame_id": ""},
            "name": controller.names[::-1],  # in another order than the controller's
            "position": controller.joints.joints()[::-1].tolist(),
            "velocity": [0.25] * len(controller.names),
            "effort": [None] * len(controller.names),  # NaN, as the bridge writes it
        }

    def _publish_states(self):
        while not self._over.wait(self.period):
            for controller in () if self.silent else self.controllers:
                self.send(controller.state, self.edit(self.state_of(controller)))

    def _talk(self, client):
        with self._lock:
            self._clients[client] = set()
        try:
            for text in client:
                while self.unread:
                    time.sleep(0.01)
                self._take(client, json.loads(text))
        except (ConnectionClosed, OSError):
            pass
        finally:
            with self._lock:
                del self._clients[client]

    def _take(self, client, message):
        op, topic = message.get("op"), message.get("topic")
        if op == "advertise":
            self.advertised[topic] = message["type"]
        elif op == "unadvertise":
            self.advertised.pop(topic, None)
        elif op == "subscribe":
            self._clients[client].add(topic)
        elif op == "unsubscribe":
            self._clients[client].discard(topic)
        elif op == "publish" and topic in self.advertised:
            self.said.append((topic, message["msg"]))
            for controller in self.controllers:
                if controller.command == topic and not self.unheard:
                    controller.take(message["msg"])
        elif op == "call_service":
            self._answer(client, message)
        else:
            complaint = {"op": "status", "level": "error", "msg": f"cannot {op} {topic}"}
            self.complaints.append(complaint)
            client.send(json.dumps(complaint))

    def _answer(self, client, message):
        service, args = message["service"], message.get("args", {})
        commands = [c.command for c in self.controllers]
        found = {
            "/rosapi/subscribers": lambda: {
                "subscribers": [] if self.unheard or args["topic"] not in commands else ["/control"]
            },
            "/rosapi/topics": lambda: {
                "topics": [c.state for c in self.controllers] + ["/tf"],
                "types": [],
            },
        }
        is_good = self.has_rosapi and service in found
        values = found[service]() if is_good else f"Service {service} does not exist"
        reply = {"op": "service_response", "id": message["id"], "service": service}
        client.send(json.dumps({**reply, "values": values, "result": is_good}))
