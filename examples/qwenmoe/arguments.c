/* Reads the command line of a verb and prints its help; see arguments.h. */
#include "arguments.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "terminal.h"

static const flag common_flags[] = {
    { "model", 'm', "FILE", "the model, a GGUF file (default: $QWENMOE_MODEL, else the one installed with the program)" },
    { "quiet", 'q', NULL, "no progress, no speeds, no warnings" },
    { "verbose", 'v', NULL, "print what the library logs" },
    { "help", 'h', NULL, "print this help" },
    { NULL, 0, NULL, NULL },
};

static int count_flags(const flag *flags)
{
    int count = 0;
    while (flags[count].name)
        count++;
    return count;
}

/* The flag at this place: the verb's own come first. */
static const flag *flag_at(const verb *verb, int place)
{
    int own = count_flags(verb->flags);
    return place < own ? &verb->flags[place] : &common_flags[place - own];
}

static int flags_total(const verb *verb)
{
    return count_flags(verb->flags) + count_flags(common_flags);
}

/* Place of --name (length bytes) or, with name NULL, of -letter; -1 if there is none. */
static int find_flag(const verb *verb, const char *name, size_t length, char letter)
{
    int total = flags_total(verb);
    for (int place = 0; place < total; place++) {
        const flag *candidate = flag_at(verb, place);
        if (name ? strlen(candidate->name) == length && memcmp(candidate->name, name, length) == 0 : candidate->letter == letter)
            return place;
    }
    return -1;
}

static int scope_bit(const char *scope)
{
    return strcmp(scope, "model") == 0 ? SCOPE_MODEL : strcmp(scope, "session") == 0 ? SCOPE_SESSION : SCOPE_SAMPLING;
}

static int find_option(const verb *verb, const char *name, size_t length)
{
    for (int32_t i = 0; i < qm_option_count(); i++) {
        const char *candidate = qm_option_name(i);
        if (strlen(candidate) == length && memcmp(candidate, name, length) == 0 && (verb->scopes & scope_bit(qm_option_scope(i))))
            return i;
    }
    return -1;
}

/* ---- Help --------------------------------------------------------------------------------------------------------- */

/* Prints text wrapped at the terminal's width, each line after `indent` columns, of which `column` are printed already. */
static void print_wrapped(const char *text, int indent, int column)
{
    int width = terminal_width() - 1;
    if (width > 110)
        width = 110;
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column > indent && column + 1 + word > width) {
            putchar('\n');
            column = 0;
        }
        if (column < indent)
            column += printf("%*s", indent - column, "");
        else if (column > indent)
            column += printf(" ");
        column += printf("%.*s", word, text);
        text += word;
        text += strspn(text, " ");
    }
    putchar('\n');
}

#define HELP_INDENT 30

static void print_entry(const char *head, const char *help)
{
    int column = printf("  %s", head);
    if (column > HELP_INDENT - 2) {
        putchar('\n');
        column = 0;
    }
    print_wrapped(help, HELP_INDENT, column);
}

static void print_flag(const flag *shown)
{
    char head[80];
    int used = shown->letter ? snprintf(head, sizeof head, "-%c, ", shown->letter) : snprintf(head, sizeof head, "    ");
    snprintf(head + used, sizeof head - (size_t)used, "--%s%s%s", shown->name, shown->value ? " " : "",
             shown->value ? shown->value : "");
    print_entry(head, shown->help);
}

static void print_options(const verb *verb, int scope)
{
    static const char *const titles[] = { [SCOPE_MODEL] = "Options of the model",
                                          [SCOPE_SESSION] = "Options of the session",
                                          [SCOPE_SAMPLING] = "Options of sampling and of the answer" };
    printf("\n%s:\n", titles[scope]);
    for (int32_t i = 0; i < qm_option_count(); i++) {
        int is_replaced = find_flag(verb, qm_option_name(i), strlen(qm_option_name(i)), 0) >= 0;
        if (scope_bit(qm_option_scope(i)) != scope || is_replaced)
            continue;
        const char *type = qm_option_type(i), *range = qm_option_range(i), *fallback = qm_option_default(i);
        const char *value = strcmp(type, "int") == 0     ? "N"
                            : strcmp(type, "float") == 0 ? "X"
                            : strcmp(type, "bool") == 0  ? "0|1"
                            : strcmp(type, "text") == 0  ? "TEXT"
                                                         : range;
        int number = strcmp(type, "int") == 0 || strcmp(type, "float") == 0;
        char head[160], help[640];
        snprintf(head, sizeof head, "    --%s %s", qm_option_name(i), value);
        snprintf(help, sizeof help, "%s (%s%sdefault %s)", qm_option_help(i), number ? range : "", number ? ", " : "",
                 *fallback ? fallback : "none");
        print_entry(head, help);
    }
}

static void print_help(const verb *verb)
{
    printf("usage: %s%s%s [options]%s%s\n\n%s\n", program_name, *verb->name ? " " : "", verb->name, *verb->words ? " " : "",
           verb->words, verb->detail);
    printf("\nOptions:\n");
    for (int place = 0; place < flags_total(verb); place++)
        print_flag(flag_at(verb, place));
    for (int scope = SCOPE_MODEL; scope <= SCOPE_SAMPLING; scope *= 2) {
        if (verb->scopes & scope)
            print_options(verb, scope);
    }
}

/* ---- Parsing ------------------------------------------------------------------------------------------------------ */

int arguments_usage(const arguments *arguments, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "%s: ", program_name);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\nTry `%s%s%s --help`.\n", program_name, *arguments->verb->name ? " " : "", arguments->verb->name);
    return EXIT_USAGE;
}

/* One argument that starts with '-'. Takes the next one too where it needs a value: *at moves on. */
static int parse_flag(arguments *arguments, int count, char **values, int *at)
{
    const char *text = values[*at], *equals = NULL;
    int is_long = text[1] == '-';
    size_t length = is_long ? strcspn(text + 2, "=") : 1;
    if (is_long && text[2 + length])
        equals = text + 2 + length + 1;
    else if (!is_long && text[2])
        equals = text + 2; /* -mFILE */
    int place = find_flag(arguments->verb, is_long ? text + 2 : NULL, length, text[1]);
    int option = place < 0 && is_long ? find_option(arguments->verb, text + 2, length) : -1;
    if (place < 0 && option < 0)
        return arguments_usage(arguments, "%s has no option %.*s", *arguments->verb->name ? arguments->verb->name : program_name,
                               (int)(is_long ? length + 2 : 2), text);

    if (place >= 0 && !flag_at(arguments->verb, place)->value) {
        if (equals)
            return arguments_usage(arguments, "%.*s takes no value", (int)(is_long ? length + 2 : 2), text);
        arguments->flags[place] = "";
        return EXIT_OK;
    }
    if (!equals && *at + 1 >= count)
        return arguments_usage(arguments, "%s needs a value", text);
    const char *value = equals ? equals : values[++*at];
    if (place >= 0) {
        arguments->flags[place] = value;
        return EXIT_OK;
    }
    if (arguments->option_count == OPTIONS_MOST)
        return arguments_usage(arguments, "more than %d options", OPTIONS_MOST);
    arguments->option_names[arguments->option_count] = qm_option_name(option);
    arguments->option_values[arguments->option_count++] = value;
    return EXIT_OK;
}

/* Sets an option. The value of those that are long texts may be the name of a file that has it. */
static int set_option(arguments *arguments, const char *name, const char *value)
{
    int is_text = strcmp(name, "grammar") == 0 || strcmp(name, "json-schema") == 0 || strcmp(name, "tools") == 0;
    FILE *file = is_text && *value ? fopen(value, "rb") : NULL;
    char *text = NULL;
    int64_t length;
    if (file) {
        fclose(file);
        if (read_file(value, &text, &length) != EXIT_OK)
            return EXIT_FAILED;
        if ((int64_t)strlen(text) != length) {
            free(text);
            return arguments_usage(arguments, "--%s: %s has a zero byte", name, value);
        }
    }
    int code = qm_options_set(arguments->options, name, text ? text : value) < 0
                   ? arguments_usage(arguments, "%s", qm_error_message())
                   : EXIT_OK;
    free(text);
    return code;
}

/* Presets first, whatever the order given, so that they do not undo what was asked for by name. */
static int apply_options(arguments *arguments)
{
    for (int is_preset = 1; is_preset >= 0; is_preset--) {
        for (int i = 0; i < arguments->option_count; i++) {
            if ((strcmp(arguments->option_names[i], "preset") == 0) != is_preset)
                continue;
            int code = set_option(arguments, arguments->option_names[i], arguments->option_values[i]);
            if (code != EXIT_OK)
                return code;
        }
    }
    return EXIT_OK;
}

int arguments_parse(const verb *verb, int count, char **values, arguments *out)
{
    memset(out, 0, sizeof *out);
    out->verb = verb;
    out->words = values; /* words move to the front of the array they came in */
    int flags_end = 0;
    for (int i = 0; i < count; i++) {
        if (!flags_end && strcmp(values[i], "--") == 0) {
            flags_end = 1;
        } else if (!flags_end && values[i][0] == '-' && values[i][1]) {
            int code = parse_flag(out, count, values, &i);
            if (code != EXIT_OK)
                return code;
            if (arguments_flag(out, "help")) {
                print_help(verb);
                return EXIT_DONE;
            }
        } else {
            out->words[out->word_count++] = values[i];
        }
    }
    if (qm_options_new(&out->options) < 0)
        return complain_library();
    return apply_options(out);
}

void arguments_end(arguments *arguments)
{
    qm_options_free(&arguments->options);
}

const char *arguments_flag(const arguments *arguments, const char *name)
{
    int place = find_flag(arguments->verb, name, strlen(name), 0);
    return place < 0 ? NULL : arguments->flags[place];
}

int arguments_number(const arguments *arguments, const char *name, int64_t lowest, int64_t highest, int64_t fallback,
                     int64_t *out)
{
    const char *text = arguments_flag(arguments, name);
    *out = fallback;
    if (!text)
        return EXIT_OK;
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end || errno || number < lowest || number > highest)
        return arguments_usage(arguments, "--%s is '%s', not a whole number of %lld..%lld", name, text, (long long)lowest,
                               (long long)highest);
    *out = number;
    return EXIT_OK;
}

int arguments_choice(const arguments *arguments, const char *name, const char *choices, int fallback, int *out)
{
    const char *text = arguments_flag(arguments, name);
    *out = fallback;
    if (!text)
        return EXIT_OK;
    int index = 0;
    for (const char *at = choices;; index++) {
        size_t length = strcspn(at, "|");
        if (strlen(text) == length && memcmp(at, text, length) == 0)
            break;
        if (!at[length])
            return arguments_usage(arguments, "--%s is '%s', not one of %s", name, text, choices);
        at += length + 1;
    }
    *out = index;
    return EXIT_OK;
}

int arguments_default(arguments *arguments, const char *name, const char *value)
{
    for (int i = 0; i < arguments->option_count; i++) {
        const char *given = arguments->option_names[i];
        int by_preset = strcmp(given, "preset") == 0 && (strcmp(name, "context") == 0 || strcmp(name, "answer-tokens") == 0);
        if (strcmp(given, name) == 0 || by_preset)
            return EXIT_OK;
    }
    return qm_options_set(arguments->options, name, value) < 0 ? complain_library() : EXIT_OK;
}

int arguments_quiet(const arguments *arguments)
{
    return arguments_flag(arguments, "quiet") != NULL;
}
