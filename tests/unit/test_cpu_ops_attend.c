/* ATTEND on the CPU against its formula in double; sequences together and apart. */
#include "cpu_scene.h"

typedef struct shape {
    int32_t tokens, heads, kv_heads, head_size, rotary, page_tokens;
    qmi_kv_type key_type, value_type;
    bool gated, normed, rotated;
    int32_t window;
    bool corrected;
} shape;

static scene make_scene(const shape *p, qmi_op_attend *op)
{
    scene s = { .tokens = p->tokens, .page_tokens = p->page_tokens };
    int64_t keys = p->kv_heads * p->page_tokens * qmi_kv_head_bytes(p->key_type, p->head_size);
    int64_t values = p->kv_heads * p->page_tokens * qmi_kv_head_bytes(p->value_type, p->head_size);
    *op = (qmi_op_attend){
        .query = make_input(&s, "query", (int64_t)p->heads * p->head_size * (p->gated ? 2 : 1)),
        .key = make_input(&s, "key", (int64_t)p->kv_heads * p->head_size),
        .value = make_input(&s, "value", (int64_t)p->kv_heads * p->head_size),
        .out = make_slot(&s, "out", (int64_t)p->heads * p->head_size),
        .heads = p->heads, .kv_heads = p->kv_heads, .head_size = p->head_size, .rotary = p->rotary, .gated = p->gated,
        .query_norm.epsilon = 1e-6f, .key_norm.epsilon = 1e-5f, .key_type = p->key_type, .value_type = p->value_type,
        .rotate_keys = p->rotated, .rotate_values = p->rotated, .page_tokens = p->page_tokens,
        .key_offset = (values + 67) / 4 * 4, .value_offset = 0 };
    if (p->window) {
        op->window = p->window;
        op->window_offset = 16;
        s.state_bytes = 16 + 4 * p->kv_heads * (int64_t)(p->window + QMI_KV_GROUP) * p->head_size;
    }
    if (p->corrected) { /* any two matrices; near to one, so that scores stay in the range of others */
        int64_t of_head = (int64_t)p->head_size * p->head_size, count = 2 * p->kv_heads * of_head;
        float *floats = make_floats(&s, count, 0.2f / sqrtf((float)p->head_size));
        for (int64_t i = 0; i < count; i++)
            floats[i] += i % of_head % (p->head_size + 1) == 0;
        op->correction = (qmi_vector){ count, (uintptr_t)floats };
    }
    if (p->normed) {
        op->query_norm.weight = make_vector(&s, p->head_size);
        op->key_norm.weight = make_vector(&s, p->head_size);
    }
    if (p->rotary)
        op->inverse_frequency = make_vector(&s, p->rotary / 2);
    s.page_bytes = op->key_offset + keys;
    s.pages = (p->tokens + p->page_tokens - 1) / p->page_tokens;
    assert_true(s.pages <= 256);
    s.out = op->out;
    append(&s, (qmi_op){ .kind = QMI_OP_ATTEND, .layer = 3, .attend = *op });
    return s;
}

static void ref_turn(double *x, const qmi_op_attend *op, int64_t position)
{
    for (int32_t i = 0; i < op->rotary / 2; i++) {
        double angle = (float)position * vector_of(&op->inverse_frequency)[i]; /* in float32, as the models were trained */
        double a = x[i], b = x[i + op->rotary / 2];
        x[i] = a * cos(angle) - b * sin(angle);
        x[i + op->rotary / 2] = b * cos(angle) + a * sin(angle);
    }
}

/* x H S / sqrt(m), or back, by the matrix. */
static void ref_spread(double *x, int64_t size, bool back)
{
    double y[256];
    int64_t run = 1;
    while (size % (2 * run) == 0)
        run *= 2;
    for (int64_t i = 0; i < size; i++) {
        y[i] = 0;
        for (int64_t j = i / run * run; j < i / run * run + run; j++) {
            int64_t a = i % run, b = j % run, sign = __builtin_popcountll((unsigned long long)(a & b));
            y[i] += (sign + qmi_kv_sign((uint32_t)(back ? a : b))) % 2 ? -x[j] : x[j];
        }
    }
    for (int64_t i = 0; i < size; i++)
        x[i] = y[i] / sqrt((double)run);
}

static void ref_stored(double *x, qmi_kv_type type, int64_t size)
{
    float head[256] = { 0 };
    char record[1024];
    for (int64_t i = 0; i < size; i++)
        head[i] = (float)x[i];
    qmi_kv_pack(type, head, record, size);
    qmi_kv_unpack(type, record, head, size);
    for (int64_t i = 0; i < size && type != QMI_KV_F32; i++)
        x[i] = head[i];
}

/* What is stored is turned, and rounded to the storage's format. */
static void ref_keys(const scene *s, const qmi_op_attend *op, double *keys, double *values)
{
    int64_t width = (int64_t)op->kv_heads * op->head_size;
    for (int32_t t = 0; t < s->tokens; t++)
        for (int32_t h = 0; h < op->kv_heads; h++) {
            double *key = keys + t * width + h * op->head_size;
            ref_rms(key, &op->key_norm, key, op->head_size);
            ref_turn(key, op, t);
            if (op->rotate_keys)
                ref_spread(key, op->head_size, false);
            if (op->rotate_values)
                ref_spread(values + t * width + h * op->head_size, op->head_size, false);
            if (op->window)
                continue;
            ref_stored(key, op->key_type, op->head_size);
            ref_stored(values + t * width + h * op->head_size, op->value_type, op->head_size);
        }
}

/* With a window: what lies in it, and what of that is packed, all in x [tokens][kv_heads][size]. */
typedef struct windowed {
    double *recent, *packed;
} windowed;

/* The numbers of a key-value head, of one group's tokens from `at` on, as they unpack. */
static void ref_packed_keys(const qmi_op_attend *op, const double *at, int64_t width, int32_t kv_head, double *to)
{
    static float group[QMI_KV_GROUP * 256];
    static char record[QMI_KV_GROUP * 256];
    int64_t size = op->head_size;
    for (int64_t t = 0; t < QMI_KV_GROUP; t++)
        for (int64_t d = 0; d < size; d++) {
            double sum = at[t * width + d];
            if (op->correction.data) {
                sum = 0;
                for (int64_t i = 0; i < size; i++)
                    sum += vector_of(&op->correction)[(2 * kv_head * size + d) * size + i] * at[t * width + i];
            }
            group[t * size + d] = (float)sum;
        }
    qmi_kv_pack_group(group, record, size);
    qmi_kv_unpack_group(record, group, size);
    for (int64_t t = 0; t < QMI_KV_GROUP; t++)
        for (int64_t d = 0; d < size; d++)
            to[t * width + d] = group[t * size + d];
}

static windowed ref_window(const scene *s, const qmi_op_attend *op, const double *x, qmi_kv_type type, bool keys)
{
    int64_t size = op->head_size, width = op->kv_heads * size, count = s->tokens * width;
    windowed w = { calloc((size_t)count, 8), calloc((size_t)count, 8) };
    assert_true(w.recent && w.packed);
    for (int64_t i = 0; i < count; i++)
        w.packed[i] = w.recent[i] = qmi_half_to_float(qmi_float_to_half((float)x[i]));
    for (int64_t first = 0; first + QMI_KV_GROUP <= s->tokens; first += QMI_KV_GROUP)
        for (int32_t h = 0; h < op->kv_heads; h++) {
            int64_t at = first * width + h * size;
            if (keys && type == QMI_KV_Q2)
                ref_packed_keys(op, w.recent + at, width, h, w.packed + at);
            else
                for (int64_t t = 0; t < QMI_KV_GROUP; t++)
                    ref_stored(w.packed + at + t * width, type, size);
        }
    return w;
}

static void free_window(windowed *w)
{
    free(w->recent);
    free(w->packed);
}

/* Of query t: score of key j, whose numbers begin at `at`. */
static double ref_window_score(const qmi_op_attend *op, const windowed *keys, const double *query, int64_t at, int64_t kv_head,
                               bool packed)
{
    int64_t size = op->head_size;
    double score = 0;
    for (int64_t d = 0; d < size; d++) {
        double turned = query[d];
        if (packed && op->correction.data) {
            turned = 0;
            for (int64_t i = 0; i < size; i++)
                turned += vector_of(&op->correction)[((2 * kv_head + 1) * size + d) * size + i] * query[i];
        }
        score += turned * (packed ? keys->packed : keys->recent)[at + d];
    }
    return score / sqrt((double)size);
}

static double *ref_attend(const scene *s, const qmi_op_attend *op)
{
    int64_t size = op->head_size, width = op->kv_heads * size, step = op->gated ? 2 * size : size;
    double *q = to_double(s->in[op->query], s->tokens * op->heads * step), *k = to_double(s->in[op->key], s->tokens * width);
    double *v = to_double(s->in[op->value], s->tokens * width), *scores = calloc((size_t)s->tokens, sizeof *scores);
    double *out = calloc((size_t)(s->tokens * op->heads * size), sizeof *out);
    assert_non_null(scores);
    assert_non_null(out);
    ref_keys(s, op, k, v);
    windowed keys = { 0 }, values = { 0 };
    if (op->window) {
        keys = ref_window(s, op, k, op->key_type, true);
        values = ref_window(s, op, v, op->value_type, false);
    }
    for (int32_t t = 0; t < s->tokens; t++)
        for (int32_t h = 0; h < op->heads; h++) {
            double *query = q + (t * op->heads + h) * step, *to = out + (t * op->heads + h) * size, largest = -INFINITY, sum = 0;
            int64_t at = h / (op->heads / op->kv_heads) * size;
            ref_rms(query, &op->query_norm, query, size);
            ref_turn(query, op, t);
            if (op->rotate_keys)
                ref_spread(query, size, false);
            int64_t packed = op->window && t + 1 > op->window ? (t + 1 - op->window) / 64 * 64 : 0;
            for (int32_t j = 0; j <= t; j++) {
                scores[j] = op->window ? ref_window_score(op, &keys, query, j * width + at, at / size, j < packed) : 0;
                for (int64_t d = 0; d < size && !op->window; d++)
                    scores[j] += query[d] * k[j * width + at + d] / sqrt((double)size);
                largest = fmax(largest, scores[j]);
            }
            for (int32_t j = 0; j <= t; j++)
                sum += scores[j] = exp(scores[j] - largest);
            for (int32_t j = 0; j <= t; j++) {
                const double *value = !op->window ? v : j < packed ? values.packed : values.recent;
                for (int64_t d = 0; d < size; d++)
                    to[d] += scores[j] / sum * value[j * width + at + d];
            }
            if (op->rotate_values)
                ref_spread(to, size, true);
            for (int64_t d = 0; d < size && op->gated; d++)
                to[d] *= sigmoid(query[size + d]);
        }
    free(q);
    free(k);
    free(v);
    free(scores);
    free_window(&keys);
    free_window(&values);
    return out;
}

static void check_shape_of(const shape *p, double tolerance)
{
    qmi_op_attend op;
    scene s = make_scene(p, &op);
    double *expected = ref_attend(&s, &op);
    check_scene(&s, expected, tolerance);
    free(expected);
    end_scene(&s);
}

static void test_formula(void **state)
{
    (void)state;
    /* Rounding of keys to halves may go the other way for a float result than for a double one, hence the wider bound. */
    check_shape_of(&(shape){ 20, 4, 2, 16, 8, 8, QMI_KV_F32, QMI_KV_F32, true, true, false, 0, false }, 3e-6);
    check_shape_of(&(shape){ 20, 6, 1, 64, 64, 16, QMI_KV_F16, QMI_KV_F16, false, true, false, 0, false }, 1e-4);
    check_shape_of(&(shape){ 9, 2, 2, 128, 32, 1, QMI_KV_F32, QMI_KV_F32, true, false, false, 0, false }, 3e-6);
    check_shape_of(&(shape){ 9, 3, 3, 22, 0, 5, QMI_KV_F16, QMI_KV_F16, true, true, false, 0, false }, 1e-4);
    check_shape_of(&(shape){ 5, 2, 1, 256, 64, 64, QMI_KV_F32, QMI_KV_F32, true, true, false, 0, false }, 3e-6);
}

/* Every type, of keys, of values, turned or not, in heads of whole blocks and others. Numbers on the border between two codes may
 * fall on either side. */
static void test_types(void **state)
{
    (void)state;
    static const int32_t sizes[] = { 64, 32, 16, 96, 256, 34, 128 };
    for (int type = 0; type < QMI_KV_Q2; type++)
        for (int turned = 0; turned < 2; turned++)
            check_shape_of(&(shape){ 10, 4, 2, sizes[type], 8, 7, (qmi_kv_type)type,
                                     (qmi_kv_type)((type + turned) % QMI_KV_Q2), turned, true, turned, 0, false }, 1e-3);
}

/* Two bits: a window that leaves whole groups behind, of any types; keys of q2 with a correction and without. */
static void test_windows(void **state)
{
    (void)state;
    check_shape_of(&(shape){ 140, 2, 1, 32, 8, 64, QMI_KV_Q2, QMI_KV_Q4_0, false, true, false, 10, true }, 2e-3);
    check_shape_of(&(shape){ 72, 4, 2, 34, 8, 64, QMI_KV_Q2, QMI_KV_F16, true, true, false, 1, true }, 2e-3);
    check_shape_of(&(shape){ 70, 2, 2, 16, 8, 64, QMI_KV_Q2, QMI_KV_Q2, true, true, false, 5, false }, 2e-3);
    check_shape_of(&(shape){ 68, 2, 2, 16, 8, 64, QMI_KV_Q8_0, QMI_KV_Q2, true, true, true, 3, false }, 2e-3);
}

/* Several spans of the softmax, pages that do not divide them, workers that share them. */
static void test_long(void **state)
{
    (void)state;
    check_shape_of(&(shape){ 600, 4, 2, 16, 8, 100, QMI_KV_F32, QMI_KV_F32, true, true, false, 0, false }, 3e-6);
    check_shape_of(&(shape){ 530, 2, 1, 8, 4, 7, QMI_KV_F16, QMI_KV_F16, false, true, false, 0, false }, 1e-4);
}

/* More spans than are computed between two barriers: 1 key-value head, 129 * 256 tokens. */
static void test_many_spans(void **state)
{
    (void)state;
    enum { TOKENS = 129 * 256 + 3, SIZE = 2, PAGE = 512 };
    qmi_op_attend op;
    shape p = { 1, 1, 1, SIZE, 0, PAGE, QMI_KV_F32, QMI_KV_F32, false, false, false, 0, false };
    scene s = make_scene(&p, &op);
    s.pages = (TOKENS + PAGE - 1) / PAGE;
    float first[SIZE];
    double expected[SIZE] = { 0 }, sum = 0;
    for (int32_t threads = 1; threads <= 3; threads++) {
        rig r = open_rig(&s, "auto", threads, 1);
        random_state = 99;
        for (int64_t j = 0; j < TOKENS; j++)
            for (int i = 0; i < SIZE; i++) {
                float *page = (float *)(uintptr_t)r.pages[j / PAGE];
                page[(op.key_offset / 4) + j % PAGE * SIZE + i] = random_float();
                page[(op.value_offset / 4) + j % PAGE * SIZE + i] = random_float();
            }
        memcpy((void *)(uintptr_t)r.workspace.slots[op.query], s.in[op.query], SIZE * 4);
        memcpy((void *)(uintptr_t)r.workspace.slots[op.key], s.in[op.key], SIZE * 4);
        memcpy((void *)(uintptr_t)r.workspace.slots[op.value], s.in[op.value], SIZE * 4);
        const int32_t token = 0;
        qmi_sequence sequence = { .count = 1, .start = TOKENS - 1, .pages = r.pages };
        qmi_batch batch = { .count = 1, .tokens = &token, .sequence_count = 1, .sequences = &sequence };
        assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), QM_OK);
        const float *out = (const float *)(uintptr_t)r.workspace.slots[op.out];
        for (int64_t j = 0; j < TOKENS && threads == 1; j++) { /* the run has appended the last one */
            const float *page = (const float *)(uintptr_t)r.pages[j / PAGE];
            const float *key = page + op.key_offset / 4 + j % PAGE * SIZE, *value = page + op.value_offset / 4 + j % PAGE * SIZE;
            double weight = exp((key[0] * (double)s.in[op.query][0] + key[1] * (double)s.in[op.query][1]) / sqrt(2.0));
            sum += weight;
            expected[0] += weight * value[0];
            expected[1] += weight * value[1];
        }
        if (threads == 1) {
            memcpy(first, out, sizeof first);
            expected[0] /= sum;
            expected[1] /= sum;
        }
        /* The values average out to about 0.005, so errors of their sum weigh more. */
        assert_true(relative_error(out, expected, SIZE) < 1e-3);
        assert_memory_equal(out, first, sizeof first);
        close_rig(&s, &r);
    }
    end_scene(&s);
}

/* Two sequences in one batch give what each gives alone, whatever their lengths. */
static void test_together(void **state)
{
    (void)state;
    enum { ROWS = 7 };
    qmi_op_attend op;
    shape p = { 40, 4, 2, 16, 8, 8, QMI_KV_F16, QMI_KV_F16, true, true, false, 0, false };
    scene s = make_scene(&p, &op);
    int64_t width = s.program.slots[s.out].width;
    float alone[40 * 64];
    play(&s, "auto", 1, 40, alone);
    for (int32_t threads = 1; threads <= 3; threads++) {
        /* Both sequences get the same 40 tokens: the first in threes, the second in fours. */
        rig r = open_rig(&s, "auto", threads, ROWS), other = open_rig(&s, "auto", 1, 1);
        const int32_t tokens[ROWS] = { 0 };
        for (int32_t step = 0; step < 10; step++) {
            qmi_sequence sequences[2] = { { .first = 0, .count = 3, .start = 3 * step, .pages = r.pages },
                                          { .first = 3, .count = 4, .start = 4 * step, .pages = other.pages } };
            qmi_batch batch = { .count = ROWS, .tokens = tokens, .sequence_count = 2, .sequences = sequences };
            for (int32_t row = 0; row < ROWS; row++)
                for (int32_t i = 0; i < s.program.slot_count; i++) {
                    int64_t token = row < 3 ? 3 * step + row : 4 * step + row - 3, slot_width = s.program.slots[i].width;
                    if (s.in[i])
                        memcpy((float *)(uintptr_t)r.workspace.slots[i] + row * slot_width, s.in[i] + token * slot_width,
                               (size_t)slot_width * 4);
                }
            assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), QM_OK);
            const float *out = (const float *)(uintptr_t)r.workspace.slots[s.out];
            assert_memory_equal(out, alone + 3 * step * width, (size_t)width * 3 * 4);
            assert_memory_equal(out + 3 * width, alone + 4 * step * width, (size_t)width * 4 * 4);
        }
        close_rig(&s, &other);
        close_rig(&s, &r);
    }
    end_scene(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_many_spans),
        cmocka_unit_test(test_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
