/* Sessions on disk: restored bit for bit, and a file that is not whole or not of this model is refused. */
#include "models.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], path[96];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/qwenmoe-store-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/a.session", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder); /* nothing else is left there */
}

static uint8_t *read_file(size_t *size)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *size, file), *size);
    fclose(file);
    return bytes;
}

static void write_file(const uint8_t *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

/* The next tokens that a session samples and appends. */
static void draw(qm_session *session, int32_t *tokens, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        expect_ok(qm_sample(session, tokens + i));
        expect_ok(qm_decode(&session, tokens + i, 1));
    }
}

static void saves_and_restores(qm_model *model, const int32_t *tokens)
{
    static const int64_t lengths[] = { 0, 1, 64, 65, 130 };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        int32_t drawn[12], again[12];
        int64_t count = lengths[i];
        char text[64];
        qm_session *session = new_session(model, "seed=5 temperature=1.5 top-k=0 stop=xyz answer-tokens=30");
        qm_session *other = new_session(model, "seed=9");
        expect_ok(qm_prefill(session, tokens, count));
        if (count > 0)
            draw(session, drawn, 3);
        expect_ok(qm_session_save(session, path));
        expect_ok(qm_prefill(other, tokens + 20, 90)); /* what it held is gone then */
        expect_ok(qm_session_restore(other, path));
        qm_session_get(other, "stop", text, sizeof text);
        assert_string_equal(text, "xyz");
        assert_int_equal(qm_session_length(other), qm_session_length(session));
        if (count == 0) {
            assert_null(qm_logits(other));
        } else {
            assert_memory_equal(qm_logits(other), qm_logits(session), (size_t)vocabulary_of(model) * sizeof(float));
            draw(session, drawn, 12);
            draw(other, again, 12);
            assert_memory_equal(drawn, again, sizeof drawn);
            int32_t all[TOKENS];
            int64_t length = qm_session_tokens(session, all, TOKENS);
            assert_holds(model, other, all, length);
        }
        qm_session_free(&session);
        qm_session_free(&other);
    }
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, 30));
    expect_ok(qm_session_save(session, path)); /* in the place of the other file */
    expect_ok(qm_session_rewind(session, 10));
    expect_ok(qm_session_restore(session, path));
    assert_holds(model, session, tokens, 30);
    qm_session_free(&session);
}

static void test_saves_and_restores(void **state)
{
    (void)state;
    with_models(saves_and_restores);
}

/* What a page has of another branch, by a fork or by going back, is not in the file: it is that of a session that never was
 * elsewhere, byte for byte. */
static void keeps_branches_apart(const char *file, const char *settings)
{
    int32_t tokens[TOKENS], other[TOKENS];
    uint8_t *files[3];
    size_t sizes[3];
    fill_tokens(tokens, TOKENS, 7);
    fill_tokens(other, TOKENS, 8);
    for (int way = 0; way < 3; way++) {
        qm_model *model = load_model(file, settings);
        qm_session *session = new_session(model, "seed=3"), *fork = NULL;
        int64_t first = way == 0 ? 0 : way == 1 ? 60 : 70; /* where the other branch leaves, in the last page or the one before */
        if (way > 0) {
            expect_ok(qm_prefill(session, tokens, first));
            expect_ok(qm_prefill(session, other, 50));
            expect_ok(qm_session_fork(session, &fork));
            expect_ok(qm_session_rewind(session, first));
        }
        expect_ok(qm_prefill(session, tokens + first, 80 - first));
        expect_ok(qm_session_save(session, path));
        files[way] = read_file(&sizes[way]);
        qm_session_free(&fork);
        qm_session_free(&session);
        qm_model_free(&model);
    }
    for (int way = 1; way < 3; way++) {
        assert_int_equal(sizes[way], sizes[0]);
        assert_memory_equal(files[way], files[0], sizes[0]);
    }
    for (int way = 0; way < 3; way++)
        free(files[way]);
}

static void test_keeps_branches_apart(void **state)
{
    (void)state;
    keeps_branches_apart("tiny/attention.gguf", "mtp=1 kv-type=f32"); /* goes back without a state */
    keeps_branches_apart("tiny/attention.gguf", "mtp=1");
    keeps_branches_apart("oracle/qwen3moe.gguf", "");
}

/* After a restart: the states before the end are there too, so that going back costs little. */
static void test_checkpoints_come_along(void **state)
{
    (void)state;
    enum { LONG = 600 };
    static int32_t tokens[LONG];
    fill_tokens(tokens, LONG, 4);
    qm_model *model = load_model("tiny/hybrid.gguf", "mtp=1 chunk=64 checkpoint-every=64");
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, LONG));
    expect_ok(qm_session_save(session, path));
    qm_session_free(&session);
    qm_model_free(&model);
    model = load_model("tiny/hybrid.gguf", "mtp=1 chunk=48");
    session = new_session(model, "");
    expect_ok(qm_session_restore(session, path));
    struct stat facts;
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 077, 0);
    assert_int_equal(qm_session_sync(session, tokens, 550), 512);
    assert_holds(model, session, tokens, 550);
    tokens[400]++;
    assert_int_equal(qm_session_sync(session, tokens, 500), 384);
    assert_holds(model, session, tokens, 500);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- files that are refused ---- */

static void save_some(const char *file, const char *settings, int64_t count)
{
    int32_t tokens[TOKENS];
    fill_tokens(tokens, TOKENS, 8);
    qm_model *model = load_model(file, settings);
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, count));
    expect_ok(qm_session_save(session, path));
    qm_session_free(&session);
    qm_model_free(&model);
}

/* Refuses the file with a message that has these words, and changes nothing. */
static void refuses(qm_model *model, const char *session_settings, int32_t code, const char *words)
{
    int32_t tokens[TOKENS];
    fill_tokens(tokens, TOKENS, 9);
    qm_session *session = new_session(model, session_settings);
    expect_ok(qm_prefill(session, tokens, 20));
    expect_code(code, qm_session_restore(session, path));
    if (!strstr(qm_error_message(), words))
        fail_msg("\"%s\" is not in: %s", words, qm_error_message());
    assert_holds(model, session, tokens, 20);
    qm_session_free(&session);
}

static void test_files_of_others(void **state)
{
    (void)state;
    save_some("tiny/hybrid.gguf", "", 100);
    qm_model *model = load_model("tiny/attention.gguf", "");
    refuses(model, "", QM_ERROR_UNSUPPORTED, "another model");
    qm_model_free(&model);
    model = load_model("tiny/hybrid.gguf", "mtp=1");
    refuses(model, "", QM_ERROR_UNSUPPORTED, "mtp 0");
    qm_model_free(&model);
    model = load_model("tiny/hybrid.gguf", "kv-type=f32");
    refuses(model, "", QM_ERROR_UNSUPPORTED, "key-type f16, value-type f16 and kv-rotation off");
    qm_model_free(&model);
    model = load_model("tiny/hybrid.gguf", "value-type=q8_0");
    refuses(model, "", QM_ERROR_UNSUPPORTED, "key-type f16, value-type f16");
    qm_model_free(&model);
    model = load_model("tiny/hybrid.gguf", "");
    refuses(model, "context=90 answer-tokens=1", QM_ERROR_CONTEXT, "100 tokens");
    qm_session *session = new_session(model, "");
    expect_code(QM_ERROR_FILE, qm_session_restore(session, "/no/such/file"));
    expect_code(QM_ERROR_FILE, qm_session_restore(session, folder));
    expect_code(QM_ERROR_FILE, qm_session_save(session, "/no/such/folder/file"));
    expect_code(QM_ERROR_FILE, qm_session_save(session, folder));
    expect_code(QM_ERROR_FORMAT, qm_session_restore(session, data_path("tiny/hybrid.gguf")));
    expect_code(QM_ERROR_ARGUMENT, qm_session_save(session, NULL));
    expect_code(QM_ERROR_ARGUMENT, qm_session_restore(NULL, path));
    qm_session_free(&session);
    qm_model_free(&model);
}

/* Every byte changed, or every n-th: QWENMOE_STRIDE=1 tries them all. */
static void test_damage(void **state)
{
    (void)state;
    size_t size;
    int32_t tokens[TOKENS];
    const char *wanted = getenv("QWENMOE_STRIDE");
    size_t stride = wanted ? strtoul(wanted, NULL, 10) : 23;
    save_some("tiny/hybrid.gguf", "chunk=40 checkpoint-every=40 checkpoint-memory=100000", 70);
    uint8_t *bytes = read_file(&size);
    fill_tokens(tokens, TOKENS, 9);
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, 20));
    float *before = copy_logits(model, session);
    for (size_t i = 0; i < size; i += i < 2000 ? 1 : stride) {
        bytes[i] ^= (uint8_t)(1 << i % 8);
        write_file(bytes, size);
        bytes[i] ^= (uint8_t)(1 << i % 8);
        int32_t code = qm_session_restore(session, path);
        if (code != QM_ERROR_FORMAT && code != QM_ERROR_UNSUPPORTED && code != QM_ERROR_CONTEXT)
            fail_msg("with byte %zu changed it gave %d: %s", i, code, code < 0 ? qm_error_message() : "restored");
        assert_non_null(strstr(qm_error_message(), path));
        assert_int_equal(qm_session_length(session), 20);
        assert_logits(model, session, before);
    }
    for (size_t cut = 0; cut < size; cut += cut < 200 ? 1 : 997) {
        write_file(bytes, cut);
        assert_int_equal(qm_session_restore(session, path), QM_ERROR_FORMAT);
    }
    bytes[size] = 0;
    write_file(bytes, size + 1);
    expect_code(QM_ERROR_FORMAT, qm_session_restore(session, path));
    assert_holds(model, session, tokens, 20);
    write_file(bytes, size);
    expect_ok(qm_session_restore(session, path));
    assert_int_equal(qm_session_length(session), 70);
    free(before);
    free(bytes);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* A disk that fills up while a file is written leaves the one before. */
static void test_full_disk(void **state)
{
    (void)state;
    int32_t tokens[TOKENS];
    struct rlimit before, limit;
    size_t size;
    fill_tokens(tokens, TOKENS, 8);
    save_some("tiny/hybrid.gguf", "", 50);
    free(read_file(&size));
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "");
    expect_ok(qm_prefill(session, tokens, 150));
    signal(SIGXFSZ, SIG_IGN); /* so that writing beyond the limit is an error like a full disk's */
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (rlim_t most = 0; most < size; most += size / 5) {
        limit = before;
        limit.rlim_cur = most;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        int32_t code = qm_session_save(session, path);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(code, QM_ERROR_FILE);
    }
    signal(SIGXFSZ, SIG_DFL);
    expect_ok(qm_session_restore(session, path));
    assert_holds(model, session, tokens, 50);
    qm_session_free(&session);
    qm_model_free(&model);
}

/* ---- jobs ---- */

static void test_jobs(void **state)
{
    (void)state;
    int32_t tokens[TOKENS];
    fill_tokens(tokens, TOKENS, 8);
    qm_model *model = load_model("tiny/hybrid.gguf", "");
    qm_session *session = new_session(model, "answer-tokens=100 ignore-end=1"), *other = new_session(model, "");
    qm_job *job = NULL, *answer = NULL;
    expect_ok(qm_prefill(session, tokens, 100));
    expect_ok(qm_prefill(other, tokens, 10));
    expect_ok(qm_submit_generate(other, NULL, 0, &answer)); /* goes on meanwhile */
    expect_ok(qm_submit_save(session, path, &job));
    int32_t code = qm_decode(&session, tokens, 1); /* busy, unless it is done already */
    assert_true(code == QM_ERROR_BUSY || code == QM_OK);
    expect_code(QM_JOB_DONE, qm_job_wait(job, -1));
    qm_job_free(&job);
    expect_ok(qm_session_rewind(session, 0));
    expect_ok(qm_submit_restore(session, path, &job));
    expect_code(QM_JOB_DONE, qm_job_wait(job, -1));
    qm_job_free(&job);
    assert_holds(model, session, tokens, 100);
    expect_code(QM_JOB_DONE, read_job(answer, NULL, 0));
    qm_job_free(&answer);
    for (int i = 0; i < 40; i++) { /* cancelled at whatever moment comes */
        expect_ok(i % 2 ? qm_submit_save(session, path, &job) : qm_submit_restore(session, path, &job));
        if (i % 3)
            qm_job_wait(job, 0);
        qm_job_free(&job);
        assert_int_equal(qm_session_length(session), 100);
    }
    expect_ok(qm_submit_save(session, path, &job));
    qm_session_free(&session); /* cancels it and waits */
    qm_job_free(&job);
    expect_ok(qm_session_restore(other, path));
    assert_holds(model, other, tokens, 100);
    qm_session_free(&other);
    qm_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_saves_and_restores), cmocka_unit_test(test_keeps_branches_apart),
        cmocka_unit_test(test_checkpoints_come_along),
        cmocka_unit_test(test_files_of_others),    cmocka_unit_test(test_damage),
        cmocka_unit_test(test_full_disk),          cmocka_unit_test(test_jobs),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
