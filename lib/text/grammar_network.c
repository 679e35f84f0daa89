/* Grammar to network: see grammar_network.h. Expressions are laid out from their ends to their starts, since each needs to know
 * where it leads. */
#include "text/grammar_network.h"

#include <string.h>
#include "base/error.h"
#include "text/grammar_bytes.h"
#include "text/grammar_lengths.h"

#define UNROLLED_COUNT 8    /* repetitions with numbers up to here ... */
#define UNROLLED_PLACES 128 /* ... and as few places become copies */

typedef struct layout {
    const qmi_grammar *grammar;
    qmi_network *network;
    qmi_bytes_scratch scratch;
    uint32_t *stack;        /* parts of the sequences under way, and targets of the alternatives */
    size_t stack_count, stack_capacity;
    uint32_t rule;          /* of the grammar, being laid out */
    uint32_t loop;          /* around it */
    int32_t code;
} layout;

static qmi_place lay_out(layout *layout, qmi_expression expression, qmi_place next);

static qmi_place add_place(layout *layout, qmi_place_kind kind, uint32_t first, uint32_t second)
{
    if (layout->code >= 0)
        layout->code = qmi_network_add_place(layout->network, kind, first, second, layout->loop);
    return layout->code >= 0 ? (qmi_place)layout->network->place_count - 1 : QMI_THE_END;
}

static bool push(layout *layout, uint32_t value)
{
    if (layout->code >= 0)
        layout->code = qmi_reserve(&layout->network->alloc, (void **)&layout->stack, &layout->stack_capacity,
                                   layout->stack_count + 1, sizeof *layout->stack, "grammar");
    if (layout->code >= 0)
        layout->stack[layout->stack_count++] = value;
    return layout->code >= 0;
}

static qmi_place lay_sequence(layout *layout, const qmi_expression_node *node, qmi_place next)
{
    size_t base = layout->stack_count;
    for (qmi_expression part = node->first; part && push(layout, part); part = layout->grammar->nodes[part].next)
        ;
    while (layout->code >= 0 && layout->stack_count > base)
        next = lay_out(layout, layout->stack[--layout->stack_count], next);
    layout->stack_count = base;
    return next;
}

/* A SPLIT to the targets on the stack above `base`, which it takes away; a single target needs none. */
static qmi_place split(layout *layout, size_t base)
{
    qmi_network *network = layout->network;
    size_t count = layout->stack_count - base, first = network->target_count;
    layout->stack_count = base;
    if (layout->code >= 0 && count == 1)
        return layout->stack[base];
    if (layout->code >= 0)
        layout->code = qmi_reserve(&network->alloc, (void **)&network->targets, &network->target_capacity, first + count,
                                   sizeof *network->targets, "grammar");
    if (layout->code < 0)
        return QMI_THE_END;
    memcpy(network->targets + first, layout->stack + base, count * sizeof *network->targets);
    network->target_count += count;
    return add_place(layout, QMI_PLACE_SPLIT, (uint32_t)first, (uint32_t)count);
}

static qmi_place lay_alternatives(layout *layout, const qmi_expression_node *node, qmi_place next)
{
    size_t base = layout->stack_count;
    if (node->first == 0)
        return add_place(layout, QMI_PLACE_BYTES, 0, 0);
    for (qmi_expression part = node->first; part && layout->code >= 0; part = layout->grammar->nodes[part].next)
        push(layout, lay_out(layout, part, next));
    return split(layout, base);
}

/* ---- repetitions ---- */

/* Places that an expression takes, or UNROLLED_PLACES + 1 for more. */
static uint32_t size_of(const qmi_grammar *grammar, qmi_expression expression)
{
    const qmi_expression_node *node = &grammar->nodes[expression];
    uint64_t size = 1;
    switch (node->kind) {
    case QMI_EXPRESSION_BYTES:
    case QMI_EXPRESSION_WITHOUT:
        size = node->second;
        break;
    case QMI_EXPRESSION_CLASS:
        size = 4 * (uint64_t)node->second;
        break;
    case QMI_EXPRESSION_SEQUENCE:
    case QMI_EXPRESSION_ALTERNATIVES:
        for (qmi_expression part = node->first; part && size <= UNROLLED_PLACES; part = grammar->nodes[part].next)
            size += size_of(grammar, part);
        break;
    case QMI_EXPRESSION_REPEAT:
        size = (uint64_t)size_of(grammar, node->first) * (node->third == QMI_GRAMMAR_ENDLESS ? node->second + 1ull : node->third);
        break;
    default:
        break;
    }
    return size > UNROLLED_PLACES ? UNROLLED_PLACES + 1 : (uint32_t)size;
}

/* what* before next: a place from which both are open, and behind `what` that place again. */
static qmi_place lay_star(layout *layout, qmi_expression what, qmi_place next)
{
    size_t base = layout->stack_count;
    qmi_network *network = layout->network;
    push(layout, next);
    push(layout, next); /* the body, once it is there */
    qmi_place star = split(layout, base), body = lay_out(layout, what, star);
    if (layout->code >= 0)
        network->targets[network->places[star].first] = body;
    return star;
}

static qmi_place lay_optional(layout *layout, qmi_expression what, qmi_place next, qmi_place skip)
{
    size_t base = layout->stack_count;
    qmi_place body = lay_out(layout, what, next);
    push(layout, body);
    push(layout, skip);
    return split(layout, base);
}

/* A rule of its own, that counts. */
static qmi_place lay_counted(layout *layout, const qmi_expression_node *node, qmi_place next)
{
    qmi_network *network = layout->network;
    uint32_t outer = layout->loop, loop = (uint32_t)network->loop_count, rule = (uint32_t)network->rule_count;
    if (layout->code >= 0)
        layout->code = qmi_reserve(&network->alloc, (void **)&network->loops, &network->loop_capacity, network->loop_count + 1,
                                   sizeof *network->loops, "grammar");
    if (layout->code >= 0)
        layout->code = qmi_reserve(&network->alloc, (void **)&network->rules, &network->rule_capacity, network->rule_count + 1,
                                   sizeof *network->rules, "grammar");
    if (layout->code < 0)
        return QMI_THE_END;
    network->loops[network->loop_count++] = (qmi_network_loop){ .least = node->second, .most = node->third };
    network->rules[network->rule_count++] = (qmi_network_rule){ .name = layout->rule };
    layout->loop = loop;
    qmi_place entry = add_place(layout, QMI_PLACE_LOOP, loop, 0);
    qmi_place body = lay_out(layout, node->first, add_place(layout, QMI_PLACE_STEP, loop, 0));
    layout->loop = outer;
    if (layout->code >= 0) {
        network->loops[loop].entry = entry;
        network->loops[loop].body = body;
        network->rules[rule].entry = entry;
    }
    return add_place(layout, QMI_PLACE_CALL, rule, next);
}

static qmi_place lay_repeat(layout *layout, const qmi_expression_node *node, qmi_place next)
{
    uint32_t least = node->second, most = node->third;
    bool endless = most == QMI_GRAMMAR_ENDLESS;
    uint64_t copies = endless ? least + 1ull : most, size = size_of(layout->grammar, node->first);
    if (copies > 1 && (copies > UNROLLED_COUNT || size * copies > UNROLLED_PLACES))
        return lay_counted(layout, node, next);
    qmi_place at = next;
    if (endless)
        at = lay_star(layout, node->first, next);
    for (uint32_t i = endless ? least : most; i-- > 0 && layout->code >= 0;)
        at = i < least ? lay_out(layout, node->first, at) : lay_optional(layout, node->first, at, next);
    return at;
}

/* ---- all kinds ---- */

static qmi_place lay_out(layout *layout, qmi_expression expression, qmi_place next)
{
    const qmi_grammar *grammar = layout->grammar;
    const qmi_expression_node *node = &grammar->nodes[expression];
    if (layout->code < 0)
        return QMI_THE_END;
    switch (node->kind) {
    case QMI_EXPRESSION_EMPTY:
        return next;
    case QMI_EXPRESSION_NEVER:
        return add_place(layout, QMI_PLACE_BYTES, 0, 0);
    case QMI_EXPRESSION_BYTES:
        layout->code = qmi_bytes_literal(layout->network, grammar->bytes + node->first, node->second, layout->loop, &next);
        return next;
    case QMI_EXPRESSION_CLASS:
        layout->code = qmi_bytes_class(layout->network, &layout->scratch, grammar->ranges + node->first, node->second,
                                       layout->loop, &next);
        return next;
    case QMI_EXPRESSION_WITHOUT:
        layout->code = qmi_bytes_without(layout->network, &layout->scratch, grammar->bytes + node->first, node->second,
                                         layout->loop, &next);
        return next;
    case QMI_EXPRESSION_SEQUENCE:
        return lay_sequence(layout, node, next);
    case QMI_EXPRESSION_ALTERNATIVES:
        return lay_alternatives(layout, node, next);
    case QMI_EXPRESSION_REPEAT:
        return lay_repeat(layout, node, next);
    case QMI_EXPRESSION_RULE:
        return add_place(layout, QMI_PLACE_CALL, node->first, next);
    }
    return next;
}

/* The grammar's rules keep their numbers; those of counted loops come behind. */
static void lay_rules(layout *layout)
{
    qmi_network *network = layout->network;
    size_t count = layout->grammar->rule_count;
    layout->code = qmi_reserve(&network->alloc, (void **)&network->rules, &network->rule_capacity, count, sizeof *network->rules,
                               "grammar");
    if (layout->code < 0)
        return;
    network->rule_count = count;
    add_place(layout, QMI_PLACE_END, 0, 0);
    add_place(layout, QMI_PLACE_ACCEPT, 0, 0);
    add_place(layout, QMI_PLACE_EXIT, 0, 0);
    for (uint32_t rule = 0; rule < count && layout->code >= 0; rule++) {
        layout->rule = rule;
        qmi_place entry = lay_out(layout, layout->grammar->rules[rule].body, QMI_THE_END);
        network->rules[rule].entry = entry;
        network->rules[rule].name = rule;
    }
}

/* ---- which bytes are alike ---- */

static void find_classes(qmi_network *network)
{
    bool starts[257] = { true };
    for (size_t i = 0; i < network->edge_count; i++) {
        starts[network->edges[i].low] = true;
        starts[network->edges[i].high + 1] = true;
    }
    network->class_count = 0;
    for (int32_t byte = 0; byte < 256; byte++) {
        if (starts[byte])
            network->examples[network->class_count++] = (uint8_t)byte;
        network->classes[byte] = (uint8_t)(network->class_count - 1);
    }
}

int32_t qmi_network_new(const qmi_grammar *grammar, const uint32_t *roots, size_t root_count, const qmi_alloc *alloc,
                        qmi_network **out)
{
    *out = NULL;
    if (grammar->code < 0)
        return grammar->code;
    qmi_network *network = qmi_new(alloc, 1, sizeof *network, "grammar");
    if (!network)
        return QM_ERROR_MEMORY;
    network->alloc = *alloc;
    layout layout = { .grammar = grammar, .network = network, .loop = QMI_NO_LOOP };
    lay_rules(&layout);
    qmi_delete(alloc, layout.stack);
    qmi_bytes_end(&layout.scratch, alloc);
    int32_t code = layout.code;
    if (code >= 0)
        code = qmi_lengths_find(network, grammar, roots, root_count);
    if (code >= 0)
        code = qmi_ranks_find(network, grammar);
    if (code < 0) {
        qmi_network_free(&network);
        return code;
    }
    find_classes(network);
    *out = network;
    return QM_OK;
}

void qmi_network_free(qmi_network **network)
{
    qmi_network *old = *network;
    if (!old)
        return;
    const qmi_alloc alloc = old->alloc;
    qmi_delete(&alloc, old->places);
    qmi_delete(&alloc, old->edges);
    qmi_delete(&alloc, old->targets);
    qmi_delete(&alloc, old->loops);
    qmi_delete(&alloc, old->rules);
    qmi_delete(&alloc, old);
    *network = NULL;
}
