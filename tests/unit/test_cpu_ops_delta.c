/* DELTA on the CPU against its formula in double; the state that goes on from batch to batch. */
#include "cpu_scene.h"

typedef struct shape {
    int32_t tokens, key_heads, value_heads, key_size, value_size, taps;
    bool grouped, interleaved, keep_state;
} shape;

static int64_t channels_of(const shape *p)
{
    return 2 * (int64_t)p->key_heads * p->key_size + (int64_t)p->value_heads * p->value_size;
}

static scene make_scene(const shape *p, qmi_op_delta *op)
{
    scene s = { .tokens = p->tokens, .keep_state = p->keep_state };
    int64_t inner = (int64_t)p->value_heads * p->value_size;
    *op = (qmi_op_delta){
        .qkv = make_input(&s, "qkv", channels_of(p)), .z = make_input(&s, "z", inner),
        .beta = make_input(&s, "beta", p->interleaved ? 2 * p->value_heads : p->value_heads),
        .alpha = p->interleaved ? QMI_NO_SLOT : make_input(&s, "alpha", p->value_heads), .out = make_slot(&s, "out", inner),
        .key_heads = p->key_heads, .value_heads = p->value_heads, .key_size = p->key_size, .value_size = p->value_size,
        .taps = p->taps, .grouped = p->grouped, .interleaved = p->interleaved,
        .convolution = make_vector(&s, channels_of(p) * p->taps), .time_bias = make_vector(&s, p->value_heads),
        .decay = make_vector(&s, p->value_heads), .norm = { make_vector(&s, p->value_size), 1e-6f }, .state_offset = 128 };
    for (int32_t h = 0; h < p->value_heads; h++) { /* a decay below 1 */
        float *decay = (float *)(uintptr_t)op->decay.data + h;
        *decay = -fabsf(*decay) - 0.01f;
    }
    s.state_bytes = 128 + 4 * ((p->taps - 1) * channels_of(p) + (int64_t)p->value_heads * p->key_size * p->value_size);
    s.out = op->out;
    append(&s, (qmi_op){ .kind = QMI_OP_DELTA, .layer = 1, .delta = *op });
    return s;
}

/* [tokens][channels]: convolved, queries and keys of unit length, queries scaled. */
static double *ref_convolved(const scene *s, const shape *p, const qmi_op_delta *op)
{
    int64_t channels = channels_of(p);
    double *x = calloc((size_t)(s->tokens * channels), sizeof *x);
    assert_non_null(x);
    for (int32_t t = 0; t < s->tokens; t++) {
        for (int64_t c = 0; c < channels; c++) {
            double sum = 0;
            for (int32_t i = 0; i < p->taps; i++) {
                int32_t time = t + i - (p->taps - 1);
                sum += time < 0 ? 0 : (double)vector_of(&op->convolution)[c * p->taps + i] * s->in[op->qkv][time * channels + c];
            }
            x[t * channels + c] = silu(sum);
        }
        for (int32_t h = 0; h < 2 * p->key_heads; h++) {
            double *head = x + t * channels + (int64_t)h * p->key_size, square = 1e-6;
            for (int32_t i = 0; i < p->key_size; i++)
                square += head[i] * head[i];
            for (int32_t i = 0; i < p->key_size; i++)
                head[i] /= sqrt(square) * (h < p->key_heads ? sqrt((double)p->key_size) : 1);
        }
    }
    return x;
}

/* One step of one value head: S [key_size][value_size], x the token's convolved channels. */
static void ref_step(const shape *p, int32_t h, double beta, double decay, const double *x, double *S, double *out)
{
    int32_t key_head = p->grouped ? h / (p->value_heads / p->key_heads) : h % p->key_heads;
    const double *q = x + (int64_t)key_head * p->key_size, *k = q + (int64_t)p->key_heads * p->key_size;
    const double *v = x + 2 * (int64_t)p->key_heads * p->key_size + (int64_t)h * p->value_size;
    for (int32_t c = 0; c < p->value_size; c++) {
        double recalled = 0;
        out[c] = 0;
        for (int32_t i = 0; i < p->key_size; i++)
            recalled += (S[i * p->value_size + c] *= decay) * k[i];
        for (int32_t i = 0; i < p->key_size; i++)
            out[c] += (S[i * p->value_size + c] += k[i] * beta * (v[c] - recalled)) * q[i];
    }
}

static double *ref_delta(const scene *s, const shape *p, const qmi_op_delta *op)
{
    int64_t inner = (int64_t)p->value_heads * p->value_size, size = (int64_t)p->key_size * p->value_size;
    double *x = ref_convolved(s, p, op), *S = calloc((size_t)size, sizeof *S);
    double *out = calloc((size_t)(s->tokens * inner), sizeof *out);
    assert_non_null(S);
    assert_non_null(out);
    for (int32_t h = 0; h < p->value_heads; h++) {
        memset(S, 0, (size_t)size * sizeof *S);
        for (int32_t t = 0; t < s->tokens; t++) {
            double b, a, *o = out + t * inner + (int64_t)h * p->value_size;
            int32_t per_key = p->value_heads / p->key_heads;
            if (p->interleaved) {
                const float *pair = s->in[op->beta] + (int64_t)t * 2 * p->value_heads + h / per_key * 2 * per_key;
                b = pair[h % per_key];
                a = pair[per_key + h % per_key];
            } else {
                b = s->in[op->beta][t * p->value_heads + h];
                a = s->in[op->alpha][t * p->value_heads + h];
            }
            double decay = exp(vector_of(&op->decay)[h] * log1p(exp(a + vector_of(&op->time_bias)[h])));
            ref_step(p, h, sigmoid(b), decay, x + t * channels_of(p), S, o);
            ref_rms(o, &op->norm, o, p->value_size);
            for (int32_t c = 0; c < p->value_size; c++)
                o[c] *= silu(s->in[op->z][t * inner + (int64_t)h * p->value_size + c]);
        }
    }
    free(x);
    free(S);
    return out;
}

static void check_shape_of(const shape *p)
{
    qmi_op_delta op;
    scene s = make_scene(p, &op);
    double *expected = ref_delta(&s, p, &op);
    check_scene(&s, expected, 5e-6);
    free(expected);
    end_scene(&s);
}

static void test_formula(void **state)
{
    (void)state;
    check_shape_of(&(shape){ 40, 2, 4, 16, 32, 4, false, false, false });
    check_shape_of(&(shape){ 40, 2, 4, 16, 32, 4, true, true, true });
    check_shape_of(&(shape){ 19, 3, 9, 8, 16, 4, true, false, true });
}

/* Fewer heads than workers, so that a head's columns are shared; sizes that are no multiple of a vector; other taps. */
static void test_odd_shapes(void **state)
{
    (void)state;
    check_shape_of(&(shape){ 12, 1, 1, 128, 128, 4, false, false, true });
    check_shape_of(&(shape){ 12, 1, 2, 20, 100, 4, false, false, false });
    check_shape_of(&(shape){ 9, 2, 2, 5, 7, 2, false, false, false });
    check_shape_of(&(shape){ 9, 2, 4, 6, 9, 6, true, true, false });
    check_shape_of(&(shape){ 5, 1, 1, 16, 16, 1, false, false, true });
}

/* Where the next state is another one, the old one stays as it was. */
static void test_old_state_stays(void **state)
{
    (void)state;
    shape p = { 3, 2, 4, 16, 32, 4, false, false, true };
    qmi_op_delta op;
    scene s = make_scene(&p, &op);
    rig r = open_rig(&s, "auto", 2, 3);
    float *before = (float *)(uintptr_t)r.state[0];
    for (int64_t i = 0; i < s.state_bytes / 4; i++)
        before[i] = random_float();
    float *copy = malloc((size_t)s.state_bytes);
    assert_non_null(copy);
    memcpy(copy, before, (size_t)s.state_bytes);
    const int32_t tokens[3] = { 0 };
    qmi_sequence sequence = { .count = 3, .state = r.state[0], .next_state = r.state[1] };
    qmi_batch batch = { .count = 3, .tokens = tokens, .sequence_count = 1, .sequences = &sequence };
    assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), QM_OK);
    assert_memory_equal(before, copy, (size_t)s.state_bytes);
    assert_memory_not_equal((void *)(uintptr_t)r.state[1], copy, (size_t)s.state_bytes);
    free(copy);
    close_rig(&s, &r);
    end_scene(&s);
}

/* Two sequences in one batch give what each gives alone. */
static void test_together(void **state)
{
    (void)state;
    shape p = { 20, 2, 4, 16, 32, 4, false, false, false };
    qmi_op_delta op;
    scene s = make_scene(&p, &op);
    int64_t width = s.program.slots[s.out].width;
    float alone[20 * 128];
    play(&s, "auto", 1, 20, alone);
    for (int32_t threads = 1; threads <= 3; threads++) {
        rig r = open_rig(&s, "auto", threads, 5);
        const int32_t tokens[5] = { 0 };
        for (int32_t step = 0; step < 5; step++) { /* the first in ones, the second in fours */
            qmi_sequence sequences[2] = {
                { .first = 0, .count = 1, .start = step, .state = r.state[0], .next_state = r.state[0] },
                { .first = 1, .count = 4, .start = 4 * step, .state = r.state[1], .next_state = r.state[1] } };
            qmi_batch batch = { .count = 5, .tokens = tokens, .sequence_count = 2, .sequences = sequences };
            for (int32_t i = 0; i < s.program.slot_count; i++) {
                int64_t slot_width = s.program.slots[i].width;
                float *slot = (float *)(uintptr_t)r.workspace.slots[i];
                if (!s.in[i])
                    continue;
                memcpy(slot, s.in[i] + step * slot_width, (size_t)slot_width * 4);
                memcpy(slot + slot_width, s.in[i] + 4 * step * slot_width, (size_t)slot_width * 4 * 4);
            }
            assert_int_equal(qmi_cpu_backend.run(r.device, &s.program, &r.workspace, &batch), QM_OK);
            const float *out = (const float *)(uintptr_t)r.workspace.slots[s.out];
            assert_memory_equal(out, alone + step * width, (size_t)width * 4);
            assert_memory_equal(out + width, alone + 4 * step * width, (size_t)width * 4 * 4);
        }
        close_rig(&s, &r);
    }
    end_scene(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula),
        cmocka_unit_test(test_odd_shapes),
        cmocka_unit_test(test_old_state_stays),
        cmocka_unit_test(test_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
