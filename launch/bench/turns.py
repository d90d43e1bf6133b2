"""Measure how soon the next turn of a conversation begins.

    python -m launch.bench.turns --preset=l
    python -m launch.bench.turns --workdir=runs/x --rounds=40

Two servers, with reuse of earlier prompts (--prefix_cache_mb) and without, get
the same conversations in turns: a prompt of --prompt characters, an answer, and
then both with a few more characters. The time to the first token of that
second answer is compared. --workdir, --preset, --rounds and --before (a third
server) as in bench.serve.
"""

import asyncio
import contextlib
import json
import random
import statistics
import tempfile

from absl import flags

from launch import cli
from launch.bench import load, machine, serve, servers

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
      if name != 'before':  # Its rounding may differ.
        texts.append(answer + text)
      if i >= 2:  # The first ones warm up.
        seconds[f'first {name}'].append(first)
        seconds[f'next {name}'].append(again)
    if len(set(texts)) > 1:
      raise RuntimeError('reuse has changed a text')
  for client in clients.values():
    client.close()
  return seconds


def main(_: list[str]) -> None:
  print(machine.line())
  with contextlib.ExitStack() as stack:

    def folder() -> str:
      return stack.enter_context(tempfile.TemporaryDirectory())

    root = servers.ROOT
    if serve.BEFORE.value:
      root = servers.checkout(serve.BEFORE.value, folder())
    workdir, cache = serve.make_workdir(root), folder()
    contestants = {
      'with reuse': servers.ours(workdir, cache),
      'without': servers.ours(workdir, cache, '--prefix_cache_mb=0'),
    }
    try:
      if serve.BEFORE.value:
        contestants['before'] = servers.ours(workdir, cache, root=root)
      ports = {name: server.port for name, server in contestants.items()}
      seconds = asyncio.run(measure(ports, serve.ROUNDS.value))
    finally:
      codes = [server.stop() for server in contestants.values()]
  ttft = {name: serve.quantiles(values) for name, values in seconds.items()}
  for name, values in ttft.items():
    print(f'{name:18s} TTFT p50 {values["p50"]:7.1f} ms')
  ratios = {}
  for other in list(contestants)[1:]:
    pairs = zip(seconds['next with reuse'], seconds[f'next {other}'])
    ratios[other] = statistics.median(a / b for a, b in pairs)
    print(f'next turn, with reuse / {other}: {ratios[other]:.2f} x')
  report = {
    'machine': machine.facts(),
    'workdir': str(workdir),
    'tokens': serve.PROMPT.value + ANSWER + NEXT,
    'ttft_ms': ttft,
    'ratios': ratios,
    'exit_codes': codes,
  }
  print(json.dumps(report))


if __name__ == '__main__':
  cli.run(main)
