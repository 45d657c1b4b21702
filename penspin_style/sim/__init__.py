"""Physics: the same MuJoCo fields, as live torch tensors, on a CPU engine and on a GPU engine."""
