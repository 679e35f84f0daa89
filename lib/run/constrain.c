/* One answer within its constraint: see constrain.h. */
#include "run/constrain.h"

#include <string.h>
#include "base/error.h"

#define ENDING_ROOM 32 /* tokens that the end of thoughts may take, where its mark has to be spelled, and a character before it */

typedef struct chars {
    char *data;
    size_t length, capacity;
} chars;

struct qmi_constrained {
    qmi_alloc alloc;
    qm_model *model;          /* borrowed: of the job */
    qmi_constraint *constraint;
    const qmi_vocab *vocab;
    bool free;                /* in thoughts */
    bool may_think;
    bool behind_thoughts;
    bool joined;
    qmi_match match;
    int32_t ends[QMI_BUDGET_ENDS];
    bool ignore_end;
    int32_t vocabulary;
    uint64_t *bits;           /* [(vocabulary + 63) / 64] a mask with more than text */
    float *room;              /* [vocabulary] for the sampler; NULL until it is needed */
    chars ending;             /* bytes of a completion */
    qmi_ids forced;           /* tokens of the completion that is being written */
    size_t forced_at;
    int64_t tokens, masks;    /* chosen by the logits, and how often that took a mask: for the log */
};

int32_t qmi_constrained_new(qm_session *session, bool inside_thoughts, bool may_think, const qmi_alloc *alloc,
                            qmi_constrained **out)
{
    qm_model *model = session->model;
    qmi_constraint *constraint;
    *out = NULL;
    int32_t code = qmi_constraint_get(model, &session->settings, &constraint);
    if (code < 0 || !constraint)
        return code;
    qmi_constrained *made = qmi_new(alloc, 1, sizeof *made, "state of a constrained answer");
    if (!made) {
        qmi_constraint_release(model, &constraint);
        return QM_ERROR_MEMORY;
    }
    *made = (qmi_constrained){ .alloc = *alloc, .model = model, .constraint = constraint, .vocab = model->vocab,
                               .free = inside_thoughts, .may_think = may_think && model->think_open >= 0 };
    made->ignore_end = qmi_settings_bool(&session->settings, QMI_OPT_IGNORE_END);
    made->vocabulary = model->plan.hparams.vocabulary;
    qmi_budget_ends(model->vocab, made->ends);
    made->bits = qmi_new(alloc, ((size_t)made->vocabulary + 63) / 64, sizeof *made->bits, "mask of tokens");
    made->room = qmi_new(alloc, (size_t)made->vocabulary, sizeof *made->room, "masked logits");
    if (!made->bits || !made->room) {
        qmi_constrained_free(&made);
        return QM_ERROR_MEMORY;
    }
    *out = made;
    return QM_OK;
}

void qmi_constrained_free(qmi_constrained **constrained)
{
    qmi_constrained *old = *constrained;
    if (!old)
        return;
    const qmi_alloc alloc = old->alloc;
    qmi_constraint_release(old->model, &old->constraint);
    qmi_delete(&alloc, old->bits);
    qmi_delete(&alloc, old->room);
    qmi_delete(&alloc, old->ending.data);
    qmi_delete(&alloc, old->forced.data);
    qmi_delete(&alloc, old);
    *constrained = NULL;
}

void qmi_constrained_end(qmi_constrained *constrained)
{
    if (constrained->joined) {
        qmi_constraint_leave(constrained->constraint, &constrained->match);
        qmi_log_line(&constrained->model->settings.log, QM_LOG_DEBUG, "constrained answer: %lld tokens chosen, %lld of them by a mask",
                     (long long)constrained->tokens, (long long)constrained->masks);
    }
    constrained->joined = false;
}

static int32_t join(qmi_constrained *constrained)
{
    if (constrained->joined)
        return qmi_constraint_tidy(constrained->constraint);
    int32_t code = qmi_constraint_join(constrained->constraint, constrained->behind_thoughts, &constrained->match);
    constrained->joined = code >= 0;
    return code;
}

/* ---- which tokens ---- */

static bool is_end(const qmi_constrained *constrained, int32_t token)
{
    for (int i = 0; i < QMI_BUDGET_ENDS; i++)
        if (token >= 0 && token == constrained->ends[i])
            return true;
    return false;
}

static bool is_text(const qmi_vocab *vocab, int32_t token)
{
    int32_t kind = qmi_vocab_kind(vocab, token);
    return kind == QMI_TOKEN_NORMAL || kind == QMI_TOKEN_USER_DEFINED || kind == QMI_TOKEN_BYTE;
}

static int32_t allows(void *user, int32_t token)
{
    qmi_constrained *constrained = user;
    qmi_automaton *automaton = constrained->constraint->automaton;
    if (is_end(constrained, token))
        return constrained->ignore_end ? 0 : qmi_automaton_accepts(automaton, constrained->match.set);
    if (constrained->may_think && token == constrained->model->think_open)
        return 1;
    if (!is_text(constrained->vocab, token))
        return 0;
    int64_t length;
    const char *bytes = qmi_vocab_bytes(constrained->vocab, token, &length);
    return qmi_token_fits(automaton, constrained->match.set, bytes, length);
}

/* In thoughts: all but the end of the turn. */
static int32_t allows_thought(void *user, int32_t token)
{
    return !is_end(user, token);
}

static int32_t mask_thought(void *user, const uint64_t **bits)
{
    qmi_constrained *constrained = user;
    memset(constrained->bits, 0xFF, ((size_t)constrained->vocabulary + 63) / 64 * sizeof *constrained->bits);
    for (int i = 0; i < QMI_BUDGET_ENDS; i++)
        if (constrained->ends[i] >= 0)
            constrained->bits[constrained->ends[i] / 64] &= ~((uint64_t)1 << constrained->ends[i] % 64);
    *bits = constrained->bits;
    return QM_OK;
}

static void set_bit(uint64_t *bits, int32_t token)
{
    if (token >= 0)
        bits[token / 64] |= (uint64_t)1 << token % 64;
}

static int32_t mask(void *user, const uint64_t **bits)
{
    qmi_constrained *constrained = user;
    const uint64_t *text;
    constrained->masks++;
    int32_t code = qmi_token_masks_find(constrained->constraint->masks, constrained->match.set, &text);
    if (code < 0)
        return code;
    size_t words = ((size_t)qmi_vocab_size(constrained->vocab) + 63) / 64;
    memcpy(constrained->bits, text, words * sizeof *text); /* logits beyond the vocabulary stay banned */
    int32_t accepts = qmi_automaton_accepts(constrained->constraint->automaton, constrained->match.set);
    for (int i = 0; i < QMI_BUDGET_ENDS && accepts > 0 && !constrained->ignore_end; i++)
        set_bit(constrained->bits, constrained->ends[i]);
    if (constrained->may_think)
        set_bit(constrained->bits, constrained->model->think_open);
    *bits = constrained->bits;
    return accepts < 0 ? accepts : QM_OK;
}

/* ---- the shortest ending ---- */

/* The bytes of the shortest completion of `set`, to `ending`. */
static int32_t spell_ending(qmi_constrained *constrained, qmi_set set)
{
    qmi_automaton *automaton = constrained->constraint->automaton;
    chars *ending = &constrained->ending;
    int32_t code = QM_OK;
    ending->length = 0;
    while (qmi_automaton_bytes(automaton, set) > 0 && code >= 0) {
        uint8_t byte = 0;
        code = qmi_automaton_shortest(automaton, set, &byte);
        if (code >= 0)
            code = qmi_reserve(&constrained->alloc, (void **)&ending->data, &ending->capacity, ending->length + 1, 1,
                               "end of an answer");
        if (code < 0)
            break;
        ending->data[ending->length++] = (char)byte;
        code = qmi_automaton_step(automaton, set, byte, &set);
    }
    return code;
}

/* Tokens that write the shortest completion of `set`, each as long as can be, and the end of the turn, to `forced`. 1: there
 * are at most `room`; 0: there are more; or a code. */
static int32_t plan_ending(qmi_constrained *constrained, qmi_set set, int64_t room)
{
    const qmi_token_trie *trie = constrained->constraint->trie;
    uint64_t bytes = qmi_automaton_bytes(constrained->constraint->automaton, set);
    constrained->forced.count = constrained->forced_at = 0;
    if (room <= 0 || bytes > (uint64_t)room * trie->longest)
        return 0;
    int32_t code = spell_ending(constrained, set);
    for (size_t at = 0, used = 0; at < constrained->ending.length && code >= 0; at += used) {
        int32_t token = qmi_token_trie_longest(trie, constrained->ending.data + at, constrained->ending.length - at, &used);
        if (token < 0 || (int64_t)constrained->forced.count >= room - 1)
            return 0;
        code = qmi_reserve(&constrained->alloc, (void **)&constrained->forced.data, &constrained->forced.capacity,
                           constrained->forced.count + 1, sizeof(int32_t), "end of an answer");
        if (code >= 0)
            constrained->forced.data[constrained->forced.count++] = token;
    }
    return code < 0 ? code : 1;
}

static int32_t set_behind(const qmi_constrained *constrained, int32_t token, qmi_set *out)
{
    int64_t length;
    const char *bytes = qmi_vocab_bytes(constrained->vocab, token, &length);
    return qmi_automaton_walk(constrained->constraint->automaton, constrained->match.set, bytes, (size_t)length, out);
}

/* Replaces a token behind which the text could not be completed any more by the first one of the shortest ending, which is then
 * written to its end. */
static int32_t keep_room(qmi_constrained *constrained, int64_t room, int32_t *token)
{
    qmi_set set;
    if (is_end(constrained, *token) || (constrained->may_think && *token == constrained->model->think_open))
        return QM_OK;
    int32_t code = set_behind(constrained, *token, &set);
    if (code < 0 || qmi_automaton_bytes(constrained->constraint->automaton, set) < (uint64_t)(room > 1 ? room - 1 : 0))
        return code;
    code = plan_ending(constrained, set, room - 1); /* fewer tokens than bytes may do */
    if (code == 0) {
        code = plan_ending(constrained, constrained->match.set, room);
        if (code > 0 && constrained->forced.count > 0) {
            *token = constrained->forced.data[constrained->forced_at++];
            return QM_OK;
        }
    }
    constrained->forced.count = constrained->forced_at = 0;
    return code < 0 ? code : QM_OK;
}

/* ---- a token ---- */

static int32_t end_token(const qmi_constrained *constrained)
{
    for (int i = 0; i < QMI_BUDGET_ENDS && !constrained->ignore_end; i++)
        if (constrained->ends[i] >= 0)
            return constrained->ends[i];
    return -1;
}

/* Thoughts do not end the turn, and end while there is room for the shortest answer. */
static int32_t choose_thought(qmi_constrained *constrained, qm_session *session, qmi_budget *budget, int64_t room, int32_t *token)
{
    const qmi_filter filter = { .allows = allows_thought, .mask = mask_thought, .room = constrained->room, .user = constrained };
    qmi_automaton *automaton = constrained->constraint->automaton;
    qmi_set start;
    int32_t code = qmi_automaton_start(automaton, constrained->constraint->root_behind, &start);
    if (code >= 0 && qmi_automaton_bytes(automaton, start) + ENDING_ROOM >= (uint64_t)room) {
        code = plan_ending(constrained, start, room - ENDING_ROOM); /* fewer tokens than bytes may do */
        constrained->forced.count = 0;
        if (code == 0)
            qmi_budget_end_thinking(budget);
    }
    if (code >= 0)
        code = qmi_session_choose_among(session, &filter, token);
    return code < 0 ? code : 1;
}

int32_t qmi_constrained_choose(qmi_constrained *constrained, qm_session *session, qmi_budget *budget, int64_t room,
                               int32_t *token)
{
    if (constrained->free)
        return choose_thought(constrained, session, budget, room, token);
    int32_t code = join(constrained);
    if (code >= 0 && constrained->forced_at < constrained->forced.count) {
        *token = constrained->forced.data[constrained->forced_at++];
        return 1;
    }
    if (code >= 0)
        code = constrained->forced.count > 0
                   ? 1
                   : qmi_automaton_is_over(constrained->constraint->automaton, constrained->match.set);
    if (code > 0) {
        *token = end_token(constrained);
        return *token >= 0;
    }
    const qmi_filter filter = { .allows = allows, .mask = mask, .room = constrained->room, .user = constrained };
    constrained->tokens++;
    if (code >= 0)
        code = qmi_session_choose_among(session, &filter, token);
    if (code >= 0)
        code = keep_room(constrained, room, token);
    return code < 0 ? code : 1;
}

/* Thoughts have ended: what the token has behind their end is text already. */
static int32_t leave_thoughts(qmi_constrained *constrained, const qmi_budget *budget)
{
    static const char mark[] = "</think>";
    int64_t length;
    const char *text = qmi_budget_text(budget, &length);
    int64_t at = length - (int64_t)strlen(mark);
    constrained->free = false;
    constrained->behind_thoughts = true;
    while (at >= 0 && memcmp(text + at, mark, strlen(mark)) != 0)
        at--;
    int32_t code = join(constrained);
    if (code < 0 || at < 0)
        return code;
    at += (int64_t)strlen(mark);
    code = qmi_automaton_walk(constrained->constraint->automaton, constrained->match.set, text + at, (size_t)(length - at),
                              &constrained->match.set);
    if (code >= 0 && constrained->match.set == QMI_SET_DEAD)
        code = qmi_fail(QM_ERROR_STATE, "the thoughts ended inside a token, the rest of which does not fit the grammar");
    return code;
}

int32_t qmi_constrained_push(qmi_constrained *constrained, int32_t token, const qmi_budget *budget)
{
    if (constrained->free)
        return qmi_budget_thinks(budget) ? QM_OK : leave_thoughts(constrained, budget);
    if (constrained->may_think && token == constrained->model->think_open) {
        constrained->free = true;
        constrained->may_think = false;
        qmi_constrained_end(constrained);
        return QM_OK;
    }
    constrained->may_think = false;
    if (is_end(constrained, token))
        return QM_OK;
    int32_t code = join(constrained);
    if (code >= 0)
        code = set_behind(constrained, token, &constrained->match.set);
    if (code >= 0 && constrained->match.set == QMI_SET_DEAD)
        code = qmi_fail(QM_ERROR_STATE, "token %d does not fit the grammar", token);
    return code;
}
