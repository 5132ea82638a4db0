"""What a request and an event cost in instructions, part by part: repeatable on a busy machine, where times aren't."""
