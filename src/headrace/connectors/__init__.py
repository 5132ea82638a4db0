"""Floor 5: the ways to a backend; each is a `Connector`."""
