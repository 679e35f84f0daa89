/* What is asked of a network once it is laid out: how short its texts can be, and in which order its rules begin with each
 * other. */
#ifndef QMI_TEXT_GRAMMAR_LENGTHS_H
#define QMI_TEXT_GRAMMAR_LENGTHS_H

#include "text/grammar_network.h"

/* `bytes` of all places. QM_ERROR_OPTION when no text at all comes from one of the roots. */
int32_t qmi_lengths_find(qmi_network *network, const qmi_grammar *grammar, const uint32_t *roots, size_t root_count);
/* `rank` of all rules; after the lengths. QM_ERROR_OPTION for left recursion, naming a rule. */
int32_t qmi_ranks_find(qmi_network *network, const qmi_grammar *grammar);

#endif
