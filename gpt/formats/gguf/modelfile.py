"""Ollama's Modelfile for an exported model.

Ollama's templates are Go's, not Jinja. Most chat templates only put a text
before and after each message; those texts are found by rendering. A template
that does more has no counterpart here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt.errors import UserError

Render = Callable[[Sequence[Mapping[str, str]]], str]

# Texts that occur in no template.
SYSTEM, USER, REPLY, AGAIN = (f'\ue0f0{i}\ue0f1' for i in range(4))
PLAIN = '{{ .Prompt }}'


def go_template(render: Render) -> str | None:
  """The Go template of a chat template; None if it cannot be expressed.

  Args:
    render: messages -> the text of the prompt for the assistant's next turn.
  """
  user = {'role': 'user', 'content': USER}
  reply = {'role': 'assistant', 'content': REPLY}
  again = {'role': 'user', 'content': AGAIN}
  system = {'role': 'system', 'content': SYSTEM}
  try:
    start, between, after = _around(
      render([user, reply, again]), USER, REPLY, AGAIN
    )[:3]
    first, opened, _ = _around(render([system, user]), SYSTEM, USER)
    # No message but these: the parts must give longer conversations, too.
    turns = [user, reply, again, reply, user]
    body = between.join([USER, REPLY + after + AGAIN, REPLY + after + USER, ''])
    same = (
      render(turns) == start + body
      and render([system, *turns]) == first + SYSTEM + opened + body
    )
  except (UserError, ValueError):
    return None
  literals = (start, between, after, first, opened)
  if not same or any(s in x for x in literals for s in ('{{', '}}', '"""')):
    return None
  # White space between actions would be part of the prompt.
  return (
    f'{{{{ if .System }}}}{first}{{{{ .System }}}}{opened}'
    f'{{{{ else }}}}{start}{{{{ end }}}}'
    '{{ range .Messages }}'
    f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{between}'
    f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{after}'
    '{{ end }}{{ end }}'
  )


def _around(text: str, *contents: str) -> list[str]:
  """The parts of `text` around texts that occur once each, in this order."""
  parts = []
  for content in contents:
    before, found, text = text.partition(content)
    if not found or content in text:
      raise ValueError(f'{content!r} does not occur once')
    parts.append(before)
  return [*parts, text]


def modelfile(
  gguf: str,
  block_size: int,
  template: str | None,
  stops: Sequence[str],
  settings: Mapping[str, Any],
) -> str:
  """The text of a Modelfile; `ollama create NAME -f FILE` reads it.

  Args:
    gguf: name of the model file, in the same directory.
    block_size: the context window in tokens.
    template: a Go template; None: Ollama's choice by the GGUF file's own.
    stops: texts of the tokens that end a reply.
    settings: `config.sample` of the run.
  """
  lines = [f'FROM ./{gguf}']
  if template is not None:
    lines.append(f'TEMPLATE """{template}"""')
  lines += [f'PARAMETER stop "{stop}"' for stop in stops]
  lines.append(f'PARAMETER num_ctx {block_size}')
  lines += [
    f'PARAMETER {name} {settings[name]:g}'
    for name in ('temperature', 'top_p', 'top_k')
  ]
  return '\n'.join(lines) + '\n'
