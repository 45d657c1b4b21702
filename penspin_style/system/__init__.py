"""Files, terminals and signals, for every room."""
