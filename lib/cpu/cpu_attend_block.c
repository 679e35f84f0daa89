/* Attention of a block of rows: see cpu_attend_block.h. */
#include "cpu/cpu_attend_block.h"

#include <math.h>
#include <string.h>

#include "cpu/cpu_window.h"

#define QUERIES 64 /* of a block: tokens of a tile at most; with 256 numbers each they, their scores and their sums make 192 KB */
#define SINGLE_ROWS 8 /* of a block whose rows go one by one: enough to find a span in the cache */
#define PIECE 64   /* tokens that are unpacked together */

static int32_t group_of(const qmi_op_attend *op)
{
    return op->heads / op->kv_heads;
}

static bool is_plain(qmi_kv_type type)
{
    return type == QMI_KV_F32 || type == QMI_KV_F16 || type == QMI_KV_BF16;
}

/* Whether products with what a type unpacks to are those that its kernels make of the records: heads of broken blocks are the
 * scalar kernels'. */
static bool fits(qmi_kv_type type, int32_t size)
{
    bool codes = type == QMI_KV_Q8_0 || type == QMI_KV_Q6 || type == QMI_KV_Q5 || type == QMI_KV_Q4_0;
    return is_plain(type) || (codes && size % QMI_KV_BLOCK == 0);
}

bool qmi_cpu_attend_block_fits(const qmi_op_attend *op)
{
    return !op->window && fits(op->key_type, op->head_size) && fits(op->value_type, op->head_size);
}

int32_t qmi_cpu_attend_block_rows(const qmi_op_attend *op)
{
    int32_t rows = qmi_cpu_attend_block_fits(op) ? QUERIES / group_of(op) : SINGLE_ROWS;
    return rows > 1 ? rows : 1;
}

qmi_cpu_attend_block qmi_cpu_attend_block_lay_out(const qmi_op_attend *op, qmi_cpu_room *own)
{
    int64_t queries = (int64_t)qmi_cpu_attend_block_rows(op) * group_of(op), size = op->head_size;
    qmi_cpu_attend_block room = { 0 };
    room.queries = qmi_cpu_take(own, queries * size, sizeof(float));
    room.scores = qmi_cpu_take(own, queries * QMI_CPU_SPAN, sizeof(float));
    room.unpacked = qmi_cpu_take(own, PIECE * size, sizeof(float));
    room.largest = qmi_cpu_take(own, queries, sizeof(float));
    room.sum = qmi_cpu_take(own, queries, sizeof(float));
    room.out = qmi_cpu_take(own, queries * size, sizeof(float));
    return room;
}

void qmi_cpu_attend_block_begin(const qmi_op_attend *op, const qmi_cpu_attend_block *room, const float *queries, int32_t rows)
{
    int64_t of_row = (int64_t)group_of(op) * op->head_size;
    for (int32_t r = 0; r < rows; r++)
        memcpy(room->queries + r * of_row, queries + (int64_t)r * op->heads * op->head_size, (size_t)of_row * sizeof(float));
}

/* Records of some tokens that lie together, as numbers that kernels take: where they lie, or unpacked. */
typedef struct piece {
    const void *records;
    qmi_kv_type type;
    int32_t count;
} piece;

static piece piece_of(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_attend_block *room,
                      const qmi_cpu_attend_rows *rows, bool keys, int64_t position, int64_t most)
{
    piece p = { .type = keys ? op->key_type : op->value_type };
    const char *records = qmi_cpu_stored(op, rows->sequence, keys ? QMI_CPU_KEYS : QMI_CPU_VALUES, rows->kv_head, position);
    int64_t bytes = qmi_kv_head_bytes(p.type, op->head_size);
    p.count = (int32_t)qmi_cpu_least(most, op->page_tokens - position % op->page_tokens);
    p.records = records;
    if (is_plain(p.type))
        return p;
    p.count = p.count < PIECE ? p.count : PIECE;
    for (int32_t j = 0; j < p.count; j++) {
        float *to = room->unpacked + (int64_t)j * op->head_size;
        if (w->kernels->kv[p.type].unpack)
            w->kernels->kv[p.type].unpack(records + j * bytes, to, op->head_size);
        else
            qmi_kv_unpack(p.type, records + j * bytes, to, op->head_size);
    }
    p.records = room->unpacked;
    p.type = QMI_KV_F32;
    return p;
}

/* scores[query][token] of the queries from `first` on with a piece of keys. */
static void score_piece(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_attend_block *room, const piece *keys,
                        int32_t first, int32_t queries, int64_t token)
{
    static const uint8_t type[QMI_KV_TYPES] = { [QMI_KV_F32] = QMI_TYPE_F32, [QMI_KV_F16] = QMI_TYPE_F16,
                                                [QMI_KV_BF16] = QMI_TYPE_BF16 };
    float *scores = room->scores + (int64_t)first * QMI_CPU_SPAN + token, scale = 1 / sqrtf((float)op->head_size);
    for (int32_t from = 0; from < queries; from += QMI_CPU_TOKENS) {
        int32_t count = queries - from < QMI_CPU_TOKENS ? queries - from : QMI_CPU_TOKENS;
        w->kernels->dot[type[keys->type]](&(qmi_cpu_tile){
            .weights = keys->records, .row_bytes = qmi_kv_head_bytes(keys->type, op->head_size), .columns = op->head_size,
            .inputs = room->queries + (int64_t)(first + from) * op->head_size,
            .input_bytes = op->head_size * (int64_t)sizeof(float), .out = scores + (int64_t)from * QMI_CPU_SPAN,
            .out_stride = QMI_CPU_SPAN, .rows = keys->count, .tokens = count });
    }
    for (int32_t q = 0; q < queries; q++)
        for (int32_t j = 0; j < keys->count; j++)
            scores[(int64_t)q * QMI_CPU_SPAN + j] *= scale;
}

static void mix_piece(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_attend_block *room, const piece *values,
                      int32_t first, int32_t queries, int64_t token, int32_t count)
{
    w->kernels->kv[values->type].mix(&(qmi_cpu_mix){
        .weight = room->scores + (int64_t)first * QMI_CPU_SPAN + token, .values = values->records,
        .out = room->out + (int64_t)first * op->head_size, .weight_stride = QMI_CPU_SPAN, .out_stride = op->head_size,
        .heads = queries, .head_size = op->head_size, .count = count });
}

/* Tokens of the span that row r of the block sees. */
static int64_t seen(const qmi_cpu_attend_rows *rows, int32_t r, int64_t at)
{
    int64_t count = rows->position + r + 1 - at;
    return count < 0 ? 0 : qmi_cpu_least(count, QMI_CPU_SPAN);
}

int32_t qmi_cpu_attend_block_span(const qmi_cpu_worker *w, const qmi_op_attend *op, const qmi_cpu_attend_block *room,
                                  const qmi_cpu_attend_rows *rows, int64_t at)
{
    int32_t group = group_of(op), skipped = 0;
    while (seen(rows, skipped, at) == 0)
        skipped++;
    int32_t first = skipped * group, queries = (rows->rows - skipped) * group;
    int64_t all = seen(rows, skipped, at), most = seen(rows, rows->rows - 1, at); /* tokens that each row sees, that any does */
    piece p;
    for (int64_t done = 0; done < most; done += p.count) {
        p = piece_of(w, op, room, rows, true, at + done, most - done);
        score_piece(w, op, room, &p, first, queries, done);
    }
    for (int32_t r = skipped; r < rows->rows; r++)
        for (int32_t q = r * group; q < (r + 1) * group; q++) {
            float *scores = room->scores + (int64_t)q * QMI_CPU_SPAN;
            room->largest[q] = w->kernels->maximum(scores, seen(rows, r, at));
            room->sum[q] = w->kernels->exp_sum(scores, seen(rows, r, at), room->largest[q]);
        }
    memset(room->out + (int64_t)first * op->head_size, 0, (size_t)queries * (size_t)op->head_size * sizeof(float));
    for (int64_t done = 0; done < most; done += p.count) {
        p = piece_of(w, op, room, rows, false, at + done, most - done);
        int32_t together = (int32_t)qmi_cpu_least(p.count, all > done ? all - done : 0);
        if (together > 0)
            mix_piece(w, op, room, &p, first, queries, done, together);
        /* What only the later rows see, row by row: a weight of 0 would not do, since 0 times infinity is none. */
        for (int32_t r = skipped + 1; r < rows->rows && together < p.count; r++) {
            int64_t count = qmi_cpu_least(p.count, seen(rows, r, at) - done) - together;
            piece rest = p;
            rest.records = (const char *)p.records + together * qmi_kv_head_bytes(p.type, op->head_size);
            if (count > 0)
                mix_piece(w, op, room, &rest, r * group, group, done + together, (int32_t)count);
        }
    }
    return skipped;
}
