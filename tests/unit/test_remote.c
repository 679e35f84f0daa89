/* A model computed on the device of another rank gives the bits that it gives here; and a rank that drives cannot make another
 * one touch what it was not given. */
#include "ranks_scene.h"

#include "exchange/remote_message.h"
#include "memory/kv_format.h"
#include "memory/plan.h"
#include "model/forward.h"

#define ROWS 6
static const int32_t prompt[ROWS] = { 5, 17, 90, 33, 8, 121 };

/* A model on a device, with one page and two states. */
typedef struct machine {
    const qmi_backend *backend;
    qmi_device *device;
    qmi_plan plan;
    qmi_weights weights;
    qmi_program program;
    qmi_workspace workspace;
    qmi_address page, states[2];
} machine;

static void load(machine *m, const qmi_parts *parts, const qmi_settings *settings)
{
    const qmi_plan_device device = { .name = "cpu", .memory = -1, .threads = 1, .chunk_low = ROWS, .chunk_high = ROWS };
    assert_int_equal(qmi_plan_make(&parts->gguf, settings, &device, &plain_alloc, &m->plan), QM_OK);
    const qmi_weights_source source = { .gguf = &parts->gguf, .files = parts->maps, .file_count = parts->count,
                                        .hparams = &m->plan.hparams, .backend = m->backend, .bytes = m->plan.sums.bytes };
    assert_int_equal(qmi_weights_load(&source, m->device, &plain_alloc, &m->weights), QM_OK);
    assert_int_equal(qmi_forward_build(&m->plan.hparams, &m->weights, &m->plan.kv, &plain_alloc, &m->program), QM_OK);
    assert_int_equal(qmi_program_validate(&m->program), QM_OK);
    m->workspace.rows = m->workspace.outputs = ROWS;
    for (int32_t i = 0; i < m->program.slot_count; i++)
        assert_int_equal(m->backend->allocate(m->device, m->program.slots[i].width * ROWS * (int64_t)sizeof(float), "slot",
                                              &m->workspace.slots[i]), QM_OK);
    assert_int_equal(m->backend->allocate(m->device, m->plan.kv.page_bytes, "page", &m->page), QM_OK);
    for (int32_t i = 0; i < 2; i++)
        assert_int_equal(m->backend->allocate(m->device, m->plan.state.recurrent_bytes, "state", &m->states[i]), QM_OK);
    assert_int_equal(m->backend->clear(m->device, m->states[0], m->plan.state.recurrent_bytes), QM_OK);
    assert_int_equal(m->backend->prepare(m->device, &m->program, ROWS), QM_OK);
}

static qmi_batch batch_of(const machine *m, qmi_sequence *sequence, const int32_t *row)
{
    *sequence = (qmi_sequence){ 0, ROWS, 0, &m->page, m->states[0], m->states[1] };
    return (qmi_batch){ .count = ROWS, .tokens = prompt, .sequence_count = 1, .sequences = sequence, .output_count = 1,
                        .outputs = row };
}

static float *logits_of(machine *m)
{
    static const int32_t row = ROWS - 1;
    qmi_sequence sequence;
    const qmi_batch batch = batch_of(m, &sequence, &row);
    int64_t bytes = m->plan.hparams.vocabulary * (int64_t)sizeof(float);
    float *logits = malloc((size_t)bytes);
    assert_non_null(logits);
    assert_int_equal(m->backend->run(m->device, &m->program, &m->workspace, &batch), QM_OK);
    qmi_address slot = m->workspace.slots[qmi_forward_slot(&m->program, "logits")];
    assert_int_equal(m->backend->read(m->device, logits, slot, bytes), QM_OK);
    return logits;
}

static void unload(machine *m)
{
    for (int32_t i = 0; i < m->program.slot_count; i++)
        m->backend->release(m->device, m->workspace.slots[i]);
    m->backend->release(m->device, m->page);
    m->backend->release(m->device, m->states[0]);
    m->backend->release(m->device, m->states[1]);
    qmi_program_free(&m->program, &plain_alloc);
    qmi_weights_free(&m->weights, m->backend, m->device, &plain_alloc);
    m->backend->close(&m->device);
}

static void open_local(machine *m, const qmi_settings *settings)
{
    const qmi_device_settings wanted = { .threads = 1, .isa = "auto", .alloc = settings->alloc };
    *m = (machine){ .backend = &qmi_cpu_backend };
    assert_int_equal(m->backend->open(&wanted, &m->device), QM_OK);
}

static void open_remote(machine *m, driver *d)
{
    qmi_exchange_member member;
    *m = (machine){ 0 };
    assert_int_equal(qmi_ranks_open(d->ranks, 1, &d->settings, &member), QM_OK);
    m->backend = member.backend;
    m->device = member.device;
}

/* Two ranks, and the model of that file on both. */
typedef struct scene {
    driver driver;
    rank_thread other;
    machine here, there;
} scene;

static void start_scene(scene *s, const char *model)
{
    int32_t port = free_port();
    *s = (scene){ 0 };
    start_rank(&s->other, 1, 2, port, "20", model);
    assert_int_equal(start_driver(&s->driver, 2, port, "20", model), QM_OK);
    open_local(&s->here, &s->driver.settings);
    open_remote(&s->there, &s->driver);
    load(&s->here, &s->driver.parts, &s->driver.settings);
    load(&s->there, &s->driver.parts, &s->driver.settings);
}

static void end_scene(scene *s)
{
    unload(&s->here);
    unload(&s->there);
    end_driver(&s->driver);
    join_rank(&s->other);
    assert_int_equal(s->other.code, QM_OK);
}

static void assert_same_logits(scene *s)
{
    float *here = logits_of(&s->here), *there = logits_of(&s->there);
    assert_memory_equal(here, there, (size_t)s->here.plan.hparams.vocabulary * sizeof(float));
    free(here);
    free(there);
}

static void test_same_bits_as_here(void **state)
{
    (void)state;
    static const char *const models[] = { "oracle/qwen3.gguf", "oracle/qwen35moe.gguf", "oracle/qwen3next.gguf" };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        scene s;
        start_scene(&s, models[i]);
        assert_same_logits(&s);
        assert_same_logits(&s);
        end_scene(&s);
    }
}

static void test_memory(void **state)
{
    (void)state;
    const int64_t large = 2 * QMI_MESSAGE_MAX + 100; /* goes in three messages */
    scene s;
    start_scene(&s, "oracle/qwen3.gguf");
    const qmi_backend *b = s.there.backend;
    qmi_device *d = s.there.device;
    qmi_address a;
    qmi_device_info info;
    unsigned char *bytes = malloc((size_t)large), *back = malloc((size_t)large);
    assert_true(bytes && back);
    for (int64_t i = 0; i < large; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 11);
    assert_int_equal(b->allocate(d, large, "a test", &a), QM_OK);
    assert_int_equal(b->write(d, a, bytes, large), QM_OK);
    assert_int_equal(b->clear(d, a + 1000, 50), QM_OK);
    assert_int_equal(b->copy(d, a + 2000, a, 1500), QM_OK);
    assert_int_equal(b->read(d, back, a, large), QM_OK);
    memset(bytes + 1000, 0, 50);
    memmove(bytes + 2000, bytes, 1500);
    assert_memory_equal(bytes, back, large);
    b->info(d, &info);
    assert_false(info.shares_host);
    assert_int_equal(info.threads, 1);
    b->release(d, a);
    free(bytes);
    free(back);
    end_scene(&s);
}

static const int32_t always = 1;

static void test_a_batch_is_cancelled(void **state)
{
    (void)state;
    static const int32_t row = ROWS - 1;
    scene s;
    qmi_sequence sequence;
    start_scene(&s, "oracle/qwen35moe.gguf");
    qmi_batch batch = batch_of(&s.there, &sequence, &row);
    batch.cancel = &always;
    /* It may be done before the wish to cancel comes, and then is whole. */
    int32_t code = s.there.backend->run(s.there.device, &s.there.program, &s.there.workspace, &batch);
    assert_true(code == QM_OK || code == QM_ERROR_CANCELLED);
    assert_same_logits(&s); /* and nothing of it is left */
    end_scene(&s);
}

/* ---- what rank 0 must not ask for ---- */

/* A request without an answer of its own is refused at the next that has one. */
static void assert_refused(scene *s, int32_t code, const char *word)
{
    char byte;
    if (code >= 0)
        code = s->there.backend->read(s->there.device, &byte, s->there.page, 1);
    assert_int_equal(code, QM_ERROR_ARGUMENT);
    if (!strstr(qmi_error_text(), word) || !strstr(qmi_error_text(), "rank 1"))
        fail_msg("\"%s\" should have \"rank 1\" and \"%s\"", qmi_error_text(), word);
    assert_int_equal(s->there.backend->read(s->there.device, &byte, s->there.page, 1), QM_OK); /* and it goes on */
}

static void test_memory_that_was_not_given(void **state)
{
    (void)state;
    scene s;
    char bytes[64] = { 0 };
    start_scene(&s, "oracle/qwen35moe.gguf");
    machine *m = &s.there;
    const qmi_backend *b = m->backend;
    int64_t size = m->plan.kv.page_bytes;
    assert_refused(&s, b->read(m->device, bytes, 4096, 16), "was given");
    assert_refused(&s, b->read(m->device, bytes, m->page + (qmi_address)size - 8, 16), "was given");
    assert_refused(&s, b->write(m->device, m->page + (qmi_address)size - 8, bytes, 16), "was given");
    assert_refused(&s, b->write(m->device, m->weights.embedding.data, bytes, 16), "was given"); /* the file */
    assert_refused(&s, b->clear(m->device, m->page, size + 1), "was given");
    assert_refused(&s, b->clear(m->device, m->page, -1), "was given");
    assert_refused(&s, b->copy(m->device, m->page - 8, m->page, 16), "was given");
    assert_refused(&s, b->copy(m->device, m->page, m->page + (qmi_address)size, 16), "was given");
    b->release(m->device, m->page + 64);
    assert_refused(&s, QM_OK, "was not given");
    assert_same_logits(&s);
    end_scene(&s);
}

static void assert_run_refused(scene *s, const qmi_batch *batch, const qmi_workspace *workspace, const char *word)
{
    assert_refused(s, s->there.backend->run(s->there.device, &s->there.program, workspace, batch), word);
}

static void test_batches_that_are_none(void **state)
{
    (void)state;
    static const int32_t row = ROWS - 1, first = 0, beyond = ROWS, wrong_token[ROWS] = { 0, 1, 2, 3, 4, 1 << 30 };
    scene s;
    start_scene(&s, "oracle/qwen35moe.gguf");
    machine *m = &s.there;
    qmi_sequence sequence;
    qmi_address page = m->page + 8;
    const qmi_batch good = batch_of(m, &sequence, &row);
    qmi_batch batch = good;
    qmi_workspace workspace = m->workspace;
    batch.tokens = wrong_token;
    assert_run_refused(&s, &batch, &workspace, "token");
    batch = good;
    batch.outputs = &beyond;
    assert_run_refused(&s, &batch, &workspace, "row");
    batch = good;
    batch.count = ROWS - 1;
    batch.outputs = &first;
    assert_run_refused(&s, &batch, &workspace, "cover");
    batch = good;
    sequence.pages = &page;
    assert_run_refused(&s, &batch, &workspace, "was given");
    sequence.pages = &m->page;
    sequence.state += 8;
    assert_run_refused(&s, &batch, &workspace, "was given");
    sequence.state -= 8;
    sequence.next_state = m->weights.embedding.data;
    assert_run_refused(&s, &batch, &workspace, "was given");
    sequence.next_state = m->states[1];
    sequence.start = INT64_C(-5);
    assert_run_refused(&s, &batch, &workspace, "begins at");
    sequence.start = 0;
    workspace.slots[0] = 64;
    assert_run_refused(&s, &batch, &workspace, "was given");
    workspace = m->workspace;
    workspace.rows = ROWS - 1;
    assert_run_refused(&s, &batch, &workspace, "prepared");
    assert_same_logits(&s);
    end_scene(&s);
}

static void test_programs_that_are_none(void **state)
{
    (void)state;
    scene s;
    start_scene(&s, "oracle/qwen35moe.gguf");
    machine *m = &s.there;
    qmi_op *first = &m->program.ops[0], saved = *first;
    const qmi_backend *b = m->backend;
    assert_int_equal(first->kind, QMI_OP_EMBED);
    first->embed.table.data += 64;
    assert_refused(&s, b->prepare(m->device, &m->program, ROWS), "not uploaded");
    *first = saved;
    first->embed.table.rows *= 2;
    assert_refused(&s, b->prepare(m->device, &m->program, ROWS), "not uploaded");
    *first = saved;
    first->embed.table.data = m->page; /* memory, and no weights */
    assert_refused(&s, b->prepare(m->device, &m->program, ROWS), "not uploaded");
    *first = saved;
    int32_t kind = 99;
    memcpy(&first->kind, &kind, sizeof kind);
    assert_refused(&s, b->prepare(m->device, &m->program, ROWS), "op that there is not");
    *first = saved;
    qmi_op *last = &m->program.ops[m->program.count - 1], kept = *last;
    assert_int_equal(last->kind, QMI_OP_LOGITS);
    last->logits.norm.weight.data -= 4096;
    assert_refused(&s, b->prepare(m->device, &m->program, ROWS), "was given");
    *last = kept;
    first->embed.out = 77;
    assert_int_equal(b->prepare(m->device, &m->program, ROWS), QM_ERROR_FORMAT); /* validate's word */
    *first = saved;
    assert_int_equal(b->prepare(m->device, &m->program, ROWS), QM_OK);
    assert_same_logits(&s);
    end_scene(&s);
}

/* Messages cut anywhere, and bytes of any kind: an error to each, and the rank lives on. */
static void test_messages_that_are_none(void **state)
{
    (void)state;
    scene s;
    start_scene(&s, "oracle/qwen3.gguf");
    uint32_t random = 1;
    unsigned char bytes[512];
    machine *m = &s.there;
    /* the link of rank 1 is where the remote device has it: its first field */
    qmi_link *link = *(qmi_link **)(void *)m->device;
    for (int32_t kind = QMI_REMOTE_OPEN; kind <= QMI_REMOTE_LEAVE; kind++)
        for (int32_t turn = 0; turn < 40; turn++) {
            for (size_t i = 0; i < sizeof bytes; i++) {
                random = random * 1664525u + 1013904223u;
                bytes[i] = (unsigned char)(turn % 2 ? random >> 24 : 0);
            }
            const qmi_os_part part = { bytes, turn < 20 ? turn : turn * 12 };
            qmi_message *reply;
            assert_int_equal(qmi_link_send(link, kind, 0, &part, 1), QM_OK);
            bool answers = kind != QMI_REMOTE_RELEASE && kind != QMI_REMOTE_WRITE && kind != QMI_REMOTE_COPY &&
                           kind != QMI_REMOTE_CLEAR && kind != QMI_REMOTE_STAGE && kind != QMI_REMOTE_SUM &&
                           kind != QMI_REMOTE_LEAVE;
            if (!answers)
                assert_int_equal(qmi_link_send(link, QMI_REMOTE_INFO, 0, NULL, 0), QM_OK); /* takes the failure along */
            assert_int_equal(qmi_link_receive(link, 20 * SECOND, &reply), 1);
            assert_int_equal(reply->kind, QMI_REMOTE_REPLY);
            qmi_link_give_back(link, reply);
        }
    assert_same_logits(&s);
    end_scene(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_as_here),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_a_batch_is_cancelled),
        cmocka_unit_test(test_memory_that_was_not_given),
        cmocka_unit_test(test_batches_that_are_none),
        cmocka_unit_test(test_programs_that_are_none),
        cmocka_unit_test(test_messages_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
