/* JSON's own parts as expressions: blanks, strings, numbers, any value. Each rule is made when it is first asked for.
 *
 * They describe what is written, not all that JSON allows: a line break and its indentation at most between two signs, numbers
 * that a double or 64 bits hold, no escapes that stand for no character. */
#ifndef QMI_TEXT_GRAMMAR_JSON_H
#define QMI_TEXT_GRAMMAR_JSON_H

#include "text/chat_json.h"
#include "text/grammar.h"

typedef enum qmi_json_rule {
    QMI_JSON_BLANK,     /* nothing, a space, or a new line with its indentation */
    QMI_JSON_ESCAPE,    /* of a character in a string */
    QMI_JSON_STRING,
    QMI_JSON_INTEGER,
    QMI_JSON_NUMBER,
    QMI_JSON_VALUE,
    QMI_JSON_OBJECT,
    QMI_JSON_ARRAY,
    QMI_JSON_RULES
} qmi_json_rule;

typedef struct qmi_json_rules {
    uint32_t rules[QMI_JSON_RULES]; /* + 1; 0: not made yet */
} qmi_json_rules;

qmi_expression qmi_json_call(qmi_grammar *grammar, qmi_json_rules *rules, qmi_json_rule rule);
qmi_expression qmi_json_character(qmi_grammar *grammar, qmi_json_rules *rules); /* of a string */
/* The value itself, written as the chat formats write it: ", " and ": " between. */
qmi_expression qmi_json_literal(qmi_grammar *grammar, const json_t *value);
qmi_expression qmi_json_literal_text(qmi_grammar *grammar, qmi_view text); /* of a string */

#endif
