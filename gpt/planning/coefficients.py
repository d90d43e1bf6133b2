"""Constants of law.py, fitted to 75 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.37399,
  'per_parameter': 0.12104,
  'parameter_power': 0.051481,
  'per_byte': 0.3074,
  'byte_power': 0.076543,
  'useful_passes': 4.3249,
  'parameters_per_byte': 1.8943,
  'entropy_power': 1.0441,
  'yield_power': 13.576,
  'level': 0.14761,
  'pieces': -0.007242,
}
