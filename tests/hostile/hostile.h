/* Loads a file through the public interface and uses it a little, watching every promise that bad input could break. */
#ifndef TEST_HOSTILE_H
#define TEST_HOSTILE_H

#include <dirent.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "qwenmoe.h"

static inline void stop(const char *what, const char *detail)
{
    fprintf(stderr, "FAILED: %s: %s\n", what, detail);
    exit(1);
}

/* ---- memory that is counted ---- */

typedef struct counter {
    int64_t live;
} counter;

static inline void *counted_allocate(int64_t size, int64_t alignment, void *user)
{
    const size_t whole = (size_t)(size + alignment - 1) / (size_t)alignment * (size_t)alignment;
    void *block = size > INT64_C(1) << 32 ? NULL : aligned_alloc((size_t)alignment, whole); /* no file here justifies 4 GB */
    if (block)
        __atomic_add_fetch(&((counter *)user)->live, 1, __ATOMIC_RELAXED);
    return block;
}

static inline void counted_release(void *pointer, void *user)
{
    __atomic_sub_fetch(&((counter *)user)->live, 1, __ATOMIC_RELAXED);
    free(pointer);
}

static inline int open_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder && readdir(folder))
        count++;
    if (folder)
        closedir(folder);
    return count;
}

/* A failure must have a code of the list and a message for people: not empty, no control characters. */
static inline void check_failure(int64_t code, const char *call)
{
    const char *message = qm_error_message();
    if (code >= 0)
        stop(call, "succeeded or returned a number where a failure was expected");
    if (strcmp(qm_error_name((int32_t)code), "unknown") == 0)
        stop(call, "an unknown code");
    if (!message[0])
        stop(call, "failed without a message");
    for (const char *c = message; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7F)
            stop("a control character in the message", message);
}

static inline qm_options *hostile_options(counter *memory)
{
    qm_options *options = NULL;
    if (qm_options_new(&options) < 0 || qm_options_set(options, "device", "cpu") < 0 ||
        qm_options_set(options, "threads", "1") < 0 || qm_options_set(options, "pin", "0") < 0 ||
        qm_options_set(options, "context", "16") < 0 || qm_options_set(options, "answer-tokens", "4") < 0 ||
        qm_options_set(options, "seed", "1") < 0 ||
        qm_options_set_allocator(options, counted_allocate, counted_release, memory) < 0)
        stop("options", qm_error_message());
    return options;
}

/* ---- using a model that loaded ---- */

static inline int32_t vocabulary_of(const qm_model *model)
{
    int64_t vocabulary = 0;
    if (qm_model_number(model, "vocabulary", &vocabulary) < 0 || vocabulary < 1 || vocabulary > INT32_MAX)
        stop("vocabulary", qm_error_message());
    return (int32_t)vocabulary;
}

/* The text functions may refuse, but not misbehave. */
static inline void use_text(const qm_model *model)
{
    static const char messages[] = "[{\"role\":\"user\",\"content\":\"ab\"}]";
    int32_t tokens[16] = { 0 };
    char text[256];
    const int64_t count = qm_tokenize(model, "abcd ab\n<|im_end|>", -1, QM_SPECIAL_ALL, tokens, 16);
    if (count < 0)
        check_failure(count, "qm_tokenize");
    else if (qm_detokenize(model, tokens, count < 16 ? count : 16, 0, text, sizeof text) < 0)
        stop("qm_detokenize of what qm_tokenize gave", qm_error_message());
    const int64_t length = qm_chat_format(model, messages, -1, NULL, 0, -1, 1, text, sizeof text);
    if (length < 0)
        check_failure(length, "qm_chat_format");
}

/* A prefill, a sample, a decode; the code of the first that failed. */
static inline int32_t use_session(qm_model *model, qm_options *options)
{
    qm_session *session = NULL;
    int32_t token = -1;
    const int32_t vocabulary = vocabulary_of(model);
    const int32_t prompt[3] = { 0, 1 % vocabulary, vocabulary - 1 };
    int32_t code = qm_session_new(model, options, &session);
    if (code >= 0)
        code = qm_prefill(session, prompt, 3);
    if (code >= 0 && !qm_logits(session))
        stop("qm_logits", "none after a prefill");
    if (code >= 0)
        code = qm_sample(session, &token);
    if (code >= 0 && (token < 0 || token >= vocabulary))
        stop("qm_sample", "a token outside the vocabulary");
    if (code >= 0)
        code = qm_decode(&session, &token, 1);
    if (code < 0)
        check_failure(code, "a session");
    qm_session_free(&session);
    return code;
}

/* The plan of a file, which reads its header and dimensions and not its vocabulary: quick. Its code. */
static inline int32_t try_plan(const char *path)
{
    counter memory = { 0 };
    char text[4096];
    qm_options *options = hostile_options(&memory);
    const int64_t code = qm_plan(path, options, "json", text, sizeof text);
    if (code < 0)
        check_failure(code, "qm_plan");
    qm_options_free(&options);
    if (memory.live != 0)
        stop("memory is left after qm_plan", code < 0 ? qm_error_message() : "a success");
    return code < 0 ? (int32_t)code : QM_OK;
}

/* Loads, uses and frees; checks that nothing is left. Returns the first failure's code (its message is this thread's), or 0. */
static inline int32_t try_file(const char *path)
{
    counter memory = { 0 };
    qm_model *model = NULL;
    const int descriptors = open_descriptors();
    qm_options *options = hostile_options(&memory);
    int32_t code = qm_model_load(path, options, &model);
    if (code < 0) {
        check_failure(code, "qm_model_load");
        if (model)
            stop("qm_model_load", "failed and gave a model");
    } else {
        use_text(model);
        code = use_session(model, options);
    }
    char message[1024];
    snprintf(message, sizeof message, "%s", qm_error_message());
    qm_model_free(&model);
    qm_options_free(&options);
    if (memory.live != 0)
        stop("memory is left after", code < 0 ? message : "a success");
    if (open_descriptors() != descriptors)
        stop("descriptors are left after", code < 0 ? message : "a success");
    return code;
}

#endif
