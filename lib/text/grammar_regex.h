/* Regular expressions of JSON schemas ("pattern", "format") to expressions of a grammar.
 *
 * Understood of ECMA-262: characters and their escapes, . \d \w \s and their opposites, classes, groups, |, * + ? {m,n} (greedy
 * or not is the same here), ^ at the start and $ at the end of an alternative. Without them text may stand before and behind,
 * as JSON Schema has it. Refused: references to groups, assertions, \b, \p. */
#ifndef QMI_TEXT_GRAMMAR_REGEX_H
#define QMI_TEXT_GRAMMAR_REGEX_H

#include "text/grammar_json.h"

typedef struct qmi_regex {
    qmi_grammar *grammar;
    qmi_json_rules *rules;
    bool plain;           /* characters stand for themselves; else as between the quotation marks of JSON */
    uint64_t least, most; /* characters that the texts have; most UINT64_MAX: no end */
} qmi_regex;

/* What the pattern matches. A failure is told by *why and *where (in bytes); the grammar's code is left to the caller. */
qmi_expression qmi_regex_read(qmi_regex *regex, const char *pattern, size_t length, const char **why, size_t *where);
/* The pattern of a format ("date", "uuid", ...), or NULL. */
const char *qmi_regex_format(const char *name);

#endif
