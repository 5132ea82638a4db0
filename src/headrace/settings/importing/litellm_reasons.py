"""Why keys of LiteLLM's configuration have no place in ours. What isn't named here: there is nothing like it."""

from __future__ import annotations

_COSTS = "Headrace counts tokens, not money."
_CALLBACKS = "Headrace sends nothing to such services; it has /metrics and its log."
_REQUEST = "Headrace passes requests on as they are."
_HEALTH = "Headrace judges backends by itself: docs/health.md."
_CACHE = "Headrace keeps no answers."
_DATABASE = "Headrace needs a database of its own: [storage] url."
_REDIS = "Several gateways share the quota through [quota] url."
_CLOUD = "Headrace doesn't reach that cloud's own API."
_SPECIAL = "Fallbacks are for backends that fail or are busy, not for what they say of a request."
_LIMIT = "Limits are those of keys and users: [limits], [[tiers]] or headrace quota."

TOP = {
    "environment_variables": "Set them in the service's environment.",
    "include": "Import those files, too.",
    "callback_settings": _CALLBACKS,
    "credential_list": "Each upstream has its own api_key or api_key_file.",
    "guardrails": _REQUEST,
    "mcp_servers": "Headrace serves models, not tools.",
}
ENTRY = {
    "tpm": _LIMIT,
    "rpm": _LIMIT,
}
DEPLOYMENT = {
    **dict.fromkeys(
        (
            "temperature",
            "max_tokens",
            "top_p",
            "top_k",
            "stop",
            "seed",
            "presence_penalty",
            "frequency_penalty",
        ),
        _REQUEST,
    ),
    **dict.fromkeys(
        ("extra_body", "extra_headers", "headers", "organization", "drop_params", "additional_drop_params"),
        _REQUEST,
    ),
    **dict.fromkeys(
        ("input_cost_per_token", "output_cost_per_token", "input_cost_per_second", "max_budget"), _COSTS
    ),
    **dict.fromkeys(
        ("aws_access_key_id", "aws_secret_access_key", "aws_region_name", "api_version", "vertex_project"),
        _CLOUD,
    ),
    "budget_duration": _COSTS,
    "litellm_credential_name": TOP["credential_list"],
    "max_retries": "Another backend is tried within a budget of retries.",
    "num_retries": "Another backend is tried within a budget of retries.",
    "mock_response": "Headrace answers nothing by itself.",
    "cooldown_time": _HEALTH,
}
INFO = {
    "id": "Backends are known by their names.",
    "mode": "Headrace needn't be told: each path goes to any backend that has the model.",
    "base_model": _COSTS,
    **dict.fromkeys(("input_cost_per_token", "output_cost_per_token"), _COSTS),
    "access_groups": "Keys name the models that they may use: headrace key set --model.",
}
ROUTER = {
    **dict.fromkeys(("redis_host", "redis_port", "redis_password", "redis_url"), _REDIS),
    **dict.fromkeys(("allowed_fails", "cooldown_time", "disable_cooldowns", "allowed_fails_policy"), _HEALTH),
    **dict.fromkeys(("context_window_fallbacks", "content_policy_fallbacks"), _SPECIAL),
    **dict.fromkeys(
        ("retry_policy", "retry_after", "model_group_retry_policy"), "Retries have a budget that isn't set."
    ),
    "cache_responses": _CACHE,
    "enable_pre_call_checks": "Backends say themselves whether a prompt is too long.",
    "enable_tag_filtering": "Tags always count: docs/routing.md.",
    "routing_strategy_args": "Strategies have nothing to set.",
    "stream_timeout": "Set timeouts of the upstreams or the routes.",
    "max_fallbacks": "Each route has its own list.",
}
MODULE = {
    **dict.fromkeys(("callbacks", "success_callback", "failure_callback", "service_callbacks"), _CALLBACKS),
    **dict.fromkeys(("context_window_fallbacks", "content_policy_fallbacks"), _SPECIAL),
    **dict.fromkeys(("cache", "cache_params"), _CACHE),
    **dict.fromkeys(("drop_params", "modify_params"), _REQUEST),
    **dict.fromkeys(("max_budget", "budget_duration"), _COSTS),
    **dict.fromkeys(("allowed_fails", "cooldown_time"), _HEALTH),
    "turn_off_message_logging": "Headrace never logs prompts or answers.",
    "redact_user_api_key_info": "Headrace never logs keys.",
}
GENERAL = {
    **dict.fromkeys(("database_url", "database_connection_pool_limit", "store_model_in_db"), _DATABASE),
    **dict.fromkeys(
        ("max_parallel_requests", "global_max_parallel_requests"), f"{_LIMIT} Backends have their capacity."
    ),
    **dict.fromkeys(("alerting", "alerting_threshold", "alert_types", "alert_to_webhook_url"), _CALLBACKS),
    **dict.fromkeys(("background_health_checks", "health_check_interval"), _HEALTH),
    "completion_model": "Set [models] default.",
    "disable_spend_logs": _COSTS,
    "store_prompts_in_spend_logs": "Headrace never keeps prompts or answers.",
    "maximum_spend_logs_retention_period": "Set [storage] records_retention.",
    "salt_key": _DATABASE,
}
