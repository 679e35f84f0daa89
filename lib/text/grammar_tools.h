/* Answers with tool calls as grammars: calls name one of the tools, and the arguments of those that are "strict" fit its
 * schema. */
#ifndef QMI_TEXT_GRAMMAR_TOOLS_H
#define QMI_TEXT_GRAMMAR_TOOLS_H

#include "text/chat.h"
#include "text/grammar.h"

typedef struct qmi_tools_request {
    const char *tools;         /* JSON array as qm_chat_format takes it */
    const char *choice;        /* "auto", "none", "required" or a function's name */
    bool parallel;             /* several calls in one answer */
    qmi_chat_format_id format; /* how calls are written: Qwen3.5's marks, or Qwen3's JSON */
    bool has_answer;           /* the text of an answer without calls fits `answer`; else it is free */
    uint32_t answer;           /* a rule */
} qmi_tools_request;

/* The expression of the whole answer. Failures are in the grammar's code. */
qmi_expression qmi_tools_read(qmi_grammar *grammar, const qmi_tools_request *request);

#endif
