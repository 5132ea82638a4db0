"""Floor 3: codecs without sockets."""
