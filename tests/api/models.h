/* The models that the tests of sessions go through. */
#ifndef TEST_MODELS_H
#define TEST_MODELS_H

#include "api.h"

#define TOKENS 200

/* Both kinds of model: with a recurrent state, which can only go forwards, and without. f32 and f16 pages. */
static const char *const files[] = { "tiny/hybrid.gguf", "tiny/attention.gguf", "oracle/qwen35moe.gguf", "oracle/qwen3moe.gguf" };
static const char *const settings[] = { "mtp=1 kv-type=f32", "mtp=1", "chunk=48", "" };
enum { FILES = 4 };

/* Runs a test body on each model. */
static inline void with_models(void (*body)(qm_model *model, const int32_t *tokens))
{
    int32_t tokens[TOKENS];
    fill_tokens(tokens, TOKENS, 7);
    for (int32_t i = 0; i < FILES; i++) {
        qm_model *model = load_model(files[i], settings[i]);
        body(model, tokens);
        qm_model_free(&model);
    }
}

#endif
