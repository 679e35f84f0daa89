/* Device functions that g++ lacks: atomics, bits, conversions, arithmetic. Included by emulator.h. */
#ifndef QMI_EMULATOR_MATH_H
#define QMI_EMULATOR_MATH_H

/* ---- atomics: fibers are never interrupted ---- */
#define EMULATOR_ATOMIC(name, expression) \
    template <class T, class V> EMULATOR_UNSEEN static inline T name(T *at, V value) \
    { \
        emulator_touch(at, sizeof *at, true, true); \
        T old = *at, v = (T)value; \
        *at = (T)(expression); \
        return old; \
    }
EMULATOR_ATOMIC(atomicAdd, old + v)
EMULATOR_ATOMIC(atomicSub, old - v)
EMULATOR_ATOMIC(atomicExch, v)
EMULATOR_ATOMIC(atomicMin, old < v ? old : v)
EMULATOR_ATOMIC(atomicMax, old > v ? old : v)
EMULATOR_ATOMIC(atomicAnd, old & v)
EMULATOR_ATOMIC(atomicOr, old | v)
EMULATOR_ATOMIC(atomicXor, old ^ v)
EMULATOR_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef EMULATOR_ATOMIC
template <class T, class C, class V> EMULATOR_UNSEEN static inline T atomicCAS(T *at, C compare, V value)
{
    emulator_touch(at, sizeof *at, true, true);
    T old = *at;
    if (old == (T)compare)
        *at = (T)value;
    return old;
}

/* ---- loads and stores with hints ---- */
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline T __ldca(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldlu(const T *p) { return *p; }
template <class T> static inline T __ldcv(const T *p) { return *p; }
template <class T> static inline void __stcg(T *p, T v) { *p = v; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }
template <class T> static inline void __stwb(T *p, T v) { *p = v; }
template <class T> static inline void __stwt(T *p, T v) { *p = v; }

/* ---- bits ---- */
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x)
{
    unsigned out = 0;
    for (int i = 0; i < 32; i++)
        out |= (x >> i & 1) << (31 - i);
    return out;
}
/* Each selector nibble: three bits choose one of the eight bytes of y:x, the fourth repeats its sign bit (PTX: prmt). */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> (4 * i) & 15, byte = (unsigned)(bytes >> (8 * (s & 7))) & 255;
        out |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return out;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by)
{
    return (unsigned)(((uint64_t)high << 32 | low) << (by & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31));
}
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __dp4a(int a, int b, int sum)
{
    unsigned out = (unsigned)sum;
    for (int i = 0; i < 4; i++)
        out += (unsigned)((int)(int8_t)(a >> (8 * i)) * (int)(int8_t)(b >> (8 * i)));
    return (int)out;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum)
{
    for (int i = 0; i < 4; i++)
        sum += (a >> (8 * i) & 255) * (b >> (8 * i) & 255);
    return sum;
}
/* Four bytes at once (CUDA math API, SIMD intrinsics). */
#define EMULATOR_BYTES(name, T, expression) \
    static inline unsigned name(unsigned x, unsigned y) \
    { \
        unsigned out = 0; \
        for (int i = 0; i < 4; i++) { \
            int a = (T)(x >> (8 * i)), b = (T)(y >> (8 * i)); \
            out |= ((unsigned)(expression) & 255u) << (8 * i); \
        } \
        return out; \
    }
EMULATOR_BYTES(__vadd4, int8_t, a + b)
EMULATOR_BYTES(__vsub4, int8_t, a - b)
EMULATOR_BYTES(__vsubss4, int8_t, a - b < -128 ? -128 : a - b > 127 ? 127 : a - b)
EMULATOR_BYTES(__vmaxs4, int8_t, a > b ? a : b)
EMULATOR_BYTES(__vmins4, int8_t, a < b ? a : b)
EMULATOR_BYTES(__vmaxu4, uint8_t, a > b ? a : b)
EMULATOR_BYTES(__vminu4, uint8_t, a < b ? a : b)
EMULATOR_BYTES(__vcmpeq4, uint8_t, a == b ? 255 : 0)
EMULATOR_BYTES(__vcmpne4, uint8_t, a != b ? 255 : 0)
#undef EMULATOR_BYTES

/* ---- conversions ---- */
template <class T, class F> static inline T emulator_bits(F from)
{
    T out;
    static_assert(sizeof from == sizeof out, "the same bits");
    memcpy(&out, &from, sizeof out);
    return out;
}
static inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emulator_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
static inline float __int_as_float(int x) { return emulator_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }

/* Out of range: the nearest; NaN: 0. */
static inline int emulator_to_int(float x)
{
    return x != x ? 0 : x >= 2147483648.f ? INT32_MAX : x < -2147483648.f ? INT32_MIN : (int)x;
}
static inline unsigned emulator_to_uint(float x)
{
    return x != x || x <= 0 ? 0 : x >= 4294967296.f ? UINT32_MAX : (unsigned)x;
}
static inline int __float2int_rn(float x) { return emulator_to_int(rintf(x)); }
static inline int __float2int_rz(float x) { return emulator_to_int(truncf(x)); }
static inline int __float2int_ru(float x) { return emulator_to_int(ceilf(x)); }
static inline int __float2int_rd(float x) { return emulator_to_int(floorf(x)); }
static inline unsigned __float2uint_rn(float x) { return emulator_to_uint(rintf(x)); }
static inline unsigned __float2uint_rz(float x) { return emulator_to_uint(truncf(x)); }
static inline unsigned __float2uint_ru(float x) { return emulator_to_uint(ceilf(x)); }
static inline unsigned __float2uint_rd(float x) { return emulator_to_uint(floorf(x)); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }

/* ---- arithmetic ---- */
/* glibc has private declarations of these names, so macros stand in front of them. */
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1. / sqrt((double)x)); }
static inline float rsqrtf(float x) { return (float)(1. / sqrt((double)x)); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.f) : 0.f; }
static inline long long clock64(void) { return 0; }

#define EMULATOR_LEAST(T) \
    static inline T min(T a, T b) { return a < b ? a : b; } \
    static inline T max(T a, T b) { return a > b ? a : b; }
EMULATOR_LEAST(int)
EMULATOR_LEAST(unsigned)
EMULATOR_LEAST(long)
EMULATOR_LEAST(unsigned long)
EMULATOR_LEAST(long long)
EMULATOR_LEAST(unsigned long long)
#undef EMULATOR_LEAST
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
static inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
static inline long min(long a, int b) { return min(a, (long)b); }
static inline long min(int a, long b) { return min((long)a, b); }
static inline long max(long a, int b) { return max(a, (long)b); }
static inline long max(int a, long b) { return max((long)a, b); }

/* ---- half floats: the host's headers lack the fused ones. A product of two halves is exact in float; the sum is rounded in
 * double first, which has bits enough for the second rounding to be right. ---- */
static inline __half __hfma(__half a, __half b, __half c)
{
    return __double2half((double)__half2float(a) * (double)__half2float(b) + (double)__half2float(c));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c)
{
    return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                          __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c)
{
    return __double2bfloat16((double)__bfloat162float(a) * (double)__bfloat162float(b) + (double)__bfloat162float(c));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c)
{
    return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                              __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}

#endif
