"""Which tokens end an answer: those that a file names, and those that are known by their text.

Files name one end, rarely two, yet models are trained to end their turns in more ways than that; llama.cpp (src/llama-vocab.cpp) knows the texts, and so
does this list. A token of such a text is no end where it is an ordinary word: "</s>" in Qwen's vocabularies, which merges make out of what HTML has.
"""
from __future__ import annotations

from collections.abc import Sequence

END_OF_TURN = frozenset([
    "</s>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<EOT>",
    "_<EOT>", "[EOT]",
    "[EOS]", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<turn|>", "<eos>", "<|tool_response>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "[e~[",
])  # fmt: skip
# Padding, and the borders between files and repositories: nothing that belongs to an answer comes after them.
FILLS = frozenset([
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
])  # fmt: skip


def known_ends(tokens: Sequence[str], ordinary: frozenset[str]) -> set[int]:
    """Ids of the tokens that end an answer by their text. ordinary: those of these texts that are ordinary words of the vocabulary."""
    found = (END_OF_TURN | FILLS).intersection(tokens) - ordinary
    # gpt-oss and Solar end messages inside an answer with <|end|>, the answer itself with others
    if "<|call|>" in found and "<|return|>" in found or "<|flush|>" in found and not found.isdisjoint(("<|call|>", "<|calls|>")):
        found -= {"<|end|>"}
    # Gemma 4 and PLaMo have another end, and an ordinary </s>
    if "<|tool_response>" in found or "<|plamo:eos|>" in tokens:
        found -= {"</s>"}
    return {id for id, text in enumerate(tokens) if text in found} if found else set()
