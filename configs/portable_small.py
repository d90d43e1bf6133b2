"""A Qwen3 of 1.5M parameters that other programs open: transformers, llama.cpp.

    rgpt train --config=portable_small --workdir=runs/portable
    rgpt export --workdir=runs/portable --format=hf --output=portable-hf
    rgpt export --workdir=runs/portable --format=gguf --output=portable.gguf

1.53M parameters, context 128: shakespeare_bpe as Qwen3ForCausalLM, that is with
a gated MLP (SwiGLU), without a cap on the logits, which Qwen3 lacks, and with
byte-level BPE of 1,000 tokens. RoPE, QK-norm and final norm are the same. 2
cores of an AMD EPYC while other work was running: 12 minutes, 5.1M tokens,
2.0622 bits/byte (full pass, seed 1); shakespeare_bpe reaches 2.0531.
"""

from configs import shakespeare_bpe


def get_config():
  config = shakespeare_bpe.get_config()
  config.data.tokenizer = 'hf'
  config.model.mlp = 'swiglu'
  config.model.mlp_width = 384
  config.model.logit_softcap = 0.0
  return config
