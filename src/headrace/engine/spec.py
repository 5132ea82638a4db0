"""How an engine is to be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.kernel.errors import ConfigError

Setting = bool | int | float | str

_RESERVED = {
    "hostnames", "port", "reuse_port", "api_keys", "api_prefix", "public_path", "server_base",
    "server_tools", "server_tools_runtime", "ssl_file_cert", "ssl_file_key", "model", "model_alias",
    "models_dir", "models_preset", "models_preset_hf", "mcp_servers_config", "mcp_servers_json", "ui",
    "ui_mcp_proxy", "ui_config_json", "cors_origins", "cors_credentials", "endpoint_slots",
    "slot_save_path", "n_ctx", "n_parallel", "n_batch", "n_ubatch", "kv_unified", "kv_unified_per_slot", "n_gpu_layers", "main_gpu",
    "embedding", "pooling_type", "verbosity", "cpuparams", "media_path",
}  # fmt: skip
"""llama.cpp parameters that `EngineSpec.extra` can't set: ours, or a way in beside the gateway's keys."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One model to serve on this machine (D33).

    id: the name that clients ask for. model: a source for `Catalog.resolve`.
    n_ctx: tokens of context of all slots together, 0 for the model's own; each of the `parallel` slots has its share.
    parallel: requests decoded together. embeddings: answer `/v1/embeddings`, by mean pooling unless the model says.
    n_batch: tokens computed at once. n_gpu_layers: -1 lets llama.cpp choose. threads: 0 lets llama.cpp choose.
    prompt_cache_mib: memory that may hold prompts of earlier conversations. check_memory: refuse what doesn't fit.
    extra: further parameters of llama.cpp by their names in xllamacpp's `CommonParams`.
    """

    id: str
    model: str = "demo"
    n_ctx: int = 8192
    parallel: int = 4
    embeddings: bool = False
    n_batch: int = 2048
    n_gpu_layers: int = -1
    main_gpu: int = 0
    threads: int = 0
    prompt_cache_mib: int = 256
    check_memory: bool = True
    extra: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without the model.

        Raises:
            ConfigError: a value is out of its range, or `extra` has a parameter that isn't to be set.
        """
        lowest = {"parallel": 1, "n_ctx": 0, "n_batch": 1, "n_gpu_layers": -1, "main_gpu": 0, "threads": 0}
        for name, least in (lowest | {"prompt_cache_mib": 0}).items():
            if getattr(self, name) < least:
                raise ConfigError(f"engine {self.id!r}: {name} must be at least {least}.")
        if not self.id:
            raise ConfigError("an engine needs an id: the model name that clients ask for.")
        if forbidden := sorted(_RESERVED.intersection(self.extra)):
            raise ConfigError(f"engine {self.id!r}: extra can't set {', '.join(forbidden)}.")

    def child_parameters(
        self, *, model_path: str, mean_pooling: bool, n_ctx_train: int = 0
    ) -> dict[str, object]:
        """What `headrace.engine.child` is told, as JSON values. `mean_pooling`: the model doesn't say how it pools.

        n_ctx_train: the model's own context; 0 where it isn't known.
        """
        # An embedding's whole input has to fit into one physical batch, else llama.cpp answers 500. And all inputs share one
        # cache: with a cache for each slot, llama.cpp cuts a batch into pieces of equal length and pools a longer input's
        # last piece alone (seen: vectors of cosine 0.95 and less to the right ones).
        share = (self.n_ctx or n_ctx_train) // self.parallel
        batch = max(self.n_batch, share) if self.embeddings else self.n_batch
        physical = batch if self.embeddings else min(batch, 512)
        return {
            "model": model_path,
            "alias": self.id,
            "embeddings": self.embeddings,
            "mean_pooling": mean_pooling,
            "threads": self.threads,
            "params": {
                "n_ctx": self.n_ctx,
                "n_parallel": self.parallel,
                "n_batch": batch,
                "n_ubatch": physical,
                "kv_unified": self.embeddings,
                "kv_unified_per_slot": share if self.embeddings else 0,
                "n_gpu_layers": self.n_gpu_layers,
                "main_gpu": self.main_gpu,
                "cache_ram_mib": self.prompt_cache_mib,
            },
            "extra": dict(self.extra),
        }
