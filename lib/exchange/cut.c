/* Programs of one device as programs of several: see cut.h. */
#include "exchange/cut.h"

#include "base/error.h"
#include "exchange/cut_ranges.h"

enum { OWN_SUM, OWN_ROUTE, OWN_SLOTS }; /* slots of members alone: what it has to add; nothing, in place of a route */

typedef struct cutter {
    const qmi_program *whole;
    const qmi_sharing *sharing;
    const qmi_cut_maps *maps;
    const qmi_alloc *alloc;
    qmi_cut *cut;
    qmi_circle circles[QMI_CIRCLES_MAX];
    int32_t circle_count;
    const qmi_stage *stage;                  /* of the present op */
    bool open[QMI_RANKS_MAX];                /* the member's last step is a run that more ops can be added to */
    qmi_ranges held[QMI_RANKS_MAX][QMI_SLOTS_MAX]; /* columns of a slot that the member has */
    bool clear[QMI_RANKS_MAX][OWN_SLOTS];    /* the member's slot of its own has zeros: a SUM op has left them there */
    int32_t layer;                           /* of the present op */
    int32_t code;                            /* the first failure; later calls do nothing */
} cutter;

/* ---- steps and programs ---- */

static void append_step(cutter *c, int32_t member, qmi_cut_step step)
{
    qmi_part_of *part = &c->cut->parts[member];
    if (c->code >= 0)
        c->code = qmi_reserve(c->alloc, (void **)&part->steps, &part->step_capacity, part->step_count + 1, sizeof step,
                              "steps of a device");
    if (c->code < 0)
        return;
    part->steps[part->step_count++] = step;
    c->open[member] = false;
}

static void open_program(cutter *c, int32_t member)
{
    qmi_part_of *part = &c->cut->parts[member];
    if (c->open[member] || c->code < 0)
        return;
    c->code = qmi_reserve(c->alloc, (void **)&part->programs, &part->program_capacity, part->program_count + 1,
                          sizeof *part->programs, "programs of a device");
    if (c->code < 0)
        return;
    append_step(c, member, (qmi_cut_step){ .kind = QMI_STEP_RUN, .program = (int32_t)part->program_count });
    part->programs[part->program_count++] = (qmi_program){ 0 };
    c->open[member] = c->code >= 0;
}

static void append_op(cutter *c, int32_t member, const qmi_op *op)
{
    qmi_part_of *part = &c->cut->parts[member];
    open_program(c, member);
    if (c->code >= 0)
        c->code = qmi_program_append(&part->programs[part->program_count - 1], c->alloc, op);
}

/* Before the run that more ops are added to, if there is one, so that it need not end here: nothing in it has used the slot, or
 * a sum has cleared it. */
static void append_clear(cutter *c, int32_t member, qmi_slot slot)
{
    qmi_part_of *part = &c->cut->parts[member];
    bool own = slot >= c->cut->slot_count, open = c->open[member] && (own || !c->sharing->inside);
    if (own && c->clear[member][slot - c->cut->slot_count])
        return;
    append_step(c, member, (qmi_cut_step){ .kind = QMI_STEP_CLEAR, .to = slot });
    if (c->code < 0 || !open)
        return;
    qmi_cut_step *last = &part->steps[part->step_count - 1], step = *last;
    *last = last[-1];
    last[-1] = step;
    c->open[member] = true;
}

static void append_send(cutter *c, int32_t from, int32_t to, qmi_slot slot)
{
    append_step(c, from, (qmi_cut_step){ .kind = QMI_STEP_SEND, .peer = to, .from = slot });
    append_step(c, to, (qmi_cut_step){ .kind = QMI_STEP_RECEIVE, .peer = from, .to = slot });
}

/* ---- slots ---- */

/* The member has these columns of the slot. */
static qmi_slot hold(cutter *c, int32_t member, qmi_slot slot, const qmi_ranges *columns)
{
    const qmi_slot_shape *whole = &c->whole->slots[slot];
    qmi_slot_shape *own = &c->cut->parts[member].slots[slot];
    const int64_t size = sizeof(float);
    c->held[member][slot] = *columns;
    if (own->width == 0)
        for (int32_t i = 0; i < columns->count && c->code >= 0; i++)
            c->code = qmi_piece_map_add(&c->cut->slots[slot], c->alloc, member, columns->list[i].first * size,
                                        columns->list[i].count * size);
    *own = *whole;
    own->width = qmi_ranges_total(columns);
    return slot;
}

static qmi_slot hold_all(cutter *c, int32_t member, qmi_slot slot)
{
    const qmi_ranges all = qmi_ranges_one(0, c->whole->slots[slot].width);
    return hold(c, member, slot, &all);
}

/* A slot of the member's own, as wide as `like`. */
static qmi_slot own_slot(cutter *c, int32_t member, int32_t which, qmi_slot like)
{
    static const char *const names[OWN_SLOTS] = { "addend", "no route" };
    qmi_slot slot = c->cut->slot_count + which;
    c->cut->parts[member].slots[slot] = (qmi_slot_shape){ .name = names[which], .width = c->whole->slots[like].width };
    return slot;
}

/* ---- slices ---- */

static qmi_address add_slice(cutter *c, int32_t member, const qmi_slice *slice)
{
    qmi_part_of *part = &c->cut->parts[member];
    if (c->code >= 0)
        c->code = qmi_reserve(c->alloc, (void **)&part->slices, &part->slice_capacity, part->slice_count + 1, sizeof *slice,
                              "slices of weights");
    if (c->code < 0)
        return 0;
    part->slices[part->slice_count++] = *slice;
    return part->slice_count;
}

static qmi_matrix slice_matrix(cutter *c, int32_t member, const qmi_matrix *whole, const qmi_ranges *rows,
                               const qmi_ranges *columns)
{
    if (whole->rows == 0)
        return *whole;
    qmi_slice slice = { .whole = *whole, .rows = rows ? *rows : qmi_ranges_one(0, whole->rows),
                        .columns = columns ? *columns : qmi_ranges_one(0, whole->columns) };
    return (qmi_matrix){ whole->type, qmi_ranges_total(&slice.columns), qmi_ranges_total(&slice.rows), whole->count,
                         add_slice(c, member, &slice) };
}

/* vector: [rows][width] */
static qmi_vector slice_vector(cutter *c, int32_t member, const qmi_vector *vector, const qmi_ranges *rows, int64_t width)
{
    if (vector->size == 0)
        return *vector;
    const qmi_slice slice = { .whole = { .rows = vector->size / width, .columns = width, .count = 1, .data = vector->data },
                              .vector = true, .rows = *rows, .columns = qmi_ranges_one(0, width) };
    return (qmi_vector){ qmi_ranges_total(rows) * width, add_slice(c, member, &slice) };
}

static void whole_vector(cutter *c, int32_t member, qmi_vector *vector)
{
    const qmi_ranges one = qmi_ranges_one(0, 1);
    *vector = slice_vector(c, member, vector, &one, vector->size);
}

/* ---- sums ---- */

static int32_t circle_of(const cutter *c, int32_t size, int32_t last)
{
    for (int32_t i = 1; i < c->circle_count; i++) {
        const qmi_circle *circle = &c->circles[i];
        if (circle->count == size && circle->members[0] == c->stage->member && circle->members[size - 1] == last)
            return i;
    }
    return 0;
}

/* As an op of the programs of all of them. */
static void append_sum_op(cutter *c, qmi_slot slot, int32_t own, int32_t circle)
{
    int32_t first = c->stage->member;
    qmi_op op = { .kind = QMI_OP_SUM, .layer = c->layer, .sum = { .to = slot, .circle = circle } };
    for (int32_t m = first; m < first + c->stage->members; m++) {
        op.sum.from = m == first ? slot : own_slot(c, m, own, slot);
        hold_all(c, m, slot);
        append_op(c, m, &op);
        c->clear[m][own] = m > first;
    }
}

/* The first member's `slot`, and what the others of the stage have in `own`, and one more member (-1: none) in its own: their sum
 * goes to all of them. */
static void append_sum(cutter *c, qmi_slot slot, int32_t own, int32_t extra)
{
    int32_t first = c->stage->member, end = first + c->stage->members, size = c->stage->members + (extra >= 0 ? 1 : 0);
    qmi_cut_step step = { .kind = QMI_STEP_SUM, .circle = circle_of(c, size, extra >= 0 ? extra : end - 1), .to = slot };
    if (size == 1)
        return;
    if (c->sharing->inside && extra < 0) {
        append_sum_op(c, slot, own, step.circle);
        return;
    }
    for (int32_t m = first; m < end; m++) {
        step.from = m == first ? slot : own_slot(c, m, own, slot);
        hold_all(c, m, slot);
        append_step(c, m, step);
    }
    if (extra >= 0) {
        step.from = step.to = own_slot(c, extra, own, slot);
        append_step(c, extra, step);
    }
}

/* ---- ops ---- */

/* On the first member; the others have nothing to add. */
static void cut_embed(cutter *c, const qmi_op *op)
{
    qmi_op own = *op;
    int32_t first = c->stage->member;
    own.embed.table = slice_matrix(c, first, &op->embed.table, NULL, NULL);
    hold_all(c, first, op->embed.out);
    append_op(c, first, &own);
    for (int32_t m = first + 1; m < first + c->stage->members; m++)
        append_clear(c, m, own_slot(c, m, OWN_SUM, op->embed.out));
    append_sum(c, op->embed.out, OWN_SUM, -1);
}

/* On the first member alone, which then has all columns of what is read next. */
static void cut_join(cutter *c, const qmi_op *op)
{
    qmi_op own = *op;
    int32_t first = c->stage->member;
    own.join.table = slice_matrix(c, first, &op->join.table, NULL, NULL);
    whole_vector(c, first, &own.join.norm.weight);
    whole_vector(c, first, &own.join.hidden_norm.weight);
    hold_all(c, first, op->join.hidden);
    for (int32_t m = first; m < first + c->stage->members; m++)
        c->held[m][op->join.out] = (qmi_ranges){ 0 };
    hold_all(c, first, op->join.out);
    append_op(c, first, &own);
}

/* The columns of what PROJECT writes into `slot`, as the op that reads it needs them; reader NULL: all. */
static qmi_ranges columns_of(const qmi_op *reader, qmi_slot slot, int64_t width, int64_t first, int64_t end)
{
    if (reader && reader->kind == QMI_OP_ATTEND) {
        const qmi_op_attend *a = &reader->attend;
        int64_t group = (int64_t)a->heads / a->kv_heads * a->head_size * (a->gated ? 2 : 1);
        int64_t head = slot == a->query ? group : a->head_size;
        return qmi_ranges_one(first * head, end * head);
    }
    if (reader && reader->kind == QMI_OP_DELTA) {
        const qmi_op_delta *d = &reader->delta;
        if (slot == d->qkv)
            return qmi_cut_channels(d, first, end);
        if (slot == d->beta && d->interleaved)
            return qmi_ranges_one(first * 2 * (d->value_heads / d->key_heads), end * 2 * (d->value_heads / d->key_heads));
        const qmi_ranges heads = qmi_cut_value_heads(d, first, end);
        return slot == d->z ? qmi_ranges_times(&heads, d->value_size) : heads;
    }
    return qmi_ranges_one(0, width);
}

/* The op of heads that reads what PROJECT writes first. */
static const qmi_op *find_reader(const cutter *c, const qmi_op *project)
{
    for (const qmi_op *op = project + 1; op < c->whole->ops + c->whole->count; op++)
        if ((op->kind == QMI_OP_ATTEND && op->attend.query == project->project.out[0]) ||
            (op->kind == QMI_OP_DELTA && op->delta.qkv == project->project.out[0]))
            return op;
    return NULL;
}

static void cut_project(cutter *c, const qmi_op *op)
{
    const qmi_op *reader = find_reader(c, op);
    int64_t bounds[QMI_RANKS_MAX + 1] = { 0 };
    if (reader)
        qmi_cut_bounds(c->whole, reader, c->sharing, bounds);
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = c->stage->member + i;
        qmi_op own = *op;
        if (reader && bounds[i] == bounds[i + 1])
            continue;
        hold_all(c, m, op->project.in);
        whole_vector(c, m, &own.project.norm.weight);
        for (int32_t k = 0; k < op->project.count; k++) {
            const qmi_matrix *matrix = &op->project.matrix[k];
            const qmi_ranges rows = columns_of(reader, op->project.out[k], matrix->rows, bounds[i], bounds[i + 1]);
            own.project.matrix[k] = slice_matrix(c, m, matrix, &rows, NULL);
            hold(c, m, op->project.out[k], &rows);
        }
        append_op(c, m, &own);
    }
}

static void cut_attend(cutter *c, const qmi_op *op)
{
    const qmi_op_attend *a = &op->attend;
    int64_t bounds[QMI_RANKS_MAX + 1], group = a->heads / a->kv_heads, head = (int64_t)group * a->head_size;
    if (a->moments)
        c->code = qmi_fail(QM_ERROR_UNSUPPORTED, "corrections of keys are fitted on one device");
    qmi_cut_bounds(c->whole, op, c->sharing, bounds);
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = c->stage->member + i;
        const qmi_ranges columns = qmi_ranges_one(bounds[i] * head, bounds[i + 1] * head);
        const qmi_ranges heads = qmi_ranges_one(bounds[i], bounds[i + 1]);
        qmi_op own = *op;
        c->held[m][a->out] = columns;
        if (columns.count == 0)
            continue;
        own.attend.kv_heads = (int32_t)(bounds[i + 1] - bounds[i]);
        own.attend.heads = (int32_t)(own.attend.kv_heads * group);
        whole_vector(c, m, &own.attend.query_norm.weight);
        whole_vector(c, m, &own.attend.key_norm.weight);
        whole_vector(c, m, &own.attend.inverse_frequency);
        own.attend.key_offset = qmi_piece_map_below(&c->maps->pages, m, a->key_offset);
        own.attend.value_offset = qmi_piece_map_below(&c->maps->pages, m, a->value_offset);
        own.attend.window_offset = qmi_piece_map_below(&c->maps->state, m, a->window_offset);
        own.attend.correction = slice_vector(c, m, &a->correction, &heads, 2 * a->head_size * (int64_t)a->head_size);
        hold(c, m, a->out, &columns);
        append_op(c, m, &own);
    }
}

static void cut_delta(cutter *c, const qmi_op *op)
{
    const qmi_op_delta *d = &op->delta;
    int64_t bounds[QMI_RANKS_MAX + 1];
    qmi_cut_bounds(c->whole, op, c->sharing, bounds);
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = c->stage->member + i;
        qmi_op own = *op;
        c->held[m][d->out] = (qmi_ranges){ 0 };
        if (bounds[i] == bounds[i + 1])
            continue;
        const qmi_ranges heads = qmi_cut_value_heads(d, bounds[i], bounds[i + 1]);
        const qmi_ranges channels = qmi_cut_channels(d, bounds[i], bounds[i + 1]);
        const qmi_ranges columns = qmi_ranges_times(&heads, d->value_size);
        own.delta.key_heads = (int32_t)(bounds[i + 1] - bounds[i]);
        own.delta.value_heads = (int32_t)qmi_ranges_total(&heads);
        own.delta.convolution = slice_vector(c, m, &d->convolution, &channels, d->taps);
        own.delta.time_bias = slice_vector(c, m, &d->time_bias, &heads, 1);
        own.delta.decay = slice_vector(c, m, &d->decay, &heads, 1);
        whole_vector(c, m, &own.delta.norm.weight);
        own.delta.state_offset = qmi_piece_map_below(&c->maps->state, m, d->state_offset);
        hold(c, m, d->out, &columns);
        append_op(c, m, &own);
    }
}

static void cut_glu(cutter *c, const qmi_op *op)
{
    int64_t bounds[QMI_RANKS_MAX + 1];
    qmi_cut_bounds(c->whole, op, c->sharing, bounds);
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = c->stage->member + i;
        const qmi_ranges rows = qmi_ranges_one(bounds[i], bounds[i + 1]);
        qmi_op own = *op;
        c->held[m][op->glu.out] = rows;
        if (rows.count == 0)
            continue;
        hold_all(c, m, op->glu.in);
        whole_vector(c, m, &own.glu.norm.weight);
        own.glu.gate = slice_matrix(c, m, &op->glu.gate, &rows, NULL);
        own.glu.up = slice_matrix(c, m, &op->glu.up, &rows, NULL);
        hold(c, m, op->glu.out, &rows);
        append_op(c, m, &own);
    }
}

static void cut_project_add(cutter *c, const qmi_op *op)
{
    const qmi_op_project_add *p = &op->project_add;
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = c->stage->member + i;
        const qmi_ranges *columns = &c->held[m][p->in];
        qmi_op own = *op;
        qmi_slot out = i == 0 ? hold_all(c, m, p->out) : own_slot(c, m, OWN_SUM, p->out);
        if (columns->count == 0 && (i > 0 || !p->add))
            append_clear(c, m, out);
        if (columns->count == 0)
            continue;
        own.project_add.matrix = slice_matrix(c, m, &p->matrix, NULL, columns);
        own.project_add.out = out;
        own.project_add.add = i == 0 && p->add;
        append_op(c, m, &own);
    }
    append_sum(c, p->out, OWN_SUM, -1);
}

/* On every member, since it is little work. Where members may differ in the last bit the first one's choice goes to all. */
static void cut_route(cutter *c, const qmi_op *op)
{
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = c->stage->member + i;
        qmi_op own = *op;
        hold_all(c, m, op->route.in);
        whole_vector(c, m, &own.route.norm.weight);
        own.route.router = slice_matrix(c, m, &op->route.router, NULL, NULL);
        own.route.shared_gate = slice_matrix(c, m, &op->route.shared_gate, NULL, NULL);
        hold_all(c, m, op->route.hidden);
        hold_all(c, m, op->route.route);
        append_op(c, m, &own);
        if (!c->sharing->alike && i > 0)
            append_clear(c, m, own_slot(c, m, OWN_ROUTE, op->route.route));
    }
    if (!c->sharing->alike)
        append_sum(c, op->route.route, OWN_ROUTE, -1);
}

/* Inner rows [first, end) of each expert, and of the shared one. */
static void slice_experts(cutter *c, int32_t member, qmi_op_experts *e, const int64_t inner[2], const int64_t shared[2])
{
    const qmi_ranges columns = qmi_ranges_one(inner[0], inner[1]), shared_columns = qmi_ranges_one(shared[0], shared[1]);
    qmi_ranges rows = columns;
    if (e->up.rows == 0) /* fused: gate's rows, then up's */
        qmi_ranges_add(&rows, e->down.columns + inner[0], inner[1] - inner[0]);
    e->gate = slice_matrix(c, member, &e->gate, &rows, NULL);
    e->up = slice_matrix(c, member, &e->up, &rows, NULL);
    e->down = slice_matrix(c, member, &e->down, NULL, &columns);
    if (shared_columns.count == 0) {
        e->shared_gate = e->shared_up = e->shared_down = (qmi_matrix){ 0 };
        return;
    }
    e->shared_gate = slice_matrix(c, member, &e->shared_gate, &shared_columns, NULL);
    e->shared_up = slice_matrix(c, member, &e->shared_up, &shared_columns, NULL);
    e->shared_down = slice_matrix(c, member, &e->shared_down, NULL, &shared_columns);
}

/* Experts of another member: it gets normed activations and routes, and takes part in the sum. */
static void send_experts(cutter *c, const qmi_op *op, int32_t host)
{
    const qmi_op_experts *e = &op->experts;
    const int64_t inner[2] = { 0, e->down.columns }, shared[2] = { 0, e->shared_down.columns };
    int32_t first = c->stage->member;
    qmi_op own = *op;
    append_send(c, first, host, hold_all(c, first, e->hidden));
    append_send(c, first, host, hold_all(c, first, e->route));
    hold_all(c, host, e->hidden);
    hold_all(c, host, e->route);
    own.experts.out = own_slot(c, host, OWN_SUM, e->out);
    append_clear(c, host, own.experts.out);
    slice_experts(c, host, &own.experts, inner, shared);
    append_op(c, host, &own);
    for (int32_t m = first + 1; m < first + c->stage->members; m++)
        append_clear(c, m, own_slot(c, m, OWN_SUM, e->out));
    append_sum(c, e->out, OWN_SUM, host);
}

static void cut_experts(cutter *c, const qmi_op *op)
{
    const qmi_op_experts *e = &op->experts;
    int32_t host = c->sharing->expert_member, first = c->stage->member;
    int64_t bounds[QMI_RANKS_MAX + 1], shared[QMI_RANKS_MAX + 1] = { 0 };
    bool apart = host >= 0 && (host < first || host >= first + c->stage->members);
    int32_t place = op->layer - c->sharing->expert_first;
    if (apart && place >= 0 && place < c->sharing->expert_count) {
        send_experts(c, op, host);
        return;
    }
    qmi_cut_bounds(c->whole, op, c->sharing, bounds);
    if (e->shared_down.rows)
        qmi_cut_bounds_shared(c->whole, op, c->sharing, shared);
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = first + i;
        qmi_op own = *op;
        own.experts.out = i == 0 ? hold_all(c, m, e->out) : own_slot(c, m, OWN_SUM, e->out);
        if (i > 0)
            append_clear(c, m, own.experts.out);
        if (bounds[i] == bounds[i + 1])
            continue;
        slice_experts(c, m, &own.experts, bounds + i, shared + i);
        append_op(c, m, &own);
    }
    append_sum(c, e->out, OWN_SUM, -1);
}

static void cut_logits(cutter *c, const qmi_op *op)
{
    int64_t bounds[QMI_RANKS_MAX + 1];
    qmi_cut_bounds(c->whole, op, c->sharing, bounds);
    for (int32_t i = 0; i < c->stage->members; i++) {
        int32_t m = c->stage->member + i;
        const qmi_ranges rows = qmi_ranges_one(bounds[i], bounds[i + 1]);
        qmi_op own = *op;
        if (rows.count == 0)
            continue;
        hold_all(c, m, op->logits.in);
        whole_vector(c, m, &own.logits.norm.weight);
        own.logits.output = slice_matrix(c, m, &op->logits.output, &rows, NULL);
        hold_all(c, m, op->logits.hidden);
        hold(c, m, op->logits.logits, &rows);
        append_op(c, m, &own);
    }
}

static void (*const cutters[QMI_OP_COUNT])(cutter *c, const qmi_op *op) = {
    [QMI_OP_EMBED] = cut_embed,   [QMI_OP_JOIN] = cut_join,   [QMI_OP_PROJECT] = cut_project,
    [QMI_OP_GLU] = cut_glu,       [QMI_OP_PROJECT_ADD] = cut_project_add,
    [QMI_OP_ATTEND] = cut_attend, [QMI_OP_DELTA] = cut_delta, [QMI_OP_ROUTE] = cut_route,
    [QMI_OP_EXPERTS] = cut_experts, [QMI_OP_LOGITS] = cut_logits,
};

/* ---- all of it ---- */

/* Between stages only the residual is alive: what the next op reads. */
static void enter_stage(cutter *c, const qmi_stage *stage, const qmi_op *op)
{
    const qmi_stage *before = c->stage;
    qmi_slot residual = op->kind == QMI_OP_LOGITS ? op->logits.in : op->project.in;
    c->stage = stage;
    if (!before)
        return;
    for (int32_t m = stage->member; m < stage->member + stage->members; m++)
        append_send(c, before->member, m, hold_all(c, m, residual));
}

static void finish(cutter *c)
{
    qmi_cut *cut = c->cut;
    for (int32_t m = 0; m < cut->members; m++)
        for (size_t p = 0; p < cut->parts[m].program_count; p++) {
            qmi_program *program = &cut->parts[m].programs[p];
            program->slot_count = cut->slot_count + cut->own_slots;
            for (int32_t i = 0; i < program->slot_count; i++)
                program->slots[i] = cut->parts[m].slots[i];
        }
    for (int32_t i = 0; i < cut->slot_count; i++)
        cut->slots[i].period = c->whole->slots[i].width * (int64_t)sizeof(float);
}

int32_t qmi_cut_make(const qmi_program *program, const qmi_sharing *sharing, const qmi_cut_maps *maps, const qmi_alloc *alloc,
                     qmi_cut *out)
{
    *out = (qmi_cut){ .whole = program, .members = sharing->members, .slot_count = program->slot_count, .own_slots = OWN_SLOTS };
    if (program->slot_count + OWN_SLOTS > QMI_SLOTS_MAX)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "a program of %d slots is too large for several devices", program->slot_count);
    cutter *c = qmi_new(alloc, 1, sizeof *c, "programs of several devices");
    if (!c)
        return QM_ERROR_MEMORY;
    *c = (cutter){ .whole = program, .sharing = sharing, .maps = maps, .alloc = alloc, .cut = out };
    c->circle_count = qmi_cut_circles(sharing, c->circles);
    for (size_t i = 0; i < program->count && c->code >= 0; i++) {
        const qmi_op *op = &program->ops[i];
        const qmi_stage *stage = qmi_cut_stage(sharing, op);
        c->layer = op->layer;
        if (stage != c->stage)
            enter_stage(c, stage, op);
        cutters[op->kind](c, op);
    }
    int32_t code = c->code;
    finish(c);
    qmi_delete(alloc, c);
    if (code < 0)
        qmi_cut_free(out, alloc);
    return code;
}

void qmi_cut_free(qmi_cut *cut, const qmi_alloc *alloc)
{
    for (int32_t m = 0; m < cut->members; m++) {
        qmi_part_of *part = &cut->parts[m];
        for (size_t p = 0; p < part->program_count; p++)
            qmi_program_free(&part->programs[p], alloc);
        qmi_delete(alloc, part->programs);
        qmi_delete(alloc, part->steps);
        qmi_delete(alloc, part->slices);
    }
    for (int32_t i = 0; i < cut->slot_count; i++)
        qmi_piece_map_free(&cut->slots[i], alloc);
    *cut = (qmi_cut){ 0 };
}
