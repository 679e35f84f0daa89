/* A grammar ready to match, for tests: from GBNF or a JSON schema, and what it makes of a text. */
#ifndef TEST_GRAMMAR_SCENE_H
#define TEST_GRAMMAR_SCENE_H

#include <string.h>
#include "base/error.h"
#include "text/automaton.h"
#include "text/grammar_gbnf.h"
#include "text/grammar_schema.h"

typedef struct grammar_scene {
    qmi_network *network;
    qmi_automaton *automaton;
    uint32_t root;
} grammar_scene;

static inline void grammar_scene_close(grammar_scene *scene)
{
    qmi_automaton_free(&scene->automaton);
    qmi_network_free(&scene->network);
}

/* `text` is a schema if it begins with { or is true or false, else GBNF. Nothing is open after a failure. */
static inline int32_t grammar_scene_open(grammar_scene *scene, const char *text, size_t length, const qmi_alloc *alloc)
{
    qmi_grammar grammar;
    *scene = (grammar_scene){ 0 };
    qmi_grammar_start(&grammar, alloc);
    int32_t code = grammar.code;
    if (code >= 0 && length > 0 && text[0] == '{') {
        scene->root = qmi_grammar_rule_new(&grammar, "root", 4);
        qmi_grammar_define(&grammar, scene->root, qmi_schema_read_text(&grammar, text, length));
        code = grammar.code;
    } else if (code >= 0) {
        code = qmi_gbnf_read(&grammar, text, length, &scene->root);
    }
    if (code >= 0)
        code = qmi_network_new(&grammar, &scene->root, 1, alloc, &scene->network);
    qmi_grammar_end(&grammar);
    if (code >= 0)
        code = qmi_automaton_new(scene->network, 16, alloc, &scene->automaton);
    if (code < 0)
        grammar_scene_close(scene);
    return code;
}

enum { MISFIT, BEGINS, COMPLETE }; /* the text: does not fit; is the start of one that does; fits */

static inline int32_t grammar_scene_match(grammar_scene *scene, const char *text, size_t length)
{
    qmi_set set;
    int32_t code = qmi_automaton_start(scene->automaton, scene->root, &set);
    if (code >= 0)
        code = qmi_automaton_walk(scene->automaton, set, text, length, &set);
    if (code >= 0 && set == QMI_SET_DEAD)
        return MISFIT;
    if (code >= 0)
        code = qmi_automaton_accepts(scene->automaton, set);
    return code < 0 ? code : code > 0 ? COMPLETE : BEGINS;
}

#endif
