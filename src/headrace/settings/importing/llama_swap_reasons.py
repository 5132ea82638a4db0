"""Why keys of llama-swap's configuration have no place in ours. What isn't named here: there is nothing like it."""

from __future__ import annotations

_LOADED = "All engines are loaded at once and stay: leave out what doesn't fit into memory together."
_REQUEST = "Headrace passes requests on as they are."
_LISTED = "Models are listed by their names alone."
_LOG = "The log goes to standard error: [log]."
_HEALTH = "Headrace knows by itself when a backend is ready."

TOP = {
    **dict.fromkeys(("groups", "matrix", "routing", "globalTTL", "profiles"), _LOADED),
    **dict.fromkeys(("logTimeFormat", "logToStdout", "logRequests"), _LOG),
    **dict.fromkeys(
        ("metricsMaxInMemory", "captureBuffer", "store", "ui", "performance"),
        "See /metrics and headrace requests list.",
    ),
    "healthCheckTimeout": _HEALTH,
    "unloadTimeout": _LOADED,
    "sendLoadingState": "A request waits for its model in the queue; nothing is put into answers.",
    "includeAliasesInList": "Aliases are always listed.",
    "upstream": "There are no paths through to backends.",
}
MODEL = {
    **dict.fromkeys(("name", "description", "metadata", "capabilities", "unlisted"), _LISTED),
    **dict.fromkeys(("ttl", "unloadTimeout"), _LOADED),
    "filters": _REQUEST,
    "checkEndpoint": _HEALTH,
    "cmdStop": "Headrace ends what it starts, and nothing else.",
    "env": "Set it in the service's environment: engines inherit what compute libraries read (CUDA_…), and no more.",
    "sendLoadingState": TOP["sendLoadingState"],
}
ENGINE_ONLY = {
    "concurrencyLimit": "An engine takes as many requests as its parallel says; the others wait.",
    "timeouts": "Engines have no time limits; a route can set some.",
}
PEER = {
    "filters": _REQUEST,
}
