"""How far a request is and how long it took, in llama.cpp's form.

tools/server/README.md of llama.cpp: `timings` and `prompt_progress`.
"""

import time

from serving.engine.jobs import Job
from serving.http.responses import PromptProgress, Timings


def timings(job: Job) -> Timings:
  """From a job that holds a slot; to its end, or to now."""
  now = job.ended or time.perf_counter()
  began = job.started or now
  first = job.first or now
  cached, predicted = job.cached_tokens, job.completion_tokens
  prompt = job.prompt_tokens - cached
  prompt_ms, predicted_ms = (first - began) * 1e3, (now - first) * 1e3
  return {
    'cache_n': cached,
    'prompt_n': prompt,
    'prompt_ms': prompt_ms,
    'prompt_per_token_ms': ratio(prompt_ms, prompt),
    'prompt_per_second': ratio(1e3 * prompt, prompt_ms),
    'predicted_n': predicted,
    'predicted_ms': predicted_ms,
    'predicted_per_token_ms': ratio(predicted_ms, predicted),
    'predicted_per_second': ratio(1e3 * predicted, predicted_ms),
  }


def prompt_progress(job: Job) -> PromptProgress:
  """Tokens of the prompts that the model has read.

  A prompt is read at once, so it is all or nothing.
  """
  total, now = job.prompt_tokens, job.first or time.perf_counter()
  return {
    'total': total,
    'cache': job.cached_tokens,
    'processed': total if job.first else 0,
    'time_ms': (now - (job.started or now)) * 1e3,
  }


def ratio(a: float, b: float) -> float:
  return a / b if b else 0.0
