/* Computing with a group: each member goes through its steps, piece by piece, in a thread of its own. */
#include "exchange/group_inside.h"

#include <string.h>

const group_program *qmi_group_find_program(const qmi_group *group, const qmi_program *whole)
{
    for (int32_t i = 0; i < group->program_count; i++)
        if (group->programs[i].whole == whole)
            return &group->programs[i];
    return NULL;
}

/* ---- a member's steps ---- */

/* The member's address of a slot's row where the piece begins. */
static qmi_address slot_of(const qmi_group *group, int32_t index, const group_piece *piece, qmi_slot slot)
{
    const qmi_slot_shape *shape = &group->cut->parts[index].slots[slot];
    int64_t row = shape->outputs ? piece->first_output : piece->first_row;
    return group->members[index].workspace.slots[slot] + (qmi_address)(row * shape->width) * sizeof(float);
}

static int32_t run_program(const qmi_group *group, int32_t index, const group_piece *piece, const qmi_program *program)
{
    const group_member *member = &group->members[index];
    qmi_workspace workspace = member->workspace;
    qmi_batch batch = piece->batch;
    batch.joints = member->joints;
    for (int32_t i = 0; i < program->slot_count; i++)
        if (workspace.slots[i])
            workspace.slots[i] = slot_of(group, index, piece, i);
    return member->base.backend->run(member->base.device, program, &workspace, &batch);
}

static int32_t run_step(qmi_group *group, int32_t index, const group_piece *piece, const qmi_cut_step *step)
{
    const qmi_part_of *part = &group->cut->parts[index];
    const group_member *member = &group->members[index];
    qmi_exchange *end = group->ends[step->circle][index];
    int64_t rows = piece->batch.count;
    switch (step->kind) {
    case QMI_STEP_RUN:
        return run_program(group, index, piece, &part->programs[step->program]);
    case QMI_STEP_CLEAR:
        return member->base.backend->clear(member->base.device, slot_of(group, index, piece, step->to),
                                           rows * part->slots[step->to].width * (int64_t)sizeof(float));
    case QMI_STEP_SUM:
        return end->carrier->sum(end, slot_of(group, index, piece, step->from), slot_of(group, index, piece, step->to),
                                 rows * part->slots[step->to].width);
    case QMI_STEP_SEND:
        return end->carrier->send(end, step->peer, slot_of(group, index, piece, step->from),
                                  rows * part->slots[step->from].width);
    default:
        return end->carrier->receive(end, step->peer, slot_of(group, index, piece, step->to), rows * part->slots[step->to].width);
    }
}

/* Whoever fails by itself tells all that wait for it. */
static void give_up(qmi_group *group, int32_t index)
{
    group_member *member = &group->members[index];
    for (int32_t i = 0; i < group->circle_count; i++)
        if (group->ends[i][index])
            group->ends[i][index]->carrier->give_up(group->ends[i][index], member->code, member->message);
}

static int32_t start_ends(qmi_group *group, int32_t index)
{
    group_member *member = &group->members[index];
    int32_t code = QM_OK;
    for (int32_t i = 0; i < group->circle_count && code >= 0; i++) {
        qmi_exchange *end = group->ends[i][index];
        if (end)
            code = end->carrier->start(end, group->cancel);
        member->joints[i] = end && code >= 0 && end->carrier->inside ? end->carrier->inside(end) : NULL;
    }
    return code;
}

/* A program with sums in it fails where another's does: then the failure is that one's. */
static bool is_own_failure(qmi_group *group, int32_t index, int32_t *code)
{
    int32_t other = QM_OK;
    for (int32_t i = 0; i < group->circle_count && other >= 0 && *code != QM_ERROR_CANCELLED; i++)
        if (group->members[index].joints[i])
            other = group->ends[i][index]->carrier->failed(group->ends[i][index]);
    if (other < 0)
        *code = other;
    return other >= 0;
}

static void run_member(qmi_group *group, int32_t index)
{
    group_member *member = &group->members[index];
    const qmi_part_of *part = &group->cut->parts[index];
    int32_t code = start_ends(group, index);
    bool own = false;
    for (int32_t p = 0; p < group->piece_count; p++)
        for (size_t s = 0; s < part->step_count && code >= 0; s++) {
            code = run_step(group, index, &member->pieces[p], &part->steps[s]);
            own = part->steps[s].kind <= QMI_STEP_CLEAR;
        }
    if (code < 0)
        qmi_error_copy(member->message);
    own = code < 0 && own && is_own_failure(group, index, &code);
    if (code < 0 && !own)
        qmi_error_copy(member->message);
    member->code = code;
    member->at_fault = own;
    if (code < 0)
        give_up(group, index);
}

/* ---- threads ---- */

static void member_body(void *argument)
{
    group_member *member = argument;
    for (int32_t turn = 0;; turn++) {
        int64_t start = qmi_os_time_ns();
        while (__atomic_load_n(&member->turn, __ATOMIC_ACQUIRE) == turn) {
            if (qmi_os_time_ns() - start < member->group->spin_ns)
                qmi_os_yield();
            else
                qmi_os_wait_word(&member->turn, turn);
        }
        if (member->stopping)
            return;
        run_member(member->group, (int32_t)(member - member->group->members));
        __atomic_store_n(&member->done, turn + 1, __ATOMIC_RELEASE);
        qmi_os_wake_all(&member->done);
    }
}

static void give_turn(group_member *member)
{
    __atomic_store_n(&member->turn, member->turn + 1, __ATOMIC_RELEASE);
    qmi_os_wake_all(&member->turn);
}

static void wait_done(const group_member *member)
{
    int64_t start = qmi_os_time_ns();
    for (;;) {
        int32_t done = __atomic_load_n(&member->done, __ATOMIC_ACQUIRE);
        if (done == member->turn)
            return;
        if (qmi_os_time_ns() - start < member->group->spin_ns)
            qmi_os_yield();
        else
            qmi_os_wait_word(&member->done, done);
    }
}

int32_t qmi_group_start_threads(qmi_group *group)
{
    int32_t code = QM_OK;
    for (int32_t i = 1; i < group->count && code >= 0; i++)
        code = qmi_os_thread_start(&group->members[i].thread, member_body, &group->members[i], "qwenmoe-member");
    return code;
}

void qmi_group_stop_threads(qmi_group *group)
{
    for (int32_t i = 1; i < group->count; i++) {
        group_member *member = &group->members[i];
        if (!member->thread)
            continue;
        member->stopping = true;
        give_turn(member);
        qmi_os_thread_join(&member->thread);
    }
}

/* ---- a run ---- */

/* The failure of who failed first, with its name; of those that only heard of it the message has the name already. */
static int32_t report(const qmi_group *group)
{
    const group_member *worst = NULL;
    for (int32_t i = 0; i < group->count; i++) {
        const group_member *member = &group->members[i];
        if (member->code < 0 && (!worst || (member->at_fault && !worst->at_fault)))
            worst = member;
    }
    if (!worst)
        return QM_OK;
    qmi_error_restore(worst->message);
    return worst->at_fault && worst->code != QM_ERROR_CANCELLED ? qmi_fail_within(worst->code, worst->base.name) : worst->code;
}

/* A host that helps has no steps of its own, in no batch. */
static bool takes_part(const qmi_group *group, int32_t index)
{
    return !group->helps || index != group->sharing.expert_member;
}

int32_t qmi_group_run(qmi_device *device, const qmi_program *program, const qmi_workspace *workspace, const qmi_batch *batch)
{
    qmi_group *group = qmi_group_of(device);
    group->program = qmi_group_find_program(group, program);
    if (!group->program || group->program->own_rows < workspace->rows)
        return qmi_fail(QM_ERROR_STATE, "the devices are not prepared for this program and batches of %d rows", workspace->rows);
    bool wide = group->program->has_wide && (group->helps || batch->count > QMI_GROUP_HELP_ROWS);
    group->cut = wide ? &group->program->wide : &group->program->cut;
    int32_t code = qmi_group_cut_batch(group, workspace, batch);
    if (code < 0)
        return code;
    group->cancel = batch->cancel;
    for (int32_t i = 1; i < group->count; i++)
        if (takes_part(group, i))
            give_turn(&group->members[i]);
    run_member(group, 0);
    for (int32_t i = 1; i < group->count; i++)
        if (takes_part(group, i))
            wait_done(&group->members[i]);
    code = report(group);
    if (code >= 0 && batch->picks)
        qmi_group_join_picks(group, batch);
    return code;
}
