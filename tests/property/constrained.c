/* constrained MODEL.gguf [WALKS [SEED]]: random texts that masks of tokens allow, each checked by an independent reader.
 * constrained MODEL.gguf --measure: what masks cost with the vocabulary of that file.
 *
 * A walk takes random tokens of the mask until the text is complete, after some time along the shortest way. Each step's mask is
 * compared with what single tokens are told. The text has to be JSON for jansson, and fit the schema by the checker below, which
 * knows nothing of grammars. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "run/load.h"
#include "run/random.h"
#include "text/grammar_schema.h"
#include "text/token_mask.h"

#define TEXT_MOST 100000
#define FREE_STEPS 60 /* of a walk, before it takes the shortest way */

static const char *const schemas[] = {
    "{}",
    "{\"title\":\"any value\"}",
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":12},\"age\":{\"type\":\"integer\"},"
    "\"mail\":{\"type\":[\"string\",\"null\"]},\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"b\",7]},\"minItems\":"
    "1,"
    "\"maxItems\":3}},\"required\":[\"name\",\"tags\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"boolean\"},\"ab\":{\"type\":\"number\"}},"
    "\"additionalProperties\":{\"type\":\"string\",\"minLength\":2}}",
    "{\"type\":\"object\",\"properties\":{\"value\":{\"type\":\"string\"},\"children\":{\"type\":\"array\",\"items\":{\"$ref\":"
    "\"#\"}}},"
    "\"required\":[\"value\",\"children\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"p\":{\"type\":\"number\",\"minimum\":-2.5,\"maximum\":17.25},\"q\":{\"type\":"
    "\"integer\","
    "\"minimum\":98,\"maximum\":1203},\"r\":{\"type\":\"string\",\"pattern\":\"^[^a-z]{3,9}$\",\"minLength\":3,\"maxLength\":9}"
    "},"
    "\"required\":[\"p\",\"q\",\"r\"]}",
    "{\"anyOf\":[{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\"},{\"type\":\"string\",\"minLength\":30,"
    "\"maxLength\":40}],"
    "\"items\":{\"type\":\"null\"},\"minItems\":2},{\"const\":{\"x\":[1,2.5,\"\\u00e4\\n\"]}}]}",
};
#define SCHEMAS (sizeof schemas / sizeof schemas[0])

static void must(bool condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "constrained: %s: %s\n", what, qmi_error_text());
    exit(1);
}

/* ---- a checker of JSON schemas, for the keywords above ---- */

static bool fits(const json_t *root, const json_t *schema, json_t *value);

static bool has_type(const json_t *name, const json_t *value)
{
    const char *type = json_string_value(name);
    return strcmp(type, "null") == 0 ? json_is_null(value) : strcmp(type, "boolean") == 0 ? json_is_boolean(value)
           : strcmp(type, "integer") == 0 ? json_is_integer(value) : strcmp(type, "number") == 0 ? json_is_number(value)
           : strcmp(type, "string") == 0 ? json_is_string(value) : strcmp(type, "array") == 0 ? json_is_array(value)
                                                                                              : json_is_object(value);
}

static bool fits_type(const json_t *type, const json_t *value)
{
    bool found = !type || (json_is_string(type) && has_type(type, value));
    for (size_t i = 0; i < json_array_size(type); i++)
        found = found || has_type(json_array_get(type, i), value);
    return found;
}

static int64_t code_points(const json_t *string)
{
    int64_t count = 0;
    for (const char *at = json_string_value(string); *at; at++)
        count += ((uint8_t)*at & 0xC0) != 0x80;
    return count;
}

static bool within(const json_t *schema, const char *least, const char *most, int64_t count)
{
    const json_t *low = json_object_get(schema, least), *high = json_object_get(schema, most);
    return (!low || count >= json_integer_value(low)) && (!high || count <= json_integer_value(high));
}

static bool fits_members(const json_t *root, const json_t *schema, json_t *value)
{
    json_t *properties = json_object_get(schema, "properties"), *additional = json_object_get(schema, "additionalProperties"),
           *member;
    const json_t *required = json_object_get(schema, "required");
    const char *key;
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_object_get(value, json_string_value(json_array_get(required, i))))
            return false;
    json_object_foreach(value, key, member) {
        const json_t *part = json_object_get(properties, key);
        if (!part)
            part = additional;
        if (part && !fits(root, part, member))
            return false;
    }
    return true;
}

static bool fits_items(const json_t *root, const json_t *schema, json_t *value)
{
    const json_t *first = json_object_get(schema, "prefixItems"), *items = json_object_get(schema, "items");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *part = i < json_array_size(first) ? json_array_get(first, i) : items;
        if (part && !fits(root, part, json_array_get(value, i)))
            return false;
    }
    return within(schema, "minItems", "maxItems", (int64_t)json_array_size(value));
}

static bool fits(const json_t *root, const json_t *schema, json_t *value)
{
    const json_t *any = json_object_get(schema, "anyOf"), *several = json_object_get(schema, "enum");
    json_t *only = json_object_get(schema, "const");
    bool found = !any && !several;
    if (json_is_boolean(schema))
        return json_is_true(schema);
    if (json_object_get(schema, "$ref"))
        return fits(root, root, value);
    for (size_t i = 0; i < json_array_size(any); i++)
        found = found || fits(root, json_array_get(any, i), value);
    for (size_t i = 0; i < json_array_size(several); i++)
        found = found || json_equal(json_array_get(several, i), value);
    if (!found || (only && !json_equal(only, value)) || !fits_type(json_object_get(schema, "type"), value))
        return false;
    if (json_is_string(value))
        return within(schema, "minLength", "maxLength", code_points(value));
    if (json_is_number(value)) {
        const json_t *low = json_object_get(schema, "minimum"), *high = json_object_get(schema, "maximum");
        double number = json_number_value(value);
        return (!low || number >= json_number_value(low)) && (!high || number <= json_number_value(high));
    }
    if (json_is_array(value))
        return fits_items(root, schema, value);
    return !json_is_object(value) || fits_members(root, schema, value);
}

static void check_text(const char *schema, const char *text, size_t length)
{
    json_error_t error;
    json_t *root = json_loads(schema, 0, &error), *value = json_loadb(text, length, JSON_DECODE_ANY, &error);
    if (!value || !fits(root, root, value) || (json_object_size(root) == 0 && !json_is_object(value))) {
        fprintf(stderr, "constrained: %s\ndoes not fit %s (%s)\n", text, schema, value ? "schema" : error.text);
        exit(1);
    }
    json_decref(root);
    json_decref(value);
}

/* ---- a grammar with masks ---- */

typedef struct scene {
    const qmi_vocab *vocab;
    qmi_token_trie *trie;
    qmi_network *network;
    qmi_automaton *automaton;
    qmi_token_masks *masks;
    qmi_set start;
} scene;

static void open_scene(scene *scene, const char *schema)
{
    const qmi_alloc alloc = { 0 };
    qmi_grammar grammar;
    qmi_grammar_start(&grammar, &alloc);
    uint32_t root = qmi_grammar_rule_new(&grammar, "root", 4);
    qmi_grammar_define(&grammar, root, qmi_schema_read_text(&grammar, schema, strlen(schema)));
    must(qmi_network_new(&grammar, &root, 1, &alloc, &scene->network) >= 0, schema);
    qmi_grammar_end(&grammar);
    must(qmi_automaton_new(scene->network, QMI_TOKEN_BRIEF, &alloc, &scene->automaton) >= 0, "automaton");
    must(qmi_token_masks_new(scene->trie, scene->automaton, &alloc, &scene->masks) >= 0, "masks");
    must(qmi_automaton_start(scene->automaton, root, &scene->start) >= 0, "start");
}

static void close_scene(scene *scene)
{
    qmi_token_masks_free(&scene->masks);
    qmi_automaton_free(&scene->automaton);
    qmi_network_free(&scene->network);
}

static bool allowed(const uint64_t *bits, int32_t token)
{
    return bits[token / 64] >> token % 64 & 1;
}

/* A random token of the mask: one after a random place, so that all have a chance. -1: none. */
static int32_t draw(const uint64_t *bits, int32_t size, qmi_random *random)
{
    int32_t from = (int32_t)(qmi_random_unit(random) * size);
    for (int32_t i = 0; i < size; i++)
        if (allowed(bits, (from + i) % size))
            return (from + i) % size;
    return -1;
}

static bool is_text(const qmi_vocab *vocab, int32_t token)
{
    int32_t kind = qmi_vocab_kind(vocab, token);
    return kind == QMI_TOKEN_NORMAL || kind == QMI_TOKEN_USER_DEFINED;
}

/* The mask says of a token what the token is told alone. */
static void compare(scene *scene, qmi_set set, const uint64_t *bits, int32_t token)
{
    int64_t length;
    const char *bytes = qmi_vocab_bytes(scene->vocab, token, &length);
    bool fit = is_text(scene->vocab, token) && qmi_token_fits(scene->automaton, set, bytes, length) > 0;
    if (fit != allowed(bits, token)) {
        fprintf(stderr, "constrained: token %d: mask %d, alone %d\n", token, allowed(bits, token), fit);
        exit(1);
    }
}

/* One more token of a walk. */
static qmi_set take_token(scene *scene, qmi_set set, bool shortest, qmi_random *random, char *text, size_t *length)
{
    const uint64_t *bits;
    int32_t size = qmi_vocab_size(scene->vocab);
    uint8_t byte = 0;
    if (shortest) {
        must(qmi_automaton_shortest(scene->automaton, set, &byte) >= 0, "shortest");
        text[(*length)++] = (char)byte;
        must(qmi_automaton_step(scene->automaton, set, byte, &set) >= 0 && set != QMI_SET_DEAD, "the shortest way is none");
        return set;
    }
    must(qmi_token_masks_find(scene->masks, set, &bits) >= 0, "mask");
    for (int32_t i = 0; i < 50; i++)
        compare(scene, set, bits, (int32_t)(qmi_random_unit(random) * size));
    int32_t token = draw(bits, size, random);
    must(token >= 0, "no token is allowed");
    compare(scene, set, bits, token);
    int64_t count;
    const char *bytes = qmi_vocab_bytes(scene->vocab, token, &count);
    memcpy(text + *length, bytes, (size_t)count);
    *length += (size_t)count;
    must(qmi_automaton_walk(scene->automaton, set, bytes, (size_t)count, &set) >= 0 && set != QMI_SET_DEAD,
         "an allowed token does not fit");
    return set;
}

static size_t walk(scene *scene, qmi_random *random, char *text)
{
    size_t length = 0;
    qmi_set set = scene->start;
    for (int32_t steps = 0; length + 1000 < TEXT_MOST; steps++) {
        if (qmi_automaton_accepts(scene->automaton, set) > 0 &&
            (qmi_automaton_is_over(scene->automaton, set) > 0 || steps > FREE_STEPS || qmi_random_unit(random) < 0.2))
            break;
        set = take_token(scene, set, steps > FREE_STEPS, random, text, &length);
        if (steps % 16 == 5) { /* all numbers change */
            qmi_set *kept[] = { &set, &scene->start };
            qmi_token_masks_clear(scene->masks);
            must(qmi_automaton_collect(scene->automaton, kept, 2) >= 0, "collect");
        }
    }
    text[length] = 0;
    return length;
}

static int check_walks(scene *scene, int32_t walks, uint64_t seed)
{
    static char text[TEXT_MOST];
    qmi_random random;
    qmi_random_start(&random, seed);
    size_t bytes = 0;
    for (size_t s = 0; s < SCHEMAS; s++) {
        open_scene(scene, schemas[s]);
        for (int32_t i = 0; i < walks; i++) {
            size_t length = walk(scene, &random, text);
            check_text(schemas[s], text, length);
            bytes += length;
        }
        close_scene(scene);
    }
    printf("%zu schemas, %d texts each, %zu bytes: all valid\n", SCHEMAS, walks, bytes);
    return 0;
}

/* ---- measuring ---- */

/* Seconds of this thread on a processor: what else the machine does is left out. */
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static const struct {
    const char *name, *schema, *text;
} documents[] = {
    { "any object", "{}",
      "{\n  \"name\": \"Ada Lovelace\",\n  \"born\": 1815,\n  \"works\": [\n    {\n      \"title\": \"Notes on the Analytical "
      "Engine\",\n"
      "      \"year\": 1843,\n      \"subjects\": [\"mathematics\", \"computing\", \"Bernoulli numbers\"]\n    }\n  ],\n"
      "  \"biography\": \"She wrote what is often called the first program, a way to compute Bernoulli numbers, and saw that "
      "such "
      "machines could work on more than numbers.\",\n  \"alive\": false\n}" },
    { "schema of 6 fields",
      "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"born\":{\"type\":\"integer\"},"
      "\"works\":{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"title\":{\"type\":\"string\","
      "\"maxLength\":200},"
      "\"year\":{\"type\":\"integer\"},\"subjects\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}},\"required\":["
      "\"title\",\"year\","
      "\"subjects\"]}},\"biography\":{\"type\":\"string\",\"maxLength\":1000},\"alive\":{\"type\":\"boolean\"}},"
      "\"required\":[\"name\",\"works\",\"biography\"]}",
      "{\n  \"name\": \"Ada Lovelace\",\n  \"born\": 1815,\n  \"works\": [\n    {\n      \"title\": \"Notes on the Analytical "
      "Engine\",\n"
      "      \"year\": 1843,\n      \"subjects\": [\"mathematics\", \"computing\", \"Bernoulli numbers\"]\n    }\n  ],\n"
      "  \"biography\": \"She wrote what is often called the first program, a way to compute Bernoulli numbers, and saw that "
      "such "
      "machines could work on more than numbers.\",\n  \"alive\": false\n}" },
};

#define ASKED 32 /* tokens asked about in each place, as many as a card picks */

typedef struct costs {
    double asking, masking, advancing;
    double slowest; /* mask */
    int64_t tokens;
} costs;

/* Along a document: asks about its next token and others, finds the mask, goes on. */
static costs measure(scene *scene, const qmi_ids *tokens, qmi_random *random)
{
    costs costs = { .tokens = (int64_t)tokens->count };
    qmi_set set = scene->start;
    const uint64_t *bits;
    for (size_t i = 0; i < tokens->count; i++) {
        double start = now();
        for (int32_t k = 0; k < ASKED; k++) {
            int32_t token = k ? (int32_t)(qmi_random_unit(random) * qmi_vocab_size(scene->vocab)) : tokens->data[i];
            int64_t length;
            const char *bytes = qmi_vocab_bytes(scene->vocab, token, &length);
            must(qmi_token_fits(scene->automaton, set, bytes, length) >= (k == 0), "the document does not fit");
        }
        double asked = now();
        must(qmi_token_masks_find(scene->masks, set, &bits) >= 0 && allowed(bits, tokens->data[i]), "mask");
        double masked = now();
        int64_t length;
        const char *bytes = qmi_vocab_bytes(scene->vocab, tokens->data[i], &length);
        must(qmi_automaton_walk(scene->automaton, set, bytes, (size_t)length, &set) >= 0, "walk");
        costs.asking += asked - start;
        costs.masking += masked - asked;
        costs.slowest = masked - asked > costs.slowest ? masked - asked : costs.slowest;
        costs.advancing += now() - masked;
    }
    return costs;
}

static void print_costs(const char *name, const char *state, const costs *costs)
{
    double each = 1e6 / (double)costs->tokens;
    printf("%-20s %-5s %6" PRId64 " %12.2f %12.2f %12.2f %12.1f\n", name, state, costs->tokens, costs->asking * each,
           costs->advancing * each, costs->masking * each, costs->slowest * 1e6);
}

static int measure_all(scene *scene)
{
    const qmi_alloc alloc = { 0 };
    qmi_random random;
    qmi_random_start(&random, 1);
    printf("vocabulary of %d tokens, tree of %u nodes; microseconds a token:\n%-20s %-5s %6s %12s %12s %12s %12s\n",
           qmi_vocab_size(scene->vocab), scene->trie->count, "text", "", "tokens", "ask about 32", "go on", "whole mask",
           "slowest mask");
    for (size_t d = 0; d < sizeof documents / sizeof documents[0]; d++) {
        qmi_ids tokens = { 0 };
        must(qmi_tokenize(scene->vocab, documents[d].text, (int64_t)strlen(documents[d].text), 0, &alloc, &tokens) >= 0,
             "tokenize");
        double start = now();
        open_scene(scene, documents[d].schema);
        printf("%-20s read in %.0f us\n", documents[d].name, 1e6 * (now() - start));
        costs cold = measure(scene, &tokens, &random), warm = measure(scene, &tokens, &random);
        print_costs(documents[d].name, "cold", &cold);
        print_costs(documents[d].name, "warm", &warm);
        printf("%-20s %u states, %" PRId64 " bytes of them, %" PRId64 " of masks\n", documents[d].name,
               qmi_automaton_set_count(scene->automaton), qmi_automaton_memory(scene->automaton),
               qmi_token_masks_memory(scene->masks));
        qmi_delete(&alloc, tokens.data);
        close_scene(scene);
    }
    return 0;
}

int main(int count, char **words)
{
    const qmi_alloc alloc = { 0 };
    const qmi_load_watch watch = { 0 };
    qmi_settings settings;
    qm_model *model;
    scene scene = { 0 };
    if (count < 2) {
        fprintf(stderr, "usage: constrained MODEL.gguf [WALKS [SEED]] | --measure\n");
        return 2;
    }
    qmi_settings_start(&settings, NULL);
    must(qmi_settings_set(&settings, QMI_OPT_VOCABULARY_ONLY, "1") >= 0, "settings");
    must(qmi_load_model(words[1], &settings, &watch, &model) >= 0, words[1]);
    scene.vocab = model->vocab;
    double start = now();
    must(qmi_token_trie_new(scene.vocab, &alloc, &scene.trie) >= 0, "tree");
    bool measures = count > 2 && strcmp(words[2], "--measure") == 0;
    if (measures)
        printf("tree of token texts made in %.1f ms\n", 1e3 * (now() - start));
    int code = measures ? measure_all(&scene)
                        : check_walks(&scene, count > 2 ? atoi(words[2]) : 10, count > 3 ? strtoull(words[3], NULL, 10) : 1);
    qmi_token_trie_free(&scene.trie);
    qmi_load_release(model);
    qmi_settings_end(&settings);
    return code;
}
