"""Drivers against a real ROS graph. A package, so that one master serves all its modules."""
