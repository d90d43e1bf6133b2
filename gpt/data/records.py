"""Records: lines of JSON, or rows of Parquet files, with a field of text.

One record is one document. Errors name the file and the line or row.
"""

import contextlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from gpt.data.file_kinds import PARQUET
from gpt.data.sources import Source
from gpt.data.text_reader import TextStats, iter_whole_lines
from gpt.errors import MOST_QUOTED, UserError, quoted

BATCH_ROWS = 256
COPY_BYTES = 1 << 20
TEXTS = ('string', 'large_string')  # Types of Parquet columns.


def iter_texts(source: Source, stats: TextStats) -> Iterator[str]:
  """Yields the text of each record, with '\\n' line ends; skips empty ones.

  Raises:
    UserError: a record is not an object or has no text in its field.
  """
  for where, value in iter_values(source, stats):
    if not isinstance(value, str):
      raise UserError(
        f'{where}: the field {quoted(source.field)} holds {quoted(value)}, '
        'not text: name another one with --config.data.text_field, or take '
        'the record out'
      )
    if '\r\n' in value:
      stats.crlf += value.count('\r\n')
      value = value.replace('\r\n', '\n')
    if value:
      yield value


def iter_values(source: Source, stats: TextStats) -> Iterator[tuple[str, Any]]:
  """Yields ('FILE: line 3', the value of the field) of each record.

  Raises:
    UserError: the file is damaged or has no such field.
  """
  if source.kind == PARQUET:
    values = source.records
    batches = [(source.first, values)] if values else iter_rows(source)
    for first, batch in batches:
      for i, value in enumerate(batch, first):
        stats.bytes += len(value) if isinstance(value, str) else 1
        yield f'{source.name}: row {i}', value
    return
  for number, line in iter_whole_lines(source, stats):
    if not line.strip():
      continue
    where = f'{source.name}: line {number}'
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise UserError(
        f'{where} is not JSON: {e}. Each line has to be an object of its own '
        '(jq -c . FILE writes it so)'
      ) from e
    if not isinstance(record, dict):
      raise UserError(
        f'{where} holds {quoted(record)}, not an object such as '
        f'{{"{source.field}": "..."}}; of an array, each element has to be a '
        "line (jq -c '.[]' FILE)"
      )
    if source.field not in record:
      raise UserError(
        f'{where} has no field {quoted(source.field)}; its fields: '
        f'{quoted(sorted(record))}. Name one with --config.data.text_field'
      )
    yield where, record[source.field]


def iter_rows(source: Source, skip: int = 0) -> Iterator[tuple[int, list[Any]]]:
  """Yields (row number from 1, values of some rows) of a Parquet file.

  Args:
    skip: rows to leave out.

  Raises:
    UserError: the file is damaged or has no such column, or pyarrow is missing.
  """
  try:
    parquet: Any = importlib.import_module('pyarrow.parquet')
  except ImportError as e:
    raise UserError(
      f'{source.name}: Parquet files need the `pyarrow` library: '
      "pip install 'rgpt[corpora]'"
    ) from e
  library: Any = importlib.import_module('pyarrow')
  try:
    with _seekable(source) as opened:
      schema = parquet.ParquetFile(opened).schema_arrow
      field = _column(schema.names, source)
      # A text that is repeated is read once.
      texts = [field] if str(schema.field(field).type) in TEXTS else []
      file = parquet.ParquetFile(
        opened, read_dictionary=texts, buffer_size=1 << 20
      )
      row = 0
      for group in range(file.num_row_groups):
        n = file.metadata.row_group(group).num_rows
        if row + n <= skip:
          row += n
          continue
        for batch in file.iter_batches(
          BATCH_ROWS, [group], [field], use_threads=False
        ):
          values = _values(batch.column(0))
          if row + len(values) > skip:
            drop = max(0, skip - row)
            yield row + drop + 1, values[drop:]
          row += len(values)
  except (library.ArrowException, OSError) as e:
    reason = ' '.join(str(e).split())[:MOST_QUOTED]
    raise UserError(
      f'{source.name}: damaged Parquet data ({reason}): get the file again'
    ) from e


@contextlib.contextmanager
def _seekable(source: Source) -> Iterator[BinaryIO]:
  """The bytes of a source; of a compressed file, a copy of them on the disk."""
  with source.open() as opened:
    if opened.seekable():
      yield opened
      return
    with tempfile.TemporaryFile() as whole:
      try:
        shutil.copyfileobj(opened, whole, COPY_BYTES)
        whole.seek(0)
      except OSError as e:
        raise UserError(
          f'{source.name} cannot be unpacked into {tempfile.gettempdir()}: '
          f'{e.strerror}; free some space, or set TMPDIR to another directory'
        ) from e
      yield whole


def _values(column: Any) -> list[Any]:
  """The values of a column; those that are repeated are the same objects."""
  if not hasattr(column, 'dictionary'):
    return column.to_pylist()
  words = column.dictionary.to_pylist()
  return [None if i is None else words[i] for i in column.indices.to_pylist()]


def _column(names: list[str], source: Source) -> str:
  """The column to read; it is of text, or of lists for conversations."""
  if source.field not in names:
    raise UserError(
      f'{source.name} has no column {quoted(source.field)}; its columns: '
      f'{quoted(names)}. Name one with --config.data.text_field'
    )
  return source.field
