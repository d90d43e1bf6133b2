"""Constants of law.py, fitted to 67 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.21321,
  'per_parameter': 0.12579,
  'parameter_power': 0.10836,
  'per_byte': 0.37326,
  'byte_power': 0.1038,
  'useful_passes': 3.7863,
  'parameters_per_byte': 0.34204,
  'entropy_power': 1.2474,
  'trend': 1.6679,
  'yield_power': 7.5893,
  'level': -0.18121,
  'pieces': -0.0047632,
}
