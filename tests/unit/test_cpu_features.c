/* Instruction sets: what may be used is a part of what is there, and "isa" is an upper limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/os.h"
#include "cpu/cpu_features.h"
#include "cpu/kernels.h"

static void test_limits(void **state)
{
    (void)state;
    uint32_t present = qmi_cpu_features_present();
    assert_int_equal(qmi_cpu_features_chosen("scalar"), 0);
    assert_int_equal(qmi_cpu_features_chosen("avx2"), present & QMI_CPU_AVX2);
    assert_int_equal(qmi_cpu_features_chosen("avx512"), present & ~(uint32_t)QMI_CPU_AMX);
    assert_int_equal(qmi_cpu_features_chosen("amx"), qmi_os_allow_tiles() ? present : present & ~(uint32_t)QMI_CPU_AMX);
    assert_int_equal(qmi_cpu_features_chosen("auto") & ~present, 0);
    assert_int_equal(qmi_cpu_features_chosen(NULL), qmi_cpu_features_chosen("auto"));
    if (present & QMI_CPU_AVX512_VNNI)
        assert_true(present & QMI_CPU_AVX512);
    if (present & QMI_CPU_AMX)
        assert_true(present & QMI_CPU_AVX512_VNNI);
    if (present & QMI_CPU_AVX_VNNI)
        assert_true(present & QMI_CPU_AVX2);
    if (present & QMI_CPU_AVX512)
        assert_true(present & QMI_CPU_AVX2);
#if defined(__x86_64__) && defined(__GNUC__)
    assert_int_equal(!!(present & QMI_CPU_AVX2), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
    assert_int_equal(!!(present & QMI_CPU_AVX512), __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"));
#endif
}

/* Each instruction set adds to the table; no entry that scalar has gets lost, and formats are known. */
static void test_tables(void **state)
{
    (void)state;
    static const char *const isas[] = { "scalar", "avx2", "avx512", "amx", "auto" };
    qmi_cpu_kernels scalar, kernels;
    qmi_cpu_kernels_fill(&scalar, 0);
    assert_string_equal(scalar.isa, "scalar");
    for (int i = 0; i < 5; i++) {
        qmi_cpu_kernels_fill(&kernels, qmi_cpu_features_chosen(isas[i]));
        for (int type = 0; type < QMI_TYPE_COUNT; type++) {
            assert_true(!scalar.dot[type] || kernels.dot[type]);
            assert_true(kernels.dot[type] || kernels.format[type] == QMI_FORMAT_F32);
            assert_true(kernels.format[type] == QMI_FORMAT_F32 || qmi_quant_format_of((uint32_t)type)->block % 32 == 0);
        }
        for (int type = 0; type < QMI_KV_TYPES; type++)
            assert_true(kernels.kv[type].scores && kernels.kv[type].mix && kernels.kv[type].store);
        assert_true(kernels.dot[QMI_TYPE_F32] && kernels.format[QMI_TYPE_F32] == QMI_FORMAT_F32);
    }
}

static void test_name(void **state)
{
    (void)state;
    char name[128] = "", little[4];
    qmi_cpu_features_name(name, sizeof name);
    assert_true(strlen(name) > 0);
    assert_true(name[0] != ' ' && name[strlen(name) - 1] != ' ');
    qmi_cpu_features_name(little, sizeof little);
    assert_true(strlen(little) <= 3 && strncmp(little, name, strlen(little)) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
