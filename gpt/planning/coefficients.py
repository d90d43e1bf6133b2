"""Constants of law.py, fitted to 82 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.37148,
  'per_parameter': 0.12251,
  'parameter_power': 0.049306,
  'per_byte': 0.30523,
  'byte_power': 0.072733,
  'useful_passes': 4.252,
  'parameters_per_byte': 2.0377,
  'entropy_power': 1.046,
  'yield_power': 13.886,
  'level': 0.14568,
  'pieces': -0.010816,
}
