/* cuda/pick.cu on the emulator: the highest logits are those of a sort. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

#include "pick.h"

#define ROWS 3
#define ROOM 5000

static int higher_first(const void *a, const void *b)
{
    const qmi_pick *x = (const qmi_pick *)a, *y = (const qmi_pick *)b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

static float logit_at(int row, int i)
{
    if (row == 1 && i > 7)
        return i % 2 ? -INFINITY : NAN;
    return (float)((i * 7919 + row * 104729) % 1009) / 50 - 10; /* with equal ones */
}

static void check(int width)
{
    static float logits[ROWS * ROOM];
    static qmi_pick sorted[ROOM], picks[ROWS * QMI_PICKS_MAX];
    cuda_run run = {};
    float *there = NULL;
    qmi_pick *out = NULL;
    run.outputs = ROWS;
    for (int i = 0; i < ROWS * width; i++)
        logits[i] = logit_at(i / width, i % width);
    assert_int_equal(cudaStreamCreate(&run.stream), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&there, sizeof logits), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&out, sizeof picks), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&run.scratch, (size_t)cuda_scratch_pick(width, ROWS)), cudaSuccess);
    assert_int_equal(cudaMemcpy(there, logits, sizeof logits, cudaMemcpyHostToDevice), cudaSuccess);
    cuda_pick(&run, there, width, out);
    assert_int_equal(cudaStreamSynchronize(run.stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(picks, out, sizeof picks, cudaMemcpyDeviceToHost), cudaSuccess);
    for (int row = 0; row < ROWS; row++) {
        for (int i = 0; i < width; i++)
            sorted[i] = (qmi_pick){ isnan(logit_at(row, i)) ? -INFINITY : logit_at(row, i), i };
        qsort(sorted, (size_t)width, sizeof *sorted, higher_first);
        for (int i = 0; i < QMI_PICKS_MAX; i++) {
            const qmi_pick *got = &picks[row * QMI_PICKS_MAX + i];
            assert_true(got->logit == (i < width ? sorted[i].logit : -INFINITY));
            if (i < width && isfinite(got->logit))
                assert_int_equal(got->id, sorted[i].id);
        }
    }
    cudaFree(there);
    cudaFree(out);
    cudaFree(run.scratch);
    cudaStreamDestroy(run.stream);
}

static void picks_are_those_of_a_sort(void **state)
{
    (void)state;
    const int widths[] = { 10, 32, 2048, 2049, 5000 };
    for (int width : widths)
        check(width);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(picks_are_those_of_a_sort) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
