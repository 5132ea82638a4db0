"""Identifiers nobody guesses."""

from __future__ import annotations

import re

from headrace.kernel.ids import api_key, request_id


def test_ids_are_distinct_and_of_their_form() -> None:
    ids = {request_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", ident) for ident in ids)


def test_keys_are_long_and_say_whose_they_are() -> None:
    assert re.fullmatch(r"sk-hr-[\w-]{43}", api_key())
    assert api_key() != api_key()
