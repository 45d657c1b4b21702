"""Robot models of our own (MJCF from primitives) and what the tasks on one robot share."""
