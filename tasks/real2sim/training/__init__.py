"""The pick-and-place training by the names of its Python and YAML surface."""
