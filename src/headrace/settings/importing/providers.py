"""LiteLLM's providers whose servers one of our kinds reaches: what `openai/gpt-4o` says before its slash, and where that is.

Sources: LiteLLM's documentation of its providers, and those providers' own of their addresses.
"""

from __future__ import annotations

from typing import NamedTuple


class Provider(NamedTuple):
    """url: where it is unless the configuration says it; empty: it has to."""

    kind: str
    url: str = ""


PROVIDERS: dict[str, Provider] = {
    "openai": Provider("openai", "https://api.openai.com/v1"),
    "text-completion-openai": Provider("openai", "https://api.openai.com/v1"),
    "custom_openai": Provider("openai"),
    "openai_like": Provider("openai"),
    "hosted_vllm": Provider("openai"),
    "litellm_proxy": Provider("openai"),
    "lm_studio": Provider("openai"),
    "llamafile": Provider("openai", "http://127.0.0.1:8080/v1"),
    "xinference": Provider("openai"),
    "docker_model_runner": Provider("openai"),
    "nvidia_nim": Provider("openai", "https://integrate.api.nvidia.com/v1"),
    "groq": Provider("openai", "https://api.groq.com/openai/v1"),
    "mistral": Provider("openai", "https://api.mistral.ai/v1"),
    "codestral": Provider("openai", "https://codestral.mistral.ai/v1"),
    "deepseek": Provider("openai", "https://api.deepseek.com/v1"),
    "together_ai": Provider("openai", "https://api.together.xyz/v1"),
    "fireworks_ai": Provider("openai", "https://api.fireworks.ai/inference/v1"),
    "openrouter": Provider("openai", "https://openrouter.ai/api/v1"),
    "xai": Provider("openai", "https://api.x.ai/v1"),
    "cerebras": Provider("openai", "https://api.cerebras.ai/v1"),
    "ollama": Provider("ollama", "http://localhost:11434"),
    "ollama_chat": Provider("ollama", "http://localhost:11434"),
    "anthropic": Provider("anthropic", "https://api.anthropic.com"),
}

_UNNAMED = {"gpt-": "openai", "chatgpt-": "openai", "text-embedding-": "openai", "claude-": "anthropic"}
"""How models begin that LiteLLM knows without a provider before them."""

_OTHERS = """
ai21 aleph_alpha azure azure_ai azure_text baseten bedrock bedrock_converse clarifai cloudflare cohere cohere_chat databricks
deepinfra gemini github huggingface jina_ai nlp_cloud palm perplexity petals predibase replicate sagemaker sagemaker_chat
snowflake triton vertex_ai vertex_ai_beta vllm voyage watsonx watsonx_text
"""
OTHERS = frozenset(_OTHERS.split())
"""Providers that speak something of their own, or that aren't reached below `/v1`."""


def split(model: str, provider: str = "") -> tuple[str, str]:
    """The provider that LiteLLM takes for *model*, empty where it names none, and the model's name there. *provider*: what
    `custom_llm_provider` says."""
    if provider:
        return provider, model.removeprefix(f"{provider}/")
    first, slash, rest = model.partition("/")
    if slash and (first in PROVIDERS or first in OTHERS):
        return first, rest
    return next((known for start, known in _UNNAMED.items() if model.startswith(start)), ""), model
