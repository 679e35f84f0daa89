/* The mixture of experts: ROUTE chooses, EXPERTS computes.
 *
 * EXPERTS sorts the (token, choice) pairs by expert, so that an expert's weights are read once for all its tokens; the shared
 * expert counts as one more, chosen by every token. Two phases: gate, up and activation of each pair, by rows of each expert;
 * then, by rows of the result, the down products of all pairs and their weighted sums. */
#include <math.h>
#include <string.h>

#include "cpu/cpu_ops.h"

/* ---- ROUTE ---- */

typedef struct route_room {
    qmi_cpu_inputs_room inputs;
    float *unpacked;
    float *scores;          /* shared [n][experts + 1], the last the shared expert's gate */
} route_room;

static route_room route_lay_out(const qmi_op_route *op, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    qmi_cpu_inputs_room inputs = qmi_cpu_inputs_lay_out(op->router.columns, rows, shared, own);
    float *unpacked = qmi_cpu_unpacked_lay_out(op->router.columns, own);
    return (route_room){ inputs, unpacked, qmi_cpu_take(shared, rows * (op->router.rows + 1), sizeof(float)) };
}

static void lay_out_route(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    (void)threads;
    route_lay_out(&op->route, rows, shared, own);
}

/* Indices of the `top` largest of p, largest first; of equals the lower index first. NaN counts as less than all. */
static void choose(const float *p, int64_t count, int32_t top, int32_t *chosen)
{
    float best[QMI_TOP_MAX];
    int32_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        float value = isnan(p[i]) ? -INFINITY : p[i];
        if (found == top && !(value > best[top - 1]))
            continue;
        int32_t at = found < top ? found++ : top - 1;
        for (; at > 0 && value > best[at - 1]; at--) {
            best[at] = best[at - 1];
            chosen[at] = chosen[at - 1];
        }
        best[at] = value;
        chosen[at] = (int32_t)i;
    }
}

/* scores: [experts], becomes probabilities. */
static void route_row(const qmi_cpu_worker *w, const qmi_op_route *route, float *scores, float *out)
{
    int32_t chosen[QMI_TOP_MAX];
    int64_t experts = route->router.rows;
    float total = w->kernels->exp_sum(scores, experts, w->kernels->maximum(scores, experts)), sum = 0;
    for (int64_t i = 0; i < experts; i++)
        scores[i] /= total;
    choose(scores, experts, route->top, chosen);
    for (int32_t k = 0; k < route->top; k++)
        sum += scores[chosen[k]];
    for (int32_t k = 0; k < route->top; k++) {
        out[k] = (float)chosen[k];
        out[route->top + k] = scores[chosen[k]] / sum;
    }
    out[2 * route->top] = 1;
    if (route->shared_gate.data)
        w->kernels->sigmoid_mul(scores + experts, out + 2 * route->top, 1);
}

static void run_route(qmi_cpu_worker *w, const qmi_op *op)
{
    const qmi_op_route *route = &op->route;
    qmi_cpu_room shared = { w->shared, 0 }, own = { w->own, 0 };
    route_room room = route_lay_out(route, w->batch->count, &shared, &own);
    int64_t experts = route->router.rows, chunk = qmi_cpu_chunk(experts, w->batch->count, w->threads, 8, QMI_CPU_CHUNK_MAX);
    int64_t chunks = qmi_cpu_ceil(experts, chunk);
    const qmi_matrix *gate = route->shared_gate.data ? &route->shared_gate : NULL;
    qmi_cpu_inputs inputs = qmi_cpu_inputs_prepare(w, &(qmi_cpu_inputs_work){
        .x = qmi_cpu_row(w, route->in, 0), .columns = route->router.columns, .norm = &route->norm,
        .normed = qmi_cpu_row(w, route->hidden, 0),
        .formats = qmi_cpu_format_bit(w, &route->router) | (gate ? qmi_cpu_format_bit(w, gate) : 0), .room = room.inputs });
    for (int64_t item; qmi_cpu_next(w, chunks + (gate ? 1 : 0), &item);) {
        bool last = item == chunks;
        qmi_cpu_multiply(w, &(qmi_cpu_product){
            .matrix = last ? gate : &route->router, .first = last ? 0 : item * chunk,
            .rows = last ? 1 : qmi_cpu_least(chunk, experts - item * chunk), .inputs = inputs, .tokens = w->batch->count,
            .out = room.scores + item * chunk + (last ? experts - item * chunk : 0), .out_stride = experts + 1,
            .unpacked = room.unpacked });
    }
    qmi_cpu_barrier(w);
    for (int64_t row; qmi_cpu_next(w, w->batch->count, &row);)
        route_row(w, route, room.scores + row * (experts + 1), qmi_cpu_row(w, route->route, row));
}

/* ---- EXPERTS ---- */

#define INNER_CHUNK 64  /* rows of gate and up that are one item at most: whole blocks of Q8, so that whoever computes them can
                           quantize them */
#define OUTER_CHUNK 32  /* rows of down at most: each worker holds them for all pairs */

typedef struct experts_room {
    qmi_cpu_inputs_room inputs;
    float *unpacked;
    char *acts;             /* shared [pairs][acts_bytes]: activations in the down matrix's format */
    int64_t acts_bytes;
    int32_t *start;         /* own [experts + 2]: where each expert's pairs begin; the shared expert is the last */
    int32_t *active;        /* own [experts + 1]: those that have pairs, ascending */
    int32_t *token;         /* own [pairs]: of each pair, sorted by expert and then by token */
    int32_t *place;         /* own [n][top]: where the pair went; -1: its index is below 0, and there is none */
    float *gate, *up;       /* own [QMI_CPU_TOKENS][INNER_CHUNK] */
    float *down;            /* own [pairs][OUTER_CHUNK] */
} experts_room;

static int64_t inner_width(const qmi_op_experts *op)
{
    return op->up.data ? op->gate.rows : op->gate.rows / 2;
}

static experts_room experts_lay_out(const qmi_op_experts *op, int32_t rows, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    int64_t experts = op->gate.count, pairs = (int64_t)rows * (op->top + 1), inner = inner_width(op);
    int64_t widest = op->shared_gate.data && op->shared_gate.rows > inner ? op->shared_gate.rows : inner;
    experts_room room = { .inputs = qmi_cpu_inputs_lay_out(op->gate.columns, rows, shared, own) };
    room.unpacked = qmi_cpu_unpacked_lay_out(op->gate.columns > widest ? op->gate.columns : widest, own);
    room.acts_bytes = qmi_cpu_ceil(widest * (int64_t)sizeof(float), QMI_ALIGNMENT) * QMI_ALIGNMENT;
    room.acts = qmi_cpu_take(shared, pairs, room.acts_bytes);
    room.start = qmi_cpu_take(own, experts + 2, sizeof(int32_t));
    room.active = qmi_cpu_take(own, experts + 1, sizeof(int32_t));
    room.token = qmi_cpu_take(own, pairs, sizeof(int32_t));
    room.place = qmi_cpu_take(own, pairs, sizeof(int32_t));
    room.gate = qmi_cpu_take(own, QMI_CPU_TOKENS * INNER_CHUNK, sizeof(float));
    room.up = qmi_cpu_take(own, QMI_CPU_TOKENS * INNER_CHUNK, sizeof(float));
    room.down = qmi_cpu_take(own, pairs * OUTER_CHUNK, sizeof(float));
    return room;
}

static void lay_out_experts(const qmi_op *op, int32_t rows, int32_t threads, qmi_cpu_room *shared, qmi_cpu_room *own)
{
    (void)threads;
    experts_lay_out(&op->experts, rows, shared, own);
}

/* Sorts the pairs by expert (counting sort, so tokens stay in order); returns how many experts have any. Each worker does it for
 * itself: it is some thousand steps at most, and no one waits. */
static int32_t sort_pairs(const qmi_cpu_worker *w, const qmi_op_experts *op, experts_room *room)
{
    int32_t experts = (int32_t)op->gate.count, n = w->batch->count, active = 0, *start = room->start;
    memset(start, 0, ((size_t)experts + 2) * sizeof *start);
    for (int32_t t = 0; t < n; t++)
        for (int32_t k = 0; k < op->top; k++) {
            int32_t e = (int32_t)qmi_cpu_row(w, op->route, t)[k];
            if (e >= 0)
                start[e + 1]++;
        }
    start[experts + 1] = op->shared_gate.data ? n : 0;
    for (int32_t e = 0; e <= experts; e++) {
        if (start[e + 1])
            room->active[active++] = e;
        start[e + 1] += start[e];
    }
    for (int32_t t = 0; t < n; t++)
        for (int32_t k = 0; k < op->top; k++) {
            int32_t e = (int32_t)qmi_cpu_row(w, op->route, t)[k], place = e < 0 ? -1 : start[e]++;
            if (place >= 0)
                room->token[place] = t;
            room->place[t * op->top + k] = place;
        }
    for (int32_t e = experts; e > 0; e--) /* each start has moved to its end, which is the next one's beginning */
        start[e] = start[e - 1];
    start[0] = 0;
    for (int32_t t = 0; op->shared_gate.data && t < n; t++)
        room->token[start[experts] + t] = t;
    return active;
}

/* The matrices of one expert, or of the shared one. */
typedef struct expert {
    const qmi_matrix *gate, *up, *down;
    int64_t gate_first, up_first, down_first; /* rows */
    int64_t inner;
    int32_t start, count;                     /* its pairs */
} expert;

static expert expert_of(const qmi_op_experts *op, const experts_room *room, int32_t index)
{
    expert e = { .start = room->start[index], .count = room->start[index + 1] - room->start[index] };
    if (index == op->gate.count) {
        e.gate = &op->shared_gate, e.up = &op->shared_up, e.down = &op->shared_down;
        e.inner = op->shared_gate.rows;
        return e;
    }
    e.inner = inner_width(op);
    e.gate = &op->gate;
    e.up = op->up.data ? &op->up : &op->gate;
    e.down = &op->down;
    e.gate_first = index * op->gate.rows;
    e.up_first = op->up.data ? index * e.inner : e.gate_first + e.inner;
    e.down_first = index * op->down.rows;
    return e;
}

/* Rows of gate and up that are one item: with many tokens more, as a kernel packs activations once for all rows. */
static int64_t inner_chunk(const qmi_cpu_worker *w)
{
    return w->batch->count < 32 ? INNER_CHUNK / 2 : INNER_CHUNK;
}

/* An item of the first phase: rows [first, first + chunk) of gate and up for pairs [from, to) of an expert. */
typedef struct inner_item {
    expert expert;
    int64_t first;
    int32_t from, to;
} inner_item;

/* next: what is read then. */
static void inner_rows(const qmi_cpu_worker *w, const experts_room *room, const inner_item *item, const qmi_cpu_inputs *inputs,
                       const void *next)
{
    const expert *e = &item->expert;
    int64_t first = item->first, rows = qmi_cpu_least(inner_chunk(w), e->inner - first);
    for (int32_t from = item->from; from < item->to; from += QMI_CPU_TOKENS) {
        qmi_cpu_product product = { .matrix = e->gate, .first = e->gate_first + first, .rows = rows,
                                    .next = qmi_cpu_row_of(e->up, e->up_first + first), .inputs = *inputs,
                                    .order = room->token + e->start + from,
                                    .tokens = qmi_cpu_least(QMI_CPU_TOKENS, item->to - from), .out = room->gate,
                                    .out_stride = INNER_CHUNK, .unpacked = room->unpacked };
        qmi_cpu_multiply(w, &product);
        product.matrix = e->up;
        product.next = next;
        product.first = e->up_first + first;
        product.out = room->up;
        qmi_cpu_multiply(w, &product);
        for (int64_t i = 0; i < product.tokens; i++) {
            float *act = room->gate + i * INNER_CHUNK;
            char *to = room->acts + (e->start + from + i) * room->acts_bytes;
            w->kernels->silu_mul(act, room->up + i * INNER_CHUNK, act, rows);
            if (w->kernels->format[e->down->type] == QMI_FORMAT_Q8)
                w->kernels->quantize(act, to, e->inner, first, rows);
            else
                memcpy(to + first * (int64_t)sizeof(float), act, (size_t)rows * sizeof(float));
        }
    }
}

/* The sums of one item of the second phase, in the order of the choices, the shared expert last. */
static void add_weighted(const qmi_cpu_worker *w, const qmi_op_experts *op, const experts_room *room, int64_t first, int64_t rows)
{
    int32_t shared_start = room->start[op->gate.count];
    for (int32_t t = 0; t < w->batch->count; t++) {
        const float *weights = qmi_cpu_row(w, op->route, t) + op->top;
        float sums[OUTER_CHUNK] = { 0 }, *out = qmi_cpu_row(w, op->out, t) + first;
        for (int32_t k = 0; k <= op->top; k++) {
            if (k == op->top && !op->shared_gate.data)
                break;
            int32_t place = k < op->top ? room->place[t * op->top + k] : shared_start + t;
            if (place < 0)
                continue;
            const float *down = room->down + (int64_t)place * OUTER_CHUNK;
            for (int64_t r = 0; r < rows; r++)
                sums[r] += weights[k] * down[r];
        }
        for (int64_t r = 0; r < rows; r++)
            out[r] += sums[r];
    }
}

static void outer_rows(const qmi_cpu_worker *w, const qmi_op_experts *op, const experts_room *room, int32_t active, int64_t first,
                       int64_t rows)
{
    for (int32_t i = 0; i < active; i++) {
        expert e = expert_of(op, room, room->active[i]), after = expert_of(op, room, room->active[(i + 1) % active]);
        const char *acts = room->acts + e.start * room->acts_bytes;
        qmi_cpu_multiply(w, &(qmi_cpu_product){
            .matrix = e.down, .first = e.down_first + first, .rows = rows,
            .next = qmi_cpu_row_of(after.down, after.down_first + first + (i + 1 < active ? 0 : rows)),
            .inputs = { { acts, acts }, { room->acts_bytes, room->acts_bytes } }, .tokens = e.count,
            .out = room->down + (int64_t)e.start * OUTER_CHUNK, .out_stride = OUTER_CHUNK, .unpacked = room->unpacked });
    }
    add_weighted(w, op, room, first, rows);
}

static unsigned input_formats(const qmi_cpu_worker *w, const qmi_op_experts *op)
{
    unsigned formats = qmi_cpu_format_bit(w, &op->gate);
    if (op->up.data)
        formats |= qmi_cpu_format_bit(w, &op->up);
    if (op->shared_gate.data)
        formats |= qmi_cpu_format_bit(w, &op->shared_gate) | qmi_cpu_format_bit(w, &op->shared_up);
    return formats;
}

/* Items of the shared expert. It has more tokens than others by far, so they are cut as its rows are. */
static int64_t shared_items(const qmi_cpu_worker *w, const qmi_op_experts *op)
{
    int64_t chunks = op->shared_gate.data ? qmi_cpu_ceil(op->shared_gate.rows, inner_chunk(w)) : 0;
    return chunks * qmi_cpu_ceil(w->batch->count, QMI_CPU_TOKENS);
}

/* Those of routed experts come first. */
static inner_item find_item(const qmi_cpu_worker *w, const qmi_op_experts *op, const experts_room *room, int64_t routed,
                            int64_t index)
{
    int64_t inner = inner_chunk(w), per_expert = qmi_cpu_ceil(inner_width(op), inner);
    if (index < routed) {
        expert e = expert_of(op, room, room->active[index / per_expert]);
        return (inner_item){ e, index % per_expert * inner, 0, e.count };
    }
    int64_t parts = qmi_cpu_ceil(w->batch->count, QMI_CPU_TOKENS), cut = index - routed;
    int32_t from = (int32_t)(cut % parts) * QMI_CPU_TOKENS;
    return (inner_item){ expert_of(op, room, (int32_t)op->gate.count), cut / parts * inner, from,
                         (int32_t)qmi_cpu_least(from + QMI_CPU_TOKENS, w->batch->count) };
}

static void run_experts(qmi_cpu_worker *w, const qmi_op *operation)
{
    const qmi_op_experts *op = &operation->experts;
    qmi_cpu_room shared = { w->shared, 0 }, own = { w->own, 0 };
    experts_room room = experts_lay_out(op, w->batch->count, &shared, &own);
    qmi_cpu_inputs inputs = qmi_cpu_inputs_prepare(w, &(qmi_cpu_inputs_work){
        .x = qmi_cpu_row(w, op->hidden, 0), .columns = op->gate.columns, .formats = input_formats(w, op), .room = room.inputs });
    int32_t active = sort_pairs(w, op, &room);

    int64_t per_expert = qmi_cpu_ceil(inner_width(op), inner_chunk(w));
    int64_t routed = (active - (op->shared_gate.data ? 1 : 0)) * per_expert, items = routed + shared_items(w, op);
    for (int64_t index; qmi_cpu_next(w, items, &index);) {
        inner_item item = find_item(w, op, &room, routed, index);
        inner_item after = find_item(w, op, &room, routed, index + 1 < items ? index + 1 : index);
        inner_rows(w, &room, &item, &inputs, qmi_cpu_row_of(after.expert.gate, after.expert.gate_first + after.first));
    }
    qmi_cpu_barrier(w);

    int64_t rows = op->down.rows, chunk = qmi_cpu_chunk(rows, w->batch->count, w->threads, QMI_CPU_ROWS, OUTER_CHUNK);
    for (int64_t item; qmi_cpu_next(w, qmi_cpu_ceil(rows, chunk), &item);)
        outer_rows(w, op, &room, active, item * chunk, qmi_cpu_least(chunk, rows - item * chunk));
}

const qmi_cpu_op qmi_cpu_op_route = { lay_out_route, run_route };
const qmi_cpu_op qmi_cpu_op_experts = { lay_out_experts, run_experts };
