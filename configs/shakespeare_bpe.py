"""As speedrun_10min, on byte-fallback BPE of 1,000 tokens.

    python -m launch.train --config=configs/shakespeare_bpe.py \
      --workdir=runs/shakespeare_bpe

Nats per token of different tokenizers do not compare; bits per byte do.
"""

from configs import speedrun_10min


def get_config():
  config = speedrun_10min.get_config()
  config.data.tokenizer = 'sentencepiece'
  config.data.vocab_size = 1000
  config.model.block_size = 128
  config.total_steps = 2500
  config.opt.decay_fraction = 0.9
  config.eval.every = 250
  config.checkpoint.every = 1250
  return config
