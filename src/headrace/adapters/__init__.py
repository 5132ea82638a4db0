"""Floor 5: the products behind the ports, one folder a port, one file a technology."""
