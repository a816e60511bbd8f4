"""The performance report: the ops beside their usual formulations (`bench.formulations`), at full size.

compiled    bytes, temporary memory and launches of the programs compiled for a GPU that is not there
executed    CPU time and errors of the same problems in float32, by the reference and the formulations
command     `python -m bench report`: both, as Markdown
"""
