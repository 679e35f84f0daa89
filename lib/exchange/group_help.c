/* Experts that the host computes for cards: see group_help.h. */
#include "exchange/group_help.h"

#include <string.h>
#include "exchange/group_inside.h"

/* ---- an op ---- */

static const group_program *program_of(const qmi_group *group, const qmi_program *program)
{
    for (int32_t i = 0; i < group->program_count; i++)
        for (int32_t m = 0; m < group->count; m++) {
            const qmi_part_of *part = &group->programs[i].wide.parts[m];
            if (program >= part->programs && program < part->programs + part->program_count)
                return &group->programs[i];
        }
    return NULL;
}

static const qmi_program *find_helped(const group_program *program, int32_t layer)
{
    for (size_t i = 0; program && i < program->helped_count; i++)
        if (program->helped[i].ops->layer == layer)
            return &program->helped[i];
    return NULL;
}

/* Cards of different stages may ask at the same time. */
static int32_t compute(void *user, const qmi_program *program, size_t op, const qmi_help *help)
{
    const qmi_group *group = user;
    const group_member *host = &group->members[group->sharing.expert_member];
    const qmi_program *own = find_helped(program_of(group, program), program->ops[op].layer);
    if (!own)
        return qmi_fail(QM_ERROR_STATE, "experts of layer %d that nobody has", program->ops[op].layer);
    const qmi_op_experts *e = &own->ops->experts;
    const qmi_batch batch = { .count = help->rows, .cancel = help->cancel };
    qmi_workspace workspace = { .rows = help->rows };
    workspace.slots[e->hidden] = (qmi_address)(uintptr_t)help->hidden;
    workspace.slots[e->route] = (qmi_address)(uintptr_t)help->route;
    workspace.slots[e->out] = (qmi_address)(uintptr_t)help->out;
    memset(help->out, 0, (size_t)(help->rows * e->down.rows) * sizeof *help->out);
    qmi_os_mutex_lock(group->help_mutex);
    int32_t code = host->base.backend->run(host->base.device, own, &workspace, &batch);
    qmi_os_mutex_unlock(group->help_mutex);
    return code < 0 && code != QM_ERROR_CANCELLED ? qmi_fail_within(code, host->base.name) : code;
}

/* ---- starting and stopping ---- */

/* The host computes nothing else, in memory that it shares; and each stage's card can ask. */
static bool can_help(const qmi_group *group)
{
    const qmi_sharing *sharing = &group->sharing;
    bool can = sharing->expert_member >= 0 && group->members[sharing->expert_member].info.shares_host;
    for (int32_t i = 0; i < group->program_count; i++)
        can = can && group->programs[i].has_wide;
    for (int32_t i = 0; i < sharing->stage_count; i++)
        can = can && sharing->stages[i].member != sharing->expert_member &&
              group->members[sharing->stages[i].member].base.backend->set_helper;
    return can;
}

/* The host's ops of a program, without the shared expert, which is the card's. */
static int32_t copy_programs(qmi_group *group, group_program *program)
{
    const qmi_part_of *part = &program->cut.parts[group->sharing.expert_member];
    int32_t code = QM_OK;
    if (part->program_count == 0)
        return QM_OK;
    program->helped = qmi_new(&group->alloc, part->program_count, sizeof *program->helped, "experts of the CPU");
    if (!program->helped)
        return QM_ERROR_MEMORY;
    for (size_t i = 0; i < part->program_count && code >= 0; i++) {
        qmi_program *own = &program->helped[program->helped_count++];
        qmi_op op = part->programs[i].ops[0]; /* each is one op: what goes between the members is around it */
        op.experts.shared_gate = op.experts.shared_up = op.experts.shared_down = (qmi_matrix){ 0 };
        memcpy(own->slots, part->programs[i].slots, sizeof own->slots);
        own->slot_count = part->programs[i].slot_count;
        code = qmi_program_append(own, &group->alloc, &op);
    }
    return code;
}

int32_t qmi_group_help_start(qmi_group *group)
{
    qmi_helper helper = { .compute = compute, .user = group, .rows = QMI_GROUP_HELP_ROWS, .timeout_ns = group->timeout_ns };
    if (!can_help(group))
        return QM_OK;
    int32_t code = qmi_os_mutex_new(&group->help_mutex);
    for (int32_t i = 0; i < group->program_count && code >= 0; i++)
        code = copy_programs(group, &group->programs[i]);
    for (int32_t i = 0; i < group->sharing.stage_count && code >= 0; i++) {
        const group_member *card = &group->members[group->sharing.stages[i].member];
        helper.cache_bytes = group->cache_bytes[group->sharing.stages[i].member];
        card->base.backend->set_helper(card->base.device, &helper);
    }
    group->helps = code >= 0;
    return code;
}

void qmi_group_help_stop(qmi_group *group)
{
    for (int32_t i = 0; i < group->program_count; i++) {
        group_program *program = &group->programs[i];
        for (size_t k = 0; k < program->helped_count; k++)
            qmi_program_free(&program->helped[k], &group->alloc);
        qmi_delete(&group->alloc, program->helped);
    }
    qmi_os_mutex_free(&group->help_mutex);
}
