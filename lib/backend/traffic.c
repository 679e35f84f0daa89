/* Counts what decoding moves through the memory: see traffic.h. */
#include "backend/traffic.h"

#include "quant/quant.h"

static int64_t matrix_bytes(const qmi_matrix *matrix)
{
    return matrix->data ? matrix->rows * qmi_quant_row_bytes(matrix->type, matrix->columns) : 0;
}

static int64_t vector_bytes(const qmi_vector *vector)
{
    return vector->data ? vector->size * (int64_t)sizeof(float) : 0;
}

static void count_attend(const qmi_op_attend *op, qmi_traffic *traffic)
{
    traffic->step += vector_bytes(&op->query_norm.weight) + vector_bytes(&op->key_norm.weight);
    traffic->held += op->kv_heads * (qmi_kv_head_bytes(op->key_type, op->head_size) + qmi_kv_head_bytes(op->value_type,
                                                                                                        op->head_size));
}

static void count_delta(const qmi_op_delta *op, qmi_traffic *traffic)
{
    int64_t matrix = (int64_t)op->value_heads * op->key_size * op->value_size;
    int64_t channels = 2 * (int64_t)op->key_heads * op->key_size + (int64_t)op->value_heads * op->value_size;
    traffic->step += vector_bytes(&op->convolution) + vector_bytes(&op->time_bias) + vector_bytes(&op->decay) +
                     vector_bytes(&op->norm.weight);
    traffic->sequence += 2 * (matrix + (op->taps - 1) * channels) * (int64_t)sizeof(float);
}

static void count_experts(const qmi_op_experts *op, qmi_traffic *traffic)
{
    traffic->experts += op->top * (matrix_bytes(&op->gate) + matrix_bytes(&op->up) + matrix_bytes(&op->down));
    traffic->step += matrix_bytes(&op->shared_gate) + matrix_bytes(&op->shared_up) + matrix_bytes(&op->shared_down);
}

qmi_traffic qmi_traffic_of(const qmi_program *program)
{
    qmi_traffic traffic = { 0 };
    for (size_t i = 0; i < program->count; i++) {
        const qmi_op *op = &program->ops[i];
        switch (op->kind) {
        case QMI_OP_PROJECT:
            traffic.step += vector_bytes(&op->project.norm.weight);
            for (int32_t m = 0; m < op->project.count; m++)
                traffic.step += matrix_bytes(&op->project.matrix[m]);
            break;
        case QMI_OP_GLU:
            traffic.step += vector_bytes(&op->glu.norm.weight) + matrix_bytes(&op->glu.gate) + matrix_bytes(&op->glu.up);
            break;
        case QMI_OP_PROJECT_ADD:
            traffic.step += matrix_bytes(&op->project_add.matrix);
            break;
        case QMI_OP_ATTEND:
            count_attend(&op->attend, &traffic);
            break;
        case QMI_OP_DELTA:
            count_delta(&op->delta, &traffic);
            break;
        case QMI_OP_ROUTE:
            traffic.step += vector_bytes(&op->route.norm.weight) + matrix_bytes(&op->route.router) +
                            matrix_bytes(&op->route.shared_gate);
            break;
        case QMI_OP_EXPERTS:
            count_experts(&op->experts, &traffic);
            break;
        case QMI_OP_LOGITS:
            traffic.step += vector_bytes(&op->logits.norm.weight) + matrix_bytes(&op->logits.output);
            break;
        case QMI_OP_EMBED:
        case QMI_OP_JOIN:
        case QMI_OP_SUM:
        case QMI_OP_COUNT:
            break;
        }
    }
    return traffic;
}
