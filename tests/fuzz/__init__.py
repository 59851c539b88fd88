"""Fuzzers that may run for hours: python -m tests.fuzz KIND --cases N --seed S (from the project's root; docs/security.md).

    KINDS: name -> module of this folder with `class Fuzzer`:  Fuzzer(folder, seed) -> .case(n) -> outcome, a word to count

A case is made from (seed, n) alone, so a finding is repeated by its number. `case` writes what it tries into `folder` and lets everything but LlaminaError
escape; run.py counts, saves the folder of a finding, and watches time, memory and signals from another process. Short runs are in tests/test_fuzz.py.
"""
KINDS = {"gguf": "gguf_files", "checkpoints": "checkpoint_files", "sessions": "session_files", "journals": "journal_files", "guard": "guard_pages",
         "training": "training_files", "rows": "training_rows"}
