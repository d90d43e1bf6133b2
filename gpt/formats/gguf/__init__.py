"""llama.cpp's model files (GGUF): read, and written for it and Ollama."""

from gpt.formats.gguf.reader import read_gguf
from gpt.formats.gguf.writer import write_gguf

__all__ = ['read_gguf', 'write_gguf']
