"""GPT-2's small shape for a GPU: 12 layers x 768, 12 heads, context 1,024.

    rgpt train --config=gpt2_124m \
      --config.data.path='corpus/*.txt' --workdir=runs/gpt2_124m

135M parameters with 32,000 byte-fallback BPE tokens (untied head). Never run:
no GPU was available. `--config.model.remat` recomputes the blocks in the
backward pass when memory is short.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 6e-4
  config.min_lr = 6e-5
  config.batch_size = 64
  config.total_steps = 20_000
  config.model.n_embd = 768
  config.model.n_head = 12
  config.model.n_layer = 12
  config.model.block_size = 1024
  config.model.dropout = 0.0
  config.opt.schedule = 'wsd'
  config.opt.warmup_steps = 700
  config.opt.b2 = 0.95
  config.opt.clip = 'global_norm'
  config.opt.plateau_patience = 0
  config.data.tokenizer = 'sentencepiece'
  config.data.vocab_size = 32_000
  config.eval.every = 250
  config.checkpoint.every = 1000
  return config
