"""Floor 5: what the service tells about itself."""
