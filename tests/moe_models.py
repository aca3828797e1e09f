"""Small random models of several architectures, with gates sharp enough that every expert matters."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    GraniteMoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

CONFIGS = {
    "mixtral": lambda: MixtralConfig(**COMMON, num_hidden_layers=3, num_local_experts=4),
    "olmoe": lambda: OlmoeConfig(**COMMON, num_hidden_layers=2, num_experts=8),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **COMMON, num_hidden_layers=3, num_experts=6, moe_intermediate_size=24, head_dim=8, mlp_only_layers=[0]
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **(COMMON | {"num_key_value_heads": 4}),
        num_hidden_layers=3,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=24,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
    "gpt_oss": lambda: GptOssConfig(**COMMON, num_hidden_layers=2, num_local_experts=4, head_dim=8, sliding_window=8),
    "granitemoe": lambda: GraniteMoeConfig(**COMMON, num_hidden_layers=2, num_local_experts=4),
    "phimoe": lambda: PhimoeConfig(**COMMON, num_hidden_layers=2, num_local_experts=4),
}

ARCHITECTURES = [name for name in CONFIGS if name != "phimoe"]
"""Those whose weights follow a score, which PhiMoE's do not."""


def random_model(architecture="mixtral", seed=0, dtype=torch.float32):
    """An untouched model: stock eager experts, every weight random, gate logits of a few units."""
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(CONFIGS[architecture](), experts_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 2.0 if name.endswith(("gate.weight", "router.weight")) else 1.0
            if parameter.dim() > 1:
                parameter.normal_(0.0, scale * model.config.hidden_size**-0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
    return model.to(dtype).eval()


def random_tokens(model, batch, length, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)
