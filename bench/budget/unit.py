"""The measure that figures are given in: a fixed piece of Python's everyday work.

Another build of Python, or another processor's library functions, changes what a request costs and what this costs alike;
so their ratio travels between machines better than either.
"""

from __future__ import annotations

_LINE = b'Content-Type: application/json; name="value"'


class _Ledger:
    __slots__ = ("_by_name", "_seen")

    def __init__(self) -> None:
        self._by_name: dict[bytes, tuple[int, bytes]] = {}
        self._seen = 0

    def note(self, line: bytes) -> bytes:
        name, _, value = line.partition(b": ")
        name = name.lower()
        self._seen += 1
        if value.startswith(b"application/") and b"\r" not in value:
            self._by_name[name] = (self._seen, value)
        return self.line(name)

    def line(self, name: bytes) -> bytes:
        number, value = self._by_name[name]
        fields = [field.strip() for field in value.split(b";")]
        return b"%b: %b; %d\r\n" % (name, b",".join(fields), number)


def work(units: int) -> int:
    """Do it so often; the value is of no use."""
    return sum([len(_Ledger().note(_LINE)) for _ in range(units)])
