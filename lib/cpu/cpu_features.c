/* Instruction sets: what is there, what is used. See cpu_features.h. */
#include "cpu/cpu_features.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include "base/os.h"

#if defined(__x86_64__)
#include <cpuid.h>

typedef struct registers {
    unsigned a, b, c, d;
} registers;

static registers cpuid(unsigned leaf, unsigned part)
{
    registers r = { 0, 0, 0, 0 };
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d); /* leaves zeros when the leaf is not there */
    return r;
}

static uint64_t saved_states(void) /* XCR0: which registers the operating system saves */
{
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (uint64_t)high << 32;
}

static int bit(unsigned word, int index)
{
    return word >> index & 1;
}

/* Bits: Intel SDM volume 2, CPUID leaves 1 and 7; volume 1, section 13.3 for XCR0. */
uint32_t qmi_cpu_features_present(void)
{
    registers one = cpuid(1, 0), seven = cpuid(7, 0);
    uint32_t features = 0;
    if (!bit(one.c, 27)) /* OSXSAVE */
        return 0;
    uint64_t saved = saved_states();
    if ((saved & 0x06) == 0x06 && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5))
        features |= QMI_CPU_AVX2; /* AVX, FMA, F16C, AVX2 */
    if (features && (saved & 0xE6) == 0xE6 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31))
        features |= QMI_CPU_AVX512; /* F, DQ, BW, VL */
    if ((features & QMI_CPU_AVX512) && bit(seven.c, 11))
        features |= QMI_CPU_AVX512_VNNI;
    if ((features & QMI_CPU_AVX512_VNNI) && (saved & 0x60000) == 0x60000 && bit(seven.d, 24) && bit(seven.d, 25))
        features |= QMI_CPU_AMX; /* TILE, INT8 */
    if (features && seven.a >= 1 && bit(cpuid(7, 1).a, 4)) /* leaf 7 tells in eax its last part */
        features |= QMI_CPU_AVX_VNNI;
    return features;
}

void qmi_cpu_features_name(char *name, int32_t size)
{
    char brand[49] = { 0 };
    if (cpuid(0x80000000u, 0).a >= 0x80000004u)
        for (unsigned i = 0; i < 3; i++) {
            registers r = cpuid(0x80000002u + i, 0);
            memcpy(brand + 16 * i, &r, sizeof r);
        }
    for (size_t length = strlen(brand); length > 0 && brand[length - 1] == ' '; length--)
        brand[length - 1] = 0;
    const char *start = brand + strspn(brand, " ");
    snprintf(name, (size_t)size, "%s", *start ? start : "x86-64");
}
#else
uint32_t qmi_cpu_features_present(void)
{
    return 0;
}

void qmi_cpu_features_name(char *name, int32_t size)
{
#if defined(__aarch64__)
    snprintf(name, (size_t)size, "aarch64");
#else
    snprintf(name, (size_t)size, "CPU");
#endif
}
#endif

uint32_t qmi_cpu_features_chosen(const char *isa)
{
    uint32_t present = qmi_cpu_features_present();
    const bool any = !isa || strcmp(isa, "auto") == 0;
    if (any || strcmp(isa, "amx") == 0) {
        if ((present & QMI_CPU_AMX) && !qmi_os_allow_tiles())
            present &= ~(uint32_t)QMI_CPU_AMX;
        /* The first processors with AVX-512 (without VNNI) run slower clocks while it is in use, and reading weights, which is
         * most of the work, is not faster with it. */
        return any && !(present & QMI_CPU_AVX512_VNNI) ? present & (QMI_CPU_AVX2 | QMI_CPU_AVX_VNNI) : present;
    }
    if (strcmp(isa, "avx512") == 0)
        return present & ~(uint32_t)QMI_CPU_AMX;
    return strcmp(isa, "avx2") == 0 ? present & QMI_CPU_AVX2 : 0;
}
