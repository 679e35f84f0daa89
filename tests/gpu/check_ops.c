/* The op check of a card: every op in every weight format against the scalar CPU on random operands.
 *
 *   check_ops DEVICE [FILTER] [--seed=N] [--library=FILE]      DEVICE as the option `device` takes it: cuda, cuda:1
 *
 * The CPU gets the weights as float32, so it is exact; the bound is what 8-bit or half activations may cost. A case plays several batches
 * in a row, so that what ops keep (pages, recurrent state) is looked at too. Prints a line a case and `N passed, N failed`. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "backend/registry.h"
#include "base/error.h"
#include "quant/quant.h"

enum { SEQUENCES = 12, PAGES = 8, PAGE_TOKENS = 64, BLOCKS = 512, ROWS_MOST = 300 };

typedef struct side { /* one of the two devices that play a case */
    const qmi_backend *backend;
    qmi_device *device;
    bool exact;                     /* weights as float32 */
    qmi_program program;
    qmi_workspace workspace;
    qmi_address pages[SEQUENCES][PAGES], state[SEQUENCES], next[SEQUENCES];
    qmi_address held[BLOCKS];
    int32_t held_count;
} side;

typedef struct play {
    char name[96];
    qmi_program program;            /* weights and vectors at addresses of the host */
    bool in[QMI_SLOTS_MAX], out[QMI_SLOTS_MAX];
    int64_t page_bytes, state_bytes;
    double bound;
    double bytes_bound;             /* of batches up to bytes_rows, whose activations may be of 8 bits */
    int32_t bytes_rows;
    int64_t vocabulary;             /* of the embedding, 1: none */
    void *made[BLOCKS];
    int32_t made_count;
} play;

static const qmi_alloc plain;
static uint64_t seed = 1;
static const char *filter = "";
static int passed, failed;
static const char *card_name, *card_library = "";

/* xorshift64* (Vigna 2016, arXiv 1402.6246) */
static uint64_t random_bits(void)
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * UINT64_C(2685821657736338717);
}

static float random_float(void) /* about normal, variance 1 */
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (double)(random_bits() >> 11) / 9007199254740992.0;
    return (float)(sum - 6);
}

static int32_t random_below(int32_t n)
{
    return (int32_t)(random_bits() % (uint64_t)n);
}

static void need(bool fine, const char *what)
{
    if (fine)
        return;
    fprintf(stderr, "check_ops: %s: %s\n", what, qmi_error_text());
    exit(2);
}

/* ---- operands ---- */

static void *keep(play *p, void *memory)
{
    need(memory && p->made_count < BLOCKS, "out of memory");
    return p->made[p->made_count++] = memory;
}

static qmi_vector vector(play *p, int64_t size, float scale, float offset)
{
    float *x = keep(p, malloc((size_t)size * sizeof *x));
    for (int64_t i = 0; i < size; i++)
        x[i] = offset + scale * random_float();
    return (qmi_vector){ size, (uintptr_t)x };
}

static qmi_norm norm(play *p, int64_t size)
{
    return (qmi_norm){ vector(p, size, 0.2f, 1), 1e-6f };
}

/* Random blocks whose values have a deviation of about `scale`. */
static qmi_matrix matrix(play *p, uint32_t type, int64_t columns, int64_t rows, int64_t count)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    float scale = 1 / sqrtf((float)columns), *unpacked = malloc((size_t)format->block * sizeof *unpacked);
    int64_t bytes = qmi_quant_row_bytes(type, columns) * rows * count;
    uint8_t *data = keep(p, malloc((size_t)bytes));
    need(unpacked != NULL, "out of memory");
    for (int64_t at = 0; at < bytes; at += format->bytes) {
        if (format->block == 1) {
            float value = scale * random_float();
            uint16_t half = qmi_float_to_half(value);
            if (type == QMI_TYPE_F32)
                memcpy(data + at, &value, 4);
            else
                memcpy(data + at, type == QMI_TYPE_F16 ? (char *)&half : (char *)&value + 2, 2);
            continue;
        }
        for (int i = 0; i < format->bytes; i++)
            data[at + i] = (uint8_t)random_bits();
        /* The half floats of the block, wherever they lie: made small, so that the values are moderate. */
        static const struct { uint32_t type; int offset; float value; } halves[] = {
            { QMI_TYPE_Q4_0, 0, 0.2f }, { QMI_TYPE_Q5_0, 0, 0.1f }, { QMI_TYPE_Q8_0, 0, 0.013f }, { QMI_TYPE_IQ4_NL, 0, 0.015f },
            { QMI_TYPE_Q4_1, 0, 0.2f }, { QMI_TYPE_Q4_1, 2, -1.5f }, { QMI_TYPE_Q4_K, 0, 0.006f }, { QMI_TYPE_Q4_K, 2, 0.045f },
            { QMI_TYPE_Q5_K, 0, 0.003f }, { QMI_TYPE_Q5_K, 2, 0.045f }, { QMI_TYPE_Q6_K, 208, 0.0007f }, { QMI_TYPE_IQ4_XS, 0, 0.0008f },
            { QMI_TYPE_Q3_K, 108, 0.02f }, { QMI_TYPE_Q2_K, 80, 0.08f }, { QMI_TYPE_Q2_K, 82, 0.12f } };
        for (size_t h = 0; h < sizeof halves / sizeof *halves; h++)
            if (halves[h].type == type) {
                uint16_t half = qmi_float_to_half(halves[h].value * scale * (0.5f + (float)random_below(100) / 100));
                memcpy(data + at + halves[h].offset, &half, 2);
            }
    }
    free(unpacked);
    return (qmi_matrix){ .type = type, .columns = columns, .rows = rows, .count = count, .data = (uintptr_t)data };
}

static qmi_slot slot(play *p, const char *name, int64_t width, bool in, bool out, bool outputs)
{
    qmi_slot s = qmi_program_slot(&p->program, name, width, outputs);
    need(s >= 0, "slot");
    p->in[s] |= in;
    p->out[s] |= out;
    return s;
}

static void append(play *p, qmi_op op)
{
    need(qmi_program_append(&p->program, &plain, &op) == QM_OK, "op");
}

static play start(const char *format, ...) __attribute__((format(printf, 1, 2)));

static play start(const char *format, ...)
{
    play p = { .bound = 2e-2, .vocabulary = 1 };
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(p.name, sizeof p.name, format, arguments);
    va_end(arguments);
    return p;
}

/* ---- the two sides ---- */

static qmi_address room(side *s, int64_t bytes)
{
    qmi_address at;
    need(s->backend->allocate(s->device, bytes ? bytes : 64, "test", &at) == QM_OK && s->held_count < BLOCKS, "memory of the device");
    return s->held[s->held_count++] = at;
}

static void place_vector(side *s, qmi_vector *v)
{
    if (!v->data)
        return;
    qmi_address at = room(s, v->size * 4);
    need(s->backend->write(s->device, at, (void *)(uintptr_t)v->data, v->size * 4) == QM_OK, "write");
    v->data = at;
}

static void place_matrix(side *s, play *p, qmi_matrix *m)
{
    if (!m->data)
        return;
    if (s->exact && m->type != QMI_TYPE_F32) {
        const qmi_quant_format *format = qmi_quant_format_of(m->type);
        int64_t values = m->columns * m->rows * m->count;
        float *unpacked = keep(p, malloc((size_t)values * sizeof *unpacked));
        format->unpack((void *)(uintptr_t)m->data, unpacked, values / format->block);
        *m = (qmi_matrix){ QMI_TYPE_F32, m->columns, m->rows, m->count, (uintptr_t)unpacked };
    }
    need(s->backend->upload(s->device, (void *)(uintptr_t)m->data, m) == QM_OK, "upload");
}

#define OPERANDS_MOST 8

/* An op's matrices and vectors, some of which may be absent. */
static void operands(qmi_op *op, qmi_matrix *m[OPERANDS_MOST], qmi_vector *v[OPERANDS_MOST])
{
    int32_t mc = 0, vc = 0;
    switch (op->kind) {
    case QMI_OP_EMBED: m[mc++] = &op->embed.table; break;
    case QMI_OP_JOIN: m[mc++] = &op->join.table; v[vc++] = &op->join.norm.weight; v[vc++] = &op->join.hidden_norm.weight; break;
    case QMI_OP_PROJECT:
        for (int32_t i = 0; i < op->project.count; i++)
            m[mc++] = &op->project.matrix[i];
        v[vc++] = &op->project.norm.weight;
        break;
    case QMI_OP_GLU: m[mc++] = &op->glu.gate; m[mc++] = &op->glu.up; v[vc++] = &op->glu.norm.weight; break;
    case QMI_OP_PROJECT_ADD: m[mc++] = &op->project_add.matrix; break;
    case QMI_OP_ATTEND:
        v[vc++] = &op->attend.query_norm.weight; v[vc++] = &op->attend.key_norm.weight; v[vc++] = &op->attend.inverse_frequency;
        v[vc++] = &op->attend.correction;
        break;
    case QMI_OP_DELTA:
        v[vc++] = &op->delta.convolution; v[vc++] = &op->delta.time_bias;
        v[vc++] = &op->delta.decay; v[vc++] = &op->delta.norm.weight;
        break;
    case QMI_OP_ROUTE: m[mc++] = &op->route.router; m[mc++] = &op->route.shared_gate; v[vc++] = &op->route.norm.weight; break;
    case QMI_OP_EXPERTS:
        m[mc++] = &op->experts.gate; m[mc++] = &op->experts.up; m[mc++] = &op->experts.down;
        m[mc++] = &op->experts.shared_gate; m[mc++] = &op->experts.shared_up; m[mc++] = &op->experts.shared_down;
        break;
    case QMI_OP_LOGITS: m[mc++] = &op->logits.output; v[vc++] = &op->logits.norm.weight; break;
    default: break;
    }
}

static void place(side *s, play *p, const qmi_op *host)
{
    qmi_op op = *host;
    qmi_matrix *m[OPERANDS_MOST] = { NULL };
    qmi_vector *v[OPERANDS_MOST] = { NULL };
    operands(&op, m, v);
    for (int32_t i = 0; i < OPERANDS_MOST && m[i]; i++)
        place_matrix(s, p, m[i]);
    for (int32_t i = 0; i < OPERANDS_MOST && v[i]; i++)
        place_vector(s, v[i]);
    need(qmi_program_append(&s->program, &plain, &op) == QM_OK, "op");
}

static int64_t weight_bytes(const side *s, const play *p)
{
    int64_t bytes = 0;
    for (size_t i = 0; i < p->program.count; i++) {
        qmi_op op = p->program.ops[i];
        qmi_matrix *m[OPERANDS_MOST] = { NULL };
        qmi_vector *v[OPERANDS_MOST] = { NULL };
        operands(&op, m, v);
        for (int32_t k = 0; k < OPERANDS_MOST && m[k]; k++)
            bytes += m[k]->data ? s->backend->matrix_bytes(&m[k]->type, m[k]->columns, m[k]->rows * m[k]->count) : 0;
    }
    return bytes;
}

static void open_side(side *s, play *p, bool exact)
{
    *s = (side){ .exact = exact, .workspace = { .rows = ROWS_MOST, .outputs = ROWS_MOST } };
    const qmi_log silent = { 0 };
    qmi_choices found;
    need(qmi_registry_find(exact ? "cpu" : card_name, card_library, &silent, &found) == QM_OK, "backend");
    s->backend = found.list[0].backend;
    need(s->backend->open(&(qmi_device_settings){ .index = found.list[0].index, .isa = "scalar" }, &s->device) == QM_OK, "device");
    if (s->backend->upload_start)
        need(s->backend->upload_start(s->device, weight_bytes(s, p), NULL, 0) == QM_OK, "upload");
    for (size_t i = 0; i < p->program.count; i++)
        place(s, p, &p->program.ops[i]);
    if (s->backend->upload_finish)
        need(s->backend->upload_finish(s->device, NULL, NULL, NULL) == QM_OK, "upload");
    memcpy(s->program.slots, p->program.slots, sizeof s->program.slots);
    s->program.slot_count = p->program.slot_count;
    need(qmi_program_validate(&s->program) == QM_OK, "program");
    for (int32_t i = 0; i < p->program.slot_count; i++)
        s->workspace.slots[i] = room(s, ROWS_MOST * p->program.slots[i].width * 4);
    for (int32_t q = 0; q < SEQUENCES; q++) {
        for (int32_t i = 0; i < PAGES && p->page_bytes; i++)
            s->pages[q][i] = room(s, p->page_bytes);
        if (p->state_bytes) {
            s->state[q] = room(s, p->state_bytes);
            s->next[q] = room(s, p->state_bytes);
        }
    }
    need(s->backend->prepare(s->device, &s->program, ROWS_MOST) == QM_OK, "prepare");
}

static void close_side(side *s)
{
    for (int32_t i = 0; i < s->held_count; i++)
        s->backend->release(s->device, s->held[i]);
    qmi_program_free(&s->program, &plain);
    s->backend->close(&s->device);
}

/* ---- playing ---- */

typedef struct rows { /* a batch: rows of each sequence, 0 ends */
    int32_t count[SEQUENCES];
    bool apart;                     /* the new state goes elsewhere */
} rows;

static int32_t run_side(side *s, const play *p, const rows *batch, const int64_t *position, const int32_t *tokens, float *const *in)
{
    qmi_sequence sequences[SEQUENCES];
    int32_t outputs[ROWS_MOST], row = 0, n = 0;
    for (int32_t q = 0; q < SEQUENCES; q++) {
        if (batch->count[q] == 0)
            continue;
        sequences[n++] = (qmi_sequence){ .first = row, .count = batch->count[q], .start = position[q], .pages = s->pages[q],
                                         .state = s->state[q], .next_state = batch->apart ? s->next[q] : s->state[q] };
        row += batch->count[q];
    }
    for (int32_t i = 0; i < row; i++)
        outputs[i] = i;
    for (int32_t i = 0; i < p->program.slot_count; i++)
        if (in[i])
            need(s->backend->write(s->device, s->workspace.slots[i], in[i], row * p->program.slots[i].width * 4) == QM_OK, "write");
    const qmi_batch b = { .count = row, .tokens = tokens, .sequence_count = n, .sequences = sequences, .output_count = row, .outputs = outputs };
    int32_t code = s->backend->run(s->device, &s->program, &s->workspace, &b);
    for (int32_t q = 0; q < SEQUENCES && batch->apart; q++)
        if (batch->count[q]) {
            qmi_address old = s->state[q];
            s->state[q] = s->next[q];
            s->next[q] = old;
        }
    return code;
}

static double error_of(side *a, side *b, const play *p, qmi_slot i, int32_t count)
{
    int64_t values = count * p->program.slots[i].width;
    float *got = malloc((size_t)values * 4), *want = malloc((size_t)values * 4);
    need(got && want && a->backend->read(a->device, want, a->workspace.slots[i], values * 4) == QM_OK &&
         b->backend->read(b->device, got, b->workspace.slots[i], values * 4) == QM_OK, "read");
    double difference = 0, sum = 0;
    for (int64_t k = 0; k < values; k++) {
        difference += ((double)got[k] - want[k]) * ((double)got[k] - want[k]);
        sum += (double)want[k] * want[k];
    }
    free(got);
    free(want);
    return sqrt(difference / (sum > 0 ? sum : 1));
}

static void check(play *p, const rows *batches, int32_t batch_count)
{
    int64_t position[SEQUENCES] = { 0 };
    double worst = 0, worst_bound = p->bound; /* the largest error, measured by its bound */
    int32_t worst_batch = 0;
    const char *worst_slot = "";
    if (strstr(p->name, filter)) {
        static side exact, card; /* a device knows a program by its address */
        open_side(&exact, p, true);
        open_side(&card, p, false);
        int32_t code = QM_OK;
        for (int32_t b = 0; b < batch_count && code == QM_OK; b++) {
            int32_t count = 0, tokens[ROWS_MOST];
            float *in[QMI_SLOTS_MAX] = { NULL };
            for (int32_t q = 0; q < SEQUENCES; q++)
                count += batches[b].count[q];
            for (int32_t i = 0; i < count; i++)
                tokens[i] = random_below((int32_t)p->vocabulary);
            for (int32_t i = 0; i < p->program.slot_count; i++)
                if (p->in[i]) {
                    int64_t values = count * p->program.slots[i].width;
                    in[i] = malloc((size_t)values * 4);
                    need(in[i] != NULL, "out of memory");
                    for (int64_t k = 0; k < values; k++)
                        in[i][k] = random_float();
                }
            need(run_side(&exact, p, &batches[b], position, tokens, in) == QM_OK, "reference");
            code = run_side(&card, p, &batches[b], position, tokens, in);
            for (int32_t i = 0; i < p->program.slot_count && code == QM_OK; i++)
                if (p->out[i]) {
                    double error = error_of(&exact, &card, p, i, count);
                    double bound = count <= p->bytes_rows ? p->bytes_bound : p->bound;
                    if (!(error / bound <= worst / worst_bound)) {
                        worst = error;
                        worst_bound = bound;
                        worst_batch = b;
                        worst_slot = p->program.slots[i].name;
                    }
                }
            for (int32_t i = 0; i < QMI_SLOTS_MAX; i++)
                free(in[i]);
            for (int32_t q = 0; q < SEQUENCES; q++)
                position[q] += batches[b].count[q];
        }
        bool fine = code == QM_OK && worst <= worst_bound;
        printf("%s  %-56s error %.2e of %.0e%s%s\n", fine ? "ok    " : "FAILED", p->name, worst, worst_bound, code == QM_OK ? "" : ": ",
               code == QM_OK ? "" : qmi_error_text());
        if (!fine && code == QM_OK)
            printf("        worst in slot %s, batch %d\n", worst_slot, worst_batch);
        fflush(stdout);
        *(fine ? &passed : &failed) += 1;
        close_side(&exact);
        if (code == QM_OK)
            close_side(&card);
    }
    for (int32_t i = 0; i < p->made_count; i++)
        free(p->made[i]);
    qmi_program_free(&p->program, &plain);
}

static const rows few[] = { { { 1 }, 0 }, { { 2 }, 0 }, { { 1, 1, 1 }, 0 }, { { 5 }, 0 }, { { 8 }, 0 } };
static const rows many[] = { { { 9 }, 0 }, { { 17, 3 }, 0 }, { { 70 }, 0 }, { { 130 }, 0 }, { { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 }, 0 }, { { 300 }, 0 } };
#define FEW few, (int32_t)(sizeof few / sizeof *few)
#define MANY many, (int32_t)(sizeof many / sizeof *many)

/* ---- the cases ---- */

static const uint32_t types[] = { QMI_TYPE_F32, QMI_TYPE_F16, QMI_TYPE_BF16, QMI_TYPE_Q8_0, QMI_TYPE_Q4_0, QMI_TYPE_Q5_0, QMI_TYPE_IQ4_NL,
                                  QMI_TYPE_Q4_K, QMI_TYPE_Q5_K, QMI_TYPE_Q6_K, QMI_TYPE_IQ4_XS, QMI_TYPE_Q3_K, QMI_TYPE_Q2_K, QMI_TYPE_Q4_1 };

static bool is_float(uint32_t type)
{
    return type == QMI_TYPE_F32 || type == QMI_TYPE_F16 || type == QMI_TYPE_BF16;
}

static const char *name_of(uint32_t type)
{
    return qmi_quant_format_of(type)->name;
}

static double product_bound(uint32_t type, bool few_rows)
{
    return few_rows ? is_float(type) ? 1e-5 : 2e-2 : type == QMI_TYPE_F32 ? 1e-3 : 2e-3;
}

static void check_embed(uint32_t type)
{
    play p = start("embed %s", name_of(type));
    int64_t width = is_float(type) ? 70 : 512;
    p.vocabulary = 37;
    p.bound = 0;
    append(&p, (qmi_op){ .kind = QMI_OP_EMBED, .embed = { matrix(&p, type, width, p.vocabulary, 1), slot(&p, "out", width, false, true, false) } });
    check(&p, MANY);
    p = start("join %s", name_of(type));
    p.vocabulary = 37;
    p.bound = 1e-5;
    qmi_slot hidden = slot(&p, "hidden", width, true, false, false), out = slot(&p, "out", 2 * width, false, true, false);
    append(&p, (qmi_op){ .kind = QMI_OP_JOIN, .join = { matrix(&p, type, width, p.vocabulary, 1), norm(&p, width), norm(&p, width), hidden, out } });
    check(&p, FEW);
}

static void check_project(uint32_t type, uint32_t other, int64_t columns, int64_t rows, bool few_rows)
{
    play p = start("project %s %s %dx%d %s", name_of(type), name_of(other), (int)rows, (int)columns, few_rows ? "few" : "many");
    p.bound = product_bound(is_float(type) ? other : type, few_rows);
    qmi_op op = { .kind = QMI_OP_PROJECT, .project = { .in = slot(&p, "in", columns, true, false, false), .norm = norm(&p, columns), .count = 4 } };
    const int64_t heights[] = { rows, 3, rows / 2 + 1, 32 };
    const char *const names[] = { "a", "b", "c", "d" };
    for (int i = 0; i < 4; i++) {
        op.project.matrix[i] = matrix(&p, i % 2 ? other : type, columns, heights[i], 1);
        op.project.out[i] = slot(&p, names[i], heights[i], false, true, false);
    }
    append(&p, op);
    if (few_rows)
        check(&p, FEW);
    else
        check(&p, MANY);
}

static void check_add(uint32_t type, int64_t columns, int64_t rows, bool add, bool few_rows)
{
    play p = start("project_add %s %dx%d %s%s", name_of(type), (int)rows, (int)columns, few_rows ? "few" : "many", add ? " add" : "");
    p.bound = product_bound(type, few_rows);
    qmi_slot in = slot(&p, "in", columns, true, false, false), out = slot(&p, "out", rows, true, true, false);
    append(&p, (qmi_op){ .kind = QMI_OP_PROJECT_ADD, .project_add = { matrix(&p, type, columns, rows, 1), in, out, add } });
    if (few_rows)
        check(&p, FEW);
    else
        check(&p, MANY);
}

static void check_glu(uint32_t type, uint32_t other, int64_t columns, int64_t rows, bool few_rows)
{
    play p = start("glu %s %s %dx%d %s", name_of(type), name_of(other), (int)rows, (int)columns, few_rows ? "few" : "many");
    p.bound = 2 * product_bound(is_float(type) ? other : type, few_rows);
    qmi_slot in = slot(&p, "in", columns, true, false, false), out = slot(&p, "out", rows, false, true, false);
    append(&p, (qmi_op){ .kind = QMI_OP_GLU, .glu = { in, norm(&p, columns), matrix(&p, type, columns, rows, 1), matrix(&p, other, columns, rows, 1), out } });
    if (few_rows)
        check(&p, FEW);
    else
        check(&p, MANY);
}

/* alone: ROUTE without EXPERTS behind it. */
static void check_experts(uint32_t type, uint32_t down, int64_t experts, int32_t top, int64_t shared, bool fused, bool alone, bool few_rows)
{
    const int64_t width = 256, inner = 512;
    play p = start("%s %s %s %d of %d%s%s %s", alone ? "route" : "experts", name_of(type), name_of(down), top, (int)experts,
                   shared ? shared == inner ? " shared" : " other shared" : "", fused ? " fused" : "", few_rows ? "few" : "many");
    p.bound = alone ? 1e-5 : 3 * product_bound(type, few_rows);
    if (!alone && !is_float(type)) { /* experts of few tokens: as in decoding */
        p.bytes_bound = 3 * product_bound(type, true);
        p.bytes_rows = (int32_t)(3 * experts / top);
    }
    qmi_slot in = slot(&p, "in", width, true, false, false), hidden = slot(&p, "normed", width, false, true, false);
    qmi_slot route = slot(&p, "route", 2 * top + 1, false, true, false), out = slot(&p, "out", width, true, !alone, false);
    append(&p, (qmi_op){ .kind = QMI_OP_ROUTE, .route = { .in = in, .norm = norm(&p, width), .router = matrix(&p, QMI_TYPE_F32, width, experts, 1),
        .shared_gate = shared ? matrix(&p, QMI_TYPE_F32, width, 1, 1) : (qmi_matrix){ 0 }, .top = top, .hidden = hidden, .route = route } });
    if (!alone) {
        qmi_op op = { .kind = QMI_OP_EXPERTS, .experts = { .hidden = hidden, .route = route, .top = top, .out = out,
            .gate = matrix(&p, type, width, fused ? 2 * inner : inner, experts), .down = matrix(&p, down, inner, width, experts) } };
        if (!fused)
            op.experts.up = matrix(&p, type, width, inner, experts);
        if (shared) {
            op.experts.shared_gate = matrix(&p, type, width, shared, 1);
            op.experts.shared_up = matrix(&p, type, width, shared, 1);
            op.experts.shared_down = matrix(&p, down, shared, width, 1);
        }
        append(&p, op);
    }
    if (few_rows)
        check(&p, FEW);
    else
        check(&p, MANY);
}

static void check_logits(uint32_t type, int64_t vocabulary)
{
    play p = start("logits %s %d", name_of(type), (int)vocabulary);
    p.bound = product_bound(type, true) > product_bound(type, false) ? product_bound(type, true) : product_bound(type, false);
    qmi_slot in = slot(&p, "in", 256, true, false, false), hidden = slot(&p, "hidden", 256, false, true, false);
    append(&p, (qmi_op){ .kind = QMI_OP_LOGITS, .logits = { in, norm(&p, 256), matrix(&p, type, 256, vocabulary, 1), hidden,
        slot(&p, "logits", vocabulary, false, true, true) } });
    check(&p, FEW);
    p = start("logits %s %d many", name_of(type), (int)vocabulary);
    p.bound = product_bound(type, true) > product_bound(type, false) ? product_bound(type, true) : product_bound(type, false);
    in = slot(&p, "in", 256, true, false, false);
    hidden = slot(&p, "hidden", 256, false, true, false);
    append(&p, (qmi_op){ .kind = QMI_OP_LOGITS, .logits = { in, norm(&p, 256), matrix(&p, type, 256, vocabulary, 1), hidden,
        slot(&p, "logits", vocabulary, false, true, true) } });
    check(&p, MANY);
}

/* Prompts, then single tokens, then both mixed: positions up to a few pages. */
static const rows talk[] = { { { 1 }, 0 }, { { 1 }, 0 }, { { 62, 5 }, 0 }, { { 1, 1 }, 0 }, { { 1, 1, 1 }, 0 }, { { 70, 1, 2 }, 1 }, { { 1, 130, 1, 1 }, 0 },
                             { { 1, 1, 1, 1 }, 0 }, { { 0, 0, 3 }, 1 }, { { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 }, 0 }, { { 200, 1, 9 }, 0 }, { { 1, 1, 1 }, 1 }, { { 1 }, 0 } };

/* window: tokens that are not packed yet, of q2; then a correction, too, of any two matrices per key-value head. */
static void check_attend(int32_t heads, int32_t kv_heads, int32_t size, int32_t rotary, bool gated, qmi_kv_type kv, int32_t window)
{
    play p = start("attend %d/%d x %d rotary %d%s %s", heads, kv_heads, size, rotary, gated ? " gated" : "", qmi_kv_formats[kv].name);
    int64_t width = (int64_t)heads * size, kv_width = (int64_t)kv_heads * size, part = kv_heads * PAGE_TOKENS * qmi_kv_head_bytes(kv, size);
    p.bound = window ? 3e-2 : 3e-3; /* a half that is rounded otherwise may get another code, of four */
    p.page_bytes = 2 * part + 512;
    p.state_bytes = window ? 64 + 2 * kv_width * (window + QMI_KV_GROUP) * 2 : 0;
    qmi_vector frequency = vector(&p, rotary / 2, 0, 0);
    for (int32_t i = 0; i < rotary / 2; i++)
        ((float *)(uintptr_t)frequency.data)[i] = (float)pow(1e4, -2.0 * i / rotary);
    qmi_op op = { .kind = QMI_OP_ATTEND, .attend = { .heads = heads, .kv_heads = kv_heads, .head_size = size, .rotary = rotary, .gated = gated,
        .query = slot(&p, "query", gated ? 2 * width : width, true, false, false), .key = slot(&p, "key", kv_width, true, false, false),
        .value = slot(&p, "value", kv_width, true, false, false), .out = slot(&p, "out", width, false, true, false),
        .query_norm = norm(&p, size), .key_norm = norm(&p, size), .inverse_frequency = frequency, .key_type = kv, .value_type = kv,
        .rotate_keys = qmi_kv_formats[kv].quantized && !window, .rotate_values = qmi_kv_formats[kv].quantized, .page_tokens = PAGE_TOKENS,
        .key_offset = 256, .value_offset = 256 + part, .window = window, .window_offset = 64 } };
    if (window > PAGE_TOKENS / 2)
        op.attend.correction = vector(&p, 2 * kv_width * size, 1 / sqrtf((float)size), 0);
    append(&p, op);
    check(&p, talk, (int32_t)(sizeof talk / sizeof *talk));
}

static void check_delta(int32_t key_heads, int32_t value_heads, int32_t key_size, int32_t value_size, int32_t taps, bool grouped, bool interleaved)
{
    play p = start("delta %d/%d x %d/%d taps %d%s%s", key_heads, value_heads, key_size, value_size, taps, grouped ? " grouped" : "",
                   interleaved ? " interleaved" : "");
    int64_t inner = (int64_t)value_heads * value_size, channels = 2 * (int64_t)key_heads * key_size + inner;
    p.bound = 3e-3;
    p.state_bytes = 64 + ((taps - 1) * channels + (int64_t)value_heads * key_size * value_size) * 4;
    qmi_vector decay = vector(&p, value_heads, 0, 0);
    for (int32_t i = 0; i < value_heads; i++)
        ((float *)(uintptr_t)decay.data)[i] = -0.02f * (float)(1 + i % 20);
    qmi_op op = { .kind = QMI_OP_DELTA, .delta = { .key_heads = key_heads, .value_heads = value_heads, .key_size = key_size, .value_size = value_size,
        .taps = taps, .grouped = grouped, .interleaved = interleaved, .qkv = slot(&p, "qkv", channels, true, false, false),
        .z = slot(&p, "z", inner, true, false, false), .beta = slot(&p, "beta", interleaved ? 2 * value_heads : value_heads, true, false, false),
        .alpha = interleaved ? QMI_NO_SLOT : slot(&p, "alpha", value_heads, true, false, false), .out = slot(&p, "out", inner, false, true, false),
        .convolution = vector(&p, channels * taps, 0.5f, 0), .time_bias = vector(&p, value_heads, 0.5f, 0), .decay = decay,
        .norm = norm(&p, value_size), .state_offset = 64 } };
    append(&p, op);
    check(&p, talk, (int32_t)(sizeof talk / sizeof *talk));
}

int main(int argc, char **argv)
{
    for (int i = 2; i < argc; i++)
        if (!strncmp(argv[i], "--seed=", 7))
            seed = strtoull(argv[i] + 7, NULL, 10) | 1;
        else if (!strncmp(argv[i], "--library=", 10))
            card_library = argv[i] + 10;
        else
            filter = argv[i];
    if (argc < 2) {
        fprintf(stderr, "usage: check_ops DEVICE [FILTER] [--seed=N] [--library=FILE]\n");
        return 2;
    }
    card_name = argv[1];
    const size_t type_count = sizeof types / sizeof *types;
    for (size_t i = 0; i < type_count; i++) {
        uint32_t type = types[i], next = types[(i + 1) % type_count];
        check_embed(type);
        for (int f = 1; f >= 0; f--) {
            check_project(type, next, is_float(type) && is_float(next) ? 70 : 512, 45, f);
            check_project(type, type, 2048, 272, f);
            check_add(type, is_float(type) ? 33 : 256, 17, true, f);
            check_add(type, 4096, 130, i % 2, f);
            check_glu(type, next, 512, 96, f);
            check_experts(type, type, 16, 4, 512, i % 2, false, f);
        }
        check_logits(type, 1000);
    }
    for (int f = 1; f >= 0; f--) {
        check_experts(QMI_TYPE_Q4_K, QMI_TYPE_Q5_K, 256, 8, 512, false, false, f);
        check_experts(QMI_TYPE_Q4_K, QMI_TYPE_Q4_K, 128, 8, 0, false, false, f);
        check_experts(QMI_TYPE_F16, QMI_TYPE_F16, 3, 2, 256, true, false, f);
        check_experts(QMI_TYPE_F32, QMI_TYPE_F32, 512, 10, 512, false, true, f);
        check_experts(QMI_TYPE_Q8_0, QMI_TYPE_Q8_0, 60, 4, 256, false, true, f);
    }
    for (int kv = 0; kv < QMI_KV_TYPES; kv++) {
        qmi_kv_type type = (qmi_kv_type)kv;
        const int32_t least = type == QMI_KV_Q2 ? 5 : 0, more = type == QMI_KV_Q2 ? 40 : 0;
        check_attend(16, 2, 256, 64, true, type, least);
        check_attend(32, 4, 128, 128, false, type, more);
        check_attend(4, 2, 64, 16, true, type, least);
        check_attend(3, 3, 32, 32, false, type, least);
        check_attend(6, 1, 80, 40, true, type, more);
        check_attend(24, 4, 256, 64, true, type, more);
    }
    check_delta(16, 32, 128, 128, 4, false, false);
    check_delta(16, 48, 128, 128, 4, false, false);
    check_delta(16, 32, 128, 128, 4, true, true);
    check_delta(2, 4, 64, 64, 4, false, false);
    check_delta(2, 4, 32, 16, 4, true, true);
    check_delta(1, 3, 24, 40, 3, false, false);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
