"""Other gateways' configurations as ours. Pure: a document goes in, a draft of `headrace.toml` comes out, and what it lacks."""
