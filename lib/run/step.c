/* One batch through the forward pass: see step.h. */
#include "run/step.h"

#include <string.h>
#include "run/session.h"

int32_t qmi_step_new(qm_model *model)
{
    const qmi_alloc *alloc = &model->settings.alloc;
    const qmi_plan *plan = &model->plan;
    qmi_step *step = &model->engine.step;
    *step = (qmi_step){ .row_limit = plan->rows, .output_limit = plan->outputs };
    step->part_limit = plan->sequences < plan->outputs ? plan->sequences : plan->outputs;
    size_t parts = (size_t)step->part_limit, rows = (size_t)step->row_limit, outputs = (size_t)plan->outputs;
    step->parts = qmi_new(alloc, parts, sizeof *step->parts, "sessions of a step");
    step->sequences = qmi_new(alloc, parts, sizeof *step->sequences, "sequences of a step");
    step->tokens = qmi_new(alloc, rows, sizeof *step->tokens, "tokens of a step");
    step->draft_tokens = qmi_new(alloc, rows, sizeof *step->draft_tokens, "tokens of a step");
    step->outputs = qmi_new(alloc, outputs, sizeof *step->outputs, "outputs of a step");
    step->targets = qmi_new(alloc, outputs, sizeof *step->targets, "outputs of a step");
    if (model->info.picks)
        step->picks = qmi_new(alloc, outputs * QMI_PICKS_MAX, sizeof *step->picks, "the highest logits of a step");
    if (!step->parts || !step->sequences || !step->tokens || !step->draft_tokens || !step->outputs || !step->targets ||
        (model->info.picks && !step->picks))
        return QM_ERROR_MEMORY;
    step->hidden = qmi_forward_slot(&model->program, "hidden");
    step->logits = qmi_forward_slot(&model->program, "logits");
    if (plan->mtp) {
        step->draft_in = qmi_forward_slot(&model->mtp_program, "draft_in");
        step->draft_logits = qmi_forward_slot(&model->mtp_program, "logits");
    }
    return QM_OK;
}

void qmi_step_free(qm_model *model)
{
    const qmi_alloc *alloc = &model->settings.alloc;
    qmi_step *step = &model->engine.step;
    qmi_delete(alloc, step->parts);
    qmi_delete(alloc, step->sequences);
    qmi_delete(alloc, step->tokens);
    qmi_delete(alloc, step->draft_tokens);
    qmi_delete(alloc, step->outputs);
    qmi_delete(alloc, step->targets);
    qmi_delete(alloc, step->picks);
    *step = (qmi_step){ 0 };
}

bool qmi_step_goes_back(const qm_session *session, bool want_logits)
{
    return session->count > 0 && !session->state && (want_logits || session->model->plan.mtp);
}

void qmi_step_start(qmi_step *step, bool apart)
{
    step->part_count = step->row_count = step->output_count = 0;
    step->apart = apart;
}

/* ---- adding sessions ---- */

/* The last part's last row is an output in any case, for its session. */
static void close_part(qmi_step *step)
{
    if (step->part_count == 0)
        return;
    qmi_part *part = &step->parts[step->part_count - 1];
    int32_t last = part->first + part->count - 1;
    if (step->output_count == 0 || step->outputs[step->output_count - 1] != last) {
        step->outputs[step->output_count] = last;
        step->targets[step->output_count++] = NULL;
    }
    part->output = step->output_count - 1;
}

/* The state that a part is computed into. One of no tokens is all zero. */
static int32_t take_state(qm_model *model, const qmi_step *step, qmi_part *part)
{
    qmi_state_pool *pool = &model->states;
    qm_session *session = part->session;
    if (session->state && !step->apart && session->state->references == 1) {
        part->next = session->state;
        return QM_OK;
    }
    int32_t code = qmi_state_take(pool, &part->next);
    if (code >= 0 && !session->state && pool->layout.recurrent_bytes) {
        code = model->backend->clear(model->device, part->next->recurrent, pool->layout.recurrent_bytes);
        if (code < 0)
            qmi_state_release(pool, &part->next);
    }
    return code;
}

/* With multi-token prediction the block's keys and values of a position follow from the token after it: those of the last
 * token held are written by the step that appends the next. */
static int64_t first_written(const qm_model *model, int64_t start)
{
    return model->plan.mtp && start > 0 ? start - 1 : start;
}

int32_t qmi_step_add(qm_model *model, qm_job *job, qm_session *session, const int32_t *tokens, int32_t count)
{
    qmi_step *step = &model->engine.step;
    const qmi_kv_layout *kv = &model->plan.kv;
    int32_t back = qmi_step_goes_back(session, count == 0);
    close_part(step);
    if (step->part_count == step->part_limit || step->output_count == step->output_limit ||
        step->row_limit - step->row_count < count + back)
        return 0;
    qmi_part *part = &step->parts[step->part_count];
    *part = (qmi_part){ .session = session, .job = job, .first = step->row_count, .count = count + back,
                         .start = session->count - back };
    int64_t held = kv->window ? qmi_kv_packed(kv->window, part->start) : part->start;
    int32_t code = qmi_page_table_own(&model->pages, &session->pages, kv->window ? held : first_written(model, part->start), held,
                                      part->start + part->count);
    if (code >= 0)
        code = take_state(model, step, part);
    if (code < 0) {
        qmi_page_table_cut(&model->pages, &session->pages, session->count);
        return code;
    }
    step->part_count++;
    if (back)
        step->tokens[step->row_count] = session->tokens[part->start];
    if (count > 0 && tokens)
        memcpy(step->tokens + step->row_count + back, tokens, (size_t)count * sizeof *tokens);
    step->row_count += part->count;
    return 1;
}

void qmi_step_set(qmi_step *step, int32_t token)
{
    step->tokens[step->row_count - 1] = token;
}

/* What was made ready for a part and is not needed. */
static void give_back(qm_model *model, qmi_part *part)
{
    if (part->next == part->session->state)
        part->next = NULL;
    else
        qmi_state_release(&model->states, &part->next);
    qmi_page_table_cut(&model->pages, &part->session->pages, part->session->count);
}

void qmi_step_take_back(qm_model *model, qmi_step *step)
{
    qmi_part *part = &step->parts[--step->part_count];
    step->row_count = part->first;
    give_back(model, part);
}

void qmi_step_want(qmi_step *step, int32_t token, float *target)
{
    const qmi_part *part = &step->parts[step->part_count - 1];
    int32_t back = part->start < part->session->count;
    step->outputs[step->output_count] = part->first + back + token;
    step->targets[step->output_count++] = target;
}

static qmi_address row_address(const qmi_workspace *workspace, qmi_slot slot, int64_t width, int64_t row)
{
    return workspace->slots[slot] + (qmi_address)(row * width) * sizeof(float);
}

static int32_t run_forward(qm_model *model, qmi_step *step, const int32_t *cancel)
{
    for (int32_t i = 0; i < step->part_count; i++) {
        const qmi_part *part = &step->parts[i];
        const qmi_state *state = part->session->state ? part->session->state : part->next;
        step->sequences[i] = (qmi_sequence){ .first = part->first, .count = part->count, .start = part->start,
                                             .pages = part->session->pages.addresses, .state = state->recurrent,
                                             .next_state = part->next->recurrent };
    }
    const qmi_batch batch = { .count = step->row_count, .tokens = step->tokens, .sequence_count = step->part_count,
                              .sequences = step->sequences, .output_count = step->output_count, .outputs = step->outputs,
                              .picks = step->picks, .cancel = cancel };
    return model->backend->run(model->device, &model->program, &model->workspace, &batch);
}

/* Lays out a part's rows for the multi-token-prediction block. Its row of position p takes the hidden state of p and the token
 * of p + 1, so the rows are those of the forward pass moved back by one: first the position before them, whose hidden state
 * the session kept (where the step went back that row is there already), and not the last, whose successor is not known. */
static int32_t add_draft(qm_model *model, qmi_step *step, qmi_part *part, int32_t first)
{
    const qmi_backend *backend = model->backend;
    qm_session *session = part->session;
    int64_t width = model->plan.hparams.hidden;
    int64_t row_bytes = width * (int64_t)sizeof(float);
    bool with_kept = part->start > 0 && part->start == session->count;
    int32_t skipped = with_kept ? 0 : 1, code = QM_OK;
    part->draft_first = first;
    part->draft_count = part->count - skipped;
    if (part->draft_count == 0)
        return QM_OK;
    memcpy(step->draft_tokens + first, step->tokens + part->first + skipped, (size_t)part->draft_count * sizeof(int32_t));
    if (with_kept)
        code = backend->copy(model->device, row_address(&model->mtp_workspace, step->draft_in, width, first),
                             session->state->hidden, row_bytes);
    int32_t rest = part->count - 1;
    if (code >= 0 && rest > 0)
        code = backend->copy(model->device,
                             row_address(&model->mtp_workspace, step->draft_in, width, first + part->draft_count - rest),
                             row_address(&model->workspace, step->hidden, width, part->first), rest * row_bytes);
    return code;
}

static int32_t run_draft(qm_model *model, qmi_step *step)
{
    int32_t rows = 0, sequences = 0;
    for (int32_t i = 0; i < step->part_count; i++) {
        qmi_part *part = &step->parts[i];
        int32_t code = add_draft(model, step, part, rows);
        if (code < 0)
            return code;
        if (part->draft_count == 0)
            continue;
        step->sequences[sequences++] =
            (qmi_sequence){ .first = part->draft_first, .count = part->draft_count, .pages = part->session->pages.addresses,
                            .start = part->draft_count == part->count ? part->start - 1 : part->start };
        rows += part->draft_count;
    }
    if (rows == 0)
        return QM_OK;
    const qmi_batch batch = { .count = rows, .tokens = step->draft_tokens, .sequence_count = sequences,
                              .sequences = step->sequences };
    return model->backend->run(model->device, &model->mtp_program, &model->mtp_workspace, &batch);
}

/* Brings what is wanted of the logits to the host, and keeps logits and hidden state of each part's last row in its state. */
static int32_t fetch(qm_model *model, qmi_step *step)
{
    int64_t vocabulary = model->plan.hparams.vocabulary, width = model->plan.hparams.hidden;
    int64_t bytes = vocabulary * (int64_t)sizeof(float);
    int32_t code = QM_OK;
    for (int32_t i = 0; i < step->output_count && code >= 0; i++)
        if (step->targets[i])
            code = model->backend->read(model->device, step->targets[i],
                                        row_address(&model->workspace, step->logits, vocabulary, i), bytes);
    for (int32_t i = 0; i < step->part_count && code >= 0; i++) {
        const qmi_part *part = &step->parts[i];
        code = model->backend->copy(model->device, part->next->logits,
                                    row_address(&model->workspace, step->logits, vocabulary, part->output), bytes);
        if (code >= 0 && model->plan.mtp)
            code = model->backend->copy(model->device, part->next->hidden,
                                        row_address(&model->workspace, step->hidden, width, part->first + part->count - 1),
                                        width * (int64_t)sizeof(float));
        part->next->has_picks = step->picks != NULL;
        if (step->picks)
            memcpy(part->next->picks, step->picks + part->output * QMI_PICKS_MAX, sizeof part->next->picks);
    }
    return code;
}

static void commit(qm_model *model, qmi_step *step)
{
    for (int32_t i = 0; i < step->part_count; i++) {
        qmi_part *part = &step->parts[i];
        qm_session *session = part->session;
        if (part->next != session->state) {
            qmi_state_release(&model->states, &session->state);
            session->state = part->next;
        }
        memcpy(session->tokens + part->start, step->tokens + part->first, (size_t)part->count * sizeof(int32_t));
        qmi_page_table_note(&model->pages, &session->pages, part->start, step->tokens + part->first, part->count);
        session->logits_read = false;
        qmi_session_set_length(session, part->start + part->count);
    }
}

/* A file whose mapping is computed with must not be touched when it was cut since. */
static int32_t check_file(const qm_model *model)
{
    return model->info.mapped ? qmi_parts_check(&model->parts) : QM_OK;
}

int32_t qmi_step_run(qm_model *model, qmi_step *step, const int32_t *cancel)
{
    bool started = false;
    int32_t code = check_file(model);
    close_part(step);
    if (code >= 0) {
        started = true;
        code = run_forward(model, step, cancel);
    }
    if (code >= 0 && model->plan.mtp)
        code = run_draft(model, step);
    if (code >= 0)
        code = fetch(model, step);
    if (code >= 0)
        commit(model, step);
    for (int32_t i = 0; i < step->part_count && code < 0; i++) {
        qmi_part *part = &step->parts[i];
        if (started && part->next == part->session->state)
            qmi_session_break(part->session, code);
        give_back(model, part);
    }
    return code;
}

int32_t qmi_step_draft(qm_model *model, qm_session *session, int32_t next, float *logits)
{
    const qmi_backend *backend = model->backend;
    const qmi_step *step = &model->engine.step;
    const int32_t row = 0;
    int32_t code = check_file(model);
    if (code >= 0)
        code = qmi_page_table_own(&model->pages, &session->pages, session->count - 1, session->count, session->count);
    if (code < 0)
        return code;
    const qmi_sequence sequence = { .first = 0, .count = 1, .start = session->count - 1, .pages = session->pages.addresses };
    const qmi_batch batch = { .count = 1, .tokens = &next, .sequence_count = 1, .sequences = &sequence, .output_count = 1,
                              .outputs = &row };
    code = backend->copy(model->device, model->mtp_workspace.slots[step->draft_in], session->state->hidden,
                         model->plan.hparams.hidden * (int64_t)sizeof(float));
    if (code >= 0)
        code = backend->run(model->device, &model->mtp_program, &model->mtp_workspace, &batch);
    if (code >= 0)
        code = backend->read(model->device, logits, model->mtp_workspace.slots[step->draft_logits],
                             model->plan.hparams.vocabulary * (int64_t)sizeof(float));
    return code;
}
