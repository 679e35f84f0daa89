/* Operands of ops: see operands.h. */
#include "exchange/operands.h"

static void add_matrix(qmi_operands *all, qmi_matrix *matrix)
{
    all->matrices[all->matrix_count++] = matrix;
}

static void add_vector(qmi_operands *all, qmi_vector *vector)
{
    all->vectors[all->vector_count++] = vector;
}

static void add_experts(qmi_operands *all, qmi_op_experts *op)
{
    qmi_matrix *const matrices[] = { &op->gate, &op->up, &op->down, &op->shared_gate, &op->shared_up, &op->shared_down };
    for (int32_t i = 0; i < 6; i++)
        add_matrix(all, matrices[i]);
}

static void add_delta(qmi_operands *all, qmi_op_delta *op)
{
    qmi_vector *const vectors[] = { &op->convolution, &op->time_bias, &op->decay, &op->norm.weight };
    for (int32_t i = 0; i < 4; i++)
        add_vector(all, vectors[i]);
}

static void add_attend(qmi_operands *all, qmi_op_attend *op)
{
    qmi_vector *const vectors[] = { &op->query_norm.weight, &op->key_norm.weight, &op->inverse_frequency, &op->correction };
    for (int32_t i = 0; i < 4; i++)
        add_vector(all, vectors[i]);
}

qmi_operands qmi_operands_of(qmi_op *op)
{
    qmi_operands all = { 0 };
    switch (op->kind) {
    case QMI_OP_EMBED:
        add_matrix(&all, &op->embed.table);
        break;
    case QMI_OP_JOIN:
        add_matrix(&all, &op->join.table);
        add_vector(&all, &op->join.norm.weight);
        add_vector(&all, &op->join.hidden_norm.weight);
        break;
    case QMI_OP_PROJECT:
        for (int32_t i = 0; i < op->project.count; i++)
            add_matrix(&all, &op->project.matrix[i]);
        add_vector(&all, &op->project.norm.weight);
        break;
    case QMI_OP_GLU:
        add_matrix(&all, &op->glu.gate);
        add_matrix(&all, &op->glu.up);
        add_vector(&all, &op->glu.norm.weight);
        break;
    case QMI_OP_PROJECT_ADD:
        add_matrix(&all, &op->project_add.matrix);
        break;
    case QMI_OP_ATTEND:
        add_attend(&all, &op->attend);
        break;
    case QMI_OP_DELTA:
        add_delta(&all, &op->delta);
        break;
    case QMI_OP_ROUTE:
        add_matrix(&all, &op->route.router);
        add_matrix(&all, &op->route.shared_gate);
        add_vector(&all, &op->route.norm.weight);
        break;
    case QMI_OP_EXPERTS:
        add_experts(&all, &op->experts);
        break;
    case QMI_OP_SUM:
        break;
    default:
        add_matrix(&all, &op->logits.output);
        add_vector(&all, &op->logits.norm.weight);
    }
    return all;
}
