"""Every key of a run, written once: meaning, unit, what is allowed.

A preset or recipe starts from `get_config()` and changes what differs; the
command line wins over both (`--config.lr=1e-5`, `--config.model.n_layer=2`).
The knobs people sweep sit at the top, the rest in groups. A number that can be
computed from others is not a key.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()

  # Seeds initial weights, data order, dropout and samples. 0 to 2^32 - 1.
  config.seed = 42
  # Peak learning rate. > 0.
  config.lr = 1e-4
  # What the schedule decays to (linear_warmup: 0); a plateau does not cut below
  # it. 0 .. lr.
  config.min_lr = 1e-5
  # Sequences per optimizer step, over all devices and hosts.
  config.batch_size = 64
  # Target, not addition: a run that has reached it has nothing to train.
  config.total_steps = 1000

  config.model = model = ConfigDict()
  # 'randy' (squared ReLU, N(0, 0.02) init) or 'microgpt' (RMSNorm after the
  # embedding, ReLU, N(0, 0.08) init). See gpt/model/transformer.py.
  model.arch = 'randy'
  # Width D of the residual stream. The MLP is 4 D wide.
  model.n_embd = 256
  # Attention heads H; must divide n_embd.
  model.n_head = 8
  # Blocks N of attention and MLP.
  model.n_layer = 6
  # Trained context T in tokens: the longest that attention can look back.
  model.block_size = 256
  # Drop probability after the attention projection and the MLP. 0 <= p < 1.
  model.dropout = 0.1
  # 'auto' (the arch's), 'relu2', 'relu', 'gelu' (tanh form) or 'swiglu'.
  model.mlp = 'auto'
  # 'learned' (an embedding added once) or 'rope' (rotary, in every layer).
  model.pos = 'learned'
  # Key/value heads, each shared by n_head / n_kv_head queries. 0: n_head.
  model.n_kv_head = 0
  # RMSNorm on the embedding (always on for 'microgpt').
  model.embed_norm = False
  # RMSNorm on queries and keys.
  model.qk_norm = False
  # RMSNorm before the LM head.
  model.final_norm = False
  # logits = c * tanh(logits / c). 0: off.
  model.logit_softcap = 0.0
  # One matrix for token embedding and LM head.
  model.tied_embeddings = False
  # Start wo and fc2 at zero: every block begins as the identity.
  model.zero_init = False
  # Standard deviation of the initial weights. 0: the arch's.
  model.init_std = 0.0
  # Matmul dtype: 'auto' (bfloat16 on CUDA and TPU, else float32), 'float32',
  # 'bfloat16', or 'mixed': operands of the products in bfloat16, their sums and
  # all between them in float32, for CPUs with bfloat16 instructions. On Metal
  # all of them are float32.
  # Parameters, norms, softmax and loss are always float32.
  model.dtype = 'auto'
  # 'auto' (fastest tested kernel of the backend), 'plain', 'blocked', 'cudnn'.
  model.attention = 'auto'
  # Recompute each block in the backward pass: less memory, ~1/3 more work.
  model.remat = False

  config.opt = opt = ConfigDict()
  # 'adamw', or 'muon' (orthogonalised momentum for the block matrices, AdamW
  # for embeddings and head).
  opt.name = 'adamw'
  # 'randy': constant for (1 - decay_fraction) of total_steps, then cosine to
  # min_lr. 'linear_warmup': warmup, then linear to 0. 'wsd': warmup, stable,
  # linear decay to min_lr over the last decay_fraction. See
  # gpt/training/schedules.py.
  opt.schedule = 'randy'
  # Steps of linear warmup; the first trains at lr / warmup_steps. 0: none.
  # 'randy' has none.
  opt.warmup_steps = 0
  # Part of total_steps in which 'randy' and 'wsd' decay. 0 <= f <= 1.
  opt.decay_fraction = 0.4
  # Decay of Adam's running mean of gradients. 0 <= b1 < 1.
  opt.b1 = 0.9
  # Decay of Adam's running mean of squared gradients. 0 <= b2 < 1.
  opt.b2 = 0.999
  # Added to the root of the latter. > 0.
  opt.eps = 1e-8
  # Decoupled decay, times the learning rate, on every tensor.
  opt.weight_decay = 0.1
  # 'element' (clamp each gradient entry), 'global_norm' or 'none'.
  opt.clip = 'element'
  # The largest entry, or the largest norm, that is left as it is. > 0.
  opt.clip_value = 1.0
  # Learning rate of the block matrices under muon (the rest use config.lr).
  opt.muon_lr = 0.02
  # Its momentum (Nesterov). 0 <= m < 1.
  opt.muon_momentum = 0.95
  # Newton-Schulz iterations that orthogonalise it.
  opt.muon_steps = 5
  # Exponential moving average of the weights, used by eval and samples.
  # 0: off; else the decay per step, e.g. 0.999.
  opt.ema_decay = 0.0
  # ReduceLROnPlateau: evals without a new best before a cut. 0: off.
  opt.plateau_patience = 30
  # What the learning rate is multiplied by at a cut. 0 < f <= 1.
  opt.plateau_factor = 0.5
  # Cuts before the next one would be: then the run stops early.
  opt.plateau_max_reductions = 3

  config.data = data = ConfigDict()
  # Files or globs, comma separated; or 'shakespeare', 'sample' (built in), or
  # 'auto': train.txt if there, else shakespeare (downloaded
  # where there is a network), else sample.
  data.path = 'auto'
  # 'text' (plain UTF-8), 'lines' (one document per line) or 'chat' (JSON Lines
  # of conversations, see gpt/data/conversations.py).
  data.format = 'text'
  # 'char', 'sentencepiece' (byte-fallback BPE), 'hf' (byte-level BPE in Hugging
  # Face's format, as microgpt has it; extra: hf) or 'randygpt' (a vocab.json).
  data.tokenizer = 'char'
  # An existing tokenizer (file or directory) instead of training one.
  data.tokenizer_path = ''
  # Wanted size of a trained vocabulary (sentencepiece, hf).
  data.vocab_size = 2000
  # 'none', 'blank_line', or a literal such as '<|eos|>' between documents (of
  # data.format text).
  data.document_separator = 'none'
  # Keep every training window inside one document (text).
  data.document_aware = False
  # Drop lines and conversations that exceed block_size; else they are cut.
  data.skip_long = False
  # 'all' tokens, or what the 'assistant' says (chat).
  data.loss_on = 'all'
  # Several lines or conversations to a window, none of which sees another.
  data.packing = False
  # For validation: the last part of the tokens; of lines and conversations
  # this share, the same ones for every seed. 0 < f < 1.
  data.val_fraction = 0.1
  # Where token files are cached. '': in the workdir.
  data.cache_dir = ''

  config.eval = evaluation = ConfigDict()
  # Steps between evals.
  evaluation.every = 25
  # Windows of block_size (or lines, or conversations) in the quick estimate;
  # the same ones every time.
  evaluation.windows = 50
  # Full deterministic pass over the validation split at the end.
  evaluation.full_at_end = True
  # Write a sample to samples.txt at every eval.
  evaluation.sample = False

  config.checkpoint = checkpoint = ConfigDict()
  # Steps between saves of the latest state (a best one is saved when found).
  # 0: only at the end and when stopped.
  checkpoint.every = 250
  # How many of the latest to keep (>= 1; with 2 a damaged one is no loss).
  checkpoint.keep = 2

  config.sample = sample = ConfigDict()
  # What the sample at the end of training goes on from, or of chat models
  # answers. '' starts from BOS.
  sample.prompt = 'ROMEO:'
  # Its length in tokens, the prompt not counted. >= 1.
  sample.max_tokens = 200
  # Divides the logits. 0: the likeliest token each time.
  sample.temperature = 0.8
  # Sample from the fewest tokens that hold this probability. 0 < p <= 1.
  sample.top_p = 0.9
  # Sample from the k likeliest tokens. 0: all.
  sample.top_k = 0

  config.parallel = parallel = ConfigDict()
  # CPU devices to split the batch over. 0: one for each core.
  parallel.num_cpu_devices = 0
  # Sequences a device works on at once inside a step; the gradients of the
  # micro-batches are added up. 0: cache-sized on CPU, all at once elsewhere.
  parallel.micro_batch_size = 0
  # Join the hosts of a cluster (jax.distributed) before the run.
  parallel.distributed = False

  # TensorBoard event files in the workdir (extra: tensorboard).
  config.tensorboard = False
  return config
