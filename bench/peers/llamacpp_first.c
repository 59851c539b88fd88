/* llama.cpp from process start to its first token, as plainly as its interface allows: load, read the prompt, print the likeliest token.
   cc -O2 llamacpp_first.c -I… -L… -lllama -o first;   ./first model.gguf threads prompt */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *data) { (void)data; if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr); }

int main(int argc, char **argv) {
    if (argc != 4) return 1;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = 0;
    struct llama_model *model = llama_model_load_from_file(argv[1], mp);
    if (!model) return 1;
    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 512; cp.n_threads = cp.n_threads_batch = atoi(argv[2]);
    struct llama_context *context = llama_init_from_model(model, cp);
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    llama_token ids[256];
    int n = llama_tokenize(vocab, argv[3], (int)strlen(argv[3]), ids, 256, true, false);
    if (!context || n <= 0 || llama_decode(context, llama_batch_get_one(ids, n))) return 1;
    float *logits = llama_get_logits_ith(context, -1);
    int best = 0, size = llama_vocab_n_tokens(vocab);
    for (int i = 1; i < size; i++) if (logits[i] > logits[best]) best = i;
    char piece[256];
    int length = llama_token_to_piece(vocab, best, piece, 256, 0, true);
    fwrite(length > 0 ? piece : " ", 1, length > 0 ? length : 1, stdout);
    fflush(stdout);
    llama_free(context); llama_model_free(model);
    return 0;
}
