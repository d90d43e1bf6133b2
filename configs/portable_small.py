"""A Qwen3 of 1.6M parameters that other programs open: transformers, llama.cpp.

    rgpt train --config=portable_small --workdir=runs/portable
    rgpt export --workdir=runs/portable --format=hf --output=portable-hf

shakespeare_bpe as transformers' Qwen3ForCausalLM: a gated MLP (SwiGLU), RoPE,
QK-norm and a final norm as there, but no cap on the logits, which Qwen3 lacks,
and byte-level BPE of 1,000 tokens.
"""

from configs import shakespeare_bpe


def get_config():
  config = shakespeare_bpe.get_config()
  config.data.tokenizer = 'hf'
  config.model.mlp = 'swiglu'
  config.model.mlp_width = 384
  config.model.logit_softcap = 0.0
  return config
