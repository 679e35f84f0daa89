/* What cuda/chip.cuh does in assembly, in C++. Included by emulator.h; chip.cuh leaves these out when QMI_CUDA_EMULATED is
 * defined. */
#ifndef QMI_EMULATOR_CHIP_H
#define QMI_EMULATOR_CHIP_H

#define CHIP_SHARED(type, name) type *name = (type *)emulator_shared()

static inline void chip_let_next_start(void) { emulator_let_next_start(); }
static inline void chip_wait_for_previous(void) { emulator_waited(); }

/* ---- loads: an address that is not a multiple of the size faults on a card ---- */
template <class T> static inline T emulator_load(const void *p, const char *file, int line)
{
    T v;
    if ((uintptr_t)p % sizeof(T))
        emulator_fault("%s:%d: a load of %zu bytes from %p, which is no multiple of them", file, line, sizeof(T), p);
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint4 chip_load16(const void *p, EMULATOR_PLACE) { return emulator_load<uint4>(p, file, line); }
static inline uint2 chip_load8(const void *p, EMULATOR_PLACE) { return emulator_load<uint2>(p, file, line); }
static inline uint32_t chip_load4(const void *p, EMULATOR_PLACE) { return emulator_load<uint32_t>(p, file, line); }
static inline uint32_t chip_load2(const void *p, EMULATOR_PLACE) { return emulator_load<uint16_t>(p, file, line); }

/* ---- words that card and host share ---- */
EMULATOR_UNSEEN static inline void chip_tell_host(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}
EMULATOR_UNSEEN static inline uint64_t chip_hear_host(const uint64_t *word, uint64_t least, uint64_t limit_ns)
{
    const std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    uint64_t value;
    while ((value = __atomic_load_n(word, __ATOMIC_ACQUIRE)) < least &&
           (uint64_t)(std::chrono::steady_clock::now() - start).count() < limit_ns)
        std::this_thread::yield();
    return value;
}

EMULATOR_UNSEEN static inline uint64_t chip_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- copies to shared memory ---- */
static inline void emulator_copy_some(void *to_shared, const void *from, unsigned bytes, bool real, const char *file, int line)
{
    if ((uintptr_t)to_shared % bytes || (real && (uintptr_t)from % bytes))
        emulator_fault("%s:%d: a copy of %u bytes from %p to %p, not both multiples of that", file, line, bytes, from, to_shared);
    emulator_copy(to_shared, from, real ? bytes : 0, real ? 0 : bytes);
}
static inline void chip_copy16(void *to, const void *from, bool real, EMULATOR_PLACE)
{
    emulator_copy_some(to, from, 16, real, file, line);
}
static inline void chip_copy8(void *to, const void *from, bool real, EMULATOR_PLACE)
{
    emulator_copy_some(to, from, 8, real, file, line);
}
static inline void chip_copy4(void *to, const void *from, bool real, EMULATOR_PLACE)
{
    emulator_copy_some(to, from, 4, real, file, line);
}
static inline void chip_copy_commit(void) { emulator_copy_commit(); }
template <int LEFT> static inline void chip_copy_wait(void) { emulator_copy_wait(LEFT); }
static inline int chip_here(int x) { return x; }

/* ---- moves of matrices between lanes ----
 * ldmatrix: lane 8 i + r gives the address of row r of matrix i. */
EMULATOR_UNSEEN static inline void emulator_load_matrices(emulator_lane *lanes, uint32_t mask, const char **bad)
{
    for (int i = 0; i < 32; i++) {
        uint16_t *out = (uint16_t *)lanes[i].out;
        for (int m = 0; m < 4; m++)
            for (int h = 0; h < 2; h++) { /* halves of the word; argument: turned */
                const int line = i >> 2, place = 2 * (i & 3) + h;
                const int row = lanes[i].argument ? place : line, column = lanes[i].argument ? line : place;
                out[2 * m + h] = ((const uint16_t *)lanes[8 * m + row].in)[column];
            }
    }
    if (mask != ~0u)
        *bad = "ldmatrix needs all lanes of the warp";
}
static inline void emulator_matrices(const char *name, uint32_t out[4], const void *row, int turned, const char *file, int line)
{
    const emulator_lane lane = { row, out, 16, turned, 32 };
    if ((uintptr_t)row % 16)
        emulator_fault("%s:%d: %s of a row at %p, which is no multiple of 16", file, line, name, row);
    emulator_touch(row, 16, false, false);
    emulator_warp(name, emulator_load_matrices, ~0u, &lane, file, line);
}
static inline void chip_load_matrices(uint32_t out[4], const void *row, EMULATOR_PLACE)
{
    emulator_matrices("chip_load_matrices", out, row, 0, file, line);
}
static inline void chip_load_matrices_turned(uint32_t out[4], const void *row, EMULATOR_PLACE)
{
    emulator_matrices("chip_load_matrices_turned", out, row, 1, file, line);
}

EMULATOR_UNSEEN static inline void emulator_turn_matrix(emulator_lane *lanes, uint32_t mask, const char **bad)
{
    for (int i = 0; i < 32 && mask == ~0u; i++)
        for (int h = 0; h < 2; h++) {
            const int row = 2 * (i & 3) + h, column = i >> 2;
            ((uint16_t *)lanes[i].out)[h] = ((const uint16_t *)lanes[4 * row + (column >> 1)].in)[column & 1];
        }
    if (mask != ~0u)
        *bad = "movmatrix needs all lanes of the warp";
}
static inline uint32_t chip_turn_matrix(uint32_t pair, EMULATOR_PLACE)
{
    uint32_t out;
    const emulator_lane lane = { &pair, &out, 4, 0, 32 };
    emulator_warp("chip_turn_matrix", emulator_turn_matrix, ~0u, &lane, file, line);
    return out;
}

static inline uint32_t chip_pack_half(float a, float b)
{
    const float largest = 65504;
    const float x = a < -largest ? -largest : a > largest ? largest : a, y = b < -largest ? -largest : b > largest ? largest : b;
    return __half_as_ushort(__float2half_rn(x)) | (uint32_t)__half_as_ushort(__float2half_rn(y)) << 16;
}

static inline float chip_exp2(float x)
{
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0 : y;
}

/* ---- blocks of a cluster ---- */
static constexpr bool chip_has_clusters(void) { return true; }
static inline void chip_cluster_arrive(EMULATOR_PLACE) { emulator_cluster_arrive(file, line); }
static inline void chip_cluster_wait(EMULATOR_PLACE) { emulator_cluster_wait(file, line); }
static inline void chip_cluster_store(float *own, int rank, float value, EMULATOR_PLACE)
{
    float *to = (float *)emulator_cluster_address(own, rank, file, line);
    emulator_touch(to, sizeof *to, true, false);
    *to = value;
}

/* ---- arithmetic ---- */
static inline int chip_dot4(uint32_t codes, uint32_t values, int sum)
{
    for (int i = 0; i < 4; i++)
        sum += (int)(codes >> (8 * i) & 255) * (int)(int8_t)(values >> (8 * i));
    return sum;
}

/* ---- tensor cores: mma.m16n8k16, fragments as chip.cuh describes them ---- */
typedef struct emulator_fragments { uint32_t a[4], b[2]; float c[4]; } emulator_fragments;

static inline float emulator_half(uint32_t pair, int i)
{
    return __half2float(__ushort_as_half((unsigned short)(pair >> (16 * i))));
}
static inline float emulator_bfloat(uint32_t pair, int i)
{
    return __uint_as_float(pair >> (16 * i) << 16);
}

template <float (*UNPACK)(uint32_t, int)>
EMULATOR_UNSEEN static void emulator_mma(emulator_lane *lanes, uint32_t mask, const char **bad)
{
    float a[16][16], b[16][8], c[16][8];
    if (mask != ~0u) {
        *bad = "mma needs all lanes of the warp";
        return;
    }
    for (int i = 0; i < 32; i++) {
        const emulator_fragments *f = (const emulator_fragments *)lanes[i].in;
        const int g = i >> 2, t = i & 3;
        for (int j = 0; j < 2; j++) {
            for (int r = 0; r < 4; r++)
                a[g + 8 * (r & 1)][2 * t + 8 * (r >> 1) + j] = UNPACK(f->a[r], j);
            for (int r = 0; r < 2; r++)
                b[2 * t + 8 * r + j][g] = UNPACK(f->b[r], j);
        }
        for (int r = 0; r < 4; r++)
            c[g + 8 * (r >> 1)][2 * t + (r & 1)] = f->c[r];
    }
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++)
            for (int k = 0; k < 16; k++)
                c[m][n] += a[m][k] * b[k][n];
    for (int i = 0; i < 32; i++)
        for (int r = 0; r < 4; r++)
            ((float *)lanes[i].out)[r] = c[(i >> 2) + 8 * (r >> 1)][2 * (i & 3) + (r & 1)];
}

template <float (*UNPACK)(uint32_t, int)>
EMULATOR_UNSEEN static inline void emulator_multiply(const char *name, float c[4], const uint32_t a[4], uint32_t b0,
                                                     uint32_t b1, const char *file, int line)
{
    const emulator_fragments f = { { a[0], a[1], a[2], a[3] }, { b0, b1 }, { c[0], c[1], c[2], c[3] } };
    const emulator_lane lane = { &f, c, sizeof f, 0, 32 };
    emulator_warp(name, emulator_mma<UNPACK>, ~0u, &lane, file, line);
}
static inline void chip_mma_half(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, EMULATOR_PLACE)
{
    emulator_multiply<emulator_half>("chip_mma_half", c, a, b0, b1, file, line);
}
static inline void chip_mma_bfloat(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, EMULATOR_PLACE)
{
    emulator_multiply<emulator_bfloat>("chip_mma_bfloat", c, a, b0, b1, file, line);
}

/* mma.m16n8k32 of bytes; argument: whether a is signed. The half of it has zeros for the rest of k. */
typedef struct emulator_bytes { uint32_t a[4], b[2]; int c[4]; } emulator_bytes;

EMULATOR_UNSEEN static void emulator_mma_bytes(emulator_lane *lanes, uint32_t mask, const char **bad)
{
    if (mask != ~0u) {
        *bad = "mma needs all lanes of the warp";
        return;
    }
    for (int i = 0; i < 32; i++)
        for (int r = 0; r < 4; r++) {
            int sum = ((const emulator_bytes *)lanes[i].in)->c[r];
            for (int k = 0; k < 32; k++) {
                const int t = k >> 2 & 3, row = (i >> 2) + 8 * (r >> 1), column = 2 * (i & 3) + (r & 1);
                const emulator_bytes *a = (const emulator_bytes *)lanes[4 * (row & 7) + t].in;
                const emulator_bytes *b = (const emulator_bytes *)lanes[4 * column + t].in;
                const uint32_t x = a->a[(row >> 3) + 2 * (k >> 4)] >> (8 * (k & 3)) & 255;
                sum += (lanes[i].argument ? (int)(int8_t)x : (int)x) * (int)(int8_t)(b->b[k >> 4] >> (8 * (k & 3)));
            }
            ((int *)lanes[i].out)[r] = sum;
        }
}
template <bool SIGNED> static inline void chip_mma_bytes(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, EMULATOR_PLACE)
{
    const emulator_bytes f = { { a[0], a[1], a[2], a[3] }, { b0, b1 }, { c[0], c[1], c[2], c[3] } };
    const emulator_lane lane = { &f, c, sizeof f, SIGNED, 32 };
    emulator_warp("chip_mma_bytes", emulator_mma_bytes, ~0u, &lane, file, line);
}
static inline void chip_mma_bytes_half(int c[4], uint32_t a0, uint32_t a1, uint32_t b, EMULATOR_PLACE)
{
    const uint32_t a[4] = { a0, a1, 0, 0 };
    chip_mma_bytes<false>(c, a, b, 0, file, line);
}

#endif
