/* Memory that runs out: each allocation of load, session, prefill, decode, fork, generate and text calls fails in turn. The call
 * must say so, everything must be freed, and with memory enough the same must succeed. Then a hundred loads without growth. */
#include <unistd.h>

#include "hostile.h"
#include "tiny_model.h"

static char path[] = "/tmp/qwenmoe-memory-XXXXXX";

typedef struct scarce {
    int64_t left, live; /* allocations that still succeed; blocks not yet freed */
} scarce;

static void *scarce_allocate(int64_t size, int64_t alignment, void *user)
{
    scarce *s = user;
    if (__atomic_sub_fetch(&s->left, 1, __ATOMIC_RELAXED) < 0)
        return NULL;
    void *block = aligned_alloc((size_t)alignment, (size_t)(size + alignment - 1) / (size_t)alignment * (size_t)alignment);
    if (block)
        __atomic_add_fetch(&s->live, 1, __ATOMIC_RELAXED);
    return block;
}

static void scarce_release(void *pointer, void *user)
{
    __atomic_sub_fetch(&((scarce *)user)->live, 1, __ATOMIC_RELAXED);
    free(pointer);
}

static int32_t generate(qm_session *session)
{
    qm_job *job = NULL;
    int32_t code = qm_submit_generate(session, NULL, 0, &job);
    if (code < 0)
        return code;
    char piece[64];
    int32_t kind;
    do { /* reads until the end of the job, then what it left */
        code = qm_job_wait(job, -1);
        while (qm_job_read(job, piece, sizeof piece, &kind) > 0) { }
    } while (code == QM_JOB_RUNNING);
    qm_job_free(&job);
    return code;
}

/* The whole of a short life; the first failure's code. */
static int32_t live(qm_options *options)
{
    qm_model *model = NULL;
    qm_session *session = NULL, *second = NULL;
    const int32_t prompt[6] = { 0, 1, 2, 3, 4, 5 };
    int32_t tokens[2] = { 6, 7 };
    char text[512];
    int64_t code = qm_model_load(path, options, &model);
    if (code >= 0)
        code = qm_tokenize(model, "abcd\nab", -1, QM_SPECIAL_ALL, tokens, 2);
    if (code >= 0)
        code = qm_chat_format(model, "[{\"role\":\"user\",\"content\":\"ab\"}]", -1, NULL, 0, -1, 1, text, sizeof text);
    if (code >= 0)
        code = qm_session_new(model, options, &session);
    if (code >= 0)
        code = qm_prefill(session, prompt, 6);
    if (code >= 0)
        code = qm_session_fork(session, &second);
    if (code >= 0)
        code = qm_sample(session, &tokens[0]);
    if (code >= 0)
        code = qm_decode((qm_session *[]){ session, second }, (int32_t[]){ tokens[0], 1 }, 2);
    if (code >= 0)
        code = qm_session_rewind(session, 3);
    if (code >= 0)
        code = generate(session);
    if (code < 0)
        check_failure(code, "a call without memory");
    qm_session_free(&second);
    qm_session_free(&session);
    qm_model_free(&model);
    return code < 0 ? (int32_t)code : QM_OK;
}

static qm_options *scarce_options(scarce *memory)
{
    qm_options *options = hostile_options(&(counter){ 0 });
    if (qm_options_set(options, "temperature", "0") < 0 ||
        qm_options_set_allocator(options, scarce_allocate, scarce_release, memory) < 0)
        stop("options", qm_error_message());
    return options;
}

static int64_t fail_each(void)
{
    for (int64_t n = 0;; n++) {
        scarce memory = { .left = n };
        qm_options *options = scarce_options(&memory);
        const int32_t code = live(options);
        char message[1024];
        snprintf(message, sizeof message, "allocation %lld: %s", (long long)n, code < 0 ? qm_error_message() : "no failure");
        qm_options_free(&options);
        if (memory.live != 0)
            stop("memory is left", message);
        if (code == QM_OK && memory.left < 0)
            stop("a failed allocation was not reported", message);
        if (code == QM_OK)
            return n;
        if (code != QM_ERROR_MEMORY)
            stop(qm_error_name(code), message);
        if (memory.left >= 0)
            stop("out of memory, while there was some", message);
        if (n > 100000)
            stop("no end", message);
    }
}

static long resident_kb(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* In the library's own memory. Sanitizers keep freed memory for a while, so they allow more. */
static void load_a_hundred_times(void)
{
    const int descriptors = open_descriptors();
    long start = 0;
    for (int i = 0; i < 110; i++) {
        qm_options *options = hostile_options(&(counter){ 0 });
        if (qm_options_set_allocator(options, NULL, NULL, NULL) < 0 || live(options) < 0)
            stop("a load with memory enough", qm_error_message());
        qm_options_free(&options);
        if (i == 9) /* caches and arenas of the C library are warm by now */
            start = resident_kb();
    }
    const long growth = resident_kb() - start;
    printf("100 loads: %ld KB more\n", growth);
#ifdef SANITIZED
    const long limit = 300000;
#else
    const long limit = 4000; /* a single load allocates megabytes */
#endif
    if (growth > limit)
        stop("memory grows", "100 loads");
    if (open_descriptors() != descriptors)
        stop("descriptors are left", "100 loads");
}

int main(void)
{
    writer w = { 0 };
    tiny_model(&w, NULL);
    const int file = mkstemp(path);
    if (file < 0 || writer_save(&w, path) < 0)
        stop("writing", path);
    writer_free(&w);
    printf("%lld allocations, each failed once\n", (long long)fail_each());
    load_a_hundred_times();
    close(file);
    unlink(path);
    return 0;
}
