/* Grammars as text, in GBNF, the form that llama.cpp reads.
 *
 *     root   ::= item ("," ws item)*        # comment
 *     item   ::= [a-z0-9_]+ | "\"" [^"\\]* "\"" | .
 *     ws     ::= [ \t\n]{0,20}
 *
 * A rule ends with its line, unless that ends in | or ::=, a ( is open, or the next line begins with |. Repetitions are ? * +
 * {m} {m,} {m,n} {,n}. Escapes: \n \r \t \\ \" \[ \] \- \^ \xHH \uHHHH \UHHHHHHHH, each one code point. The text starts at rule
 * root. */
#ifndef QMI_TEXT_GRAMMAR_GBNF_H
#define QMI_TEXT_GRAMMAR_GBNF_H

#include "text/grammar.h"

/* Adds the rules; *root is the one to start with. The message of a failure names line and column (in bytes, from 1). */
int32_t qmi_gbnf_read(qmi_grammar *grammar, const char *text, size_t length, uint32_t *root);

#endif
