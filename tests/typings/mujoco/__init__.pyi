# MuJoCo's bindings are compiled and ship no types: to the type checker every name is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
