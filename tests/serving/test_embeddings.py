"""POST /v1/embeddings, with the `openai` package and against the model."""

import base64

import jax.numpy as jnp
import numpy as np
import openai
import pytest

from gpt.model import GPT
from gpt.runs.load import load_model
from tests.support.serving_tools import chat_tokenizer, make_random

TEXTS = ['Hello', 'abc', 'The quick brown fox, 1 of 9.', '']


@pytest.fixture(scope='module')
def http(server):
  with server.client() as client:
    yield client


@pytest.fixture(scope='module')
def client(server):
  with openai.OpenAI(
    base_url=f'{server.url}/v1', api_key='none', max_retries=0
  ) as client:
    yield client


def expected(workdir, text) -> np.ndarray:
  """float32[D]: from the model itself, without padding."""
  loaded = load_model(workdir)
  ids = loaded.tokenizer.encode(text).tolist() or [loaded.tokenizer.bos_id]
  variables, tokens_1L = {'params': loaded.params}, jnp.array([ids])
  hidden_1LD = GPT(loaded.cfg).apply(variables, tokens_1L, head=False)
  mean_D = np.asarray(hidden_1LD)[0].mean(axis=0)
  return mean_D / np.linalg.norm(mean_D)


def test_a_vector_is_the_mean_of_the_last_hidden_states(
  client, server, tmp_path
):
  make_random(tmp_path / 'random', chat_tokenizer())  # The server's model.
  workdir = tmp_path / 'random'
  answer = client.embeddings.create(model='any', input=TEXTS)
  assert answer.object == 'list' and answer.model == 'random'
  assert (answer.pooling, answer.normalized) == ('mean', True)
  assert [entry.index for entry in answer.data] == [0, 1, 2, 3]
  tokens = sum(map(len, TEXTS)) + 1  # An empty text is one BOS.
  assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
  for text, entry in zip(TEXTS, answer.data):
    vector = np.array(entry.embedding)
    np.testing.assert_allclose(
      vector, expected(workdir, text), rtol=0, atol=2e-6
    )
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_both_encodings_hold_the_same_numbers(http):
  def embed(**fields):
    answer = http.post('/v1/embeddings', json={'input': 'Hello', **fields})
    return answer.json()['data'][0]['embedding']

  data = base64.b64decode(embed(encoding_format='base64'))
  floats = np.array(embed(), np.float32)
  np.testing.assert_array_equal(np.frombuffer(data, '<f4'), floats)
  assert floats.shape == (32,)


def test_texts_and_tokens_in_large_batches(client, http):
  tokens = http.post('/tokenize', json={'content': 'abc'}).json()['tokens']
  mixed = client.embeddings.create(model='any', input=['abc', tokens] * 50)
  vectors = np.array([entry.embedding for entry in mixed.data])
  assert vectors.shape == (100, 32)
  np.testing.assert_allclose(vectors, vectors[:1].repeat(100, 0), atol=1e-6)
  one = client.embeddings.create(model='any', input=tokens)
  np.testing.assert_allclose(one.data[0].embedding, vectors[0], atol=1e-6)


def test_nothing_is_compiled_for_a_request(client, server):
  before = server.metrics()['rgpt_jit_compilations_total']
  client.embeddings.create(model='any', input=['a', 'a' * 32])
  assert server.metrics()['rgpt_jit_compilations_total'] == before


@pytest.mark.parametrize(
  'fields, param, words',
  [
    ({'dimensions': 8}, 'dimensions', 'dimensions is not supported'),
    ({'normalize': False}, 'normalize', 'normalize is not supported'),
    ({'encoding_format': 'int8'}, 'encoding_format', 'float, base64'),
    ({'input': []}, 'input', 'not empty'),
    ({'input': 3}, 'input', 'a string, token ids'),
    ({'input': ['a'] * 2049}, 'input', 'at most 2048'),
    ({'input': 'a' * 33}, 'input', 'maximum context length is 32 tokens'),
  ],
)
def test_what_it_cannot_do_is_refused_by_name(client, fields, param, words):
  with pytest.raises(openai.BadRequestError) as e:
    body = {'input': 'a', **fields}
    client.post('/embeddings', body=body, cast_to=object)
  assert e.value.param == param and words in e.value.message


def test_a_long_text_may_be_cut(http):
  whole = http.post('/v1/embeddings', json={'input': 'b' * 32}).json()
  for keep in (-1, 32):
    body = {'input': 'a' + 'b' * 32, 'truncate_prompt_tokens': keep}
    cut = http.post('/v1/embeddings', json=body).json()
    assert cut['data'] == whole['data'] and cut['tokens_dropped'] == 1
  body = {'input': 'aéb'}
  (warning,) = http.post('/v1/embeddings', json=body).json()['warnings']
  assert warning['param'] == 'input'
