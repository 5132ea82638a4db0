"""Anthropic's errors: what they mean, and which of the client's members they are about."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from anthropic.types import ErrorResponse

from headrace.testing.fake_anthropic_messages import AnthropicScript, error_body
from headrace.wire.anthropic_errors import ApiError, Meaning, meaning, read_api_error, refused_envelope
from headrace.wire.openai import MAX_MESSAGE_CHARS, read_error


@pytest.mark.parametrize(
    ("status", "type_", "message", "expected"),
    [
        (400, "invalid_request_error", "max_tokens: too many", Meaning.REFUSED),
        (404, "not_found_error", "model: x", Meaning.REFUSED),
        (413, "request_too_large", "Request exceeds the maximum size", Meaning.REFUSED),
        (401, "authentication_error", "invalid x-api-key", Meaning.KEY),
        (403, "permission_error", "not yours", Meaning.KEY),
        (402, "billing_error", "pay", Meaning.ACCOUNT),
        (400, "invalid_request_error", "Your credit balance is too low to access the API.", Meaning.ACCOUNT),
        (400, "invalid_request_error", "You have reached your specified API usage limits.", Meaning.ACCOUNT),
        (429, "rate_limit_error", "slow down", Meaning.BUSY),
        (529, "overloaded_error", "Overloaded", Meaning.BUSY),
        (529, "", "", Meaning.BUSY),
        (503, "overloaded_error", "Overloaded", Meaning.BUSY),
        (200, "overloaded_error", "Overloaded", Meaning.BUSY),
        (200, "api_error", "broke", Meaning.FAILED),
        (500, "api_error", "broke", Meaning.FAILED),
        (504, "timeout_error", "late", Meaning.FAILED),
        (502, "", "", Meaning.FAILED),
    ],
)
def test_meanings(status: int, type_: str, message: str, expected: Meaning) -> None:
    assert meaning(status, ApiError(type_, message)) is expected


def test_a_spend_limit_is_no_matter_of_waiting() -> None:
    script = AnthropicScript(error=("rate_limit_error", "x"), error_code="enforced_spend_limit_reached")
    assert meaning(429, read_api_error(json.dumps(error_body(script)).encode())) is Meaning.ACCOUNT


@pytest.mark.parametrize(
    ("type_", "message", "param", "code"),
    [
        ("invalid_request_error", "max_tokens: 99999 > 64000, which is the maximum", "max_tokens", None),
        ("invalid_request_error", "messages.0.content.1.image.source: bad", "messages", None),
        ("invalid_request_error", "tools.0.custom.input_schema: JSON schema is invalid", "tools", None),
        ("invalid_request_error", "`temperature` and `top_p` cannot both be specified", "temperature", None),
        ("invalid_request_error", "stop_sequences: each stop sequence must contain non-whitespace", "stop", None),
        ("invalid_request_error", "metadata.user_id: string too long", "user", None),
        ("invalid_request_error", "output_config.format.schema: not supported", "response_format", None),
        ("invalid_request_error", "output_config.effort: not supported", "reasoning_effort", None),
        ("invalid_request_error", "something else entirely", None, None),
        ("invalid_request_error", "prompt is too long: 9 tokens > 5 maximum", "messages", "context_length_exceeded"),
        ("invalid_request_error", "input length and `max_tokens` exceed context limit: 9 + 5 > 7", "messages", "context_length_exceeded"),
        ("not_found_error", "model: claude-0", "model", "model_not_found"),
        ("not_found_error", "Not found", None, None),
    ],
)  # fmt: skip
def test_the_member_at_fault_is_named_as_the_client_knows_it(
    type_: str, message: str, param: str | None, code: str | None
) -> None:
    envelope = refused_envelope(ApiError(type_, message))
    assert read_error(envelope) == (message, code, param)
    assert set(json.loads(envelope)["error"]) == {"message", "type", "param", "code"}


def test_messages_are_bounded() -> None:
    assert (
        len(json.loads(refused_envelope(ApiError("x", "y" * 9999)))["error"]["message"]) == MAX_MESSAGE_CHARS
    )


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error":5}', b'{"error":{"type":5}}', b"[" * 100_000]
)
def test_what_is_no_error_of_theirs_says_nothing(body: bytes) -> None:
    assert read_api_error(body) == ApiError()
    assert json.loads(refused_envelope(read_api_error(body)))["error"]["message"]


@pytest.mark.parametrize(
    "type_", ["invalid_request_error", "overloaded_error", "rate_limit_error", "api_error"]
)
def test_the_fake_errs_as_the_official_library_reads(type_: str) -> None:
    told: Any = error_body(AnthropicScript(error=(type_, "x")))
    assert pydantic.TypeAdapter(ErrorResponse).validate_python(told).error.type == type_
