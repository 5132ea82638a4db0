"""Floor 8: the commands. Each reads its options, calls the thing that does the work, and prints.

Nothing heavy is imported before a command needs it: `headrace version` must not pay for `headrace up`.
"""
