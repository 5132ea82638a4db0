"""Floor 2: frozen values and pure rules. No sockets, no clock, no settings."""
