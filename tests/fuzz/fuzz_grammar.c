/* Fuzz target: any bytes as a grammar (GBNF), as a JSON schema and as tools; and what is made of them.
 *
 * Input: a byte of settings (bits 0-3: an allocation that fails; 4-5: GBNF, schema, tools of Qwen3's or of Qwen3.5's format),
 * then the text, then after a byte FF a text to match. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/failing_alloc.h"
#include "base/error.h"
#include "text/automaton.h"
#include "text/grammar_gbnf.h"
#include "text/grammar_schema.h"
#include "text/grammar_tools.h"

#define ENDING_MOST 5000 /* bytes of a shortest text that are followed */

static void require(bool condition)
{
    if (!condition)
        abort();
}

static int32_t read_text(qmi_grammar *grammar, int form, const char *text, size_t length, uint32_t *root)
{
    if (form == 0)
        return qmi_gbnf_read(grammar, text, length, root);
    *root = qmi_grammar_rule_new(grammar, "root", 4);
    if (form == 1) {
        qmi_grammar_define(grammar, *root, qmi_schema_read_text(grammar, text, length));
        return grammar->code;
    }
    char *copy = calloc(length + 1, 1);
    require(copy);
    memcpy(copy, text, length);
    const qmi_tools_request request = { .tools = copy, .choice = "auto", .parallel = true,
                                        .format = form == 2 ? QMI_CHAT_QWEN3 : QMI_CHAT_QWEN3_5 };
    qmi_grammar_define(grammar, *root, qmi_tools_read(grammar, &request));
    free(copy);
    return grammar->code;
}

/* From every state there is a way to a complete text, of as many bytes as is said. */
static int32_t follow_shortest(qmi_automaton *automaton, qmi_set set)
{
    int32_t code = QM_OK;
    for (int i = 0; i < ENDING_MOST && code >= 0 && qmi_automaton_bytes(automaton, set) > 0; i++) {
        uint64_t before = qmi_automaton_bytes(automaton, set);
        uint8_t byte = 0;
        code = qmi_automaton_shortest(automaton, set, &byte);
        if (code >= 0)
            code = qmi_automaton_step(automaton, set, byte, &set);
        if (code >= 0)
            require(set != QMI_SET_DEAD && (qmi_automaton_bytes(automaton, set) == before - 1 || before > ((uint64_t)1 << 32)));
    }
    if (code >= 0 && qmi_automaton_bytes(automaton, set) == 0) {
        code = qmi_automaton_accepts(automaton, set);
        require(code != 0);
    }
    return code;
}

static int32_t match(qmi_automaton *automaton, uint32_t root, const uint8_t *text, size_t length)
{
    qmi_set set, clamped;
    int32_t code = qmi_automaton_start(automaton, root, &set);
    for (size_t i = 0; i < length && code >= 0 && set != QMI_SET_DEAD; i++) {
        qmi_set from = qmi_automaton_clamped(automaton, set);
        code = qmi_automaton_step(automaton, set, text[i], &set);
        if (code >= 0)
            code = qmi_automaton_look(automaton, from, text[i], &clamped);
        if (code >= 0)
            require((set == QMI_SET_DEAD) == (clamped == QMI_SET_DEAD));
        if (code >= 0 && i % 7 == 3)
            code = qmi_automaton_collect(automaton, (qmi_set *const[]){ &set }, 1);
    }
    return code < 0 || set == QMI_SET_DEAD ? code : follow_shortest(automaton, set);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1, *behind = memchr(text, 0xFF, size - 1);
    size_t length = behind ? (size_t)(behind - text) : size - 1;
    failing_alloc failing = { .until_failure = (data[0] & 15) ? (data[0] & 15) * 7 - 7 : -1 };
    const qmi_alloc alloc = failing_hook(&failing);
    qmi_grammar grammar;
    qmi_network *network = NULL;
    qmi_automaton *automaton = NULL;
    uint32_t root = 0;
    qmi_grammar_start(&grammar, &alloc);
    int32_t code = grammar.code;
    if (code >= 0)
        code = read_text(&grammar, data[0] >> 4 & 3, text, length, &root);
    if (code >= 0)
        code = qmi_network_new(&grammar, &root, 1, &alloc, &network);
    if (code >= 0)
        code = qmi_automaton_new(network, 8, &alloc, &automaton);
    if (code >= 0)
        code = match(automaton, root, (const uint8_t *)(behind ? behind + 1 : ""), behind ? size - 2 - length : 0);
    require(code >= 0 || code == QM_ERROR_OPTION || code == QM_ERROR_UNSUPPORTED || (code == QM_ERROR_MEMORY && failing.failed));
    require(code >= 0 || qmi_error_text()[0] != 0);
    qmi_grammar_end(&grammar);
    qmi_automaton_free(&automaton);
    qmi_network_free(&network);
    require(failing.live == 0);
    return 0;
}
