"""Floor 7, the composition root: settings in, a running service out. The only place that chooses adapters and owns what runs."""
