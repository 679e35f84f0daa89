/* cuda/block.cuh on the emulator: blocks read from the planes unpack to what the file's blocks unpack to, up to a half float's
 * precision, and their product with activations of 8 bits is that of those values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include "block.cuh"

#define ROWS 3
#define COLUMNS 512
#define BLOCKS (ROWS * COLUMNS / 32)

static uint64_t seed = 0x9E3779B97F4A7C15u;

static uint32_t random_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float random_float(void) /* -1 .. 1 */
{
    return (float)(int32_t)random_bits() * 0x1p-31f;
}

static void put_half(uint8_t *at, float value)
{
    const uint16_t half = qmi_float_to_half(value);
    memcpy(at, &half, 2);
}

/* Random codes, and scales of usual size where the format (quant_blocks.h) has them. */
static void make_weights(uint32_t type, uint8_t *bytes)
{
    const qmi_quant_format *format = qmi_quant_format_of(type);
    const int blocks = ROWS * COLUMNS / format->block;
    for (int b = 0; b < blocks; b++, bytes += format->bytes) {
        for (int i = 0; i < format->bytes; i++)
            bytes[i] = (uint8_t)random_bits();
        const float value = random_float();
        if (type == QMI_TYPE_F32)
            memcpy(bytes, &value, 4);
        else if (type == QMI_TYPE_F16)
            put_half(bytes, value);
        else if (type == QMI_TYPE_BF16)
            memcpy(bytes, (const uint8_t *)&value + 2, 2);
        else
            put_half(bytes + (type == QMI_TYPE_Q6_K ? format->bytes - 2 : 0), 0.01f * value);
        if (type == QMI_TYPE_Q4_K || type == QMI_TYPE_Q5_K)
            put_half(bytes + 2, 0.01f * random_float());
    }
}

template <uint32_t T>
static __global__ void unpack_and_dot(cuda_matrix m, const block_activation *activations, uint32_t *pairs, float *dots,
                                      int32_t *places)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    block<T> w;
    chip_wait_for_previous();
    if (i >= BLOCKS)
        return;
    block_load(w, m, i);
    block_unpack(w, i, pairs + 16 * i);
    if constexpr (block_gain<T>() != 1.f)
        dots[i] = block_dot(w, i, activations[i]);
    if (i < 32)
        places[i] = block_place(i);
}

typedef struct scene {
    uint8_t file[ROWS * COLUMNS * 4];
    float weights[ROWS * COLUMNS], values[ROWS * COLUMNS]; /* values: of the activations */
    block_activation activations[BLOCKS];
    uint32_t pairs[BLOCKS * 16];
    float dots[BLOCKS];
    int32_t places[32];
} scene;

static void make_activations(scene *s)
{
    for (int i = 0; i < BLOCKS; i++) {
        block_activation *a = &s->activations[i];
        int sums[2] = { 0, 0 };
        a->scale = fabsf(random_float());
        for (int v = 0; v < 32; v++) {
            const int q = (int)(random_bits() % 255) - 127;
            uint4 *half = v < 16 ? &a->low : &a->high;
            ((int8_t *)half)[v & 15] = (int8_t)q;
            sums[v >> 4] += q;
            s->values[32 * i + v] = (float)q * a->scale;
        }
        a->sums = (uint32_t)(sums[0] & 0xffff) | (uint32_t)sums[1] << 16;
    }
}

template <uint32_t T> static void run_kernel(scene *s)
{
    qmi_matrix matrix = {};
    qmi_cuda_planes planes;
    cuda_run run = {};
    uint8_t *data, *host;
    block_activation *activations;
    uint32_t *pairs;
    float *dots;
    int32_t *places;
    matrix.type = T;
    matrix.columns = COLUMNS;
    matrix.rows = ROWS;
    matrix.count = 1;
    qmi_cuda_planes_of(T, COLUMNS, ROWS, &planes);
    host = (uint8_t *)malloc((size_t)planes.bytes);
    qmi_cuda_reorder(T, COLUMNS, s->file, 0, ROWS, &planes, host);
    assert_int_equal(cudaMalloc(&data, (size_t)planes.bytes), 0);
    assert_int_equal(cudaMalloc(&activations, sizeof s->activations), 0);
    assert_int_equal(cudaMalloc(&pairs, sizeof s->pairs), 0);
    assert_int_equal(cudaMalloc(&dots, sizeof s->dots), 0);
    assert_int_equal(cudaMalloc(&places, sizeof s->places), 0);
    cudaMemcpy(data, host, (size_t)planes.bytes, cudaMemcpyHostToDevice);
    cudaMemcpy(activations, s->activations, sizeof s->activations, cudaMemcpyHostToDevice);
    matrix.data = (qmi_address)data;
    cuda_launch(&run, dim3((BLOCKS + 31) / 32), dim3(32), 0, unpack_and_dot<T>, cuda_matrix_of(&matrix), activations, pairs, dots,
                places);
    cudaMemcpy(s->pairs, pairs, sizeof s->pairs, cudaMemcpyDeviceToHost);
    cudaMemcpy(s->dots, dots, sizeof s->dots, cudaMemcpyDeviceToHost);
    cudaMemcpy(s->places, places, sizeof s->places, cudaMemcpyDeviceToHost);
    assert_int_equal(cudaGetLastError(), 0);
    cudaFree(data);
    cudaFree(activations);
    cudaFree(pairs);
    cudaFree(dots);
    cudaFree(places);
    free(host);
}

template <uint32_t T> static void test_type(void **)
{
    const qmi_quant_format *format = qmi_quant_format_of(T);
    const float gain = block_gain<T>();
    scene *s = (scene *)calloc(1, sizeof *s);
    make_weights(T, s->file);
    make_activations(s);
    format->unpack(s->file, s->weights, ROWS * COLUMNS / format->block);
    run_kernel<T>(s);
    for (int i = 0; i < BLOCKS; i++) {
        const float *w = s->weights + 32 * i;
        float most = 0;
        double dot = 0, size = 0;
        for (int v = 0; v < 32; v++)
            most = fmaxf(most, fabsf(w[v]));
        for (int v = 0; v < 32; v++) {
            const int place = s->places[v];
            const float got = qmi_half_to_float((uint16_t)(s->pairs[16 * i + place / 2] >> 16 * (place & 1))) / gain;
            if (!(fabsf(got - w[v]) <= 0x1p-9f * most))
                fail_msg("%s: block %d, value %d is %g, not %g", format->name, i, v, (double)got, (double)w[v]);
            dot += (double)w[v] * (double)s->values[32 * i + v];
            size += fabs((double)w[v] * (double)s->values[32 * i + v]);
        }
        if (gain != 1.f && !(fabs((double)s->dots[i] - dot) <= 1e-5 * size))
            fail_msg("%s: product of block %d is %g, not %g", format->name, i, (double)s->dots[i], dot);
    }
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_type<QMI_TYPE_F32>),
        cmocka_unit_test(test_type<QMI_TYPE_F16>),
        cmocka_unit_test(test_type<QMI_TYPE_BF16>),
        cmocka_unit_test(test_type<QMI_TYPE_Q8_0>),
        cmocka_unit_test(test_type<QMI_TYPE_Q4_0>),
        cmocka_unit_test(test_type<QMI_TYPE_IQ4_NL>),
        cmocka_unit_test(test_type<QMI_TYPE_Q5_0>),
        cmocka_unit_test(test_type<QMI_TYPE_Q4_K>),
        cmocka_unit_test(test_type<QMI_TYPE_Q5_K>),
        cmocka_unit_test(test_type<QMI_TYPE_Q6_K>),
        cmocka_unit_test(test_type<QMI_TYPE_IQ4_XS>),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
