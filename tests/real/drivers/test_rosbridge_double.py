"""The stand-in of a rosbridge server speaks what a genuine client of the protocol does.

Not through rosbridge itself, which needs ROS; roslibpy is RobotWebTools' and COMPAS' own client.
Its reactor starts once in a process, so all of it is one test.
"""

import threading

import pytest

from tests.support.rosbridge_double import POSITIONS, Bridge, Controller


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_roslibpy_drives_the_stand_in():
    roslibpy = pytest.importorskip("roslibpy", reason="pip install roslibpy")
    with Bridge(Controller("/joint_states", "/c", POSITIONS, ("a", "b"), [0.0, 1.0])) as bridge:
        ros = roslibpy.Ros(host="127.0.0.1", port=bridge.port)
        ros.run(timeout=5)
        try:
            came, states = threading.Event(), []

            def hear(message):
                states.append(message)
                if abs(message["position"][1] - 0.5) < 0.01:  # a; the names are the other way round
                    came.set()

            roslibpy.Topic(ros, "/joint_states", "sensor_msgs/msg/JointState").subscribe(hear)
            targets = roslibpy.Topic(ros, "/c", POSITIONS)
            targets.advertise()
            targets.publish(roslibpy.Message({"data": [0.5, 1.0]}))
            assert came.wait(5.0) and states[0]["name"] == ["b", "a"]
            ask = roslibpy.Service(ros, "/rosapi/subscribers", "rosapi_msgs/srv/Subscribers")
            request = roslibpy.ServiceRequest({"topic": "/c"})
            assert ask.call(request, timeout=5)["subscribers"] == ["/control"]
        finally:
            ros.terminate()
    assert bridge.advertised == {"/c": POSITIONS} and not bridge.complaints
