"""A stand-in for a ROS graph in this process, with the names of rospy that driver and node use.

A message is heard in the thread that publishes it. `Graph.hang` makes the next message on a topic
hang in its publisher.
"""

import threading
from types import SimpleNamespace


class Message(SimpleNamespace):
    def __init__(self, data="", name=(), cmd=()):
        stamp = SimpleNamespace(to_sec=lambda: 0.0)
        header = SimpleNamespace(stamp=stamp, frame_id="", seq=0)
        super().__init__(header=header, name=name, position=[], data=data, cmd=cmd)


class Graph:
    """Topics, who listens to them, and what was published on them."""

    def __init__(self, monkeypatch):
        from real.drivers import ros

        self.subscribers, self.publishers, self.said, self.hangs = {}, {}, [], {}
        self.lock = threading.Lock()
        monkeypatch.setattr(ros, "start_node", lambda name: self.rospy())
        kinds = SimpleNamespace(JointState=Message, String=Message)
        monkeypatch.setattr(ros, "messages", lambda package: kinds)
        monkeypatch.setattr(ros, "define", lambda kind, text: Message)

    def rospy(self):
        def stamp(seconds):
            return SimpleNamespace(to_sec=lambda: seconds)

        return SimpleNamespace(
            Publisher=lambda *a, **k: Publisher(self, *a, **k),
            Subscriber=lambda *a, **k: Subscriber(self, *a, **k),
            Time=SimpleNamespace(from_sec=stamp),
            get_published_topics=lambda: [(topic, "") for topic in self.publishers],
        )

    def hang(self, topic, hang):
        """Let the next message on a topic hang."""
        self.hangs[topic] = hang


class Publisher:
    def __init__(self, graph, topic, kind, **options):
        self.graph, self.topic, self.number = graph, topic, 0
        graph.publishers.setdefault(topic, []).append(self)

    def publish(self, message):
        if hang := self.graph.hangs.pop(self.topic, None):
            hang()
        with self.graph.lock:
            self.number += 1
            message.header.seq = self.number
            self.graph.said.append((self.topic, message))
        for subscriber in [*self.graph.subscribers.get(self.topic, ())]:
            subscriber.heard(message)

    def get_num_connections(self):
        return len(self.graph.subscribers.get(self.topic, ()))

    def unregister(self):
        self.graph.publishers[self.topic].remove(self)


class Subscriber:
    def __init__(self, graph, topic, kind, heard, **options):
        self.graph, self.topic, self.heard = graph, topic, heard
        graph.subscribers.setdefault(topic, []).append(self)

    def get_num_connections(self):
        return len(self.graph.publishers.get(self.topic, ()))

    def unregister(self):
        subscribers = self.graph.subscribers.get(self.topic, [])
        subscribers[:] = [subscriber for subscriber in subscribers if subscriber is not self]
