"""Measure how soon the next turn of a conversation begins.

    python -m launch.bench.turns --preset=l
    python -m launch.bench.turns --workdir=runs/x --rounds=40

Two servers, with reuse of earlier prompts (--prefix_cache_mb) and without, get
the same conversations in turns: a prompt of --prompt characters, an answer, and
then both with a few more characters. The time to the first token of that
second answer is compared. --workdir, --preset and --rounds as in bench.serve.
"""

import asyncio
import json
import random
import statistics
import tempfile

from absl import flags

from launch import cli
from launch.bench import load, machine, serve
from launch.bench.servers import ours

ANSWER, NEXT = 30, 20  # tokens of an answer, characters of the next question

flags.FLAGS.set_default('prompt', 150)
flags.FLAGS.set_default('rounds', 30)


async def first_token(
  client: load.Client, prompt: str, seed: int
) -> tuple[float, str]:
  """(seconds to the first text of an answer, the whole text)."""
  body = {
    'prompt': prompt,
    'max_tokens': ANSWER,
    'stream': True,
    'ignore_eos': True,
    'seed': seed,
  }
  result = await client.request(body)
  if result.status != 200:
    raise RuntimeError(f'the server answered with {result.status}')
  choices = [
    (at, choice['text'])
    for at, event in result.events()
    for choice in event['choices']
    if choice['text']
  ]
  return choices[0][0] - result.sent, ''.join(text for _, text in choices)


async def measure(ports: dict[str, int], rounds: int) -> dict:
  """Seconds to the first token of both turns, by server."""
  rng = random.Random(0)
  clients = {name: load.Client(port) for name, port in ports.items()}
  seconds: dict[str, list[float]] = {
    f'{turn} {name}': [] for turn in ('first', 'next') for name in ports
  }
  for i in range(rounds + 2):
    prompt = ''.join(rng.choices('etaoin shrdlu', k=serve.PROMPT.value))
    question = ''.join(rng.choices('etaoin shrdlu', k=NEXT))
    texts = []
    for name, client in clients.items():
      first, answer = await first_token(client, prompt, i)
      again, text = await first_token(client, prompt + answer + question, i)
      texts.append(answer + text)
      if i >= 2:  # The first ones warm up.
        seconds[f'first {name}'].append(first)
        seconds[f'next {name}'].append(again)
    if len(set(texts)) > 1:
      raise RuntimeError('reuse has changed a text')
  return seconds


def main(_: list[str]) -> None:
  workdir = serve.make_workdir()
  with tempfile.TemporaryDirectory() as cache:
    servers = {
      'with reuse': ours(workdir, cache),
      'without': ours(workdir, cache, '--prefix_cache_mb=0'),
    }
    try:
      ports = {name: server.port for name, server in servers.items()}
      seconds = asyncio.run(measure(ports, serve.ROUNDS.value))
    finally:
      codes = [server.stop() for server in servers.values()]
  report = {
    'workdir': str(workdir),
    'machine': machine.facts(),
    'tokens': serve.PROMPT.value + ANSWER + NEXT,
    'ttft_ms': {
      name: serve.quantiles(values) for name, values in seconds.items()
    },
    'ratio': statistics.median(
      a / b for a, b in zip(seconds['next with reuse'], seconds['next without'])
    ),
    'exit_codes': codes,
  }
  print(machine.line())
  for name, values in report['ttft_ms'].items():
    print(f'{name:18s} TTFT p50 {values["p50"]:7.1f} ms')
  print(f'with reuse / without, next turn: {report["ratio"]:.2f} x')
  print(json.dumps(report))


if __name__ == '__main__':
  cli.run(main)
