/* A grammar while it is made: rules, each an expression. Front ends (GBNF, JSON schema, tool calls) write one; grammar_network.h
 * turns it into what text is matched with.
 *
 * A failure sticks: the first one is kept in `code` with its message, later calls do nothing and give the empty expression, so
 * that front ends look at the code where it matters to them, and once at the end. Errors are QM_ERROR_OPTION (the grammar is
 * wrong or too large) or QM_ERROR_MEMORY. */
#ifndef QMI_TEXT_GRAMMAR_H
#define QMI_TEXT_GRAMMAR_H

#include <stdbool.h>
#include "base/alloc.h"

#define QMI_GRAMMAR_DEPTH 128         /* most levels of nesting in what a grammar is made from */
#define QMI_GRAMMAR_EXPRESSIONS 1000000
#define QMI_GRAMMAR_RANGES 4096       /* most ranges of one class */
#define QMI_GRAMMAR_COUNT 1000000000u /* most repetitions that can be asked for */
#define QMI_GRAMMAR_ENDLESS UINT32_MAX

typedef enum qmi_expression_kind {
    QMI_EXPRESSION_EMPTY,        /* the empty text */
    QMI_EXPRESSION_NEVER,        /* no text at all */
    QMI_EXPRESSION_BYTES,        /* first, second: offset and length in `bytes` */
    QMI_EXPRESSION_CLASS,        /* one code point; first, second: offset and number of ranges in `ranges` */
    QMI_EXPRESSION_SEQUENCE,     /* first, second: the first and the last of its parts, 0: none */
    QMI_EXPRESSION_ALTERNATIVES, /* likewise */
    QMI_EXPRESSION_REPEAT,       /* first: what; second, third: least and most */
    QMI_EXPRESSION_RULE,         /* first: the rule's number */
    QMI_EXPRESSION_WITHOUT       /* any text in which no word of first, second appears: offset and length in `bytes` */
} qmi_expression_kind;

typedef uint32_t qmi_expression; /* a number among the grammar's; 0 is the empty text. Each is part of at most one other */

typedef struct qmi_expression_node {
    qmi_expression_kind kind;
    uint32_t first, second, third;
    qmi_expression next; /* the next part of the sequence or of the alternatives that it is in; 0: none */
} qmi_expression_node;

typedef struct qmi_code_points { /* a range, both ends included */
    uint32_t low, high;
} qmi_code_points;

typedef struct qmi_grammar_rule {
    qmi_expression body;
    uint32_t name, name_length; /* offset in `bytes`; length 0: it has none */
    bool defined;
} qmi_grammar_rule;

typedef struct qmi_grammar {
    qmi_alloc alloc;
    int32_t code;
    qmi_expression_node *nodes;
    size_t node_count, node_capacity;
    char *bytes;
    size_t byte_count, byte_capacity;
    qmi_code_points *ranges;
    size_t range_count, range_capacity;
    qmi_grammar_rule *rules;
    size_t rule_count, rule_capacity;
} qmi_grammar;

void qmi_grammar_start(qmi_grammar *grammar, const qmi_alloc *alloc);
void qmi_grammar_end(qmi_grammar *grammar);

qmi_expression qmi_grammar_never(qmi_grammar *grammar);
qmi_expression qmi_grammar_literal(qmi_grammar *grammar, const char *bytes, size_t length);
qmi_expression qmi_grammar_word(qmi_grammar *grammar, const char *word); /* the same, zero-terminated */
/* One code point of the ranges, in any order; or none of them. Surrogates are no code points of text and never match. */
qmi_expression qmi_grammar_class(qmi_grammar *grammar, const qmi_code_points *ranges, size_t count, bool negated);
/* SEQUENCE or ALTERNATIVES without parts; no alternatives: no text. */
qmi_expression qmi_grammar_list(qmi_grammar *grammar, qmi_expression_kind kind);
void qmi_grammar_add(qmi_grammar *grammar, qmi_expression list, qmi_expression part);
qmi_expression qmi_grammar_both(qmi_grammar *grammar, qmi_expression one, qmi_expression other); /* one after the other */
qmi_expression qmi_grammar_repeat(qmi_grammar *grammar, qmi_expression what, uint32_t least, uint32_t most);
/* Any text (but U+0000) without these words, which stand with a newline between them: each begins with the same byte, which is
 * nowhere else in them. */
qmi_expression qmi_grammar_without(qmi_grammar *grammar, const char *words);
uint32_t qmi_grammar_rule_new(qmi_grammar *grammar, const char *name, size_t length);
void qmi_grammar_define(qmi_grammar *grammar, uint32_t rule, qmi_expression body);
qmi_expression qmi_grammar_call(qmi_grammar *grammar, uint32_t rule);

/* Sets the code with a message, unless there is one already. */
void qmi_grammar_refuse(qmi_grammar *grammar, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
