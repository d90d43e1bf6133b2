"""An engine in this process, and the full forward passes it must match.

The reference has no caches, slots, blocks or buckets: it runs the whole window
through the model for each token.
"""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from gpt.decoding import blocks, generation, sampling
from gpt.model import GPT, abstract_params
from serving.engine import events, jobs
from serving.engine.compilations import compile_count
from serving.engine.engine import Engine
from serving.engine.sampling import Sampling
from serving.engine.weights import Weights
from serving.metrics import Metrics
from tests.support.serving_tools import chat_tokenizer

TOKENIZER = chat_tokenizer()


def random_params(cfg, seed=0):
  """Weights whose distributions are neither certain nor uniform."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.15, jnp.float32),
    abstract_params(cfg),
  )


class Harness:
  """An Engine in this process that collects the events of its jobs.

  Attributes:
    unread: jobs whose events nobody takes.
  """

  def __init__(
    self,
    cfg,
    slots=4,
    params=None,
    lanes=2,
    shapes=None,
    prefix_bytes=1 << 20,
  ):
    self.cfg = cfg
    self.params = random_params(cfg) if params is None else params
    self.died = []
    self.unread = set()
    compile_count()  # Starts counting.
    self.metrics = Metrics(lambda: 0)
    self._closed = threading.Condition()
    self.engine = Engine(
      GPT(cfg),
      Weights(self.params, 'first'),
      slots,
      10_000,
      self.metrics,
      self._post,
      self.died.append,
      lanes,
      shapes,
      prefix_bytes=prefix_bytes,
    )
    self.engine.start()

  def _post(self, outbox):
    with self._closed:
      for job, event in outbox:
        job.mailbox.put(event)
        if job not in self.unread:
          job.taken += events.size_of(event)
      self._closed.notify_all()

  def read(self, job):
    """Takes all events of a job that was unread."""
    with self._closed:
      self.unread.discard(job)
      job.taken += sum(map(events.size_of, job.mailbox))
    self.engine.wake()

  def submit(self, *prompts, unread=False, grammar=None, **fields):
    job = jobs.Job(Sampling(**fields))
    if unread:
      self.unread.add(job)
    bias_V = generation.ban_bias(TOKENIZER)
    for id, value in job.sampling.logit_bias.items():
      bias_V[id] += value
    job.fill(
      [np.array(p, np.int32) for p in prompts],
      bias_V,
      {TOKENIZER.eos_id, *job.sampling.stop_token_ids},
      TOKENIZER,
      grammar=grammar,
    )
    self.engine.scheduler.reserve()
    self.engine.submit(job)
    return job

  def wait(self, job):
    """The job's events, once it is closed."""
    with self._closed:
      done = self._closed.wait_for(
        lambda: any(isinstance(e, events.Closed) for e in job.mailbox), 240
      )
    assert done, 'the job did not end'
    return list(job.mailbox)

  def run(self, *prompts, **fields):
    """Sampled ids of each choice."""
    job = self.submit(*prompts, **fields)
    self.wait(job)
    return [seq.sampled.tolist() for seq in job.sequences]

  def close(self):
    self.engine.stop()
    assert self.engine.join(120)


class Reference:
  """Samples one token at a time, each from a whole forward pass."""

  def __init__(self, cfg, params):
    self.cfg, self.params = cfg, params
    self._step = jax.jit(self._draw)

  def _draw(self, params, tokens_1L, last, step, row, in_prompt, counts, bias):
    """(id, raw log-probabilities) after position `last`."""
    logits_1V = GPT(self.cfg).apply({'params': params}, tokens_1L)[:, last]
    uniform = sampling.uniforms(row.seed, step[None], 1)[:, 0]
    penalised = sampling.penalise(logits_1V, row, in_prompt, counts)
    id = sampling.sample(penalised, uniform, row, bias)[0]
    return id, jax.nn.log_softmax(logits_1V[0])

  def step(self, tokens, s, n_sampled=0, seed=0, bias=None):
    start = blocks.window_start(
      len(tokens),
      self.cfg.block_size,
      jobs.stride(s.overflow, self.cfg.block_size),
    )
    window, vocab = tokens[start:], self.cfg.vocab_size
    padded = np.zeros((1, self.cfg.block_size), np.int32)
    padded[0, : len(window)] = window
    row = sampling.settings(
      1,
      seed=seed,
      temperature=s.temperature,
      top_k=s.top_k,
      top_p=s.top_p,
      min_p=s.min_p,
      repetition=s.repetition,
      frequency=s.frequency,
      presence=s.presence,
    )
    prompt = tokens[: len(tokens) - n_sampled]
    sampled = np.array(tokens[len(prompt) :], int)
    counts = np.bincount(sampled, minlength=vocab).astype(np.int32)
    if bias is None:
      bias = np.zeros(vocab, np.float32)
    id, logp = self._step(
      self.params,
      padded,
      np.int32(len(window) - 1),
      np.int32(n_sampled),
      row,
      np.isin(np.arange(vocab), prompt)[None],
      counts[None],
      bias[None],
    )
    return int(id), np.asarray(logp)

  def run(self, prompt, **fields):
    """Sampled ids, and the log-probability of each."""
    s = Sampling(**fields)
    bias = generation.ban_bias(TOKENIZER)
    for id, value in s.logit_bias.items():
      bias[id] += value
    tokens, sampled, logprobs = list(prompt), [], []
    while len(sampled) < s.max_tokens:
      id, logp = self.step(tokens, s, len(sampled), s.seed, bias)
      sampled.append(id)
      tokens.append(id)
      logprobs.append(float(logp[id]))
      if id in (TOKENIZER.eos_id, *s.stop_token_ids):
        break
    return sampled, logprobs
