"""The notebooks run from top to bottom, at smoke size, and are kept clean."""

import base64
import json
import os
import pathlib
import warnings

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
FIGURES = {
  'train_on_colab': 1,
  'sample_and_inspect': 6,
  'compare_runs': 2,
  'chat': 2,
  'adapt_smollm2': 1,
}
PNG = b'\x89PNG\r\n\x1a\n'
nbformat = pytest.importorskip('nbformat', reason='extra notebooks is needed')


def test_every_notebook_is_here():
  assert sorted(FIGURES) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
  notebook = nbformat.read(path, 4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None
  # As written, so that a diff shows what was changed and nothing else.
  assert path.read_text() == nbformat.writes(notebook).rstrip() + '\n'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_thin(path):
  """Code of more than a screen belongs into the library."""
  cells = json.loads(path.read_text())['cells']
  code = [c for c in cells if c['cell_type'] == 'code']
  assert max(len(c['source']) for c in code) <= 40
  assert sum(c['cell_type'] == 'markdown' for c in cells) >= len(code) / 2


def make_stand_in(path) -> pathlib.Path:
  """A tiny chat model of SmolLM2's kind, in transformers' format."""
  from gpt.formats.convert import export
  from tests.support.serving_tools import chat_tokenizer, make_random

  make_random(
    path / 'tiny',
    chat_tokenizer(),
    data={'format': 'chat'},
    block_size=256,
    arch='randy',
    mlp='swiglu',
    mlp_width=48,
    pos='rope',
    n_kv_head=2,
    norm_gain=True,
    final_norm=True,
    tied_embeddings=True,
    embed_norm=False,
    qk_norm=False,
    logit_softcap=0.0,
  )
  export(path / 'tiny', 'best', 'hf', path / 'stand-in')
  return path / 'stand-in'


@pytest.mark.slow  # `make notebooks`, which .ci/run does too.
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient', reason='extra notebooks is needed')
  pytest.importorskip('ipykernel', reason='extra notebooks is needed')
  pytest.importorskip('matplotlib', reason='extra notebooks is needed')
  monkeypatch.setenv('RGPT_SMOKE', '1')
  if path.stem == 'adapt_smollm2':
    monkeypatch.setenv('RGPT_SMOKE_MODEL', str(make_stand_in(tmp_path)))
  monkeypatch.setenv(
    'PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
  )
  for name in ('IPYTHONDIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR'):
    monkeypatch.setenv(name, str(tmp_path / name.lower()))
  notebook = nbformat.read(path, 4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=240,
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  )
  with warnings.catch_warnings():
    warnings.simplefilter('default')  # Of the messaging libraries.
    client.execute()  # Raises on the first cell that fails.
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  ]
  figures = [
    base64.b64decode(output['data']['image/png'])
    for output in outputs
    if 'image/png' in output.get('data', {})
  ]
  assert len(figures) == FIGURES[path.stem]
  assert all(f.startswith(PNG) and len(f) > 5000 for f in figures)
  complaints = [
    o['text']
    for o in outputs
    if o['output_type'] == 'stream' and o['name'] == 'stderr'
  ]
  assert not complaints, complaints
