"""Every metric there is, with its documentation. The reference page is made of this table."""

from __future__ import annotations

from headrace.observe.metrics import Kind, Metric

_C, _G = Kind.COUNTER, Kind.GAUGE

BUILD = Metric("headrace_build_info", _G, "Always 1; the label says which version runs.", ("version",))
REQUESTS = Metric(
    "headrace_requests_total", _C, "Requests that were placed or queued, by how they ended.", ("ending",)
)
REFUSALS = Metric(
    "headrace_refusals_total",
    _C,
    "Requests that were refused: by a limit, or since there was no place; by code.",
    ("code",),
)
TOKENS = Metric("headrace_tokens_total", _C, "Tokens that were charged.", ("kind",))
TOKENS_PROCESSED = Metric(
    "ml_tokens_processed_total",
    _C,
    "`headrace_tokens_total` of both kinds, by the name that autoscalers ask for.",
)
EXECUTIONS = Metric("headrace_executions_total", _C, "Times that a request was sent to a node.")
QUEUED = Metric("headrace_queued_total", _C, "Requests that had to wait for a place.")
WITHDRAWN = Metric("headrace_withdrawn_total", _C, "Requests whose client left while they waited.")
RUNNING = Metric("headrace_running", _G, "Requests that run on a node now.")
WAITING = Metric("headrace_waiting", _G, "Requests in the queue now, by class.", ("priority",))
OLDEST_WAIT = Metric(
    "headrace_oldest_wait_seconds", _G, "How long the oldest request in the queue has waited."
)
SHARES = Metric(
    "headrace_shares_remembered", _G, "Keys for which the queue remembers what they had of the places."
)
NODES = Metric("headrace_nodes", _G, "Nodes, by state.", ("state",))
NODE_STATE = Metric(
    "headrace_node_state", _G, "1 for the state that the node is in, else 0.", ("node", "state")
)
NODE_UP = Metric(
    "headrace_node_up", _G, "1 while requests go to the node as usual, if it isn't full; else 0.", ("node",)
)
NODE_BREAKER = Metric(
    "headrace_node_breaker",
    _G,
    "1 for how much of the node is used, else 0: closed is all of it, open nothing.",
    ("node", "state"),
)
NODE_OPENINGS = Metric(
    "headrace_node_openings_total", _C, "Times that the node was left alone because it failed.", ("node",)
)
NODE_BUSY = Metric("headrace_node_busy", _G, "Requests that the node runs now.", ("node",))
NODE_SLOTS = Metric(
    "headrace_node_slots", _G, "Requests that the node may run at once now, as it has done lately.", ("node",)
)
NODE_CAPACITY = Metric("headrace_node_capacity", _G, "Requests that the node takes at once.", ("node",))
NODE_EXECUTIONS = Metric(
    "headrace_node_executions_total", _C, "Times that a request was sent to the node.", ("node",)
)
NODE_FAILURES = Metric(
    "headrace_node_failures_total", _C, "Of these, those that failed, by how.", ("node", "failure")
)
NODE_LOADS_HELD = Metric(
    "headrace_node_loads_held",
    _G,
    "Models that the node loads now, for which others wait, so that it loads them once.",
    ("node",),
)
NODE_FIRST_TOKEN = Metric(
    "headrace_node_first_token_seconds",
    _G,
    "How long the first token of a stream took lately, from when it was sent to the node: a moving average.",
    ("node", "model"),
)
NODE_BETWEEN_TOKENS = Metric(
    "headrace_node_between_tokens_seconds",
    _G,
    "How long each further token took lately: a moving average.",
    ("node", "model"),
)
RETRIES = Metric(
    "headrace_retries_total",
    _C,
    "Times that a request was tried again, by what had gone wrong.",
    ("failure",),
)
RETRIES_REFUSED = Metric(
    "headrace_retries_refused_total",
    _C,
    "Times that a request wasn't tried again because too many were already, for those that came.",
)
ROUTE_EXECUTIONS = Metric(
    "headrace_route_executions_total",
    _C,
    "Times that a request was sent to a node by a route: stage 0 is the route's own target, 1 its first fallback, and so on.",
    ("route", "stage"),
)
CONNECTIONS = Metric("headrace_connections", _G, "Clients that are connected now.")
ANSWERING = Metric("headrace_answering", _G, "Requests that are being answered now, whatever they are for.")
UNAUTHENTICATED = Metric("headrace_unauthenticated_total", _C, "Requests without a valid key.")
ADDRESS_LIMITED = Metric(
    "headrace_address_limited_total", _C, "Of these, those beyond what their address may send in a minute."
)
ADDRESSES = Metric(
    "headrace_addresses",
    _G,
    "Addresses that sent requests without a valid key in this minute, as far as counted.",
)
SECURITY_EVENTS = Metric("headrace_security_events_total", _C, "Security events, by kind.", ("kind",))
SECURITY_SUPPRESSED = Metric(
    "headrace_security_events_suppressed_total",
    _C,
    "Of these, those that weren't written to the log, since there were too many.",
    ("kind",),
)
SECURITY_ADDRESSES = Metric(
    "headrace_security_addresses", _G, "Kinds and addresses for which it is remembered how much was logged."
)

ALWAYS = (
    BUILD,
    REQUESTS,
    REFUSALS,
    TOKENS,
    TOKENS_PROCESSED,
    EXECUTIONS,
    QUEUED,
    WITHDRAWN,
    RUNNING,
    WAITING,
    OLDEST_WAIT,
    SHARES,
    NODES,
    NODE_STATE,
    NODE_UP,
    NODE_BREAKER,
    NODE_OPENINGS,
    NODE_BUSY,
    NODE_SLOTS,
    NODE_CAPACITY,
    NODE_EXECUTIONS,
    NODE_FAILURES,
    NODE_LOADS_HELD,
    RETRIES,
    RETRIES_REFUSED,
    CONNECTIONS,
    ANSWERING,
    UNAUTHENTICATED,
    ADDRESS_LIMITED,
    ADDRESSES,
    SECURITY_EVENTS,
    SECURITY_SUPPRESSED,
    SECURITY_ADDRESSES,
)
ONCE_SEEN = (NODE_FIRST_TOKEN, NODE_BETWEEN_TOKENS, ROUTE_EXECUTIONS)
"""Those that have samples only once there was something to measure."""
OPTIONAL = (
    Metric(
        "headrace_ledger_open_reservations",
        _G,
        "What was reserved and neither settled nor given back; more than twice `headrace_running` and `headrace_waiting` "
        "together, for long, is a leak.",
    ),
    Metric("headrace_ledger_waiting", _G, "Reservations that wait for a commit, or for the network."),
    Metric("headrace_ledger_unwritten", _G, "Charges that the ledger's journal or server hasn't got yet."),
    Metric("headrace_ledger_windows", _G, "Windows that the ledger counts in this process's memory."),
    Metric(
        "headrace_ledger_remembered", _G, "Reservations that ended, and are known in case they come again."
    ),
    Metric(
        "headrace_quota_reserved_tokens_total",
        _C,
        "Tokens that were reserved for requests of keys and users with a limit of tokens: what they might need at most.",
    ),
    Metric(
        "headrace_quota_settled_tokens_total", _C, "Tokens that these were charged for when they had ended."
    ),
    Metric(
        "headrace_quota_open_tokens",
        _G,
        "Of the reserved ones, those of requests that haven't ended: anything above 0 while nothing runs is a leak.",
    ),
    Metric(
        "headrace_journal_buffered", _G, "Entries and windows of the journal that aren't in the database yet."
    ),
    Metric(
        "headrace_database_writes_waiting", _G, "Transactions that wait for the database's writer, or run."
    ),
    Metric("headrace_database_writes_waiting_bytes", _G, "About how large they are."),
    Metric("headrace_database_reads_waiting", _G, "Reads that wait for the database, or run."),
    Metric("headrace_records_buffered", _G, "Records of requests that aren't in the database yet."),
    Metric(
        "headrace_records_lag_seconds",
        _G,
        "How long ago the oldest request ended whose record isn't in the database yet.",
    ),
    Metric("headrace_records_dropped_total", _C, "Records of requests that were given up."),
)
"""Those of parts that not every service has: they are there where the part is."""


def page() -> str:
    """`docs/reference/metrics.md`."""
    seen = _ONCE_SEEN + "\n".join(_rows(ONCE_SEEN))
    return _INTRODUCTION + "\n".join(_rows(ALWAYS)) + seen + _OPTIONAL + "\n".join(_rows(OPTIONAL)) + "\n"


def _rows(metrics: tuple[Metric, ...]) -> list[str]:
    head = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    return head + [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{name}`' for name in metric.labels)} | {metric.help} |"
        for metric in metrics
    ]


_INTRODUCTION = """# Metrics

*Generated from the code by `scripts/generate_reference.py`; a test compares them.*

`GET /metrics` answers in Prometheus' text format. It wants a key with the scope `admin`; with `metrics = "open"` under
`[server]` it wants none, and tells everybody who can reach the listener. For Prometheus:

```yaml
scrape_configs:
  - job_name: headrace
    authorization:
      credentials_file: /etc/prometheus/headrace-admin-key
    static_configs:
      - targets: ["127.0.0.1:11435"]
```

The numbers are those of one process since its start. No label holds what a client wrote: nodes, codes and kinds are named by
us and by whoever runs the service, and models by the backends. Labels have a bound: the 500 nodes that are there for longest have
samples of their own, and the others are summed up as the node `other`; so are the routes beyond 200. When a node is taken out, its
samples end with it. A sum can fall when that moves a node out of `other`.

"""
_ONCE_SEEN = """

As soon as streams were answered, of 1,000 pairs of node and model at most, and as soon as routes were used:

"""
_OPTIONAL = """

Where the service counts quota and keeps records, also:

"""
