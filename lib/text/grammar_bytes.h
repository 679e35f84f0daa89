/* The parts of a network that bytes lead through: texts, classes of code points, and text up to a word. */
#ifndef QMI_TEXT_GRAMMAR_BYTES_H
#define QMI_TEXT_GRAMMAR_BYTES_H

#include "text/grammar_network.h"

#define QMI_NETWORK_PLACES 4000000 /* most of a network, and most edges: some 200 MB */
#define QMI_BYTES_SHARED 32        /* ends of code points that are shared within one class */

typedef struct qmi_bytes_scratch { /* all zero at the start, kept from one call to the next */
    qmi_network_edge *edges;       /* of the first byte */
    size_t edge_count, edge_capacity;
    struct {
        qmi_network_edge edge;
        qmi_place place;
    } shared[QMI_BYTES_SHARED];
    size_t shared_count;
} qmi_bytes_scratch;

void qmi_bytes_end(qmi_bytes_scratch *scratch, const qmi_alloc *alloc);

int32_t qmi_network_add_place(qmi_network *network, qmi_place_kind kind, uint32_t first, uint32_t second, uint32_t loop);

/* Each puts its places before *next, and itself there instead. */
int32_t qmi_bytes_literal(qmi_network *network, const char *bytes, size_t length, uint32_t loop, qmi_place *next);
int32_t qmi_bytes_class(qmi_network *network, qmi_bytes_scratch *scratch, const qmi_code_points *ranges, size_t count,
                        uint32_t loop, qmi_place *next);
int32_t qmi_bytes_without(qmi_network *network, qmi_bytes_scratch *scratch, const char *words, size_t length, uint32_t loop,
                          qmi_place *next);

#endif
