/* The check of programs: one with every kind of op passes, and each single fault in it is found and named. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "backend/program.h"
#include "base/error.h"
#include "quant/quant.h"

enum { D = 64, F = 32, VOCABULARY = 100, EXPERTS = 8, TOP = 2 };

static float data[16]; /* what addresses point at is never read by the check */

static qmi_matrix matrix(uint32_t type, int64_t columns, int64_t rows, int64_t count)
{
    return (qmi_matrix){ type, columns, rows, count, (uintptr_t)data };
}

static qmi_vector vector(int64_t size)
{
    return (qmi_vector){ size, (uintptr_t)data };
}

static qmi_norm norm(int64_t size)
{
    return (qmi_norm){ vector(size), 1e-6f };
}

typedef struct model {
    qmi_op ops[QMI_OP_COUNT]; /* by kind */
    qmi_program program;
} model;

static qmi_slot slot(model *m, const char *name, int64_t width)
{
    return qmi_program_slot(&m->program, name, width, false);
}

static qmi_op_attend attend(model *m)
{
    return (qmi_op_attend){ .query = slot(m, "query", 2 * 4 * 16), .key = slot(m, "key", 2 * 16),
        .value = slot(m, "value", 2 * 16), .out = slot(m, "attended", 4 * 16),
        .heads = 4, .kv_heads = 2, .head_size = 16, .rotary = 8, .gated = true,
        .query_norm = norm(16), .key_norm = norm(16), .inverse_frequency = vector(4),
        .key_type = QMI_KV_F16, .value_type = QMI_KV_F16,
        .page_tokens = 32, .key_offset = 0, .value_offset = 2 * 32 * 16 * 2 };
}

static qmi_op_delta delta(model *m)
{
    return (qmi_op_delta){ .qkv = slot(m, "qkv", 2 * 2 * 8 + 4 * 8), .z = slot(m, "z", 4 * 8), .beta = slot(m, "beta", 4),
        .alpha = slot(m, "alpha", 4), .out = slot(m, "recalled", 4 * 8), .key_heads = 2, .value_heads = 4, .key_size = 8,
        .value_size = 8, .taps = 4, .convolution = vector(64 * 4), .time_bias = vector(4), .decay = vector(4), .norm = norm(8) };
}

static void build(model *m)
{
    *m = (model){ 0 };
    qmi_slot x = slot(m, "x", D), hidden = slot(m, "hidden", D), route = slot(m, "route", 2 * TOP + 1);
    qmi_slot inner = slot(m, "inner", F), joined = slot(m, "joined", 2 * D), p = slot(m, "p", 40), q = slot(m, "q", 41);
    qmi_slot logits = qmi_program_slot(&m->program, "logits", VOCABULARY, true);
    qmi_matrix table = matrix(QMI_TYPE_Q8_0, D, VOCABULARY, 1);
    m->ops[QMI_OP_EMBED].embed = (qmi_op_embed){ table, x };
    m->ops[QMI_OP_JOIN].join = (qmi_op_join){ table, norm(D), norm(D), hidden, joined };
    m->ops[QMI_OP_PROJECT].project = (qmi_op_project){ .in = x, .norm = norm(D), .count = 2,
        .matrix = { matrix(QMI_TYPE_F16, D, 40, 1), matrix(QMI_TYPE_F32, D, 41, 1) }, .out = { p, q } };
    m->ops[QMI_OP_GLU].glu = (qmi_op_glu){ x, norm(D), matrix(QMI_TYPE_F16, D, F, 1), matrix(QMI_TYPE_F16, D, F, 1), inner };
    m->ops[QMI_OP_PROJECT_ADD].project_add = (qmi_op_project_add){ matrix(QMI_TYPE_F16, F, D, 1), inner, x, true };
    m->ops[QMI_OP_ATTEND].attend = attend(m);
    m->ops[QMI_OP_DELTA].delta = delta(m);
    m->ops[QMI_OP_ROUTE].route = (qmi_op_route){ x, norm(D), matrix(QMI_TYPE_F32, D, EXPERTS, 1),
                                                 matrix(QMI_TYPE_F32, D, 1, 1), TOP, hidden, route };
    m->ops[QMI_OP_EXPERTS].experts = (qmi_op_experts){ .hidden = hidden, .route = route, .top = TOP, .out = x,
        .gate = matrix(QMI_TYPE_Q8_0, D, F, EXPERTS), .up = matrix(QMI_TYPE_Q8_0, D, F, EXPERTS),
        .down = matrix(QMI_TYPE_Q8_0, F, D, EXPERTS), .shared_gate = matrix(QMI_TYPE_F16, D, 48, 1),
        .shared_up = matrix(QMI_TYPE_F16, D, 48, 1), .shared_down = matrix(QMI_TYPE_F16, 48, D, 1) };
    m->ops[QMI_OP_LOGITS].logits = (qmi_op_logits){ x, norm(D), table, hidden, logits };
    m->ops[QMI_OP_SUM].sum = (qmi_op_sum){ hidden, x, 1 };
    for (int kind = 0; kind < QMI_OP_COUNT; kind++) {
        m->ops[kind].kind = (qmi_op_kind)kind;
        m->ops[kind].layer = 5;
    }
    m->program.ops = m->ops;
    m->program.count = QMI_OP_COUNT;
}

static void test_valid(void **state)
{
    (void)state;
    model m;
    build(&m);
    if (qmi_program_validate(&m.program) < 0)
        fail_msg("%s", qmi_error_text());
    qmi_op_experts *experts = &m.ops[QMI_OP_EXPERTS].experts; /* gate and up as one, no shared expert */
    experts->gate.rows = 2 * F;
    experts->up.data = experts->shared_gate.data = experts->shared_up.data = experts->shared_down.data = 0;
    m.ops[QMI_OP_ROUTE].route.shared_gate.data = 0;
    m.ops[QMI_OP_PROJECT].project.norm.weight.data = 0;
    qmi_op_delta *d = &m.ops[QMI_OP_DELTA].delta;
    d->interleaved = true;
    d->beta = slot(&m, "both", 8);
    d->alpha = QMI_NO_SLOT;
    if (qmi_program_validate(&m.program) < 0)
        fail_msg("%s", qmi_error_text());
    m.program.count = 0;
    assert_int_equal(qmi_program_validate(&m.program), QM_OK);
}

static void expect_fault(const model *m, int line, const char *op, const char *operand)
{
    char start[64];
    snprintf(start, sizeof start, "(%s, layer 5)", op);
    if (qmi_program_validate(&m->program) != QM_ERROR_FORMAT)
        fail_msg("line %d: the fault in %s passed", line, op);
    if (!strstr(qmi_error_text(), start) || !strstr(qmi_error_text(), operand))
        fail_msg("line %d: \"%s\" names neither %s nor %s", line, qmi_error_text(), op, operand);
}

/* One change of a valid program, and what the message must name. */
#define FAULT(op, operand, change) \
    do { \
        build(&m); \
        change; \
        expect_fault(&m, __LINE__, op, operand); \
    } while (0)

static void test_matrices(void **state)
{
    (void)state;
    model m;
    qmi_matrix *table = &m.ops[QMI_OP_EMBED].embed.table;
    FAULT("embed", "table", table->data = 0);
    FAULT("embed", "type 99", table->type = 99);
    FAULT("embed", "I32", table->type = QMI_TYPE_I32);
    FAULT("embed", "table", table->columns = 0);
    FAULT("embed", "table", table->columns = QMI_COLUMNS_MAX + 32);
    FAULT("embed", "multiple of the block", table->columns = 33);
    FAULT("embed", "out", table->columns = 96); /* not the slot's width */
    FAULT("embed", "table", table->rows = -1);
    FAULT("embed", "table", table->rows = QMI_ROWS_MAX + 1);
    FAULT("embed", "table", table->count = 2);
    FAULT("embed", "table", (table->type = QMI_TYPE_F32, table->data += 2)); /* a float at an odd address */
    FAULT("embed", "slot -1", m.ops[QMI_OP_EMBED].embed.out = QMI_NO_SLOT);
    FAULT("embed", "slot 24", m.ops[QMI_OP_EMBED].embed.out = 24);
}

static void test_joins_and_projections(void **state)
{
    (void)state;
    model m;
    qmi_op_join *join = &m.ops[QMI_OP_JOIN].join;
    qmi_op_project *project = &m.ops[QMI_OP_PROJECT].project;
    qmi_op_glu *glu = &m.ops[QMI_OP_GLU].glu;
    qmi_op_project_add *add = &m.ops[QMI_OP_PROJECT_ADD].project_add;
    FAULT("join", "out", join->out = join->hidden);
    FAULT("join", "hidden norm", join->hidden_norm.weight.size = 63);
    FAULT("join", "norm", join->norm.epsilon = NAN);
    FAULT("join", "norm", join->norm.epsilon = -1);
    FAULT("project", "count", project->count = 0);
    FAULT("project", "count", project->count = QMI_PROJECT_MAX + 1);
    FAULT("project", "matrix 1", project->matrix[1].columns = 63);
    FAULT("project", "out 1", project->out[1] = project->out[0]);
    FAULT("project", "out 1", (project->out[1] = project->out[0], project->matrix[1].rows = 40));
    FAULT("project", "out 0", (project->out[0] = project->in, project->matrix[0].rows = D));
    FAULT("project", "norm", project->norm.weight.data += 1);
    FAULT("glu", "up", glu->up.rows = 31);
    FAULT("glu", "gate", glu->gate.columns = 63);
    FAULT("glu", "out", glu->out = glu->in);
    FAULT("project_add", "matrix", add->in = slot(&m, "other", 33));
    FAULT("project_add", "out", (add->in = add->out, add->matrix.columns = D)); /* in place */
    FAULT("project_add", "out", add->out = m.ops[QMI_OP_LOGITS].logits.logits);
}

static void test_attention(void **state)
{
    (void)state;
    model m;
    qmi_op_attend *a = &m.ops[QMI_OP_ATTEND].attend;
    FAULT("attend", "query heads", a->heads = 0);
    FAULT("attend", "query heads", a->heads = 3);
    FAULT("attend", "key-value heads", a->kv_heads = QMI_HEADS_MAX + 1);
    FAULT("attend", "head size", a->head_size = QMI_HEAD_SIZE_MAX + 2);
    FAULT("attend", "head size", a->head_size = 15);
    FAULT("attend", "rotary", a->rotary = 18);
    FAULT("attend", "rotary", a->rotary = 7);
    FAULT("attend", "query", a->gated = false);
    FAULT("attend", "key", a->key = a->out);
    FAULT("attend", "query norm", a->query_norm.weight.size = 8);
    FAULT("attend", "key norm", a->key_norm.epsilon = INFINITY);
    FAULT("attend", "inverse frequency", a->inverse_frequency.data = 0);
    FAULT("attend", "type of keys", a->key_type = QMI_KV_TYPES);
    FAULT("attend", "type of values", a->value_type = QMI_KV_TYPES);
    FAULT("attend", "overlap", a->key_type = QMI_KV_F32);
    FAULT("attend", "overlap", (a->key_offset = a->value_offset - 64, a->value_offset = 0));
    FAULT("attend", "page", a->page_tokens = 0);
    FAULT("attend", "offset of keys", a->key_offset = -4);
    FAULT("attend", "overlap", a->value_offset -= 4);
    FAULT("attend", "offsets", a->value_offset += 2);
}

static void test_recurrence(void **state)
{
    (void)state;
    model m;
    qmi_op_delta *d = &m.ops[QMI_OP_DELTA].delta;
    FAULT("delta", "value heads", d->value_heads = 3);
    FAULT("delta", "key heads", d->key_heads = 0);
    FAULT("delta", "key size", d->key_size = QMI_HEAD_SIZE_MAX + 1);
    FAULT("delta", "value size", d->value_size = 0);
    FAULT("delta", "taps", d->taps = QMI_TAPS_MAX + 1);
    FAULT("delta", "qkv", d->qkv = d->z);
    FAULT("delta", "beta", d->interleaved = true);
    FAULT("delta", "alpha", d->alpha = QMI_NO_SLOT);
    FAULT("delta", "out", d->out = d->z);
    FAULT("delta", "convolution", d->convolution.size--);
    FAULT("delta", "time bias", d->time_bias.data = 0);
    FAULT("delta", "decay", d->decay.size = 5);
    FAULT("delta", "norm", d->norm.weight.size = 32);
    FAULT("delta", "state", d->state_offset = -4);
    FAULT("delta", "state", d->state_offset = 6);
}

static void test_experts(void **state)
{
    (void)state;
    model m;
    qmi_op_route *r = &m.ops[QMI_OP_ROUTE].route;
    qmi_op_experts *e = &m.ops[QMI_OP_EXPERTS].experts;
    FAULT("route", "chosen", r->top = 0);
    FAULT("route", "chosen", r->top = EXPERTS + 1);
    FAULT("route", "route", r->top = 3); /* the slot is too narrow */
    FAULT("route", "shared gate", r->shared_gate.rows = 2);
    FAULT("route", "hidden", r->hidden = r->in);
    FAULT("route", "router", r->router.rows = QMI_ROWS_MAX + 1);
    FAULT("experts", "router", r->router.rows = EXPERTS + 1); /* it could choose one that does not exist */
    FAULT("experts", "router", m.ops[QMI_OP_ROUTE] = m.ops[QMI_OP_EMBED]);
    FAULT("experts", "chosen", e->top = QMI_TOP_MAX + 1);
    FAULT("experts", "route", e->top = 3);
    FAULT("experts", "out", e->out = e->hidden);
    FAULT("experts", "gate", e->gate.count = EXPERTS - 1);
    FAULT("experts", "up", e->up.rows = F / 2);
    FAULT("experts", "up", e->up.count = EXPERTS - 1);
    FAULT("experts", "down", e->down.columns = 2 * F);
    FAULT("experts", "down", e->down.count = EXPERTS + 1);
    FAULT("experts", "down", e->up.data = 0); /* then gate holds both and is half as wide */
    FAULT("experts", "gate", (e->up.data = 0, e->gate.rows = 33));
    FAULT("experts", "shared up", e->shared_up.data = 0);
    FAULT("experts", "shared gate", e->shared_gate.data = 0);
    FAULT("experts", "shared down", e->shared_down.columns = 64);
}

static void test_logits(void **state)
{
    (void)state;
    model m;
    qmi_op_logits *l = &m.ops[QMI_OP_LOGITS].logits;
    FAULT("logits", "hidden", l->hidden = l->in);
    FAULT("logits", "logits", l->logits = l->hidden);
    FAULT("logits", "logits", l->logits = -3);
    FAULT("logits", "logits", l->output.rows = VOCABULARY + 1);
    FAULT("logits", "output", l->output.columns = 32);
    FAULT("unknown", "kind", m.ops[QMI_OP_LOGITS].kind = QMI_OP_COUNT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),     cmocka_unit_test(test_matrices),   cmocka_unit_test(test_joins_and_projections),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_recurrence), cmocka_unit_test(test_experts),
        cmocka_unit_test(test_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
