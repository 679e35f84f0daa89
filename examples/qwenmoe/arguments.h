/* The command line: verbs, their flags, and the library's own options, whose names, ranges and help come from the library. */
#ifndef QWENMOE_ARGUMENTS_H
#define QWENMOE_ARGUMENTS_H

#include <qwenmoe.h>

#define EXIT_OK 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define EXIT_INTERRUPTED 130 /* as shells report Ctrl-C */
#define EXIT_DONE (-1)       /* nothing is left to do: help was printed, or another rank has been followed to its end */

#define SCOPE_MODEL 1
#define SCOPE_SESSION 2
#define SCOPE_SAMPLING 4
#define SCOPE_ALL 7

#define FLAGS_MOST 24   /* of one verb, those common to all verbs included */
#define OPTIONS_MOST 64 /* of the library, given in one command line */

/* A flag of the program itself. */
typedef struct flag {
    const char *name;  /* "file" for --file; NULL ends the list */
    char letter;       /* 'f' for -f, 0 for none */
    const char *value; /* what the help calls its value; NULL for a switch */
    const char *help;
} flag;

typedef struct arguments arguments;

typedef struct verb {
    const char *name;    /* "" for a program without verbs */
    const char *words;   /* "[TEXT...]" in the usage line */
    const char *summary; /* one line */
    const char *detail;  /* the rest of the help, lines of at most 79 columns */
    const flag *flags;
    int scopes;                       /* which of the library's options it takes */
    int (*run)(arguments *arguments); /* returns the exit code */
} verb;

struct arguments {
    const verb *verb;
    qm_options *options; /* with what the command line set */
    const char
        *flags[FLAGS_MOST]; /* values by place in the verb's list, then the common list; "" for a switch, NULL if not given */
    const char *option_names[OPTIONS_MOST], *option_values[OPTIONS_MOST]; /* of the library, in the order given */
    int option_count;
    char **words;
    int word_count;
    const char *progress_stage; /* the only stage whose progress is drawn; NULL: every */
};

/* Fills `out`. Returns EXIT_OK, EXIT_USAGE or EXIT_FAILED (after a message), or EXIT_DONE when --help was asked for and printed. */
int arguments_parse(const verb *verb, int count, char **values, arguments *out);
void arguments_end(arguments *arguments);

const char *arguments_flag(const arguments *arguments, const char *name); /* value, "" for a switch, NULL if not given */
/* As a whole number within lowest..highest, `fallback` if not given. Returns 0, or EXIT_USAGE after a message. */
int arguments_number(const arguments *arguments, const char *name, int64_t lowest, int64_t highest, int64_t fallback,
                     int64_t *out);
/* As one of the words "a|b|c", NULL-terminated index in *out (fallback if not given). Returns 0, or EXIT_USAGE after a message.
 */
int arguments_choice(const arguments *arguments, const char *name, const char *choices, int fallback, int *out);
/* Sets an option of the library unless the command line (or its preset) did: what this verb takes as its default. */
int arguments_default(arguments *arguments, const char *name, const char *value);
int arguments_quiet(const arguments *arguments);
int arguments_usage(const arguments *arguments, const char *format, ...) __attribute__((format(printf, 2, 3))); /* EXIT_USAGE */

#endif
