/* qwenmoe run: one prompt, continued as it stands or answered as a chat message. */
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "common.h"
#include "terminal.h"
#include "verbs.h"

static const flag flags[] = {
    { "file", 'f', "FILE", "read the prompt from this file; - is standard input" },
    { "chat", 'c', NULL, "put the prompt into the model's chat format and answer it" },
    { "system", 's', "TEXT", "system message, with --chat" },
    { "think", 't', "on|off", "whether the model thinks before it answers, with --chat (default: as its chat format has it)" },
    { "thoughts", 0, NULL, "print the thoughts even when standard output is not a terminal" },
    { "echo", 'e', NULL, "print the prompt before its continuation" },
    { "special", 0, "none|user|all", "which special tokens are recognised in a prompt without --chat (default none)" },
    { NULL, 0, NULL, NULL },
};

/* The prompt's tokens, by what the flags ask. */
static int make_prompt(const arguments *arguments, const qm_model *model, const char *text, int64_t length, token_list *out)
{
    const char *system = arguments_flag(arguments, "system");
    int special, thinking, thinks;
    int code = arguments_choice(arguments, "special", "none|user|all", QM_SPECIAL_NONE, &special);
    if (code == EXIT_OK)
        code = arguments_choice(arguments, "think", "off|on", -1, &thinking);
    if (code != EXIT_OK)
        return code;
    if (!arguments_flag(arguments, "chat"))
        return tokens_append(out, model, text, length, special);

    json_t *messages = json_array();
    if (system)
        code = message_append(messages, "system", system, (int64_t)strlen(system));
    if (code == EXIT_OK)
        code = message_append(messages, "user", text, length);
    if (code == EXIT_OK)
        code = tokens_of_messages(model, messages, thinking, out, &thinks);
    json_decref(messages);
    return code;
}

static int run(arguments *arguments)
{
    qm_model *model = NULL;
    qm_session *session = NULL;
    token_list prompt = { NULL, 0 };
    answer view = { .hide_thoughts = !terminal_output() && !arguments_flag(arguments, "thoughts") };
    char *text;
    int64_t length;
    if (terminal_catch_interrupt() < 0)
        return complain("cannot catch Ctrl-C");
    int code = read_prompt(arguments, &text, &length);
    if (code == EXIT_OK)
        code = load_model(arguments, &model);
    if (code == EXIT_OK)
        code = make_prompt(arguments, model, text, length, &prompt);
    if (code == EXIT_OK && qm_session_new(model, arguments->options, &session) < 0)
        code = complain_library();
    if (code == EXIT_OK) {
        if (arguments_flag(arguments, "echo")) {
            terminal_write(STYLE_BOLD, text, length);
            terminal_write(STYLE_PLAIN, "\n", arguments_flag(arguments, "chat") ? 1 : 0);
        }
        code = answer_generate(session, prompt.ids, prompt.count, &view);
        terminal_write(STYLE_PLAIN, "\n", view.in_line ? 1 : 0);
        if (!arguments_quiet(arguments) && code != EXIT_FAILED)
            answer_print_speed(&view);
    }
    qm_session_free(&session);
    qm_model_free(&model);
    free(prompt.ids);
    free(text);
    return code;
}

const verb verb_run = {
    .name = "run",
    .words = "[TEXT...]",
    .summary = "continue one prompt, or answer it with --chat",
    .detail = "Continues TEXT (or the file of --file, or standard input) and prints the\n"
              "continuation as it comes. With --chat TEXT is a message that is answered; the\n"
              "model's thoughts are dimmed on a terminal and left out elsewhere. Ctrl-C stops.",
    .flags = flags,
    .scopes = SCOPE_ALL,
    .run = run,
};
