"""Constants of law.py, fitted to 60 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.30971,
  'per_parameter': 0.24382,
  'parameter_power': 0.14637,
  'per_byte': 0.1371,
  'byte_power': 0.55412,
  'useful_passes': 14.548,
  'parameters_per_byte': 0.3705,
  'entropy_power': 1.2161,
  'trend': 2.3968,
  'level': -0.20317,
  'pieces': 0.0029606,
}
