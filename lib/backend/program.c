/* Building programs: slots, the list of ops, and how much room a workspace takes. */
#include "backend/program.h"

#include <string.h>
#include "base/error.h"

static const char *const op_names[QMI_OP_COUNT] = { "embed", "join",  "project", "glu",     "project_add",
                                                    "attend", "delta", "route",   "experts", "logits",  "sum" };

const char *qmi_op_name(qmi_op_kind kind)
{
    return (unsigned)kind < QMI_OP_COUNT ? op_names[kind] : "unknown";
}

qmi_slot qmi_program_slot(qmi_program *program, const char *name, int64_t width, bool outputs)
{
    if (width < 1 || width > QMI_SLOT_WIDTH_MAX)
        return qmi_fail(QM_ERROR_FORMAT, "slot %s: width %lld is out of range (1 .. %lld)", name, (long long)width,
                        (long long)QMI_SLOT_WIDTH_MAX);
    for (int32_t i = 0; i < program->slot_count; i++) {
        const qmi_slot_shape *slot = &program->slots[i];
        if (slot->width == width && slot->outputs == outputs && strcmp(slot->name, name) == 0)
            return i;
    }
    if (program->slot_count == QMI_SLOTS_MAX)
        return qmi_fail(QM_ERROR_UNSUPPORTED, "slot %s: a program has at most %d slots", name, QMI_SLOTS_MAX);
    program->slots[program->slot_count] = (qmi_slot_shape){ .name = name, .width = width, .outputs = outputs };
    return program->slot_count++;
}

int32_t qmi_program_append(qmi_program *program, const qmi_alloc *alloc, const qmi_op *op)
{
    void *ops = program->ops;
    int32_t code = qmi_reserve(alloc, &ops, &program->capacity, program->count + 1, sizeof *op, "ops of a program");
    if (code < 0)
        return code;
    program->ops = ops;
    program->ops[program->count++] = *op;
    return QM_OK;
}

void qmi_program_free(qmi_program *program, const qmi_alloc *alloc)
{
    qmi_delete(alloc, program->ops);
    *program = (qmi_program){ 0 };
}

int64_t qmi_workspace_bytes(const qmi_program *program, int32_t rows, int32_t outputs)
{
    int64_t total = 0;
    for (int32_t i = 0; i < program->slot_count; i++) {
        int64_t bytes = program->slots[i].width * (program->slots[i].outputs ? outputs : rows) * (int64_t)sizeof(float);
        total += (bytes + QMI_ALIGNMENT - 1) / QMI_ALIGNMENT * QMI_ALIGNMENT;
    }
    return total;
}
