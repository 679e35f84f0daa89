/* Where pages and states of a sharing lie, and who sums with whom: see cut.h. */
#include "exchange/cut_ranges.h"

/* ---- circles: all; the members of each shared stage; the same with the member that has their experts ---- */

static void add_circle(qmi_circle *circles, int32_t *count, const qmi_stage *stage, int32_t extra)
{
    qmi_circle *circle = &circles[(*count)++];
    circle->count = 0;
    for (int32_t i = 0; i < stage->members; i++)
        circle->members[circle->count++] = stage->member + i;
    if (extra >= 0)
        circle->members[circle->count++] = extra;
}

int32_t qmi_cut_circles(const qmi_sharing *sharing, qmi_circle circles[QMI_CIRCLES_MAX])
{
    int32_t count = 1;
    circles[0].count = sharing->members;
    for (int32_t i = 0; i < sharing->members; i++)
        circles[0].members[i] = i;
    for (int32_t i = 0; i < sharing->stage_count; i++) {
        const qmi_stage *stage = &sharing->stages[i];
        int32_t host = sharing->expert_member;
        bool apart = host >= 0 && (host < stage->member || host >= stage->member + stage->members);
        if (stage->members > 1)
            add_circle(circles, &count, stage, -1);
        bool meet = stage->first + stage->count > sharing->expert_first &&
                    stage->first < sharing->expert_first + sharing->expert_count;
        if (apart && meet)
            add_circle(circles, &count, stage, host);
    }
    return count;
}

/* ---- pages and states ---- */

typedef struct mapper {
    const qmi_program *program;
    const qmi_sharing *sharing;
    const qmi_cut_sizes *sizes;
    const qmi_alloc *alloc;
    qmi_cut_maps *maps;
    int32_t code;               /* the first failure */
} mapper;

static void add(mapper *m, qmi_piece_map *map, int32_t member, int64_t at, int64_t bytes)
{
    if (m->code >= 0)
        m->code = qmi_piece_map_add(map, m->alloc, member, at, bytes);
}

static void map_attend(mapper *m, const qmi_op *op)
{
    const qmi_op_attend *a = &op->attend;
    const qmi_stage *stage = qmi_cut_stage(m->sharing, op);
    int64_t heads[QMI_RANKS_MAX + 1], key = m->sizes->value_offset / a->kv_heads;
    int64_t value = (m->sizes->layer_bytes - m->sizes->value_offset) / a->kv_heads;
    qmi_cut_bounds(m->program, op, m->sharing, heads);
    for (int32_t i = 0; i < stage->members; i++) {
        add(m, &m->maps->pages, stage->member + i, a->key_offset + heads[i] * key, (heads[i + 1] - heads[i]) * key);
        add(m, &m->maps->pages, stage->member + i, a->value_offset + heads[i] * value, (heads[i + 1] - heads[i]) * value);
    }
}

static void map_delta(mapper *m, const qmi_op *op)
{
    const qmi_op_delta *d = &op->delta;
    const qmi_stage *stage = qmi_cut_stage(m->sharing, op);
    int64_t heads[QMI_RANKS_MAX + 1], head = (int64_t)d->key_size * d->value_size;
    int64_t channels = 2 * (int64_t)d->key_heads * d->key_size + (int64_t)d->value_heads * d->value_size;
    const int64_t size = sizeof(float);
    qmi_cut_bounds(m->program, op, m->sharing, heads);
    for (int32_t i = 0; i < stage->members; i++) {
        int32_t member = stage->member + i;
        if (heads[i] == heads[i + 1])
            continue;
        qmi_ranges columns = qmi_cut_channels(d, heads[i], heads[i + 1]);
        qmi_ranges values = qmi_cut_value_heads(d, heads[i], heads[i + 1]);
        for (int32_t tap = 0; tap < d->taps - 1; tap++)
            for (int32_t r = 0; r < columns.count; r++)
                add(m, &m->maps->state, member, d->state_offset + (tap * channels + columns.list[r].first) * size,
                    columns.list[r].count * size);
        for (int32_t r = 0; r < values.count; r++)
            add(m, &m->maps->state, member,
                d->state_offset + ((d->taps - 1) * channels + values.list[r].first * head) * size,
                values.list[r].count * head * size);
    }
}

/* Keys and values that are not packed yet: [kv_heads] of each, behind the states of all delta layers. */
static void map_window(mapper *m, const qmi_op *op)
{
    const qmi_op_attend *a = &op->attend;
    const qmi_stage *stage = qmi_cut_stage(m->sharing, op);
    int64_t heads[QMI_RANKS_MAX + 1], head = (a->window + QMI_KV_GROUP) * a->head_size * (int64_t)sizeof(uint16_t);
    qmi_cut_bounds(m->program, op, m->sharing, heads);
    for (int32_t i = 0; i < stage->members && a->window; i++)
        for (int64_t at = a->window_offset; at <= a->window_offset + a->kv_heads * head; at += a->kv_heads * head)
            add(m, &m->maps->state, stage->member + i, at + heads[i] * head, (heads[i + 1] - heads[i]) * head);
}

static int64_t round_up(int64_t bytes)
{
    return (bytes + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
}

/* What is kept of a session's last token lies where it is computed: hidden state with the first of the last stage's members, the
 * logits with all of them. */
static void map_tail(mapper *m, const qmi_op *logits)
{
    const qmi_stage *stage = qmi_cut_stage(m->sharing, logits);
    qmi_piece_map *state = &m->maps->state;
    int64_t rows[QMI_RANKS_MAX + 1], at = round_up(m->sizes->recurrent_bytes);
    for (int32_t i = 0; i < m->sharing->members; i++)
        qmi_piece_map_align(state, i);
    add(m, state, stage->member, at, m->sizes->hidden_bytes);
    qmi_piece_map_align(state, stage->member);
    at += round_up(m->sizes->hidden_bytes);
    qmi_cut_bounds(m->program, logits, m->sharing, rows);
    for (int32_t i = 0; i < stage->members; i++)
        add(m, state, stage->member + i, at + rows[i] * (int64_t)sizeof(float), (rows[i + 1] - rows[i]) * (int64_t)sizeof(float));
    for (int32_t i = 0; i < m->sharing->members; i++)
        qmi_piece_map_align(state, i);
    state->period = at + round_up(m->sizes->logits_bytes);
}

int32_t qmi_cut_map(const qmi_program *const *programs, int32_t count, const qmi_sharing *sharing, const qmi_cut_sizes *sizes,
                    const qmi_alloc *alloc, qmi_cut_maps *out)
{
    *out = (qmi_cut_maps){ 0 };
    mapper m = { .sharing = sharing, .sizes = sizes, .alloc = alloc, .maps = out };
    out->pages.period = sizes->page_bytes ? sizes->page_bytes : 1;
    for (int32_t p = 0; p < count; p++) {
        m.program = programs[p];
        for (size_t i = 0; i < m.program->count; i++) {
            if (m.program->ops[i].kind == QMI_OP_ATTEND)
                map_attend(&m, &m.program->ops[i]);
            if (m.program->ops[i].kind == QMI_OP_DELTA)
                map_delta(&m, &m.program->ops[i]);
        }
    }
    for (int32_t p = 0; p < count; p++) {
        m.program = programs[p];
        for (size_t i = 0; i < m.program->count; i++)
            if (m.program->ops[i].kind == QMI_OP_ATTEND)
                map_window(&m, &m.program->ops[i]);
    }
    m.program = programs[0];
    map_tail(&m, &m.program->ops[m.program->count - 1]);
    if (m.code < 0)
        qmi_cut_maps_free(out, alloc);
    return m.code;
}

void qmi_cut_maps_free(qmi_cut_maps *maps, const qmi_alloc *alloc)
{
    qmi_piece_map_free(&maps->pages, alloc);
    qmi_piece_map_free(&maps->state, alloc);
}
