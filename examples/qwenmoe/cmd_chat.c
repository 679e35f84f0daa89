/* qwenmoe chat: a conversation in several turns. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "common.h"
#include "terminal.h"
#include "verbs.h"

static const flag flags[] = {
    { "system", 's', "TEXT", "system message" },
    { "think", 't', "on|off", "whether the model thinks before it answers (default: as its chat format has it)" },
    { "thoughts", 0, NULL, "print the thoughts even when standard output is not a terminal" },
    { "save", 0, "FILE", "write the conversation to this file at the end, as JSON messages" },
    { NULL, 0, NULL, NULL },
};

static const char help_text[] = "/help              this list\n"
                                "/reset             forget the conversation (the system message stays)\n"
                                "/system TEXT       set the system message and start again; without TEXT: none\n"
                                "/think on|off      whether the model thinks before it answers\n"
                                "/save FILE         write the conversation to FILE, as JSON messages\n"
                                "/quit              leave (as Ctrl-D does)\n"
                                "A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.\n";

typedef struct chat {
    const arguments *arguments;
    qm_model *model;
    qm_session *session;
    json_t *messages;
    int thinking; /* -1: as the chat format has it */
    int leave;
} chat;

/* ---- One turn ----------------------------------------------------------------------------------------------------- */

/* The answer's parts as a message, so that the chat format can leave earlier thoughts out by itself. */
static int remember_answer(chat *chat, const qm_job *job, int thinks)
{
    int64_t length = qm_job_text(job, NULL, 0);
    if (length < 0)
        return complain_library();
    char *raw = allocate(length + 1, 1);
    qm_job_text(job, raw, length + 1);
    int64_t size = qm_chat_parse(chat->model, raw, length, NULL, 0, thinks, NULL, 0);
    char *parts = size < 0 ? NULL : allocate(size + 1, 1);
    json_t *parsed = NULL;
    if (parts && qm_chat_parse(chat->model, raw, length, NULL, 0, thinks, parts, size + 1) >= 0)
        parsed = json_loads(parts, JSON_ALLOW_NUL, NULL);
    int code = parsed ? EXIT_OK : complain_library();
    if (parsed) {
        json_t *message = json_pack("{s:s, s:O}", "role", "assistant", "content", json_object_get(parsed, "content"));
        if (json_is_string(json_object_get(parsed, "reasoning_content")))
            json_object_set(message, "reasoning_content", json_object_get(parsed, "reasoning_content"));
        json_array_append_new(chat->messages, message);
        json_decref(parsed);
    }
    free(parts);
    free(raw);
    return code;
}

static void print_reason(const qm_job *job, const answer *view)
{
    const char *finish = qm_job_finish(job);
    const char *said = view->stopped                    ? "stopped"
                       : strcmp(finish, "length") == 0  ? "the answer's budget (--answer-tokens) is used up"
                       : strcmp(finish, "context") == 0 ? "the context is full: /reset starts again, --context makes it larger"
                                                        : NULL;
    if (said)
        fprintf(stderr, "(%s)\n", said);
}

/* Brings the session to the prompt, computing only what is new, then generates. */
static int answer_prompt(chat *chat, const token_list *prompt, int thinks, answer *view)
{
    qm_job *job = NULL;
    int32_t state = qm_submit_sync(chat->session, prompt->ids, prompt->count, &job);
    if (state >= 0)
        state = answer_watch(job, view);
    qm_job_free(&job);
    if (state < 0)
        return complain_library();
    if (view->stopped) {
        fputs("(stopped)\n", stderr);
        return EXIT_INTERRUPTED;
    }
    if (qm_submit_generate(chat->session, NULL, 0, &job) < 0)
        return complain_library();
    state = answer_watch(job, view);
    terminal_write(STYLE_PLAIN, "\n", view->in_line ? 1 : 0);
    int code = state < 0 ? complain_library() : remember_answer(chat, job, thinks);
    print_reason(job, view);
    qm_job_free(&job);
    return code;
}

/* A turn that fails leaves the conversation as it was before it. */
static void take_turn(chat *chat, const char *line, int64_t length)
{
    token_list prompt = { NULL, 0 };
    answer view = { .hide_thoughts = !terminal_output() && !arguments_flag(chat->arguments, "thoughts") };
    int thinks = 0;
    size_t before = json_array_size(chat->messages);
    terminal_interrupt_handled();
    int code = message_append(chat->messages, "user", line, length);
    if (code == EXIT_OK)
        code = tokens_of_messages(chat->model, chat->messages, chat->thinking, &prompt, &thinks);
    if (code == EXIT_OK && !arguments_quiet(chat->arguments))
        answer_check_room(chat->session, prompt.count); /* a long conversation goes on with shorter answers */
    if (code == EXIT_OK)
        code = answer_prompt(chat, &prompt, thinks, &view);
    while (code != EXIT_OK && json_array_size(chat->messages) > before)
        json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
    if (code == EXIT_OK && !arguments_quiet(chat->arguments))
        answer_print_speed(&view);
    terminal_interrupt_handled();
    free(prompt.ids);
}

/* ---- Commands ----------------------------------------------------------------------------------------------------- */

static json_t *first_message(const chat *chat)
{
    json_t *first = json_array_get(chat->messages, 0);
    const char *role = json_string_value(json_object_get(first, "role"));
    return role && strcmp(role, "system") == 0 ? first : NULL;
}

static void reset(chat *chat)
{
    json_t *system = json_incref(first_message(chat));
    json_array_clear(chat->messages);
    if (system)
        json_array_append_new(chat->messages, system);
}

static int set_system(chat *chat, const char *text)
{
    json_array_clear(chat->messages);
    return *text ? message_append(chat->messages, "system", text, (int64_t)strlen(text)) : EXIT_OK;
}

static int save(const chat *chat, const char *path)
{
    if (!*path)
        return complain("/save needs the name of a file");
    if (json_dump_file(chat->messages, path, JSON_INDENT(2)) < 0)
        return complain("cannot write %s: %s", path, strerror(errno));
    return EXIT_OK;
}

static void run_command(chat *chat, char *line)
{
    char *rest = line + strcspn(line, " ");
    if (*rest) {
        *rest++ = 0;
        rest += strspn(rest, " ");
    }
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0)
        chat->leave = 1;
    else if (strcmp(line, "/help") == 0)
        fputs(help_text, stderr);
    else if (strcmp(line, "/reset") == 0)
        reset(chat);
    else if (strcmp(line, "/system") == 0)
        set_system(chat, rest);
    else if (strcmp(line, "/save") == 0)
        save(chat, rest);
    else if (strcmp(line, "/think") == 0 && (strcmp(rest, "on") == 0 || strcmp(rest, "off") == 0))
        chat->thinking = strcmp(rest, "on") == 0;
    else if (strcmp(line, "/think") == 0)
        complain("/think takes on or off");
    else
        complain("there is no command %s; /help lists them", line);
}

/* ---- Reading ------------------------------------------------------------------------------------------------------ */

static void print_prompt(const char *text)
{
    if (terminal_input())
        terminal_write(STYLE_BOLD, text, (int64_t)strlen(text));
}

/* One message: a line, and those after it while they end with a backslash. Length, or -1 at the end of the input. The terminal's
 * own line editing serves; Ctrl-C throws away what was typed. */
static int64_t read_message(char **text, size_t *capacity)
{
    char *line = NULL;
    size_t line_capacity = 0;
    int64_t used = 0;
    int goes_on = 1;
    print_prompt("> ");
    while (goes_on) {
        ssize_t length = getline(&line, &line_capacity, stdin);
        if (length < 0 && ferror(stdin) && errno == EINTR) {
            clearerr(stdin);
            terminal_interrupt_handled();
            fputs("\n(Ctrl-D or /quit leaves)\n", stderr);
            used = 0;
            print_prompt("> ");
            continue;
        }
        if (length < 0)
            break;
        if (length > 0 && line[length - 1] == '\n')
            length--;
        goes_on = length > 0 && line[length - 1] == '\\';
        if (goes_on)
            line[length - 1] = '\n';
        *capacity = (size_t)used + (size_t)length + 1;
        *text = grow(*text, (int64_t)*capacity, 1);
        memcpy(*text + used, line, (size_t)length);
        used += length;
        (*text)[used] = 0;
        if (goes_on)
            print_prompt(". ");
    }
    free(line);
    return goes_on && used == 0 ? -1 : used;
}

static void converse(chat *chat)
{
    char *text = NULL;
    size_t capacity = 0;
    while (!chat->leave) {
        int64_t length = read_message(&text, &capacity);
        if (length < 0)
            break;
        if (length > 0 && text[0] == '/')
            run_command(chat, text);
        else if (length > 0)
            take_turn(chat, text, length);
    }
    if (terminal_input() && !chat->leave)
        terminal_write(STYLE_PLAIN, "\n", 1);
    free(text);
}

static int start(chat *chat, arguments *arguments)
{
    const char *system = arguments_flag(arguments, "system");
    int code = arguments_choice(arguments, "think", "off|on", -1, &chat->thinking);
    if (code == EXIT_OK && arguments->word_count)
        code = arguments_usage(arguments, "chat reads its messages from standard input; `qwenmoe run --chat TEXT` answers one");
    if (code == EXIT_OK && system)
        code = set_system(chat, system);
    if (code == EXIT_OK)
        code = load_model(arguments, &chat->model);
    if (code == EXIT_OK && qm_session_new(chat->model, arguments->options, &chat->session) < 0)
        code = complain_library();
    return code;
}

static int chat_verb(arguments *arguments)
{
    chat chat = { .arguments = arguments, .messages = json_array() };
    if (terminal_catch_interrupt() < 0)
        return complain("cannot catch Ctrl-C");
    int code = start(&chat, arguments);
    if (code == EXIT_OK) {
        char name[256];
        if (terminal_input() && !arguments_quiet(arguments))
            fprintf(stderr, "%s. /help lists the commands, Ctrl-D leaves.\n", model_text(chat.model, "name", name, sizeof name));
        converse(&chat);
        if (arguments_flag(arguments, "save"))
            code = save(&chat, arguments_flag(arguments, "save"));
    }
    qm_session_free(&chat.session);
    qm_model_free(&chat.model);
    json_decref(chat.messages);
    return code;
}

const verb verb_chat = {
    .name = "chat",
    .words = "",
    .summary = "a conversation in several turns",
    .detail = "Reads messages from standard input, one a line, and answers each. Thoughts are\n"
              "dimmed on a terminal and left out elsewhere. Ctrl-C stops an answer, not the\n"
              "program; /help lists the commands.",
    .flags = flags,
    .scopes = SCOPE_ALL,
    .run = chat_verb,
};
