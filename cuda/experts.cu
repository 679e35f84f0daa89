/* EXPERTS for many rows: pairs (token, choice) sorted by expert, so that an expert's weights are read for tiles of its tokens.
 *
 *   prepare    one block sorts the pairs and lists the tiles, the others convert the tokens
 *   product    gate and up of each pair, silu(gate) * up    [pairs][F]    (and of the shared expert, [n][F])
 *   convert
 *   product    down                                         [pairs][D]    (and of the shared expert)
 *   combine    adds each token's products to the residual, in the order of its choices
 *
 * Where experts have few tokens each, rows are of 8 bits, as in decoding, and the first product writes such rows.
 *
 * Floors, n tokens, E experts of which A have tokens: bytes of A x 3 D F weights (few tokens); 6 n top D F operations (many). The
 * products of down pass through memory as floats: 8 n top D bytes. */
#include "convert.cuh"
#include "matmul.cuh"

#define SORT_WARPS 16
#define SORT_THREADS (SORT_WARPS * QMI_WARP)
#define SORT_SHARED 49152
#define SORT_AHEAD 8        /* loads of a thread under way together */

typedef struct sort_work {
    const float *route;        /* [n][2 top + 1], the choices in front */
    int32_t rows, top, experts;
    int32_t tokens;            /* of a tile at most */
    int32_t *counts;           /* [SORT_WARPS + 1][experts], where they do not fit in shared memory */
    int32_t *token, *place;    /* [pairs]: of each sorted pair its token; where each pair went */
    matmul_tile *tiles;
    int32_t *tile_count;
} sort_work;

/* Exclusive sums of two numbers over the block's threads, and the totals. */
static __device__ __forceinline__ int2 sort_scan(int2 value, int2 *total)
{
    __shared__ int2 sums[SORT_WARPS];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int2 sum = value, before = make_int2(0, 0);
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
        int x = __shfl_up_sync(~0u, sum.x, o), y = __shfl_up_sync(~0u, sum.y, o);
        if (lane >= o) {
            sum.x += x;
            sum.y += y;
        }
    }
    __syncthreads();
    if (lane == 31)
        sums[warp] = sum;
    __syncthreads();
    *total = make_int2(0, 0);
    for (int w = 0; w < SORT_WARPS; w++) {
        if (w == warp)
            before = *total;
        total->x += sums[w].x;
        total->y += sums[w].y;
    }
    return make_int2(before.x + sum.x - value.x, before.y + sum.y - value.y);
}

static __device__ __forceinline__ int sort_expert(const sort_work &work, int pair)
{
    int token = pair / work.top;
    return (int)work.route[(int64_t)token * (2 * work.top + 1) + (pair - token * work.top)];
}

/* The experts of pairs i, i + 32, ..., loaded together; the number of experts for those from `last` on. */
static __device__ __forceinline__ void sort_experts(const sort_work &work, int i, int last, int (&out)[SORT_AHEAD])
{
#pragma unroll
    for (int j = 0; j < SORT_AHEAD; j++)
        out[j] = i + 32 * j < last ? sort_expert(work, i + 32 * j) : work.experts;
}

/* A stable counting sort by one block: each warp has a run of pairs, counts[w][e] becomes where its first pair of e goes. */
static __device__ __forceinline__ void sort_pairs(const sort_work &work)
{
    CHIP_SHARED(int32_t, shared);
    const int experts = work.experts, pairs = work.rows * work.top, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int32_t *counts = work.counts ? work.counts : shared, *own = counts + (int64_t)warp * experts;
    const int run = (pairs + SORT_THREADS - 1) / SORT_THREADS * 32, first = warp * run, last = min(first + run, pairs);
    for (int e = lane; e < experts; e += 32)
        own[e] = 0;
    __syncwarp();
    for (int i0 = first; i0 < last; i0 += 32 * SORT_AHEAD) {
        int e[SORT_AHEAD];
        sort_experts(work, i0 + lane, last, e);
#pragma unroll
        for (int j = 0; j < SORT_AHEAD; j++)
            if (e[j] < experts)
                atomicAdd(&own[e[j]], 1);
    }
    __syncthreads();

    int2 base = make_int2(0, 0); /* pairs, tiles of the experts before */
    for (int e0 = 0; e0 < experts; e0 += SORT_THREADS) {
        int e = e0 + threadIdx.x, count = 0;
        if (e < experts)
            for (int w = 0; w < SORT_WARPS; w++)
                count += counts[w * experts + e];
        int tiles = (count + work.tokens - 1) / work.tokens;
        int2 total, at = sort_scan(make_int2(count, tiles), &total);
        at.x += base.x;
        at.y += base.y;
        base.x += total.x;
        base.y += total.y;
        if (e >= experts)
            continue;
        const int group = min(8, work.tokens);
        int size = tiles ? ((count + tiles - 1) / tiles + group - 1) / group * group : 0; /* alike, of whole groups of eight */
        for (int i = 0; i < tiles; i++) {
            matmul_tile tile = { e, at.x + i * size, min(size, count - i * size), 0 };
            work.tiles[at.y + i] = tile;
        }
        for (int w = 0, start = at.x; w < SORT_WARPS; w++) {
            int here = counts[w * experts + e];
            counts[w * experts + e] = start;
            start += here;
        }
    }
    if (threadIdx.x == 0)
        *work.tile_count = base.y;
    __syncthreads();

    for (int i0 = first; i0 < last; i0 += 32 * SORT_AHEAD) {
        int ahead[SORT_AHEAD];
        sort_experts(work, i0 + lane, last, ahead);
#pragma unroll
        for (int j = 0; j < SORT_AHEAD; j++) {
            if (i0 + 32 * j >= last)
                break;
            const int i = i0 + 32 * j + lane, e = ahead[j];
            uint32_t same = __match_any_sync(~0u, e);
            int start = e < experts ? own[e] : 0, rank = __popc(same & ((1u << lane) - 1));
            __syncwarp();
            if (e < experts) {
                if (rank == 0)
                    own[e] = start + __popc(same);
                work.token[start + rank] = i / work.top;
                work.place[i] = start + rank;
            }
            __syncwarp();
        }
    }
}

static __global__ void __launch_bounds__(SORT_THREADS) prepare_kernel(const __grid_constant__ sort_work sort,
                                                                      const __grid_constant__ convert_work convert)
{
    chip_let_next_start();
    chip_wait_for_previous();
    if (blockIdx.x == 0)
        sort_pairs(sort);
    else
        convert_block(convert, blockIdx.x - 1);
}

/* ---- combine: out += sum over choices of weight * product, the shared expert last. A thread: a token's column, or four. ---- */

typedef struct combine_work {
    const float *route, *products, *shared; /* shared: NULL: none */
    const int32_t *place;
    float *out;
    int32_t rows, top, columns;
} combine_work;

template <int WIDTH> static __global__ void combine_kernel(const __grid_constant__ combine_work work)
{
    chip_let_next_start();
    chip_wait_for_previous();
    const int width = work.columns / WIDTH, top = work.top;
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= (int64_t)work.rows * width)
        return;
    const int64_t token = i / width, column = (i - token * width) * WIDTH;
    const float *route = work.route + token * (2 * top + 1) + top;
    float sums[WIDTH] = {};
    for (int k = 0; k <= top; k++) {
        const float *from = k < top ? work.products + (int64_t)work.place[token * top + k] * work.columns :
                            work.shared ? work.shared + token * work.columns : NULL;
        if (!from)
            break;
        if constexpr (WIDTH == 4) {
            float4 x = *(const float4 *)(from + column);
            sums[0] += route[k] * x.x;
            sums[1] += route[k] * x.y;
            sums[2] += route[k] * x.z;
            sums[3] += route[k] * x.w;
        } else
            sums[0] += route[k] * from[column];
    }
    float *out = work.out + token * work.columns + column;
    if constexpr (WIDTH == 4) {
        float4 x = *(float4 *)out;
        *(float4 *)out = make_float4(x.x + sums[0], x.y + sums[1], x.z + sums[2], x.w + sums[3]);
    } else
        *out += sums[0];
}

/* ---- the op ---- */

typedef struct experts_room {
    matmul_input hidden, act, shared_act;
    int32_t *token, *place, *tile_count, *counts;
    matmul_tile *tiles;
    float *inner, *up;         /* [pairs][F]; up: only where gate and up are of different types */
    float *shared_inner, *shared_up;
    float *products, *shared_products; /* [pairs][D], [n][D] */
} experts_room;

static int32_t inner_width(const qmi_op_experts *op)
{
    return (int32_t)(op->up.data ? op->gate.rows : op->gate.rows / 2);
}

/* Of `tokens` rows, of which a multiple of eight may be rounded up. For any size of tile that a batch of so many rows or fewer
 * has. */
static int32_t most_tiles(const qmi_op_experts *op, int64_t pairs, int32_t tokens)
{
    int64_t most = op->gate.count + pairs / tokens;
    return (int32_t)(pairs < most ? pairs : most);
}

/* Rows of an expert, on the average, decide. */
static int32_t tile_tokens(const qmi_op_experts *op, int32_t rows)
{
    int64_t average = (int64_t)rows * op->top / op->gate.count;
    return average <= 6 ? 16 : average <= 24 ? 32 : 128;
}

/* Whether the kernel for few tokens has all the products. */
static bool is_for_few(const cuda_run *run, const qmi_op_experts *op)
{
    const qmi_matrix *matrices[] = { &op->gate, &op->up, &op->down, &op->shared_gate, &op->shared_up, &op->shared_down };
    bool few = (int64_t)run->rows * op->top <= 3 * op->gate.count;
    for (const qmi_matrix *matrix : matrices)
        few &= !matrix->data || matmul_few_takes(run, matrix);
    return few;
}

static int32_t most_passes(const qmi_matrix *a, const qmi_matrix *b, const qmi_matrix *c, const qmi_matrix *d)
{
    int32_t most = 1;
    for (const qmi_matrix *matrix : { a, b, c, d })
        if (matrix->data && matmul_passes(matrix->type) > most)
            most = matmul_passes(matrix->type);
    return most;
}

static experts_room lay_out(const qmi_op_experts *op, int32_t rows, matmul_room *room)
{
    experts_room out = {};
    const int64_t pairs = (int64_t)rows * op->top, inner = inner_width(op), width = op->down.rows;
    out.hidden = matmul_take_input(room, rows, op->gate.columns,
                                   most_passes(&op->gate, &op->up, &op->shared_gate, &op->shared_up));
    out.act = matmul_take_input(room, pairs, inner, matmul_passes(op->down.type));
    out.token = (int32_t *)matmul_take(room, pairs, sizeof(int32_t));
    out.place = (int32_t *)matmul_take(room, pairs, sizeof(int32_t));
    out.tile_count = (int32_t *)matmul_take(room, 1, sizeof(int32_t));
    if (SORT_WARPS * op->gate.count * (int64_t)sizeof(int32_t) > SORT_SHARED)
        out.counts = (int32_t *)matmul_take(room, SORT_WARPS * op->gate.count, sizeof(int32_t));
    out.tiles = (matmul_tile *)matmul_take(room, most_tiles(op, pairs, MATMUL_FEW_TOKENS), sizeof(matmul_tile));
    out.inner = (float *)matmul_take(room, pairs * inner, sizeof(float));
    if (op->up.data && op->up.type != op->gate.type)
        out.up = (float *)matmul_take(room, pairs * inner, sizeof(float));
    out.products = (float *)matmul_take(room, pairs * width, sizeof(float));
    if (op->shared_gate.data) {
        int64_t shared = op->shared_gate.rows;
        out.shared_act = matmul_take_input(room, rows, shared, matmul_passes(op->shared_down.type));
        out.shared_inner = (float *)matmul_take(room, rows * shared, sizeof(float));
        if (op->shared_up.type != op->shared_gate.type)
            out.shared_up = (float *)matmul_take(room, rows * shared, sizeof(float));
        out.shared_products = (float *)matmul_take(room, rows * width, sizeof(float));
    }
    return out;
}

int64_t experts_scratch(const qmi_op_experts *op, int32_t rows)
{
    matmul_room room = {};
    lay_out(op, rows, &room);
    return room.used;
}

static void prepare(const cuda_run *run, const qmi_op_experts *op, const experts_room *room, int32_t tokens, bool few)
{
    sort_work sort = { cuda_slot(run, op->route), run->rows, op->top, (int32_t)op->gate.count, tokens, room->counts, room->token,
                       room->place, room->tiles, room->tile_count };
    convert_work convert = {};
    convert.part[0].from = cuda_slot(run, op->hidden);
    convert.part[0].columns = (int32_t)op->gate.columns;
    convert.part[0].rows = run->rows;
    if (few)
        convert.part[0].bytes = (matmul_bytes *)room->hidden.x;
    else
        convert.part[0].to = room->hidden;
    int32_t blocks = convert_plan(&convert, 1, SORT_WARPS);
    size_t shared = room->counts ? 0 : SORT_WARPS * op->gate.count * sizeof(int32_t);
    cuda_launch(run, dim3(1 + blocks), dim3(SORT_THREADS), shared, prepare_kernel, sort, convert);
}

/* Gate and up of all pairs, or (shared) of all tokens: one part that joins them, or two when their types differ. */
static int32_t inner_parts(const cuda_run *run, const qmi_op_experts *op, const experts_room *room, const matmul_part *tiled,
                           bool shared, bool few, matmul_part *parts)
{
    const qmi_matrix *gate = shared ? &op->shared_gate : &op->gate, *up = shared ? &op->shared_up : &op->up;
    float *out = shared ? room->shared_inner : room->inner, *up_out = shared ? room->shared_up : room->up;
    matmul_part part = {};
    if (!shared)
        part = *tiled;
    part.tokens = run->rows;
    part.in = room->hidden;
    part.passes = matmul_passes(gate->type);
    part.bytes = few ? (matmul_bytes *)room->hidden.x : NULL;
    part.gather = shared ? NULL : room->token;
    part.a = cuda_matrix_of(gate);
    part.rows = part.out_stride = shared ? (int32_t)gate->rows : inner_width(op);
    part.out = out;
    part.mode = MATMUL_GLU;
    if (!up->data) {
        part.b = part.a;
        part.b_first = part.rows;
    } else if (up->type == gate->type)
        part.b = cuda_matrix_of(up);
    else {
        part.mode = MATMUL_STORE;
        parts[1] = part;
        parts[1].passes = matmul_passes(up->type);
        parts[1].a = cuda_matrix_of(up);
        parts[1].out = up_out;
    }
    if (few && part.mode == MATMUL_GLU)
        part.out_bytes = (matmul_bytes *)(shared ? room->shared_act.x : room->act.x);
    parts[0] = part;
    return part.mode == MATMUL_GLU ? 1 : 2;
}

static matmul_part down_part(const cuda_run *run, const qmi_matrix *down, const matmul_input *act, bool few, float *out)
{
    matmul_part part = {};
    part.tokens = run->rows;
    part.in = *act;
    part.passes = matmul_passes(down->type);
    part.bytes = few ? (matmul_bytes *)act->x : NULL;
    part.a = cuda_matrix_of(down);
    part.rows = part.out_stride = (int32_t)down->rows;
    part.out = out;
    part.mode = MATMUL_STORE;
    return part;
}

static convert_part act_part(const float *inner, int32_t columns, int32_t rows, const matmul_input *to, bool few)
{
    convert_part part = {};
    part.from = inner;
    part.columns = columns;
    part.rows = rows;
    if (few)
        part.bytes = (matmul_bytes *)to->x;
    else
        part.to = *to;
    return part;
}

static void combine(const cuda_run *run, const qmi_op_experts *op, const experts_room *room)
{
    combine_work work = { cuda_slot(run, op->route), room->products, room->shared_products, room->place, cuda_slot(run, op->out),
                          run->rows, op->top, (int32_t)op->down.rows };
    const int width = work.columns % 4 ? 1 : 4;
    const dim3 grid(matmul_ceil((int64_t)run->rows * (work.columns / width), 256));
    cuda_launch(run, grid, dim3(256), 0, width == 4 ? combine_kernel<4> : combine_kernel<1>, work);
}

void cuda_matmul_experts(const cuda_run *run, const qmi_op_experts *op)
{
    matmul_room scratch = { run->scratch, 0 };
    const experts_room room = lay_out(op, run->rows, &scratch);
    const bool few = is_for_few(run, op), shared = op->shared_gate.data != 0;
    const int32_t tokens = few ? MATMUL_FEW_TOKENS : tile_tokens(op, run->rows);
    const int32_t pairs = run->rows * op->top, inner = inner_width(op);
    matmul_part tiled = {}, parts[4];
    tiled.tiles = room.tiles;
    tiled.tile_count = room.tile_count;
    tiled.token_tiles = most_tiles(op, pairs, tokens);

    prepare(run, op, &room, tokens, few);
    int32_t count = inner_parts(run, op, &room, &tiled, false, few, parts), acts = 0;
    if (shared)
        count += inner_parts(run, op, &room, &tiled, true, few, parts + count);
    matmul_launch(run, parts, count, tokens);
    if (room.up)
        matmul_glu_apart(run, room.inner, room.up, room.inner, (int64_t)pairs * inner);
    if (room.shared_up)
        matmul_glu_apart(run, room.shared_inner, room.shared_up, room.shared_inner, run->rows * op->shared_gate.rows);

    convert_part act[2];
    parts[0] = down_part(run, &op->down, &room.act, few, room.products);
    parts[0].tiles = tiled.tiles;
    parts[0].tile_count = tiled.tile_count;
    parts[0].token_tiles = tiled.token_tiles;
    if (!few || room.up)
        act[acts++] = act_part(room.inner, inner, pairs, &room.act, few);
    if (shared) {
        if (!few || room.shared_up)
            act[acts++] = act_part(room.shared_inner, (int32_t)op->shared_gate.rows, run->rows, &room.shared_act, few);
        parts[1] = down_part(run, &op->shared_down, &room.shared_act, few, room.shared_products);
    }
    if (acts)
        cuda_convert(run, act, acts);
    matmul_launch(run, parts, shared ? 2 : 1, tokens);
    combine(run, op, &room);
}
