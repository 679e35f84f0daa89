/* The folder of prefixes: what one program has computed another finds, and nothing there can do harm. */
#include "models.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LONG = 900 };

static char folder[64];
static int32_t tokens[LONG];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/qwenmoe-prefix-XXXXXX");
    fill_tokens(tokens, LONG, 5);
    return mkdtemp(folder) ? 0 : -1;
}

typedef struct contents {
    int files, others; /* *.prefix, and those of other names */
    long long bytes;
    char last[400];    /* path of a *.prefix */
} contents;

static contents look(bool remove_all)
{
    contents c = { 0 };
    DIR *list = opendir(folder);
    assert_non_null(list);
    for (const struct dirent *entry; (entry = readdir(list)) != NULL;) {
        struct stat facts;
        char path[400];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (stat(path, &facts) < 0 || !S_ISREG(facts.st_mode))
            continue;
        bool prefix = strstr(entry->d_name, ".prefix") && !strstr(entry->d_name, ".part");
        c.files += prefix;
        c.others += !prefix;
        c.bytes += prefix ? facts.st_size : 0;
        if (prefix)
            memcpy(c.last, path, sizeof path);
        if (remove_all)
            unlink(path);
    }
    closedir(list);
    return c;
}

static int remove_folder(void **state)
{
    (void)state;
    look(true);
    return rmdir(folder);
}

static qm_model *load_with(const char *file, const char *settings)
{
    char all[256];
    snprintf(all, sizeof all, "prefix-cache=%s context=1000 answer-tokens=8 %s", folder, settings);
    return load_model(file, all);
}

/* A session that computes tokens[0, count) in a model of its own, and is freed. Returns how many it did not have to compute. */
static int64_t run_once(const char *file, const char *settings, const int32_t *prompt, int64_t count, bool check)
{
    qm_model *model = load_with(file, settings);
    qm_session *session = NULL;
    expect_ok(qm_session_new(model, NULL, &session));
    int64_t reused = qm_session_sync(session, prompt, count);
    assert_true(reused >= 0);
    if (check)
        assert_holds(model, session, prompt, count);
    qm_session_free(&session);
    qm_model_free(&model);
    return reused;
}

static void found_again(void **state)
{
    (void)state;
    static const char *const models[] = { "oracle/qwen35moe.gguf", "oracle/qwen3moe.gguf" };
    for (int i = 0; i < 2; i++) {
        int32_t moved[LONG];
        look(true);
        assert_int_equal(run_once(models[i], "", tokens, 700, false), 0);
        assert_int_equal(look(false).files, 1);
        assert_int_equal(run_once(models[i], "", tokens, 720, true), 700);
        assert_int_equal(look(false).files, 1); /* 20 tokens more are not worth a file */
        /* without a state the last token's logits are computed again */
        assert_int_equal(run_once(models[i], "", tokens, 700, true), 700 - i);
        memcpy(moved, tokens, sizeof moved);
        moved[650] = (tokens[650] + 1) % 256; /* within the last that the states reach back for */
        assert_in_range(run_once(models[i], "", moved, 700, true), 650 - 256, 650);
        moved[3] = (tokens[3] + 1) % 256;
        assert_int_equal(run_once(models[i], "", moved, 400, true), 0);
        assert_int_equal(run_once(models[i], "checkpoint-memory=0", tokens, 700, false), 0); /* nowhere to put it */
        assert_int_equal(run_once(models[i], "kv-type=f32", tokens, 700, true), 0); /* of another type */
    }
}

/* Another conversation with the same system prompt. */
static void shares_a_system_prompt(void **state)
{
    (void)state;
    int32_t prompt[LONG];
    int64_t count = 0, start;
    const char *file = "../../examples/model/qwenmoe-py.gguf";
    look(true);
    qm_model *model = load_with(file, "");
    count = qm_tokenize(model, "<|im_start|>system\n", -1, QM_SPECIAL_ALL, prompt, LONG);
    for (int i = 0; i < 30; i++)
        count += qm_tokenize(model, "You write short functions in Python, with names that say what they are for. ", -1,
                             QM_SPECIAL_NONE, prompt + count, LONG - count);
    count += qm_tokenize(model, "<|im_end|>\n", -1, QM_SPECIAL_ALL, prompt + count, LONG - count);
    assert_in_range(count, 300, LONG - 100);
    start = count;
    count += qm_tokenize(model, "<|im_start|>user\nOne that adds.<|im_end|>\n<|im_start|>assistant\n", -1, QM_SPECIAL_ALL,
                         prompt + count, LONG - count);
    qm_model_free(&model);
    assert_int_equal(run_once(file, "", prompt, count, false), 0);
    assert_int_equal(look(false).files, 2);
    prompt[start + 3]++; /* in the question */
    assert_int_equal(run_once(file, "", prompt, count, false), start);
}

static void keeps_to_its_size(void **state)
{
    (void)state;
    char settings[64], path[128];
    look(true);
    run_once("oracle/qwen35moe.gguf", "", tokens, 400, false);
    long long one = look(false).bytes;
    snprintf(path, sizeof path, "%s/notes.txt", folder); /* somebody's own */
    FILE *notes = fopen(path, "w");
    assert_non_null(notes);
    fclose(notes);
    snprintf(settings, sizeof settings, "prefix-cache-size=%lld", 3 * one + one / 2);
    for (int i = 1; i < 6; i++)
        run_once("oracle/qwen35moe.gguf", settings, tokens + i, 400, false);
    contents c = look(false);
    assert_int_equal(c.files, 3);
    assert_int_equal(c.others, 1);
    assert_int_equal(run_once("oracle/qwen35moe.gguf", settings, tokens + 5, 400, false), 400); /* the last one is there */
    assert_int_equal(run_once("oracle/qwen35moe.gguf", "prefix-cache-size=1000", tokens + 9, 400, false), 0);
    assert_int_equal(look(false).files, 3); /* one that is too large itself is not written, and drives out no other */
}

static void damage_is_harmless(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        look(true);
        run_once("oracle/qwen35moe.gguf", "", tokens, 300, false);
        contents c = look(false);
        assert_int_equal(c.files, 1);
        FILE *file = fopen(c.last, "r+b");
        assert_non_null(file);
        fseek(file, (long)(c.bytes * i / 6) + (i == 0 ? 9 : 0), SEEK_SET);
        int byte = fgetc(file);
        fseek(file, -1, SEEK_CUR);
        fputc(byte ^ 16, file);
        fclose(file);
        assert_int_equal(run_once("oracle/qwen35moe.gguf", "", tokens, 300, i % 4 == 0), 0);
        c = look(false);
        assert_int_equal(c.files, 1); /* it was removed, and is written anew */
        assert_int_equal(run_once("oracle/qwen35moe.gguf", "", tokens, 300, false), 300);
    }
    contents c = look(false);
    assert_int_equal(truncate(c.last, 100), 0);
    assert_int_equal(run_once("oracle/qwen35moe.gguf", "", tokens, 300, false), 0);
}

static void full_disk_is_harmless(void **state)
{
    (void)state;
    struct rlimit before, limit;
    look(true);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN); /* so that writing beyond the limit is an error like a full disk's */
    limit = before;
    limit.rlim_cur = 5000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    run_once("oracle/qwen35moe.gguf", "", tokens, 300, false);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    contents c = look(false);
    assert_int_equal(c.files + c.others, 0);
    qm_model *model = load_model("oracle/qwen35moe.gguf", "prefix-cache=/proc/none/there context=1000 answer-tokens=8");
    qm_session *session = NULL;
    expect_ok(qm_session_new(model, NULL, &session));
    assert_int_equal(qm_session_sync(session, tokens, 300), 0);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* Many that write, read and drive out at once. */
static void *work(void *argument)
{
    int index = *(int *)argument;
    qm_model *model = load_with("oracle/qwen35moe.gguf", "prefix-cache-size=3000000");
    for (int i = 0; i < 6; i++) {
        qm_session *session = NULL;
        qm_job *job = NULL;
        expect_ok(qm_session_new(model, NULL, &session));
        expect_ok(qm_submit_sync(session, tokens + (index + i) % 4, 280, &job));
        if (i % 3 == 2)
            qm_job_cancel(job);
        qm_job_wait(job, -1);
        qm_job_free(&job);
        qm_session_free(&session);
    }
    qm_model_free(&model);
    return NULL;
}

static void many_at_once(void **state)
{
    (void)state;
    enum { MANY = 3 };
    pthread_t threads[MANY];
    int index[MANY];
    look(true);
    for (int i = 0; i < MANY; i++) {
        index[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, work, &index[i]), 0);
    }
    for (int i = 0; i < MANY; i++)
        pthread_join(threads[i], NULL);
    contents c = look(false);
    assert_true(c.bytes <= 3000000);
    assert_int_equal(c.others, 0);
    for (int i = 0; i < 4; i++)
        run_once("oracle/qwen35moe.gguf", "", tokens + i, 280, true); /* whatever is there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(found_again),           cmocka_unit_test(shares_a_system_prompt), cmocka_unit_test(keeps_to_its_size),
        cmocka_unit_test(damage_is_harmless),    cmocka_unit_test(full_disk_is_harmless),  cmocka_unit_test(many_at_once),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
