"""Tokens as a backend reports them, and as we do."""

from __future__ import annotations

from typing import Any

from headrace.domain.inference import Usage


def usage_of(answer: dict[str, Any], fallback: Usage) -> Usage:
    """The usage that a backend's answer or chunk reports, or *fallback* where it reports none that adds up."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return fallback
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return fallback
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def usage_member(usage: Usage) -> dict[str, object]:
    """Usage as the member `usage` of an answer; what we counted ourselves is marked as an estimate."""
    member: dict[str, object] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    return {**member, "estimated": True} if usage.estimated else member
