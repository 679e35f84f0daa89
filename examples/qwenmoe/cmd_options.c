/* qwenmoe options: the library's table of options, for people, for scripts and for the manual's test. */
#include <stdio.h>

#include "common.h"
#include "verbs.h"

static const flag flags[] = {
    { "json", 'j', NULL, "print JSON" },
    { NULL, 0, NULL, NULL },
};

static int options(arguments *arguments)
{
    json_t *list = json_array();
    int as_json = arguments_flag(arguments, "json") != NULL;
    for (int32_t i = 0; i < qm_option_count(); i++) {
        if (as_json)
            json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "name", qm_option_name(i), "scope",
                                                  qm_option_scope(i), "type", qm_option_type(i), "range", qm_option_range(i),
                                                  "default", qm_option_default(i), "help", qm_option_help(i)));
        else
            printf("%s\t%s\t%s\t%s\t%s\t%s\n", qm_option_name(i), qm_option_scope(i), qm_option_type(i), qm_option_range(i),
                   qm_option_default(i), qm_option_help(i));
    }
    if (as_json)
        return print_json(list);
    json_decref(list);
    return EXIT_OK;
}

const verb verb_options = {
    .name = "options",
    .words = "",
    .summary = "the library's options as a table",
    .detail = "Prints every option of the library, one a line, with tabs between name, scope,\n"
              "type, range, default and help.",
    .flags = flags,
    .scopes = 0,
    .run = options,
};
