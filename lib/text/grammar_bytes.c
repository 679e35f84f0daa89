/* Bytes in a network: see grammar_bytes.h. */
#include "text/grammar_bytes.h"

#include <string.h>
#include "base/error.h"
#include "text/unicode.h"

void qmi_bytes_end(qmi_bytes_scratch *scratch, const qmi_alloc *alloc)
{
    qmi_delete(alloc, scratch->edges);
    scratch->edges = NULL;
}

static int32_t fail_large(void)
{
    return qmi_fail(QM_ERROR_OPTION, "the grammar is too large: it needs more than %d places", QMI_NETWORK_PLACES);
}

int32_t qmi_network_add_place(qmi_network *network, qmi_place_kind kind, uint32_t first, uint32_t second, uint32_t loop)
{
    if (network->place_count >= QMI_NETWORK_PLACES)
        return fail_large();
    int32_t code = qmi_reserve(&network->alloc, (void **)&network->places, &network->place_capacity, network->place_count + 1,
                               sizeof *network->places, "grammar");
    if (code >= 0)
        network->places[network->place_count++] = (qmi_network_place){ kind, first, second, loop, QMI_FAR };
    return code;
}

/* A place with these edges: *out. */
static int32_t add_bytes_place(qmi_network *network, const qmi_network_edge *edges, size_t count, uint32_t loop, qmi_place *out)
{
    size_t first = network->edge_count;
    if (first + count > QMI_NETWORK_PLACES)
        return fail_large();
    int32_t code = qmi_reserve(&network->alloc, (void **)&network->edges, &network->edge_capacity, first + count,
                               sizeof *network->edges, "grammar");
    if (code >= 0)
        code = qmi_network_add_place(network, QMI_PLACE_BYTES, (uint32_t)first, (uint32_t)count, loop);
    if (code < 0)
        return code;
    memcpy(network->edges + first, edges, count * sizeof *edges);
    network->edge_count += count;
    *out = (qmi_place)network->place_count - 1;
    return QM_OK;
}

int32_t qmi_bytes_literal(qmi_network *network, const char *bytes, size_t length, uint32_t loop, qmi_place *next)
{
    int32_t code = QM_OK;
    while (length-- > 0 && code >= 0) {
        uint8_t byte = (uint8_t)bytes[length];
        code = add_bytes_place(network, &(qmi_network_edge){ byte, byte, *next }, 1, loop, next);
    }
    return code;
}

/* ---- classes ---- */

/* A place with one edge, shared with an equal one of the same class. */
static int32_t follow(qmi_network *network, qmi_bytes_scratch *scratch, qmi_network_edge edge, uint32_t loop, qmi_place *out)
{
    for (size_t i = 0; i < scratch->shared_count; i++) {
        const qmi_network_edge *shared = &scratch->shared[i].edge;
        if (shared->low == edge.low && shared->high == edge.high && shared->to == edge.to) {
            *out = scratch->shared[i].place;
            return QM_OK;
        }
    }
    int32_t code = add_bytes_place(network, &edge, 1, loop, out);
    if (code >= 0 && scratch->shared_count < QMI_BYTES_SHARED) {
        scratch->shared[scratch->shared_count].edge = edge;
        scratch->shared[scratch->shared_count++].place = *out;
    }
    return code;
}

static int32_t add_first(qmi_network *network, qmi_bytes_scratch *scratch, qmi_network_edge edge)
{
    int32_t code = qmi_reserve(&network->alloc, (void **)&scratch->edges, &scratch->edge_capacity, scratch->edge_count + 1,
                               sizeof *scratch->edges, "grammar");
    if (code >= 0)
        scratch->edges[scratch->edge_count++] = edge;
    return code;
}

/* Code points whose encodings have the same length and differ in each byte within a range of its own. */
static int32_t add_product(qmi_network *network, qmi_bytes_scratch *scratch, uint32_t low, uint32_t high, uint32_t loop,
                           qmi_place next)
{
    char from[4], to[4];
    int32_t length = qmi_unicode_encode(low, from), code = QM_OK;
    qmi_unicode_encode(high, to);
    for (int32_t i = length - 1; i > 0 && code >= 0; i--)
        code = follow(network, scratch, (qmi_network_edge){ (uint8_t)from[i], (uint8_t)to[i], next }, loop, &next);
    if (code >= 0)
        code = add_first(network, scratch, (qmi_network_edge){ (uint8_t)from[0], (uint8_t)to[0], next });
    return code;
}

/* Splits a range until each piece is such a product: first at the lengths of encodings, then where a byte but the last would go
 * over while those behind it are not full. (The method is Russ Cox's, of RE2.) */
static int32_t add_range(qmi_network *network, qmi_bytes_scratch *scratch, uint32_t low, uint32_t high, uint32_t loop,
                         qmi_place next)
{
    static const uint32_t last_of_length[] = { 0x7F, 0x7FF, 0xFFFF };
    uint32_t end = high;
    for (int i = 0; i < 3; i++)
        if (low <= last_of_length[i] && end > last_of_length[i])
            end = last_of_length[i];
    for (int bits = 6; bits <= 18 && low > 0x7F; bits += 6) {
        uint32_t mask = (1u << bits) - 1;
        if ((low & ~mask) == (end & ~mask))
            continue;
        if ((low & mask) != 0)
            end = low | mask;
        else if ((end & mask) != mask)
            end = (end & ~mask) - 1;
    }
    int32_t code = add_product(network, scratch, low, end, loop, next);
    return code >= 0 && end < high ? add_range(network, scratch, end + 1, high, loop, next) : code;
}

int32_t qmi_bytes_class(qmi_network *network, qmi_bytes_scratch *scratch, const qmi_code_points *ranges, size_t count,
                        uint32_t loop, qmi_place *next)
{
    int32_t code = QM_OK;
    scratch->edge_count = scratch->shared_count = 0;
    for (size_t i = 0; i < count && code >= 0; i++)
        code = add_range(network, scratch, ranges[i].low, ranges[i].high, loop, *next);
    return code < 0 ? code : add_bytes_place(network, scratch->edges, scratch->edge_count, loop, next);
}

/* ---- text without words ---- */

#define STATES_MOST 128

/* The words as a tree: a state for each start of one, and where bytes lead from it. Since their first byte is nowhere else in
 * them, a byte that does not go on with a word can only begin another one. */
typedef struct words_automaton {
    uint8_t next[STATES_MOST][256];
    size_t count;
} words_automaton;

#define WHOLE_WORD 255

static bool make_automaton(words_automaton *automaton, const char *words, size_t length)
{
    uint8_t first = (uint8_t)words[0], state = 0;
    automaton->count = 1;
    for (size_t at = 0; at < length; at++) {
        uint8_t byte = (uint8_t)words[at], *next = &automaton->next[state][byte];
        bool last = at + 1 == length || words[at + 1] == '\n';
        if (byte == '\n') {
            state = 0;
        } else if (last) {
            *next = WHOLE_WORD;
        } else {
            if (*next == 0 && automaton->count == STATES_MOST)
                return false;
            if (*next == 0)
                *next = (uint8_t)automaton->count++;
            state = *next;
        }
    }
    for (size_t s = 1; s < automaton->count; s++)
        automaton->next[s][first] = automaton->next[0][first];
    return true;
}

/* SPLIT places, one a state, behind each of which the text may be over. Their other targets follow. */
static int32_t add_splits(qmi_network *network, size_t count, uint32_t loop, qmi_place next)
{
    int32_t code = qmi_reserve(&network->alloc, (void **)&network->targets, &network->target_capacity,
                               network->target_count + 2 * count, sizeof *network->targets, "grammar");
    for (size_t s = 0; s < count && code >= 0; s++) {
        code = qmi_network_add_place(network, QMI_PLACE_SPLIT, (uint32_t)network->target_count, 2, loop);
        network->targets[network->target_count++] = next;
        network->targets[network->target_count++] = next;
    }
    return code;
}

/* The place of a state: its edges go to `splits` + the next one; a code point beyond ASCII, which no word has, to the first
 * one. */
static int32_t add_state(qmi_network *network, qmi_bytes_scratch *scratch, const uint8_t *next, qmi_place splits, uint32_t loop,
                         qmi_place *place)
{
    int32_t code = QM_OK;
    scratch->edge_count = 0;
    for (int from = 1, to; from < 0x80 && code >= 0; from = to) {
        for (to = from + 1; to < 0x80 && next[to] == next[from]; to++)
            ;
        if (next[from] != WHOLE_WORD)
            code = add_first(network, scratch, (qmi_network_edge){ (uint8_t)from, (uint8_t)(to - 1), splits + next[from] });
    }
    if (code >= 0)
        code = add_range(network, scratch, 0x80, 0xD7FF, loop, splits);
    if (code >= 0)
        code = add_range(network, scratch, 0xE000, 0x10FFFF, loop, splits);
    return code < 0 ? code : add_bytes_place(network, scratch->edges, scratch->edge_count, loop, place);
}

int32_t qmi_bytes_without(qmi_network *network, qmi_bytes_scratch *scratch, const char *words, size_t length, uint32_t loop,
                          qmi_place *next)
{
    words_automaton *automaton = qmi_new(&network->alloc, 1, sizeof *automaton, "grammar");
    if (!automaton)
        return QM_ERROR_MEMORY;
    qmi_place splits = (qmi_place)network->place_count;
    int32_t code = make_automaton(automaton, words, length) ? QM_OK : fail_large();
    if (code >= 0)
        code = add_splits(network, automaton->count, loop, *next);
    scratch->shared_count = 0;
    for (size_t s = 0; s < automaton->count && code >= 0; s++) {
        qmi_place place = 0;
        code = add_state(network, scratch, automaton->next[s], splits, loop, &place);
        network->targets[network->places[splits + s].first] = place;
    }
    qmi_delete(&network->alloc, automaton);
    *next = splits;
    return code;
}
