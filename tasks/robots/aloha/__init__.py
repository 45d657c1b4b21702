"""ALOHA 2: two ViperX 300S arms at a table, each with a gripper and a wrist camera."""
