"""All pages, by GGUF's name of the architecture. A family's file is imported here and nowhere else."""
from __future__ import annotations

from . import (
    arcee,
    bert,
    cohere,
    ernie4_5,
    exaone,
    exaone4,
    gemma,
    gemma4,
    gemma_embedding,
    glm4,
    gpt2,
    gpt_oss,
    gptneox,
    granite,
    hunyuan_dense,
    lfm2,
    lfm2moe,
    llama,
    minicpm,
    mistral3,
    modern_bert,
    olmo2,
    olmoe,
    phi2,
    phi3,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    qwen35,
    qwen35moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from .page import Page

PAGES: dict[str, Page] = {page.architecture: page for page in (
    llama.PAGE, qwen2.PAGE, qwen3.PAGE, gemma.GEMMA, gemma.GEMMA2, gemma.GEMMA3, gemma4.PAGE, phi3.PAGE, granite.PAGE, mistral3.PAGE, smollm3.PAGE, olmo2.PAGE,
    exaone.PAGE, exaone4.PAGE, glm4.PAGE, seed_oss.PAGE, ernie4_5.PAGE, hunyuan_dense.PAGE, arcee.PAGE, minicpm.PAGE, stablelm.PAGE,
    qwen2moe.PAGE, qwen3moe.PAGE, olmoe.PAGE, granite.GRANITE_MOE, gpt_oss.PAGE, lfm2moe.PAGE, qwen35moe.PAGE, lfm2.PAGE, qwen35.PAGE, bert.BERT, bert.NOMIC,
    modern_bert.PAGE, gemma_embedding.PAGE, gpt2.PAGE, gptneox.PAGE, phi2.PAGE, starcoder2.PAGE, cohere.COMMAND_R, cohere.COHERE2)}
