"""Floor 4: the use cases. How one request becomes one answer: tried, metered, assembled, cancelled."""
