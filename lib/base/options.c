/* The table of options, and values for them: see options.h. */
#include "base/options.h"

#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "base/number.h"

static const qmi_option table[QMI_OPT_COUNT] = {
#define QMI_OPTION(id, name, scope, type, fallback, low, high, choices, help) \
    { name, QMI_SCOPE_##scope, QMI_OPTION_##type, fallback, low, high, choices, help },
#include "base/options_table.h"
#undef QMI_OPTION
};

/* A range's text is the very digits of the table. */
#define RANGE_INT(low, high, choices) #low ".." #high
#define RANGE_FLOAT(low, high, choices) #low ".." #high
#define RANGE_BOOL(low, high, choices) ""
#define RANGE_CHOICE(low, high, choices) choices
#define RANGE_TEXT(low, high, choices) ""

static const char *const ranges[QMI_OPT_COUNT] = {
#define QMI_OPTION(id, name, scope, type, fallback, low, high, choices, help) RANGE_##type(low, high, choices),
#include "base/options_table.h"
#undef QMI_OPTION
};

/* What a preset sets, in the order of its choices; "none" leaves all as it is. */
static const struct {
    int32_t context, answer;
} presets[] = { { 0, 0 }, { 32768, 8192 }, { 8192, 2048 }, { 2048, 512 } };

/* ---- the table ---- */

const qmi_option *qmi_option_at(int32_t id)
{
    return id >= 0 && id < QMI_OPT_COUNT ? &table[id] : NULL;
}

const char *qmi_option_range_text(int32_t id)
{
    return id >= 0 && id < QMI_OPT_COUNT ? ranges[id] : NULL;
}

const char *qmi_option_type_name(qmi_option_type type)
{
    static const char *const names[] = { "int", "float", "bool", "choice", "text" };
    return names[type];
}

const char *qmi_option_scope_name(qmi_option_scope scope)
{
    static const char *const names[] = { "model", "session", "sampling" };
    return names[scope];
}

/* Length of the well-formed UTF-8 sequence at `text` (Unicode 16, table 3-7), 0 for anything else. */
static int sequence_length(const unsigned char *text)
{
    int length = text[0] < 0x80 ? 1 : text[0] < 0xC2 ? 0 : text[0] < 0xE0 ? 2 : text[0] < 0xF0 ? 3 : text[0] < 0xF5 ? 4 : 0;
    for (int i = 1; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80)
            return 0;
    }
    bool outside = (text[0] == 0xE0 && text[1] < 0xA0) || (text[0] == 0xED && text[1] > 0x9F)
                   || (text[0] == 0xF0 && text[1] < 0x90) || (text[0] == 0xF4 && text[1] > 0x8F);
    return outside ? 0 : length;
}

const char *qmi_option_shown(const char *text, char out[QMI_SHOWN_SIZE])
{
    int used = 0;
    while (*text) {
        int length = sequence_length((const unsigned char *)text);
        if (used + (length ? length : 1) > QMI_SHOWN_SIZE - 4) {
            memcpy(out + used, "...", 3);
            used += 3;
            break;
        }
        if (length == 0 || (unsigned char)*text < 0x20 || *text == 0x7F)
            out[used++] = '?';
        else
            memcpy(out + used, text, (size_t)length), used += length;
        text += length ? length : 1;
    }
    out[used] = 0;
    return out;
}

#define NAME_SIZE 32 /* longer texts than this resemble no option */

/* Levenshtein's distance: insertions, deletions and substitutions that turn one text into the other. */
static int distance(const char *a, const char *b)
{
    int row[NAME_SIZE + 1], columns = (int)strlen(b);
    for (int j = 0; j <= columns; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= columns; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[columns];
}

/* A name that begins with the text is nearer than any other: "temp" means temperature. */
static const char *nearest_name(const char *name)
{
    const char *nearest = NULL;
    int best = 0;
    size_t length = strlen(name);
    if (length == 0 || length > NAME_SIZE)
        return NULL;
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        int apart = strncmp(table[id].name, name, length) == 0 ? 0 : distance(name, table[id].name);
        if (!nearest || apart < best) {
            nearest = table[id].name;
            best = apart;
        }
    }
    return nearest;
}

int32_t qmi_option_find(const char *name)
{
    char shown[QMI_SHOWN_SIZE];
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        if (strcmp(table[id].name, name) == 0)
            return id;
    }
    const char *nearest = nearest_name(name);
    qmi_option_shown(name, shown);
    if (!nearest)
        return qmi_fail(QM_ERROR_OPTION, "there is no option '%s'; qm_option_name gives all names", shown);
    return qmi_fail(QM_ERROR_OPTION, "there is no option '%s'; the nearest is '%s'", shown, nearest);
}

/* ---- a value's text ---- */

typedef struct option_value {
    double number;
    int64_t integer;
    char choice[16];
} option_value;

static int32_t refuse(int32_t id, const char *text, const char *wanted)
{
    char shown[QMI_SHOWN_SIZE];
    return qmi_fail(QM_ERROR_OPTION, "option '%s': '%s' is not %s %s", table[id].name, qmi_option_shown(text, shown), wanted,
                    table[id].type == QMI_OPTION_BOOL ? "1|0|true|false|yes|no|on|off" : ranges[id]);
}

static int32_t read_int(int32_t id, const char *text, option_value *value)
{
    qmi_number_result result = qmi_number_read_int(text, strlen(text), &value->integer);
    if (result == QMI_NUMBER_NOT_ONE)
        return refuse(id, text, "a whole number of");
    if (result != QMI_NUMBER_OK || value->integer < (int64_t)table[id].low || value->integer > (int64_t)table[id].high)
        return refuse(id, text, "in the range");
    value->number = (double)value->integer;
    return QM_OK;
}

static int32_t read_float(int32_t id, const char *text, option_value *value)
{
    qmi_number_result result = qmi_number_read_float(text, strlen(text), &value->number);
    if (result == QMI_NUMBER_NOT_ONE)
        return refuse(id, text, "a number of");
    if (result != QMI_NUMBER_OK || !(value->number >= table[id].low && value->number <= table[id].high))
        return refuse(id, text, "in the range");
    return QM_OK;
}

static int32_t read_bool(int32_t id, const char *text, option_value *value)
{
    static const char *const words[] = { "0", "1", "false", "true", "no", "yes", "off", "on" };
    for (int i = 0; i < 8; i++) {
        if (strcmp(text, words[i]) == 0) {
            value->integer = i & 1;
            value->number = i & 1;
            return QM_OK;
        }
    }
    return refuse(id, text, "one of");
}

static int32_t read_choice(int32_t id, const char *text, option_value *value)
{
    const char *name = table[id].choices;
    for (int32_t index = 0;; index++) {
        size_t length = strcspn(name, "|");
        if (strlen(text) == length && memcmp(text, name, length) == 0 && length < sizeof value->choice) {
            memcpy(value->choice, name, length);
            value->choice[length] = 0;
            value->number = index;
            value->integer = index;
            return QM_OK;
        }
        if (!name[length])
            return refuse(id, text, "one of");
        name += length + 1;
    }
}

static int32_t read_value(int32_t id, const char *text, option_value *value)
{
    memset(value, 0, sizeof *value);
    switch (table[id].type) {
    case QMI_OPTION_INT: return read_int(id, text, value);
    case QMI_OPTION_FLOAT: return read_float(id, text, value);
    case QMI_OPTION_BOOL: return read_bool(id, text, value);
    case QMI_OPTION_CHOICE: return read_choice(id, text, value);
    case QMI_OPTION_TEXT: break;
    }
    return QM_OK;
}

/* ---- settings ---- */

static void store(qmi_settings *settings, int32_t id, const option_value *value)
{
    settings->values[id].number = value->number;
    settings->values[id].integer = value->integer;
    memcpy(settings->values[id].choice, value->choice, sizeof value->choice);
}

void qmi_settings_start(qmi_settings *settings, const qmi_alloc *alloc)
{
    memset(settings, 0, sizeof *settings);
    if (alloc)
        settings->alloc = *alloc;
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        option_value value;
        read_value(id, table[id].fallback, &value); /* the table's own defaults can be read: a test checks it */
        store(settings, id, &value);
    }
}

static int32_t copy_with(const qmi_settings *from, const qmi_alloc *alloc, qmi_settings *to)
{
    *to = *from;
    to->alloc = *alloc;
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++)
        to->values[id].text = NULL;
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        const char *text = from->values[id].text;
        if (!text)
            continue;
        to->values[id].text = qmi_new_text(alloc, text, strlen(text));
        if (!to->values[id].text) {
            qmi_settings_end(to);
            return QM_ERROR_MEMORY;
        }
    }
    return QM_OK;
}

int32_t qmi_settings_copy(const qmi_settings *from, qmi_settings *to)
{
    return copy_with(from, &from->alloc, to);
}

int32_t qmi_settings_use_alloc(qmi_settings *settings, const qmi_alloc *alloc)
{
    qmi_settings moved;
    int32_t status = copy_with(settings, alloc, &moved);
    if (status < 0)
        return status;
    qmi_settings_end(settings);
    *settings = moved;
    return QM_OK;
}

void qmi_settings_end(qmi_settings *settings)
{
    for (int32_t id = 0; id < QMI_OPT_COUNT; id++) {
        qmi_delete(&settings->alloc, settings->values[id].text);
        settings->values[id].text = NULL;
    }
}

static int32_t set_text(qmi_settings *settings, int32_t id, const char *text)
{
    char *copy = NULL;
    if (text) {
        copy = qmi_new_text(&settings->alloc, text, strlen(text));
        if (!copy)
            return QM_ERROR_MEMORY;
    }
    qmi_delete(&settings->alloc, settings->values[id].text);
    settings->values[id].text = copy;
    return QM_OK;
}

int32_t qmi_settings_set(qmi_settings *settings, int32_t id, const char *text)
{
    option_value value;
    if (!qmi_option_at(id))
        return qmi_fail(QM_ERROR_ARGUMENT, "there is no option with the number %d", (int)id);
    if (table[id].type == QMI_OPTION_TEXT)
        return set_text(settings, id, text);
    int32_t status = read_value(id, text ? text : table[id].fallback, &value);
    if (status < 0)
        return status;
    store(settings, id, &value);
    if (id == QMI_OPT_PRESET && value.integer > 0) {
        int32_t context = presets[value.integer].context, answer = presets[value.integer].answer;
        store(settings, QMI_OPT_CONTEXT, &(option_value){ .number = context, .integer = context });
        store(settings, QMI_OPT_ANSWER_TOKENS, &(option_value){ .number = answer, .integer = answer });
    }
    return QM_OK;
}

int64_t qmi_settings_get(const qmi_settings *settings, int32_t id, char *text, int64_t size)
{
    char number[QMI_NUMBER_SIZE];
    const char *value = number;
    if (!qmi_option_at(id))
        return qmi_fail(QM_ERROR_ARGUMENT, "there is no option with the number %d", (int)id);
    if (size < 0 || (size > 0 && !text))
        return qmi_fail(QM_ERROR_ARGUMENT, "value of option '%s': no room for %lld bytes", table[id].name, (long long)size);
    if (table[id].type == QMI_OPTION_FLOAT)
        qmi_number_write_float(settings->values[id].number, number);
    else if (table[id].type == QMI_OPTION_INT || table[id].type == QMI_OPTION_BOOL)
        snprintf(number, sizeof number, "%lld", (long long)settings->values[id].integer);
    else
        value = qmi_settings_text(settings, (qmi_option_id)id);
    size_t length = strlen(value);
    if (size > 0) {
        size_t written = length < (size_t)size ? length : (size_t)size - 1;
        memcpy(text, value, written);
        text[written] = 0;
    }
    return (int64_t)length;
}

int64_t qmi_settings_int(const qmi_settings *settings, qmi_option_id id)
{
    return settings->values[id].integer;
}

double qmi_settings_float(const qmi_settings *settings, qmi_option_id id)
{
    return settings->values[id].number;
}

bool qmi_settings_bool(const qmi_settings *settings, qmi_option_id id)
{
    return settings->values[id].integer != 0;
}

const char *qmi_settings_text(const qmi_settings *settings, qmi_option_id id)
{
    if (table[id].type == QMI_OPTION_CHOICE)
        return settings->values[id].choice;
    return settings->values[id].text ? settings->values[id].text : table[id].fallback;
}
