"""WDMoE-Env: wireless distributed mixture of experts as a Gymnasium environment.

Importing this package registers the environments and loads neither torch nor transformers. ``wdmoe_env.evaluate``
compares policies on the same episodes; it is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from wdmoe_env.evaluation import evaluate as evaluate

__version__ = "0.1.0"

ENV_IDS = {"WDMoE-v0": "joint", "WDMoE-Selection-v0": "selection", "WDMoE-Bandwidth-v0": "bandwidth"}

for _id, _decision in ENV_IDS.items():
    if _id not in registry:
        register(
            _id,
            entry_point="wdmoe_env.env:WDMoEEnv",
            vector_entry_point="wdmoe_env.vector_env:WDMoEVectorEnv",
            kwargs={"decision": _decision},
        )

if "WDMoE-Precision-v0" not in registry:
    register(
        "WDMoE-Precision-v0",
        entry_point="wdmoe_env.env:WDMoEEnv",
        vector_entry_point="wdmoe_env.vector_env:WDMoEVectorEnv",
        kwargs={"decision": "joint", "decide_bits": "device"},
    )
SERVE_IDS = {"WDMoE-Serve-v0": "joint", "WDMoE-Serve-Selection-v0": "selection"}

for _id, _decision in SERVE_IDS.items():
    if _id not in registry:
        register(
            _id,
            entry_point="wdmoe_env.serve_env:WDMoEServeEnv",
            vector_entry_point="wdmoe_env.serve_env:WDMoEServeVectorEnv",
            kwargs={"decision": _decision},
        )

# Gymnasium's checker expects the same episode from the same seed, where this measures.
if "WDMoE-Testbed-v0" not in registry:
    register(
        "WDMoE-Testbed-v0",
        entry_point="wdmoe_env.testbed.env:WDMoETestbedEnv",
        vector_entry_point="wdmoe_env.testbed.env:WDMoETestbedVectorEnv",
        disable_env_checker=True,
        nondeterministic=True,
    )

ACTION_FACES = {
    "WDMoE-Price-v0": "price_env:WDMoEPrice",
    "WDMoE-Token-v0": "token_env:WDMoEToken",
    "WDMoE-Serve-Price-v0": "serve_price_env:WDMoEServePrice",
    "WDMoE-Serve-Token-v0": "serve_token_env:WDMoEServeToken",
}
"""Ids of the same process with other actions: id to module and beginning of the names of its classes."""

for _id, _face in ACTION_FACES.items():
    if _id not in registry:
        register(
            _id,
            entry_point=f"wdmoe_env.{_face}Env",
            vector_entry_point=f"wdmoe_env.{_face}VectorEnv",
        )

# Gymnasium's checker expects a number for a reward, where this has a vector.
if "WDMoE-MO-v0" not in registry:
    register("WDMoE-MO-v0", entry_point="wdmoe_env.mo_env:WDMoEMultiObjectiveEnv", disable_env_checker=True)


def __getattr__(name: str) -> Any:
    """Load ``evaluate``, and torch with it, when it is first asked for."""
    if name == "evaluate":
        from wdmoe_env.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
