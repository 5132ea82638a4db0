"""Floor 3: what core asks of the world, as Protocols. An adapter names its port as a base, so mypy sees it drift."""
