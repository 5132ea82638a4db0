"""Floor 5: the control plane. Who asks, what there is, who goes where, what it came to."""
