"""Constants of law.py, fitted to 30 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.86183,
  'per_parameter': 0.050061,
  'parameter_power': 0.45857,
  'per_byte': 0.22448,
  'byte_power': 0.51757,
  'useful_passes': 9.4092,
  'parameters_per_byte': 3.888,
  'entropy_power': 1.0376,
  'trend': -0.055325,
  'level': -0.24571,
  'pieces': 0.0098434,
}
