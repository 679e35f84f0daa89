/* The verbs of the program, each in its cmd_NAME.c. */
#ifndef QWENMOE_VERBS_H
#define QWENMOE_VERBS_H

#include "arguments.h"

extern const verb verb_run, verb_chat, verb_fill, verb_info, verb_tokenize, verb_bench, verb_perplexity, verb_options;

#endif
