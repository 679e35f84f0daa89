/* Constraints of a model's answers: see constraint.h. */
#include "run/constraint.h"

#include <string.h>
#include "text/grammar_gbnf.h"
#include "text/grammar_schema.h"
#include "text/grammar_tools.h"

#define KEPT 16                  /* constraints that nobody uses now */
#define MEMORY_MOST (64ll << 20) /* of the states of one; beyond, it forgets those that no match is in */

/* ---- from settings to a grammar ---- */

static const qmi_option_id option_ids[] = { QMI_OPT_GRAMMAR, QMI_OPT_JSON_SCHEMA, QMI_OPT_TOOLS, QMI_OPT_TOOL_CHOICE };
#define OPTIONS (sizeof option_ids / sizeof option_ids[0])

static bool asks(const qmi_settings *settings)
{
    return *qmi_settings_text(settings, QMI_OPT_GRAMMAR) || *qmi_settings_text(settings, QMI_OPT_JSON_SCHEMA) ||
           *qmi_settings_text(settings, QMI_OPT_TOOLS);
}

/* The options' values one after another, with a byte between them that no text has. */
static char *make_key(const qmi_settings *settings, const qmi_alloc *alloc)
{
    size_t length = 0, at = 0;
    for (size_t i = 0; i < OPTIONS; i++)
        length += strlen(qmi_settings_text(settings, option_ids[i])) + 1;
    char *key = qmi_new(alloc, length + 2, 1, "grammar of answers");
    for (size_t i = 0; i < OPTIONS && key; i++) {
        const char *text = qmi_settings_text(settings, option_ids[i]);
        memcpy(key + at, text, strlen(text));
        at += strlen(text);
        key[at++] = '\xFF';
    }
    if (key)
        key[at] = qmi_settings_bool(settings, QMI_OPT_PARALLEL_TOOL_CALLS) ? '1' : '0';
    return key;
}

static int32_t write_text(const qmi_settings *settings, qmi_grammar *grammar, uint32_t *root)
{
    const char *text = qmi_settings_text(settings, QMI_OPT_GRAMMAR), *schema = qmi_settings_text(settings, QMI_OPT_JSON_SCHEMA);
    if (*text && *schema)
        return qmi_fail(QM_ERROR_OPTION, "options grammar and json-schema are both set; only one can hold");
    if (*text)
        return qmi_gbnf_read(grammar, text, strlen(text), root);
    *root = qmi_grammar_rule_new(grammar, "root", 4);
    qmi_grammar_define(grammar, *root, qmi_schema_read_text(grammar, schema, strlen(schema)));
    return grammar->code;
}

static int32_t write_grammar(const qm_model *model, const qmi_settings *settings, qmi_grammar *grammar, uint32_t *root)
{
    qmi_tools_request request = { .tools = qmi_settings_text(settings, QMI_OPT_TOOLS),
                                  .choice = qmi_settings_text(settings, QMI_OPT_TOOL_CHOICE),
                                  .parallel = qmi_settings_bool(settings, QMI_OPT_PARALLEL_TOOL_CALLS), .format = model->chat };
    request.has_answer = *qmi_settings_text(settings, QMI_OPT_GRAMMAR) || *qmi_settings_text(settings, QMI_OPT_JSON_SCHEMA);
    int32_t code = request.has_answer ? write_text(settings, grammar, &request.answer) : QM_OK;
    *root = request.answer;
    if (code < 0 || !*request.tools)
        return code;
    *root = qmi_grammar_rule_new(grammar, "root", 4);
    qmi_grammar_define(grammar, *root, qmi_tools_read(grammar, &request));
    return grammar->code;
}

/* An answer behind thoughts: up to two newlines belong to their end. */
static uint32_t add_root_behind(qmi_grammar *grammar, uint32_t root)
{
    uint32_t rule = qmi_grammar_rule_new(grammar, "root", 4);
    qmi_expression newlines = qmi_grammar_repeat(grammar, qmi_grammar_literal(grammar, "\n", 1), 0, 2);
    qmi_grammar_define(grammar, rule, qmi_grammar_both(grammar, newlines, qmi_grammar_call(grammar, root)));
    return rule;
}

static int32_t make_ready(qm_model *model, const qmi_settings *settings, qmi_constraint *constraint)
{
    const qmi_alloc *alloc = &model->settings.alloc;
    qmi_grammar grammar;
    qmi_grammar_start(&grammar, alloc);
    int32_t code = grammar.code < 0 ? grammar.code : write_grammar(model, settings, &grammar, &constraint->root);
    if (code >= 0)
        constraint->root_behind = add_root_behind(&grammar, constraint->root);
    if (code >= 0)
        code = qmi_network_new(&grammar, (uint32_t[]){ constraint->root, constraint->root_behind }, 2, alloc,
                               &constraint->network);
    qmi_grammar_end(&grammar);
    if (code >= 0)
        code = qmi_automaton_new(constraint->network, QMI_TOKEN_BRIEF, alloc, &constraint->automaton);
    if (code >= 0)
        code = qmi_token_masks_new(constraint->trie, constraint->automaton, alloc, &constraint->masks);
    return code;
}

/* ---- a model's ---- */

static void destroy(const qmi_alloc *alloc, qmi_constraint *constraint)
{
    if (!constraint)
        return;
    qmi_token_masks_free(&constraint->masks);
    qmi_automaton_free(&constraint->automaton);
    qmi_network_free(&constraint->network);
    qmi_delete(alloc, constraint->key);
    qmi_delete(alloc, constraint);
}

/* Makes one; `key` is its own then, also after a failure. */
static int32_t make(qm_model *model, const qmi_settings *settings, char *key, qmi_constraint **out)
{
    const qmi_alloc *alloc = &model->settings.alloc;
    qmi_constraint *constraint = qmi_new(alloc, 1, sizeof *constraint, "grammar of answers");
    *out = NULL;
    if (!constraint) {
        qmi_delete(alloc, key);
        return QM_ERROR_MEMORY;
    }
    constraint->key = key;
    int32_t code = model->constraints.trie ? QM_OK : qmi_token_trie_new(model->vocab, alloc, &model->constraints.trie);
    constraint->trie = model->constraints.trie;
    if (code >= 0)
        code = make_ready(model, settings, constraint);
    if (code < 0)
        destroy(alloc, constraint);
    else
        *out = constraint;
    return code;
}

/* Frees the one that was asked for longest ago, while more than KEPT are not used. */
static void drop_unused(qm_model *model)
{
    qmi_constraint **oldest;
    do {
        size_t unused = 0;
        oldest = NULL;
        for (qmi_constraint **link = &model->constraints.first; *link; link = &(*link)->next) {
            if ((*link)->references > 0)
                continue;
            unused++;
            if (!oldest || (*link)->used < (*oldest)->used)
                oldest = link;
        }
        if (unused <= KEPT)
            return;
        qmi_constraint *old = *oldest;
        *oldest = old->next;
        destroy(&model->settings.alloc, old);
    } while (true);
}

int32_t qmi_constraint_get(qm_model *model, const qmi_settings *settings, qmi_constraint **out)
{
    qmi_constraints *all = &model->constraints;
    int32_t code = QM_OK;
    *out = NULL;
    char *key = asks(settings) ? make_key(settings, &model->settings.alloc) : NULL;
    if (!key)
        return asks(settings) ? QM_ERROR_MEMORY : QM_OK;
    qmi_os_mutex_lock(all->mutex);
    qmi_constraint *found = all->first;
    while (found && strcmp(found->key, key) != 0)
        found = found->next;
    if (found) {
        qmi_delete(&model->settings.alloc, key);
    } else {
        code = make(model, settings, key, &found);
        if (code >= 0) {
            found->next = all->first;
            all->first = found;
        }
    }
    if (found) {
        found->references++;
        found->used = ++all->clock;
    }
    *out = found;
    qmi_os_mutex_unlock(all->mutex);
    return code;
}

void qmi_constraint_release(qm_model *model, qmi_constraint **constraint)
{
    if (!*constraint)
        return;
    qmi_os_mutex_lock(model->constraints.mutex);
    (*constraint)->references--;
    drop_unused(model);
    qmi_os_mutex_unlock(model->constraints.mutex);
    *constraint = NULL;
}

int32_t qmi_constraints_open(qm_model *model)
{
    return qmi_os_mutex_new(&model->constraints.mutex);
}

void qmi_constraints_close(qm_model *model)
{
    while (model->constraints.first) {
        qmi_constraint *first = model->constraints.first;
        model->constraints.first = first->next;
        destroy(&model->settings.alloc, first);
    }
    qmi_token_trie_free(&model->constraints.trie);
    qmi_os_mutex_free(&model->constraints.mutex);
}

/* ---- matches ---- */

int32_t qmi_constraint_join(qmi_constraint *constraint, bool behind_thoughts, qmi_match *match)
{
    int32_t code = qmi_automaton_start(constraint->automaton, behind_thoughts ? constraint->root_behind : constraint->root,
                                       &match->set);
    if (code < 0)
        return code;
    match->next = constraint->matches;
    constraint->matches = match;
    return QM_OK;
}

void qmi_constraint_leave(qmi_constraint *constraint, qmi_match *match)
{
    qmi_match **link = &constraint->matches;
    while (*link && *link != match)
        link = &(*link)->next;
    if (*link)
        *link = match->next;
    match->next = NULL;
}

int32_t qmi_constraint_tidy(qmi_constraint *constraint)
{
    size_t count = 0, at = 0;
    if (qmi_automaton_memory(constraint->automaton) < MEMORY_MOST)
        return QM_OK;
    for (const qmi_match *match = constraint->matches; match; match = match->next)
        count++;
    const qmi_alloc *alloc = qmi_automaton_alloc(constraint->automaton);
    qmi_set **sets = qmi_new(alloc, count, sizeof *sets, "states of a grammar");
    if (!sets)
        return QM_ERROR_MEMORY;
    for (qmi_match *match = constraint->matches; match; match = match->next)
        sets[at++] = &match->set;
    qmi_token_masks_clear(constraint->masks);
    int32_t code = qmi_automaton_collect(constraint->automaton, sets, count);
    qmi_delete(alloc, sets);
    return code;
}
