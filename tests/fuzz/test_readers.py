"""Damaged files of every kind are refused in one line, or read as they were."""

import json
import resource

import pytest

from gpt.errors import UserError
from tests.fuzz.readers import KINDS, MEMORY, fuzz, fuzz_in_a_process


def skip_without(kind):
  for library in KINDS[kind].needs:
    pytest.importorskip(library)


@pytest.mark.parametrize('kind', KINDS)
def test_damaged_files_are_refused_or_read_alike(kind):
  skip_without(kind)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  count = KINDS[kind].quick
  counts, faults = fuzz(kind, count)
  assert not faults, '\n'.join(faults)
  assert sum(counts.values()) == count
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert used * 1024 < MEMORY


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('kind', KINDS)
def test_a_thousand_damaged_files_within_limits_of_memory_and_time(kind):
  skip_without(kind)
  counts, faults = fuzz_in_a_process(kind, 1000)
  assert not faults, '\n'.join(faults)
  assert sum(counts.values()) == 1000


@pytest.mark.parametrize(
  'kind, file, heads',
  [
    ('microgpt', 'meta.json', 'n_head'),
    ('randygpt-hf', 'config.json', 'n_head'),
    ('llama', 'config.json', 'num_attention_heads'),
  ],
)
def test_a_model_that_cannot_be_names_its_file(tmp_path, kind, file, heads):
  skip_without(kind)
  KINDS[kind].make(tmp_path)
  path = tmp_path / file
  path.write_text(json.dumps(json.loads(path.read_text()) | {heads: 3}))
  with pytest.raises(UserError, match='n_head') as e:
    KINDS[kind].read(tmp_path)
  assert str(path) in str(e.value)
