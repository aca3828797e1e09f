"""The model ``wdmoe`` of ``lm_eval``: importing this module adds it to the harness's list."""

from __future__ import annotations

from typing import Any, ClassVar

from wdmoe_env.integrations.airtime import Airtime
from wdmoe_env.integrations.lm_eval import VANILLA, WDMoELM
from wdmoe_env.integrations.lm_eval_arguments import Chosen
from wdmoe_env.optional import optional
from wdmoe_env.policies import make_policy, reads_hidden_states, weights_file
from wdmoe_env.scoring import PolicyMaker

with optional("lm-eval", extra="lm-eval"):
    from lm_eval.api.registry import register_model


@register_model("wdmoe")
class NamedPolicyLM(WDMoELM):
    """A split model under a policy by name: a rule, a learned policy that ships, or a file; see ``WDMoELM``.

    Attributes:
        made: latencies of every model made, for the command line, whose models are gone by the time of the table.
    """

    made: ClassVar[list[Airtime]] = []

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.made.append(self.airtime)

    def choose(self, policy: str | PolicyMaker, seed: int) -> Chosen:
        """What makes the policy; names and files as ``make_policy`` takes them."""
        if callable(policy) or policy == VANILLA:
            return super().choose(policy, seed)
        spec = str(policy)
        settings = {"observe_hidden_states": True} if reads_hidden_states(spec) else {}
        learned = weights_file(spec) is not None
        return Chosen(lambda env: make_policy(spec, env, seed), one_length=learned, settings=settings)
