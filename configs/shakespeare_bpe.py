"""As shakespeare_char, on byte-fallback BPE of 1,000 tokens.

    python -m launch.train --config=configs/shakespeare_bpe.py \
      --workdir=runs/shakespeare_bpe

Nats per token of different tokenizers do not compare; bits per byte do.
"""

from configs import shakespeare_char


def get_config():
  config = shakespeare_char.get_config()
  config.data.tokenizer = 'sentencepiece'
  config.data.vocab_size = 1000
  config.model.block_size = 128
  config.model.dropout = 0.1
  config.total_steps = 1500
  return config
