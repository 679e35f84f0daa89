/* Time of a token by sharing: see predict.h. */
#include "exchange/predict.h"

#include "base/error.h"
#include "exchange/operands.h"
#include "quant/quant.h"

typedef struct walker {
    const qmi_cut *cut;
    const qmi_plan_device *devices;
    const qmi_group_rates *rates;
    qmi_group_plan *out;
    qmi_circle circles[QMI_CIRCLES_MAX];
    size_t at[QMI_RANKS_MAX];        /* next step of each member */
    size_t op[QMI_RANKS_MAX];        /* next op of the program that is its next step */
    bool begun[QMI_RANKS_MAX];       /* that program */
    double clock[QMI_RANKS_MAX];     /* ns */
    double sent[QMI_RANKS_MAX][QMI_RANKS_MAX][2]; /* when the messages under way from one to another are there */
    int32_t under_way[QMI_RANKS_MAX][QMI_RANKS_MAX];
} walker;

static double matrix_bytes(const walker *w, int32_t member, const qmi_matrix *matrix)
{
    uint32_t type = matrix->type;
    int64_t rows = matrix->rows * matrix->count;
    if (!matrix->rows)
        return 0;
    if (w->devices[member].matrix_bytes)
        return (double)w->devices[member].matrix_bytes(&type, matrix->columns, rows);
    return (double)(qmi_quant_row_bytes(type, matrix->columns) * rows);
}

/* Of one token: of a table one row, of experts those that are chosen. */
static double op_bytes(const walker *w, int32_t member, qmi_op *op)
{
    const qmi_operands all = qmi_operands_of(op);
    double bytes = 0;
    for (int32_t i = 0; i < all.matrix_count; i++) {
        const qmi_matrix *matrix = all.matrices[i];
        double own = matrix_bytes(w, member, matrix);
        if (op->kind == QMI_OP_EMBED || op->kind == QMI_OP_JOIN)
            own /= (double)matrix->rows;
        else if (matrix->count > 1)
            own *= (double)op->experts.top / (double)matrix->count;
        bytes += own;
    }
    return bytes;
}

static void run_op(walker *w, int32_t member, qmi_op *op)
{
    const qmi_group_rates *rates = w->rates;
    double bytes = op_bytes(w, member, op);
    w->out->members[member].token_bytes += (int64_t)bytes;
    if (rates && rates->read[member] > 0)
        w->clock[member] += bytes / rates->read[member] * 1e9 + rates->op_ns[member];
}

static double exchange_ns(const walker *w, int32_t member, qmi_slot slot, bool message)
{
    double bytes = (double)w->cut->parts[member].slots[slot].width * sizeof(float);
    if (!w->rates)
        return 0;
    return (message ? w->rates->message_ns : w->rates->exchange_ns) + bytes * w->rates->byte_ns;
}

/* The sum that the member has come to, a step or an op of a program; -1: none. */
static int32_t circle_at(const walker *w, int32_t member, qmi_slot *to)
{
    const qmi_part_of *part = &w->cut->parts[member];
    const qmi_cut_step *step = &part->steps[w->at[member]];
    if (w->at[member] == part->step_count)
        return -1;
    *to = step->to;
    if (step->kind == QMI_STEP_SUM)
        return step->circle;
    if (step->kind != QMI_STEP_RUN || w->op[member] == part->programs[step->program].count)
        return -1;
    const qmi_op *op = &part->programs[step->program].ops[w->op[member]];
    *to = op->sum.to;
    return op->kind == QMI_OP_SUM ? op->sum.circle : -1;
}

/* A sum waits until all of the circle are at it. */
static bool try_sum(walker *w, int32_t index)
{
    const qmi_circle *circle = &w->circles[index];
    double latest = 0;
    qmi_slot to[QMI_RANKS_MAX];
    for (int32_t i = 0; i < circle->count; i++) {
        int32_t m = circle->members[i];
        if (circle_at(w, m, &to[i]) != index)
            return false;
        latest = w->clock[m] > latest ? w->clock[m] : latest;
    }
    for (int32_t i = 0; i < circle->count; i++) {
        int32_t m = circle->members[i];
        const qmi_part_of *part = &w->cut->parts[m];
        w->clock[m] = latest + exchange_ns(w, m, to[i], false);
        w->out->members[m].exchanges++;
        if (part->steps[w->at[m]].kind == QMI_STEP_SUM)
            w->at[m]++;
        else
            w->op[m]++;
    }
    return true;
}

/* Ops until the program's end, or a sum that not all have come to. */
static bool try_run(walker *w, int32_t member, const qmi_program *program)
{
    bool moved = false;
    qmi_slot to;
    if (!w->begun[member]) {
        w->begun[member] = true;
        w->out->members[member].runs++;
        w->clock[member] += w->rates && w->rates->read[member] > 0 ? w->rates->run_ns[member] : 0;
    }
    while (w->op[member] < program->count) {
        int32_t circle = circle_at(w, member, &to);
        if (circle >= 0 && !try_sum(w, circle))
            return moved;
        if (circle < 0)
            run_op(w, member, &program->ops[w->op[member]++]);
        moved = true;
    }
    w->op[member] = 0;
    w->begun[member] = false;
    w->at[member]++;
    return true;
}

static bool try_message(walker *w, int32_t member, const qmi_cut_step *step)
{
    bool send = step->kind == QMI_STEP_SEND;
    int32_t from = send ? member : step->peer, to = send ? step->peer : member;
    int32_t *count = &w->under_way[from][to];
    double *times = w->sent[from][to];
    if (send ? *count == 2 : *count == 0)
        return false;
    if (send) {
        times[(*count)++] = w->clock[member] + exchange_ns(w, member, step->from, true);
    } else {
        w->clock[member] = times[0] > w->clock[member] ? times[0] : w->clock[member];
        times[0] = times[1];
        (*count)--;
    }
    w->out->members[member].exchanges++;
    w->at[member]++;
    return true;
}

static bool try_step(walker *w, int32_t member)
{
    const qmi_part_of *part = &w->cut->parts[member];
    if (w->at[member] == part->step_count)
        return false;
    const qmi_cut_step *step = &part->steps[w->at[member]];
    if (step->kind == QMI_STEP_SUM)
        return try_sum(w, step->circle);
    if (step->kind == QMI_STEP_SEND || step->kind == QMI_STEP_RECEIVE)
        return try_message(w, member, step);
    if (step->kind == QMI_STEP_RUN)
        return try_run(w, member, &part->programs[step->program]);
    w->at[member]++;
    return true;
}

int32_t qmi_predict(const qmi_cut *cut, const qmi_sharing *sharing, const qmi_plan_device *devices, const qmi_group_rates *rates,
                    const qmi_alloc *alloc, qmi_group_plan *out)
{
    walker *w = qmi_new(alloc, 1, sizeof *w, "a prediction");
    bool moved = true, known = rates != NULL;
    if (!w)
        return QM_ERROR_MEMORY;
    *w = (walker){ .cut = cut, .devices = devices, .rates = rates, .out = out };
    qmi_cut_circles(sharing, w->circles);
    while (moved) {
        moved = false;
        for (int32_t i = 0; i < cut->members; i++)
            while (try_step(w, i))
                moved = true;
    }
    for (int32_t i = 0; i < cut->members; i++) {
        known = known && (rates->read[i] > 0 || cut->parts[i].step_count == 0);
        out->decode_ns = w->clock[i] > out->decode_ns ? w->clock[i] : out->decode_ns;
    }
    if (!known)
        out->decode_ns = 0;
    qmi_delete(alloc, w);
    return QM_OK;
}
