/* Shortest texts and the order of rules: see grammar_lengths.h.
 *
 * Shortest texts are found as shortest ways are, nearest first, generalised from graphs to grammars: D. E. Knuth 1977, "A
 * generalization of Dijkstra's algorithm". A place's number is final when it is taken from the heap. */
#include "text/grammar_lengths.h"

#include <string.h>
#include "base/error.h"

#define MOST_BYTES ((uint64_t)1 << 48) /* longer texts count as this long */

typedef struct entry {
    uint64_t bytes;
    qmi_place place;
} entry;

typedef struct search {
    qmi_network *network;
    uint32_t *starts, *users; /* users[starts[p] .. starts[p + 1]]: places whose number follows from that of p */
    uint8_t *final;
    entry *heap;
    size_t heap_count, heap_capacity;
    int32_t code;
} search;

/* ---- who depends on whom ---- */

/* Counts (users NULL) or lists them. */
static void note(search *search, qmi_place of, qmi_place user, bool list)
{
    if (list)
        search->users[search->starts[of]++] = user;
    else
        search->starts[of + 1]++;
}

static void note_users(search *search, bool list)
{
    const qmi_network *network = search->network;
    for (qmi_place at = 0; at < network->place_count; at++) {
        const qmi_network_place *place = &network->places[at];
        for (uint32_t i = 0; place->kind == QMI_PLACE_BYTES && i < place->second; i++)
            note(search, network->edges[place->first + i].to, at, list);
        for (uint32_t i = 0; place->kind == QMI_PLACE_SPLIT && i < place->second; i++)
            note(search, network->targets[place->first + i], at, list);
        if (place->kind == QMI_PLACE_CALL) {
            note(search, network->rules[place->first].entry, at, list);
            note(search, place->second, at, list);
        }
        if (place->kind == QMI_PLACE_LOOP)
            note(search, network->loops[place->first].body, at, list);
    }
}

static int32_t find_users(search *search)
{
    const qmi_network *network = search->network;
    size_t count = network->place_count;
    search->starts = qmi_new(&network->alloc, count + 1, sizeof *search->starts, "grammar");
    search->final = qmi_new(&network->alloc, count, 1, "grammar");
    if (!search->starts || !search->final)
        return QM_ERROR_MEMORY;
    note_users(search, false);
    for (size_t i = 0; i < count; i++)
        search->starts[i + 1] += search->starts[i];
    search->users = qmi_new(&network->alloc, search->starts[count], sizeof *search->users, "grammar");
    if (!search->users)
        return QM_ERROR_MEMORY;
    note_users(search, true); /* which moves each start to the next one's */
    memmove(search->starts + 1, search->starts, count * sizeof *search->starts);
    search->starts[0] = 0;
    return QM_OK;
}

/* ---- heap ---- */

static void offer(search *search, qmi_place place, uint64_t bytes)
{
    if (search->final[place] || bytes >= search->network->places[place].bytes)
        return;
    search->network->places[place].bytes = bytes;
    if (search->code >= 0)
        search->code = qmi_reserve(&search->network->alloc, (void **)&search->heap, &search->heap_capacity,
                                   search->heap_count + 1, sizeof *search->heap, "grammar");
    if (search->code < 0)
        return;
    size_t at = search->heap_count++;
    for (; at > 0 && search->heap[(at - 1) / 2].bytes > bytes; at = (at - 1) / 2)
        search->heap[at] = search->heap[(at - 1) / 2];
    search->heap[at] = (entry){ bytes, place };
}

static entry take_nearest(search *search)
{
    entry nearest = search->heap[0], last = search->heap[--search->heap_count];
    size_t at = 0, count = search->heap_count;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && search->heap[child + 1].bytes < search->heap[child].bytes)
            child++;
        if (search->heap[child].bytes >= last.bytes)
            break;
        search->heap[at] = search->heap[child];
        at = child;
    }
    search->heap[at] = last;
    return nearest;
}

/* ---- lengths ---- */

/* What a user's number can be, now that one more place that it depends on is final. */
static void offer_user(search *search, qmi_place user, uint64_t bytes)
{
    const qmi_network *network = search->network;
    const qmi_network_place *place = &network->places[user];
    if (place->kind == QMI_PLACE_BYTES) {
        bytes++;
    } else if (place->kind == QMI_PLACE_CALL) {
        qmi_place entry = network->rules[place->first].entry;
        if (!search->final[entry] || !search->final[place->second])
            return;
        bytes = network->places[entry].bytes + network->places[place->second].bytes;
    } else if (place->kind == QMI_PLACE_LOOP) {
        bytes *= network->loops[place->first].least; /* both are below 2^48 and 2^30: the product fits when cut first */
    }
    offer(search, user, bytes < MOST_BYTES ? bytes : MOST_BYTES);
}

static void search_lengths(search *search)
{
    const qmi_network *network = search->network;
    for (qmi_place at = 0; at < network->place_count; at++) {
        const qmi_network_place *place = &network->places[at];
        bool ends = place->kind == QMI_PLACE_END || place->kind == QMI_PLACE_ACCEPT || place->kind == QMI_PLACE_EXIT ||
                    place->kind == QMI_PLACE_STEP ||
                    (place->kind == QMI_PLACE_LOOP && network->loops[place->first].least == 0);
        if (ends)
            offer(search, at, 0);
    }
    while (search->heap_count > 0 && search->code >= 0) {
        entry nearest = take_nearest(search);
        if (search->final[nearest.place])
            continue;
        search->final[nearest.place] = 1;
        uint64_t bytes = nearest.bytes < ((uint64_t)1 << 33) ? nearest.bytes : (uint64_t)1 << 33;
        for (uint32_t i = search->starts[nearest.place]; i < search->starts[nearest.place + 1]; i++)
            offer_user(search, search->users[i], bytes);
    }
}

int32_t qmi_lengths_find(qmi_network *network, const qmi_grammar *grammar, const uint32_t *roots, size_t root_count)
{
    search search = { .network = network };
    search.code = find_users(&search);
    if (search.code >= 0)
        search_lengths(&search);
    qmi_delete(&network->alloc, search.starts);
    qmi_delete(&network->alloc, search.users);
    qmi_delete(&network->alloc, search.final);
    qmi_delete(&network->alloc, search.heap);
    for (size_t i = 0; i < network->loop_count && search.code >= 0; i++)
        if (network->places[network->loops[i].body].bytes == 0)
            network->loops[i].least = 0; /* the empty text as often as needed */
    for (size_t i = 0; i < root_count && search.code >= 0; i++)
        if (network->places[network->rules[roots[i]].entry].bytes == QMI_FAR)
            search.code = qmi_fail(QM_ERROR_OPTION, "no text fits the grammar: every way from rule '%.*s' leads on without end",
                                   (int)grammar->rules[roots[i]].name_length, grammar->bytes + grammar->rules[roots[i]].name);
    return search.code;
}

/* ---- ranks ---- */

/* A walk, rule by rule, of the places that are reached without a byte; a rule that is met is walked first. Each rule's places
 * are its own, so all walks together look at each place once. */
typedef struct walk {
    qmi_network *network;
    uint8_t *rule_state;      /* 0: not met, 1: under way, 2: done */
    uint8_t *seen;            /* places */
    qmi_place *places;        /* still to be looked at, of the rules under way, one above another */
    size_t place_count, place_capacity;
    struct {
        uint32_t rule;
        size_t base;          /* of its places */
    } *rules;                 /* under way */
    size_t rule_count, rule_capacity;
    int32_t code;
} walk;

static void visit(walk *walk, qmi_place place)
{
    if (walk->seen[place] || walk->code < 0 || walk->network->places[place].bytes == QMI_FAR)
        return;
    walk->seen[place] = place > QMI_THE_EXIT; /* those three are nobody's own */
    walk->code = qmi_reserve(&walk->network->alloc, (void **)&walk->places, &walk->place_capacity, walk->place_count + 1,
                             sizeof *walk->places, "grammar");
    if (walk->code >= 0)
        walk->places[walk->place_count++] = place;
}

static void enter(walk *walk, uint32_t rule)
{
    walk->code = qmi_reserve(&walk->network->alloc, (void **)&walk->rules, &walk->rule_capacity, walk->rule_count + 1,
                             sizeof *walk->rules, "grammar");
    if (walk->code < 0)
        return;
    walk->rules[walk->rule_count].rule = rule;
    walk->rules[walk->rule_count++].base = walk->place_count;
    walk->rule_state[rule] = 1;
    visit(walk, walk->network->rules[rule].entry);
}

static void look_at(walk *walk, const qmi_grammar *grammar, qmi_place at)
{
    const qmi_network *network = walk->network;
    const qmi_network_place place = network->places[at];
    for (uint32_t i = 0; place.kind == QMI_PLACE_SPLIT && i < place.second; i++)
        visit(walk, network->targets[place.first + i]);
    if (place.kind == QMI_PLACE_LOOP)
        visit(walk, network->loops[place.first].body);
    if (place.kind != QMI_PLACE_CALL)
        return;
    if (qmi_network_nullable(network, place.first))
        visit(walk, place.second);
    if (walk->rule_state[place.first] == 0 && walk->code >= 0) {
        enter(walk, place.first);
    } else if (walk->rule_state[place.first] == 1 && walk->code >= 0) {
        const qmi_grammar_rule *rule = &grammar->rules[network->rules[place.first].name];
        walk->code = qmi_fail(QM_ERROR_OPTION,
                              "rule '%.*s' begins with itself (left recursion); write the repetition with * or +, or "
                              "put what repeats first",
                              (int)rule->name_length, grammar->bytes + rule->name);
    }
}

static void walk_rules(walk *walk, const qmi_grammar *grammar)
{
    qmi_network *network = walk->network;
    uint32_t done = 0, count = (uint32_t)network->rule_count;
    for (uint32_t rule = 0; rule < count && walk->code >= 0; rule++) {
        if (walk->rule_state[rule] == 0)
            enter(walk, rule);
        while (walk->rule_count > 0 && walk->code >= 0) {
            if (walk->place_count > walk->rules[walk->rule_count - 1].base) {
                look_at(walk, grammar, walk->places[--walk->place_count]);
                continue;
            }
            uint32_t ended = walk->rules[--walk->rule_count].rule;
            walk->rule_state[ended] = 2;
            network->rules[ended].rank = count - ++done; /* what it begins with was done before, and has higher ranks */
        }
    }
}

int32_t qmi_ranks_find(qmi_network *network, const qmi_grammar *grammar)
{
    walk walk = { .network = network };
    walk.rule_state = qmi_new(&network->alloc, network->rule_count, 1, "grammar");
    walk.seen = qmi_new(&network->alloc, network->place_count, 1, "grammar");
    walk.code = walk.rule_state && walk.seen ? QM_OK : QM_ERROR_MEMORY;
    walk_rules(&walk, grammar);
    qmi_delete(&network->alloc, walk.rule_state);
    qmi_delete(&network->alloc, walk.seen);
    qmi_delete(&network->alloc, walk.places);
    qmi_delete(&network->alloc, walk.rules);
    return walk.code;
}
