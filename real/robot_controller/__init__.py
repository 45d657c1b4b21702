"""PenSpin's command lines for the robot, on top of ours."""
