"""The `openai` package against a real server process."""

import json

import openai
import pytest

from tests.support.serving_tools import sse

USER = [{'role': 'user', 'content': 'Hello there'}]


@pytest.fixture(scope='module')
def client(server):
  with openai.OpenAI(
    base_url=f'{server.url}/v1', api_key='none', max_retries=0
  ) as client:
    yield client


def complete(client, **fields):
  fields = {'model': 'any', 'prompt': 'Hello', 'seed': 1, **fields}
  return client.completions.create(**fields)


def test_models(client):
  (model,) = client.models.list().data
  assert model.id == 'random' and model.object == 'model'
  assert client.models.retrieve('random').max_model_len == 32
  with pytest.raises(openai.NotFoundError):
    client.models.retrieve('gpt-5')


def test_completion(client):
  answer = complete(client, max_tokens=20, logit_bias={'1': -100})
  (choice,) = answer.choices
  assert answer.object == 'text_completion' and answer.model == 'random'
  assert len(choice.text) == 20 and choice.finish_reason == 'length'
  usage = answer.usage
  assert (usage.prompt_tokens, usage.completion_tokens) == (5, 20)
  assert usage.total_tokens == 25


def test_chat(client):
  answer = client.chat.completions.create(
    model='any', messages=USER, max_tokens=500, seed=3
  )
  (choice,) = answer.choices
  assert answer.object == 'chat.completion'
  assert choice.message.role == 'assistant'
  # Not a token of the end is text, and none is counted.
  assert choice.finish_reason == 'stop'
  assert answer.usage.completion_tokens == len(choice.message.content)
  assert answer.usage.prompt_tokens == len('Hello there') + 4


def test_roles_and_content_parts(client):
  parts = [{'type': 'text', 'text': 'Hello '}, {'type': 'text', 'text': 'you'}]
  messages = [
    {'role': 'developer', 'content': 'Be'},
    {'role': 'system', 'content': 'kind'},
    {'role': 'user', 'content': parts},
    {'role': 'assistant', 'content': None},
    {'role': 'user', 'content': '?'},
  ]
  answer = client.chat.completions.create(
    model='any', messages=messages, max_tokens=3
  )
  # BOS, the system text inside the first turn, three frames, one opening.
  text = 'Be\nkind\n\nHello you?'
  assert answer.usage.prompt_tokens == 1 + len(text) + 3 * 2 + 1


def stream_text(stream):
  chunks = list(stream)
  texts = {}
  for chunk in chunks:
    for choice in chunk.choices:
      piece = getattr(choice, 'text', None)
      if piece is None:
        piece = choice.delta.content
      texts[choice.index] = texts.get(choice.index, '') + (piece or '')
  return texts, chunks


def test_streamed_completion_is_the_same_text(client):
  fields = {'max_tokens': 70, 'n': 3, 'stop': ['e', 'zq'], 'temperature': 1.3}
  whole = complete(client, **fields)
  texts, chunks = stream_text(complete(client, stream=True, **fields))
  assert texts == {c.index: c.text for c in whole.choices}
  assert {c.index: c.finish_reason for c in whole.choices} == {
    c.index: c.finish_reason
    for chunk in chunks
    for c in chunk.choices
    if c.finish_reason
  }
  assert all(chunk.usage is None for chunk in chunks)
  assert len({chunk.id for chunk in chunks}) == 1


def test_streamed_usage_comes_last_and_alone(client):
  fields = {'max_tokens': 30, 'n': 2}
  stream = complete(
    client, stream=True, stream_options={'include_usage': True}, **fields
  )
  *chunks, last = list(stream)
  assert last.choices == [] and last.usage == complete(client, **fields).usage
  assert all(chunk.usage is None for chunk in chunks)


def test_streamed_chat(client):
  fields = {'model': 'any', 'messages': USER, 'max_tokens': 40, 'seed': 5}
  whole = client.chat.completions.create(**fields)
  texts, chunks = stream_text(
    client.chat.completions.create(stream=True, **fields)
  )
  assert texts == {0: whole.choices[0].message.content}
  first, last = chunks[0].choices[0], chunks[-1].choices[0]
  assert first.delta.role == 'assistant' and first.finish_reason is None
  assert last.delta.content is None and last.delta.role is None
  assert last.finish_reason == whole.choices[0].finish_reason
  assert all(c.choices[0].delta.role is None for c in chunks[1:])


def test_the_wire_format_of_a_stream(server):
  body = {'prompt': 'Hi', 'max_tokens': 30, 'stream': True}
  with (
    server.client() as http,
    http.stream('POST', '/v1/completions', json=body) as response,
  ):
    assert response.headers['content-type'].startswith('text/event-stream')
    raw = b''.join(response.iter_raw()).decode()
  assert raw.endswith('data: [DONE]\n\n')
  events = raw.split('\n\n')[:-2]
  assert all(event.startswith('data: {') for event in events)
  assert all('\n' not in event for event in events)


def test_n_choices_have_seeds_of_their_own(client):
  fields = {'max_tokens': 15, 'temperature': 1.5}
  many = complete(client, n=4, seed=20, **fields)
  singles = [complete(client, seed=20 + i, **fields) for i in range(4)]
  assert [c.text for c in many.choices] == [s.choices[0].text for s in singles]
  assert [c.index for c in many.choices] == [0, 1, 2, 3]
  assert many.usage.prompt_tokens == 5


def test_several_prompts_as_text_and_as_tokens(client, server):
  with server.client() as http:
    tokens = [
      http.post('/tokenize', json={'content': t}).json()['tokens']
      for t in ('Hello', 'abc')
    ]
  fields = {'max_tokens': 12, 'n': 2}
  texts = complete(client, prompt=['Hello', 'abc'], **fields)
  ids = complete(client, prompt=tokens, **fields)
  assert [c.text for c in texts.choices] == [c.text for c in ids.choices]
  assert [c.index for c in ids.choices] == [0, 1, 2, 3]
  one = complete(client, prompt=tokens[1], **fields)
  assert [c.text for c in one.choices] == [c.text for c in ids.choices[2:]]
  assert ids.usage.prompt_tokens == 8


def test_a_seed_repeats_and_no_seed_does_not(client):
  fields = {
    'max_tokens': 60,
    'temperature': 2,
    'top_p': 1,
    'logit_bias': {'1': -100},
  }
  assert (
    complete(client, **fields).choices[0].text
    == complete(client, **fields).choices[0].text
  )
  drawn = complete(client, seed=None, **fields)
  other = complete(client, seed=None, **fields)
  assert drawn.choices[0].text != other.choices[0].text
  again = complete(client, seed=drawn.seed, **fields)
  assert again.choices[0].text == drawn.choices[0].text


def test_stop_strings_and_stop_tokens_end_the_text(client, server):
  fields = {'max_tokens': 200, 'temperature': 1.5, 'seed': 8}
  text = complete(client, logit_bias={'1': -100}, **fields).choices[0].text
  stop = text[20:23]
  answer = complete(
    client, logit_bias={'1': -100}, stop=[stop, 'never this'], **fields
  )
  assert answer.choices[0].text == text[: text.index(stop)]
  assert answer.choices[0].finish_reason == 'stop'
  with server.client() as http:
    (id,) = http.post('/tokenize', json={'content': text[9]}).json()['tokens']
  answer = complete(
    client,
    logit_bias={'1': -100},
    extra_body={'stop_token_ids': [id]},
    **fields,
  )
  assert answer.choices[0].text == text[: text.index(text[9])]
  assert answer.choices[0].finish_reason == 'stop'


def test_ignore_eos_generates_max_tokens(client):
  answer = complete(
    client,
    logit_bias={'1': 100},
    max_tokens=50,
    extra_body={'ignore_eos': True},
  )
  assert answer.usage.completion_tokens == 50
  ended = complete(client, logit_bias={'1': 100}, max_tokens=50)
  assert ended.choices[0].finish_reason == 'stop'
  assert ended.choices[0].text == '' and ended.usage.completion_tokens == 0


def test_log_probabilities_of_completions(client):
  fields = {'max_tokens': 25, 'logprobs': 3, 'logit_bias': {'1': -100}}
  answer = complete(client, **fields)
  (choice,) = answer.choices
  lp = choice.logprobs
  assert ''.join(lp.tokens) == choice.text
  assert lp.text_offset == list(range(25))
  for token, value, top in zip(lp.tokens, lp.token_logprobs, lp.top_logprobs):
    assert value <= 0 and top[token] == value and 3 <= len(top) <= 4
  chunks = list(complete(client, stream=True, **fields))
  streamed = [
    t
    for c in chunks
    for ch in c.choices
    if ch.logprobs
    for t in zip(ch.logprobs.tokens, ch.logprobs.token_logprobs)
  ]
  assert [t for t, _ in streamed] == lp.tokens
  assert [v for _, v in streamed] == pytest.approx(lp.token_logprobs, abs=1e-4)


def test_log_probabilities_of_chats(client):
  answer = client.chat.completions.create(
    model='any',
    messages=USER,
    max_tokens=12,
    seed=3,
    logprobs=True,
    top_logprobs=2,
  )
  (choice,) = answer.choices
  content = choice.logprobs.content
  assert ''.join(t.token for t in content) == choice.message.content
  assert all(bytes(t.bytes).decode() == t.token for t in content)
  assert all(len(t.top_logprobs) == 2 for t in content)


def test_echo_scores_the_prompt_as_lm_eval_wants(client):
  answer = complete(
    client,
    prompt='Hello, you',
    echo=True,
    logprobs=1,
    max_tokens=1,
    temperature=0,
  )
  (choice,) = answer.choices
  lp = choice.logprobs
  assert choice.text.startswith('Hello, you')
  assert lp.tokens[:10] == list('Hello, you') and len(lp.tokens) == 11
  assert lp.token_logprobs[0] is None and lp.top_logprobs[0] is None
  assert all(value <= 0 for value in lp.token_logprobs[1:])
  assert lp.text_offset == list(range(11))
  for token, value, top in zip(
    lp.tokens[1:], lp.token_logprobs[1:], lp.top_logprobs[1:]
  ):
    assert top[token] == value <= max(top.values())
  # Without anything sampled the prompt stands alone.
  alone = complete(
    client, prompt='Hello, you', echo=True, logprobs=1, max_tokens=0
  ).choices[0]
  assert alone.text == 'Hello, you'
  assert alone.logprobs.token_logprobs == lp.token_logprobs[:-1]


@pytest.mark.parametrize('prompt, first', [('H', 'H'), ('', '<|bos|>')])
def test_echo_scores_a_prompt_of_one_token_or_none(client, prompt, first):
  fields = {'echo': True, 'logprobs': 0, 'logit_bias': {'1': -100}}
  choice = complete(client, prompt=prompt, max_tokens=3, **fields).choices[0]
  lp = choice.logprobs
  assert choice.text.startswith(prompt) and lp.tokens[0] == first
  assert len(lp.tokens) == 4 and lp.token_logprobs[0] is None
  assert lp.text_offset == [0, *range(len(prompt), len(prompt) + 3)]


def test_text_outgrows_the_window_unless_refused(client):
  long = 'The quick brown fox ' * 10
  for overflow in ('slide', 'exact'):
    answer = complete(
      client,
      prompt=long,
      max_tokens=100,
      logit_bias={'1': -100},
      extra_body={'context_overflow': overflow},
    )
    assert answer.usage.completion_tokens == 100
    assert answer.usage.prompt_tokens == len(long)
  stopped = complete(
    client,
    max_tokens=500,
    logit_bias={'1': -100},
    extra_body={'context_overflow': 'stop'},
  )
  assert stopped.choices[0].finish_reason == 'length'
  assert stopped.usage.completion_tokens == 32 + 1 - 5
  with pytest.raises(openai.BadRequestError) as e:
    complete(client, prompt=long, extra_body={'context_overflow': 'error'})
  assert e.value.code == 'context_length_exceeded'
  assert 'maximum context length is 32 tokens' in e.value.message


def test_five_thousand_tokens_and_an_empty_prompt(client):
  answer = complete(
    client, prompt='', max_tokens=5000, extra_body={'ignore_eos': True}
  )
  assert answer.usage.completion_tokens == 5000
  assert len(answer.choices[0].text) == 5000
  assert answer.usage.prompt_tokens == 1  # BOS


def test_temperature_zero_is_greedy_whatever_the_seed(client):
  texts = {
    complete(client, temperature=0, seed=s, max_tokens=40).choices[0].text
    for s in range(3)
  }
  assert len(texts) == 1


def test_a_long_chat_keeps_its_end(client):
  messages = USER * 30 + [{'role': 'user', 'content': 'the last'}]
  answer = client.chat.completions.create(
    model='any', messages=messages, max_tokens=4
  )
  assert answer.usage.prompt_tokens <= 32
  assert answer.tokens_dropped > 300


def test_errors_are_the_classes_of_the_package(client):
  with pytest.raises(openai.BadRequestError) as e:
    complete(client, temperature=3)
  assert e.value.param == 'temperature' and e.value.type == (
    'invalid_request_error'
  )
  with pytest.raises(openai.BadRequestError) as e:
    client.chat.completions.create(
      model='any', messages=USER, extra_body={'use_beam_search': True}
    )
  assert e.value.code == 'unsupported_parameter'


def test_the_routes_work_without_v1_too(server):
  body = {'prompt': 'Hi', 'max_tokens': 3, 'seed': 1, 'stream': True}
  with server.client() as http:
    assert http.get('/models').json() == http.get('/v1/models').json()
    texts = []
    for path in ('/completions', '/v1/completions'):
      with http.stream('POST', path, json=body) as response:
        *events, done = sse(response)
      assert done == '[DONE]'
      choices = [json.loads(e)['choices'][0] for e in events]
      # How the text is cut into pieces depends on the load.
      text = ''.join(choice['text'] for choice in choices)
      texts.append((text, choices[-1]['finish_reason']))
    assert texts[0] == texts[1] and texts[0][1] == 'length'
