"""The tasks on ALOHA's two arms, after MuJoCo Playground."""
