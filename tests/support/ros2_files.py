"""Files of robots behind ROS 2, for tests that connect to none."""

SMALL = """
rate: 20
groups:
  arm:
    state: /joint_states
    command: /arm/commands
    type: std_msgs/msg/Float64MultiArray
    scale: 0.05
    joints:
      shoulder: {low: -1.0, high: 1.5, start: 0.2}
      elbow: {low: -2.0, high: 1.0, start: -0.3}
features:
  qpos: {of: [position]}
"""


def addresses(folder):
    """Return driver -> an address that it takes without connecting; folder: for files."""
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return {"ros2": str(path)}
