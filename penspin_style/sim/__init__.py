"""Physics: the same MuJoCo fields, as live torch tensors, on a CPU engine, a GPU engine and JAX's."""
