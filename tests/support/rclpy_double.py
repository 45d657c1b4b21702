"""A stand-in for rclpy and the messages that its transport uses, in this process."""

import sys
import threading
import types
from types import SimpleNamespace


class Checked:
    """A message that refuses what a ROS message would: unknown fields."""

    def __init__(self, **fields):
        object.__setattr__(self, "_fields", tuple(fields))
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name, value):
        assert name in self._fields, name
        object.__setattr__(self, name, value)


def stamp():
    return Checked(sec=0, nanosec=0)


def header():
    return Checked(stamp=stamp(), frame_id="")


class Float64MultiArray(Checked):
    def __init__(self):
        super().__init__(layout=Checked(dim=[], data_offset=0), data=[])


class JointTrajectory(Checked):
    def __init__(self):
        super().__init__(header=header(), joint_names=[], points=[])


class JointTrajectoryPoint(Checked):
    def __init__(self):
        super().__init__(positions=[], velocities=[], time_from_start=stamp())


class JointState(Checked):
    def __init__(self, name=(), position=(), velocity=()):
        super().__init__(
            header=header(), name=list(name), position=list(position), velocity=list(velocity)
        )


class Graph:
    """Who publishes and who listens; acked: whether listeners acknowledge."""

    def __init__(self, monkeypatch):
        self.heard, self.said, self.kinds, self.acked, self.listening = {}, [], {}, True, 1
        self.stopped, self.signals = threading.Event(), []
        graph = self

        class Publisher:
            def __init__(self, topic):
                self.topic = topic

            def publish(self, message):
                graph.said.append((self.topic, message))

            def get_subscription_count(self):
                return graph.listening

            def wait_for_all_acked(self, limit):
                return graph.acked

        class Node:
            def create_publisher(self, kind, topic, quality):
                graph.kinds[topic] = kind
                return Publisher(topic)

            def create_subscription(self, kind, topic, heard, quality):
                graph.kinds[topic], graph.heard[topic] = kind, heard

            def get_topic_names_and_types(self):
                return [("/tf", ["tf2_msgs/msg/TFMessage"])]

            def destroy_node(self):
                pass

        class Executor:
            def __init__(self, context):
                self.context = context

            def add_node(self, node):
                pass

            def spin(self):
                graph.stopped.wait()

            def shutdown(self, timeout_sec):
                graph.stopped.set()

        modules = {
            "rclpy": {
                "init": lambda context, signal_handler_options: self.signals.append(
                    signal_handler_options
                ),
                "create_node": lambda name, context: Node(),
                "context": SimpleNamespace(
                    Context=lambda: SimpleNamespace(try_shutdown=lambda: None)
                ),
            },
            "rclpy.signals": {"SignalHandlerOptions": SimpleNamespace(NO="no")},
            "rclpy.executors": {"SingleThreadedExecutor": Executor},
            "rclpy.qos": {"qos_profile_sensor_data": "sensor"},
            "rclpy.duration": {"Duration": lambda seconds: seconds},
            "sensor_msgs.msg": {"JointState": JointState},
            "std_msgs.msg": {"Float64MultiArray": Float64MultiArray},
            "trajectory_msgs.msg": {
                "JointTrajectory": JointTrajectory,
                "JointTrajectoryPoint": JointTrajectoryPoint,
            },
        }
        for name, values in modules.items():
            package = name.partition(".")[0]
            if package not in modules:
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
            made = types.ModuleType(name)
            made.__dict__.update(values)
            monkeypatch.setitem(sys.modules, name, made)
