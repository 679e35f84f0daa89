/* Fits the correction of 2-bit keys to a model on a text of yours, and writes it for option kv-correction.
 *     build/examples/fit_keys MODEL.gguf TEXT.txt OUT.keys
 *     qwenmoe run -m MODEL.gguf --kv-type q2 --kv-correction OUT.keys "..."
 * Text of the kind that the model shall read does best; some ten thousand tokens are enough. */
#include <qwenmoe.h>
#include <stdio.h>
#include <stdlib.h>

#define PIECE 4096 /* tokens that the model sees at once */

/* The whole file; the caller frees it. */
static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t room = 0, got = 1;
    for (*size = 0; file && got > 0; *size += got) {
        if (*size + 65536 > room) {
            char *larger = realloc(text, room = 2 * room + 65536);
            if (!larger) {
                free(text);
                fclose(file);
                return NULL;
            }
            text = larger;
        }
        got = fread(text + *size, 1, 65536, file);
    }
    if (file)
        fclose(file);
    return text;
}

static int32_t load(const char *path, qm_model **out)
{
    static const char *const settings[][2] = { { "key-type", "q2" }, { "kv-fit", "1" }, { "device", "cpu" } };
    qm_options *options = NULL;
    int32_t code = qm_options_new(&options);
    for (size_t i = 0; i < sizeof settings / sizeof *settings && code >= 0; i++)
        code = qm_options_set(options, settings[i][0], settings[i][1]);
    if (code >= 0)
        code = qm_model_load(path, options, out);
    qm_options_free(&options);
    return code;
}

/* Piece by piece, each from an empty session on. */
static int32_t compute(qm_model *model, const int32_t *tokens, int64_t count)
{
    qm_session *session = NULL;
    int32_t code = qm_session_new(model, NULL, &session);
    for (int64_t at = 0; at < count && code >= 0; at += PIECE) {
        code = qm_session_rewind(session, 0) < 0 ? -1 : qm_prefill(session, tokens + at, count - at < PIECE ? count - at : PIECE);
        fprintf(stderr, "\r%lld of %lld tokens", (long long)(at + PIECE < count ? at + PIECE : count), (long long)count);
    }
    fprintf(stderr, "\n");
    qm_session_free(&session);
    return code;
}

int main(int argc, char **argv)
{
    qm_model *model = NULL;
    int32_t *tokens = NULL;
    size_t size;
    if (argc != 4) {
        fprintf(stderr, "usage: fit_keys MODEL.gguf TEXT.txt OUT.keys\n");
        return 2;
    }
    char *text = read_file(argv[2], &size);
    if (!text) {
        fprintf(stderr, "fit_keys: %s cannot be read\n", argv[2]);
        return 1;
    }
    int64_t code = load(argv[1], &model), count = 0;
    if (code >= 0)
        code = count = qm_tokenize(model, text, (int64_t)size, QM_SPECIAL_NONE, NULL, 0);
    if (code >= 0 && !(tokens = malloc((size_t)(count + 1) * sizeof *tokens))) {
        fprintf(stderr, "fit_keys: there is no memory for %lld tokens\n", (long long)count);
        code = -1;
    } else {
        if (code >= 0)
            code = qm_tokenize(model, text, (int64_t)size, QM_SPECIAL_NONE, tokens, count);
        if (code >= 0)
            code = compute(model, tokens, count);
        if (code >= 0)
            code = qm_model_save_correction(model, argv[3]);
        if (code < 0)
            fprintf(stderr, "fit_keys: %s\n", qm_error_message());
    }
    free(tokens);
    free(text);
    qm_model_free(&model);
    return code < 0;
}
