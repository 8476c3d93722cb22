"""Checkpoints, quantized formats and the model container: arrays and files only.

Nothing here imports torch or `rwkvcli`, and this module imports nothing at all, so that `import quant` is
free.
"""
