"""Floor 1: what every other floor may use. Errors, time, tasks, identifiers and units; no policy."""
