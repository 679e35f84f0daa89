/* Reuse of what was computed: see reuse.h. */
#include "run/reuse.h"

#include <string.h>

#define APART 32        /* tokens that a checkpoint has to save */
#define APART_TURNS 256 /* ... that of another than the last turn, since it makes one chunk more */
#define BEFORE_END 64   /* a text that goes on where it ended may have other tokens at the seam, but hardly so many */
#define DENSE 4         /* times checkpoint-every: the end of a prompt, where states lie so close that at most one such piece is
                         * computed again wherever the next prompt differs */
#define DENSE_CHUNKS 8  /* ... where the prompt has so many chunks that smaller ones at its end cost little */

/* ---- making checkpoints ---- */

static bool has_recurrent(const qm_model *model)
{
    return model->plan.state.recurrent_bytes > 0;
}

static void keep(qm_session *session, qmi_checkpoint_kind kind)
{
    qmi_checkpoints_keep(&session->model->checkpoints, &session->pages, session->count, session->state, kind);
    session->checkpointed = session->count;
}

void qmi_reuse_decoded(qm_session *session)
{
    const qm_model *model = session->model;
    if (has_recurrent(model) && session->count - session->checkpointed >= model->checkpoint_every)
        keep(session, QMI_CHECKPOINT_PASSED);
}

void qmi_reuse_leave(qm_session *session)
{
    if (!session->failure && session->count - session->checkpointed >= APART)
        keep(session, QMI_CHECKPOINT_LEFT);
}

static bool begins_turn(const qm_job *job, int64_t index)
{
    return job->model->turn_start >= 0 && index < job->token_count && job->tokens[index] == job->model->turn_start;
}

void qmi_reuse_prefilled(qm_job *job)
{
    qm_session *session = job->sessions[0];
    int64_t passed = session->count - session->checkpointed;
    bool ended = job->token_done == job->token_count, near_end = job->token_done == job->turns[3];
    if (!has_recurrent(job->model)) {
        if (ended && passed >= APART)
            keep(session, QMI_CHECKPOINT_PROMPT);
    } else if (begins_turn(job, job->token_done)) {
        keep(session, QMI_CHECKPOINT_TURN);
    } else if (passed >= (ended || near_end ? APART : job->model->checkpoint_every)) {
        keep(session, ended || near_end ? QMI_CHECKPOINT_PROMPT : QMI_CHECKPOINT_PASSED);
    }
}

/* The places inside a prompt where another may branch off: the end of the system prompt, which other conversations share;
 * where the last message begins, which may be edited; where the answer begins, for the next prompt renders the answer anew,
 * mostly without its thoughts; and of text that comes again without turns, shortly before its end. Fewer than APART tokens
 * before the answer are too few to be worth a chunk. */
static void mark_turns(qm_job *job)
{
    const qm_session *session = job->sessions[0];
    int64_t first = -1, last = -1, before_last = -1, end = -1;
    for (int64_t i = 1; i < job->token_count; i++) {
        if (!begins_turn(job, i))
            continue;
        if (first < 0 && session->count == 0)
            first = i;
        before_last = last;
        last = i;
    }
    if (job->synced && job->token_count - (last < 0 ? 0 : last) > APART_TURNS)
        end = job->token_count - BEFORE_END;
    if (first >= 0 && first < APART)
        first = -1;
    if (before_last >= 0 && before_last - (first < 0 ? 0 : first) < APART_TURNS)
        before_last = -1;
    job->turns[0] = first;
    job->turns[1] = before_last;
    job->turns[2] = last;
    job->turns[3] = end;
    job->turns_marked = true;
}

/* At the end of a long prompt that will come again, chunks are as small as the distance of states that are kept. */
static int64_t limit_near_end(const qm_job *job, int64_t size)
{
    const qm_model *model = job->model;
    int64_t every = model->checkpoint_every, chunk = model->plan.chunk, dense = job->token_count - DENSE * every;
    if (!job->synced || every >= size || (chunk > 2 * every && job->token_count < DENSE_CHUNKS * chunk))
        return size;
    return job->token_done + size > dense ? every : size;
}

int64_t qmi_reuse_chunk(qm_job *job, int64_t limit)
{
    const qm_model *model = job->model;
    int64_t left = job->token_count - job->token_done, size = left < limit ? left : limit;
    if (!has_recurrent(model) || model->checkpoints.limit == 0)
        return size;
    if (!job->turns_marked)
        mark_turns(job);
    size = limit_near_end(job, size);
    for (int i = 0; i < 4; i++)
        if (job->turns[i] > job->token_done && job->turns[i] - job->token_done < size)
            size = job->turns[i] - job->token_done;
    if (size == left || begins_turn(job, job->token_done + size))
        return size;
    /* A long prompt is cut somewhere in any case: where a turn begins, if one does near the end of the chunk. */
    for (int64_t end = size; end > size * 3 / 4; end--)
        if (begins_turn(job, job->token_done + end))
            return end;
    return size;
}

/* ---- moving a session ---- */

typedef struct source { /* where the longest start of some tokens is held */
    const qmi_page_table *pages;
    qmi_state *state;       /* after them; NULL: not kept, or not needed */
    int64_t length;
    qmi_checkpoint *checkpoint; /* NULL: a session */
} source;

/* A state is of use only after the last of its tokens; without recurrent state, pages are of use without it. */
static void consider(source *best, const qm_session *session, const qmi_page_query *query)
{
    if (session->failure)
        return;
    int64_t common = qmi_page_query_common(query, &session->pages, session->count);
    bool whole = common == session->count;
    if (common > best->length && (whole || !has_recurrent(session->model)))
        *best = (source){ .pages = &session->pages, .state = whole ? session->state : NULL, .length = common };
}

static source find_source(qm_session *session, const int32_t *tokens, int64_t count)
{
    qm_model *model = session->model;
    qmi_page_query query = qmi_page_query_start(&model->pages, tokens, count);
    source best = { .pages = &session->pages };
    int64_t length;
    consider(&best, session, &query); /* first: it is the best of equals */
    for (const qm_session *other = model->sessions; other; other = other->next)
        if (other != session)
            consider(&best, other, &query);
    qmi_checkpoint *checkpoint = qmi_checkpoints_find(&model->checkpoints, &query, &length);
    if (checkpoint && length > best.length)
        best = (source){ .pages = &checkpoint->pages, .state = checkpoint->state, .length = length, .checkpoint = checkpoint };
    return best;
}

int64_t qmi_reuse_held(const qm_job *job)
{
    return find_source(job->sessions[0], job->tokens, job->token_count).length;
}

/* Makes the session hold what `from` holds, with its pages and state instead of the session's own. */
static int32_t take_over(qm_session *session, const source *from)
{
    qm_model *model = session->model;
    qmi_page_table pages = { 0 };
    qmi_state *state = qmi_state_retain(from->state);
    int32_t code = qmi_page_table_share(&model->pages, &pages, from->pages, from->length);
    if (code < 0) {
        qmi_state_release(&model->states, &state);
        return code;
    }
    if (from->checkpoint)
        qmi_checkpoints_use(&model->checkpoints, from->checkpoint);
    qmi_reuse_leave(session); /* may give up what `from` points to */
    qmi_session_cut(session, 0);
    qmi_page_table_free(&model->pages, &session->pages);
    session->pages = pages;
    session->state = state;
    return QM_OK;
}

static int32_t move(qm_session *session, const source *from, const int32_t *tokens)
{
    int32_t code = QM_OK;
    if (from->pages == &session->pages) {
        qmi_reuse_leave(session);
        qmi_session_cut(session, from->length);
    } else {
        code = take_over(session, from);
    }
    if (code < 0)
        return code;
    if (from->length > 0)
        memcpy(session->tokens, tokens, (size_t)from->length * sizeof *tokens);
    session->checkpointed = from->length;
    qmi_session_set_length(session, from->length);
    return QM_OK;
}

int32_t qmi_reuse_begin(qm_job *job)
{
    qm_session *session = job->sessions[0];
    source from = find_source(session, job->tokens, job->token_count);
    bool stays = from.pages == &session->pages && from.length == session->count;
    int32_t code = stays ? QM_OK : move(session, &from, job->tokens);
    if (code < 0)
        return code;
    int64_t held = from.length, left = job->token_count - held;
    memmove(job->tokens, job->tokens + held, (size_t)left * sizeof *job->tokens);
    qmi_os_mutex_lock(job->mutex);
    job->reused = held - qmi_step_goes_back(session, left == 0);
    job->token_count = left;
    qmi_os_mutex_unlock(job->mutex);
    job->replaces = false;
    return QM_OK;
}

/* ---- a full context ---- */

#define ROLE_TOKENS 3 /* <|im_start|>, the role, newline */

/* A turn that may come first after the system prompt: a question, not the result of a tool that was called before, though the
 * format gives both to the user. */
static bool begins_question(const qm_model *model, const int32_t *tokens, int64_t count, int64_t index)
{
    if (tokens[index] != model->turn_start)
        return false;
    if (model->role_user >= 0 && (index + 1 >= count || tokens[index + 1] != model->role_user))
        return false;
    return model->tool_result < 0 || index + ROLE_TOKENS >= count || tokens[index + ROLE_TOKENS] != model->tool_result;
}

/* Tokens [*from, *to) are to go, so that a quarter of the context becomes free, or as much as can. False: there is no such
 * turn. */
static bool find_oldest(const qm_session *session, const int32_t *tokens, int64_t count, int64_t *from, int64_t *to)
{
    const qm_model *model = session->model;
    int64_t start = 0;
    if (model->turn_start < 0 || count < 2)
        return false;
    if (tokens[0] == model->turn_start && model->role_system >= 0 && tokens[1] == model->role_system)
        for (start = 1; start < count && tokens[start] != model->turn_start;)
            start++;
    *from = *to = start;
    for (int64_t i = start + 1; i < count; i++) {
        if (!begins_question(model, tokens, count, i))
            continue;
        *to = i;
        if (count - (i - start) <= session->context - session->context / 4)
            break;
    }
    return *to > *from && count - (*to - *from) < session->context;
}

int32_t qmi_reuse_overflow(qm_job *job)
{
    qm_session *session = job->sessions[0];
    const qmi_settings *settings = &session->settings;
    int64_t left = job->token_count - job->token_done, count = session->count + left, from, to;
    int32_t *all = qmi_new(&job->alloc, (size_t)count, sizeof *all, "tokens of a job");
    if (!all)
        return QM_ERROR_MEMORY;
    memcpy(all, session->tokens, (size_t)session->count * sizeof *all);
    if (left > 0)
        memcpy(all + session->count, job->tokens + job->token_done, (size_t)left * sizeof *all);
    int32_t code = find_oldest(session, all, count, &from, &to);
    if (code > 0 && settings->progress && settings->progress("drop", to - from, count, settings->progress_user) != 0)
        code = qmi_fail(QM_ERROR_CANCELLED, "the progress callback cancelled the job");
    if (code <= 0) {
        qmi_delete(&job->alloc, all);
        return code;
    }
    qmi_log_line(&settings->log, QM_LOG_INFO, "the context of %lld tokens is full: %lld tokens of the oldest turns are dropped",
                 (long long)session->context, (long long)(to - from));
    memmove(all + from, all + to, (size_t)(count - to) * sizeof *all);
    qmi_delete(&job->alloc, job->tokens);
    job->tokens = all;
    job->replaces = true;
    job->turns_marked = false;
    qmi_os_mutex_lock(job->mutex);
    job->token_count = count - (to - from);
    job->token_done = 0;
    job->dropped += to - from;
    qmi_os_mutex_unlock(job->mutex);
    return 1;
}
