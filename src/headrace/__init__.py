"""Headrace: one OpenAI-compatible inference service from the machines a team already has."""

from importlib.metadata import version

__version__ = version("headrace")
