"""Floor 6: the listener. HTTP comes in, OpenAI-shaped answers go out; what happens between is core's and control's."""
