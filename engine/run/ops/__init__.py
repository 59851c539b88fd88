"""The ops of the program: one compiled function, or a few kindred ones, a file. `OPS` (table.py) names them; common.py says what a stage and a step are."""
