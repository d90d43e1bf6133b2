"""The server's Prometheus metrics, all present from the first scrape.

The histogram is our own: it observes a block of tokens at once, while
prometheus_client would walk its buckets for every token.
"""

import bisect
import threading
from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
BUCKETS = (
  0.0005,
  0.001,
  0.002,
  0.004,
  0.008,
  0.016,
  0.032,
  0.064,
  0.125,
  0.25,
  0.5,
  1.0,
  2.0,
  4.0,
  8.0,
  16.0,
  32.0,
  64.0,
)
FINISH_REASONS = ('stop', 'length')
REJECTIONS = (
  'queue_full',
  'queue_timeout',
  'client_limit',
  'auth',
  'body_too_large',
  'loading',
  'draining',
  'failed',
)
ABORTS = ('disconnect', 'timeout', 'slow_reader', 'shutdown', 'error')
METHODS = ('GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS')


class Histogram:
  """Counts values by bucket; thread-safe."""

  def __init__(self, name: str, help: str, registry: CollectorRegistry) -> None:
    self._name, self._help = f'rgpt_{name}', help
    self._lock = threading.Lock()
    self._counts = [0] * (len(BUCKETS) + 1)
    self._sum = 0.0
    registry.register(self)

  def observe(self, value: float, times: int = 1) -> None:
    """Counts a value in seconds as often as `times`."""
    with self._lock:
      self._counts[bisect.bisect_left(BUCKETS, value)] += times
      self._sum += value * times

  def collect(self) -> Iterator[HistogramMetricFamily]:
    with self._lock:
      counts, total = list(self._counts), self._sum
    cumulative, buckets = 0, []
    for bound, count in zip([*BUCKETS, '+Inf'], counts):
      cumulative += count
      buckets.append((str(bound), cumulative))
    yield HistogramMetricFamily(
      self._name, self._help, buckets=buckets, sum_value=total
    )

  def describe(self) -> list[HistogramMetricFamily]:
    return [HistogramMetricFamily(self._name, self._help)]


class Reading:
  """A counter whose value `read` returns."""

  def __init__(
    self,
    name: str,
    help: str,
    read: Callable[[], float],
    registry: CollectorRegistry,
  ) -> None:
    self._name, self._help, self._read = f'rgpt_{name}', help, read
    registry.register(self)

  def collect(self) -> Iterator[CounterMetricFamily]:
    yield CounterMetricFamily(self._name, self._help, value=self._read())

  def describe(self) -> list[CounterMetricFamily]:
    return [CounterMetricFamily(self._name, self._help)]


class Metrics:
  """All metrics of one server, in a registry of its own.

  Args:
    compilations: returns the number of programs compiled so far.
  """

  def __init__(self, compilations: Callable[[], float]) -> None:
    prometheus_client.disable_created_metrics()
    self.registry = CollectorRegistry()

    def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
      return Counter(f'rgpt_{name}', help, labels, registry=self.registry)

    def gauge(name: str, help: str) -> Gauge:
      return Gauge(f'rgpt_{name}', help, registry=self.registry)

    def histogram(name: str, help: str) -> Histogram:
      return Histogram(name, help, self.registry)

    self.running = gauge('num_requests_running', 'Requests with a slot.')
    self.waiting = gauge('num_requests_waiting', 'Requests without a slot.')
    self.slots_total = gauge('slots_total', 'Sequences decoded at once.')
    self.slots_busy = gauge('slots_busy', 'Slots in use.')
    Reading(
      'jit_compilations_total',
      'Programs compiled by this process.',
      compilations,
      self.registry,
    )
    self.prompt_tokens = counter(
      'prompt_tokens_total', 'Prompt tokens of requests that got a slot.'
    )
    self.generation_tokens = counter(
      'generation_tokens_total', 'Sampled tokens, as usage counts them.'
    )
    self.prefix_queries = counter(
      'prefix_cache_queries_total', 'Prompt tokens looked up for reuse.'
    )
    self.prefix_hits = counter(
      'prefix_cache_hits_total', 'Prompt tokens that needed no prefill.'
    )
    self.prefix_bytes = gauge(
      'prefix_cache_bytes', 'Keys and values kept for reuse.'
    )
    self.preemptions = counter(
      'preemptions_total', 'Slots taken for a while, because others waited.'
    )
    self.success = counter(
      'request_success_total',
      'Requests whose choices have all ended.',
      ('finished_reason',),
    )
    self.slides = counter(
      'context_slides_total', 'Windows that moved and were prefilled again.'
    )
    self.rejected = counter(
      'rejected_total', 'Requests turned away.', ('reason',)
    )
    self.aborted = counter(
      'aborted_total', 'Requests that ended early.', ('cause',)
    )
    self.http = counter(
      'http_requests_total',
      'Responses by route template.',
      ('route', 'method', 'status'),
    )
    self.ttft = histogram(
      'time_to_first_token_seconds', 'From arrival to the first token.'
    )
    self.inter_token = histogram(
      'inter_token_latency_seconds',
      'Between tokens; the tokens of a block share its time.',
    )
    self.e2e = histogram(
      'e2e_request_latency_seconds', 'From arrival to the last token.'
    )
    self.queue_time = histogram(
      'request_queue_time_seconds', 'From arrival to the first slot.'
    )
    for reason in FINISH_REASONS:
      self.success.labels(reason)
    for reason in REJECTIONS:
      self.rejected.labels(reason)
    for cause in ABORTS:
      self.aborted.labels(cause)

  def baseline_route(self, template: str, method: str) -> None:
    """Makes a route appear in the metrics before its first request."""
    self.http.labels(template, method, '200')

  def count_response(self, route: str, method: str, status: int) -> None:
    method = method if method in METHODS else 'other'
    self.http.labels(route, method, str(status)).inc()

  def render(self) -> bytes:
    return generate_latest(self.registry)
