/* qwenmoe-launch: started once for each rank by mpirun, srun or torchrun, it finds out which one it is, agrees with the others
 * where rank 0 listens, and becomes the program that it is asked for, with the library's options rank, ranks and rank-id. */
#include <errno.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <qwenmoe.h>

#include "carry.h"
#include "place.h"
#include "say.h"

#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define ADDED_MOST 8 /* arguments that the program gets from here */

static const char help[] =
    "usage: qwenmoe-launch [options] PROGRAM [ARGUMENT...]\n"
    "\n"
    "Runs PROGRAM once for each rank, so that the ranks compute one model together.\n"
    "To be started by mpirun, srun or torchrun, which say how many there are:\n"
    "\n"
    "  mpirun -n 2 qwenmoe-launch qwenmoe run --model big.gguf 'Hello'\n"
    "  srun -N 2 --ntasks-per-node 1 qwenmoe-launch qwenmoe-server --model big.gguf\n"
    "  torchrun --no-python --nnodes 2 ... qwenmoe-launch qwenmoe bench --model big.gguf\n"
    "\n"
    "PROGRAM is looked for beside qwenmoe-launch, then in PATH. It gets its arguments,\n"
    "and behind them (before --) the library's options --rank, --ranks and --rank-id;\n"
    "rank 0 does what it is there for, the others compute for it. Where an argument\n"
    "has {rank}, {ranks}, {id} or {local} in it, these are filled in instead.\n"
    "\n"
    "  --cards           each rank computes on the card of its number on its machine\n"
    "                    (--device cuda:0, cuda:1, ...)\n"
    "  --host NAME       where the others reach rank 0 (default: MASTER_ADDR, the first\n"
    "                    node of Slurm's list, this machine if all ranks are on it)\n"
    "  --port NUMBER     at which rank 0 listens (default: MASTER_PORT, or one made of\n"
    "                    the job's number)\n"
    "  --timeout SECONDS how long to wait for the other ranks (default 60)\n"
    "  --dry-run         print what would be run\n"
    "  --help, --version\n";

typedef struct wishes {
    int cards, dry_run, port, timeout;
    const char *host;
} wishes;

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("qwenmoe-launch: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

static int usage(const char *format, const char *what)
{
    say(format, what);
    say("--help says more");
    return EXIT_USAGE;
}

/* ---- the command line ---- */

static int read_number(const char *name, const char *text, int lowest, int highest, int *out)
{
    char *end;
    errno = 0;
    long value = text ? strtol(text, &end, 10) : 0;
    if (!text || !*text || *end || errno || value < lowest || value > highest) {
        say("%s: \"%s\" is no number from %d to %d", name, text ? text : "", lowest, highest);
        return EXIT_USAGE;
    }
    *out = (int)value;
    return 0;
}

/* Index of the program's name in values; or minus one and the exit code in *code. */
static int read_wishes(int count, char **values, wishes *out, int *code)
{
    int i = 1;
    *out = (wishes){ .timeout = 60 };
    for (*code = 0; i < count && values[i][0] == '-' && *code == 0; i++) {
        const char *name = values[i], *next = i + 1 < count ? values[i + 1] : NULL;
        if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
            fputs(help, stdout);
            return -1;
        } else if (strcmp(name, "--version") == 0) {
            printf("qwenmoe-launch %s\n", qm_version());
            return -1;
        } else if (strcmp(name, "--") == 0) {
            i++;
            break;
        } else if (strcmp(name, "--cards") == 0) {
            out->cards = 1;
        } else if (strcmp(name, "--dry-run") == 0) {
            out->dry_run = 1;
        } else if (strcmp(name, "--host") == 0 && next && strlen(next) < HOST_SIZE) {
            out->host = values[++i];
        } else if (strcmp(name, "--port") == 0) {
            *code = read_number(name, next, 1, 65535, &out->port);
            i++;
        } else if (strcmp(name, "--timeout") == 0) {
            *code = read_number(name, next, 1, 86400, &out->timeout);
            i++;
        } else {
            *code = usage("there is no option '%s', or its value is missing", name);
        }
    }
    if (*code == 0 && i >= count)
        *code = usage("%s: which program?", "nothing to run");
    return *code ? -1 : i;
}

/* ---- the id ---- */

/* HOST:PORT/KEY, as option rank-id has it. */
static void make_id(const place *place, char line[LINE_SIZE])
{
    unsigned char random[12];
    char key[2 * sizeof random + 1];
    if (getentropy(random, sizeof random) < 0)
        memset(random, 0, sizeof random); /* it keeps runs apart, and guards nothing */
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(key + 2 * i, 3, "%02x", random[i]);
    const char *open = strchr(place->host, ':') ? "[" : "", *close = *open ? "]" : "";
    snprintf(line, LINE_SIZE, "%s%s%s:%d/%s", open, place->host, close, place->port, key);
}

#ifdef LAUNCH_WITH_MPI
/* A port that is free here and now, as MPI carries its number too. */
static int free_port(void)
{
    struct sockaddr_in6 address = { .sin6_family = AF_INET6 };
    socklen_t size = sizeof address;
    int port = 0, descriptor = socket(AF_INET6, SOCK_STREAM, 0);
    if (descriptor < 0)
        return 0;
    if (bind(descriptor, (struct sockaddr *)&address, size) == 0 &&
        getsockname(descriptor, (struct sockaddr *)&address, &size) == 0)
        port = ntohs(address.sin6_port);
    close(descriptor);
    return port;
}

static const wishes *mpi_wishes;

static void make_mpi_id(const place *known, char line[LINE_SIZE])
{
    place place = *known;
    int port = mpi_wishes->port ? mpi_wishes->port : free_port();
    place.port = port ? port : place.port;
    if (!*place.host && gethostname(place.host, sizeof place.host - 1) < 0)
        snprintf(place.host, sizeof place.host, "127.0.0.1");
    make_id(&place, line);
}

static int agree_by_mpi(const wishes *wishes, place *place, char id[LINE_SIZE])
{
    *place = (struct place){ .local = -1, .port = wishes->port };
    if (wishes->host)
        snprintf(place->host, sizeof place->host, "%s", wishes->host);
    mpi_wishes = wishes;
    return carry_by_mpi(place, make_mpi_id, id);
}
#endif

static int agree(const wishes *wishes, place *place, char id[LINE_SIZE])
{
#ifdef LAUNCH_WITH_MPI
    if (carry_has_mpi() && !wishes->dry_run)
        return agree_by_mpi(wishes, place, id);
#endif
    if (place_read(place) < 0)
        return -1;
    if (wishes->host)
        snprintf(place->host, sizeof place->host, "%s", wishes->host);
    if (wishes->port)
        place->port = wishes->port;
    if (!*place->host && place->ranks > 1)
        return say("where is rank 0? Give its machine with --host, or in the environment variable MASTER_ADDR"), -1;
    make_id(place, id);
    return place->ranks > 1 && !wishes->dry_run ? carry_by_socket(place, wishes->timeout, id) : 0;
}

/* ---- the program ---- */

/* The argument with {rank} and the like filled in; *filled tells whether there was any. NULL: no memory. */
static char *fill_in(const char *argument, const place *place, const char *id, int *filled)
{
    char rank[16], ranks[16], local[16];
    const struct {
        const char *name, *value;
    } names[] = { { "{rank}", rank }, { "{ranks}", ranks }, { "{id}", id }, { "{local}", local } };
    snprintf(rank, sizeof rank, "%d", place->rank);
    snprintf(ranks, sizeof ranks, "%d", place->ranks);
    snprintf(local, sizeof local, "%d", place->local < 0 ? 0 : place->local);
    char *out = calloc(1, (strlen(argument) + 1) * (strlen(id) + 16)), *to = out;
    while (out && *argument) {
        size_t i = 0, count = sizeof names / sizeof *names;
        while (i < count && strncmp(argument, names[i].name, strlen(names[i].name)) != 0)
            i++;
        if (i == count) {
            *to++ = *argument++;
            continue;
        }
        to = stpcpy(to, names[i].value);
        argument += strlen(names[i].name);
        *filled = 1;
    }
    return out;
}

static void free_arguments(char **arguments, int count)
{
    for (int i = 0; arguments && i < count; i++)
        free(arguments[i]);
    free(arguments);
}

/* What is run: the arguments, and the options of the rank behind them or in their places. For free_arguments, with *out_count.
 * NULL: no memory. */
static char **make_arguments(char **values, int count, const wishes *wishes, const place *place, const char *id, int *out_count)
{
    char rank[16], ranks[16], device[32];
    const char *added[ADDED_MOST] = { "--rank", rank, "--ranks", ranks, "--rank-id", id, "--device", device };
    int added_count = ADDED_MOST, filled = 0, end = 0, at = 0;
    char **out = calloc((size_t)count + ADDED_MOST + 1, sizeof *out);
    snprintf(rank, sizeof rank, "%d", place->rank);
    snprintf(ranks, sizeof ranks, "%d", place->ranks);
    snprintf(device, sizeof device, "cuda:%d", place->local < 0 ? 0 : place->local);
    if (!wishes->cards)
        added_count -= 2;
    while (end < count && strcmp(values[end], "--") != 0)
        end++;
    for (int i = 0; out && i < end; i++)
        out[at++] = fill_in(values[i], place, id, &filled);
    for (int i = filled ? 6 : 0; out && i < added_count; i++)
        out[at++] = strdup(added[i]);
    for (int i = end; out && i < count; i++)
        out[at++] = strdup(values[i]);
    *out_count = at;
    for (int i = 0; out && i < at; i++)
        if (!out[i]) {
            free_arguments(out, at);
            return NULL;
        }
    return out;
}

static void run(char **arguments)
{
    char beside[4096];
    ssize_t length = readlink("/proc/self/exe", beside, sizeof beside - 1);
    beside[length > 0 ? length : 0] = 0;
    char *slash = strrchr(beside, '/');
    if (slash && !strchr(arguments[0], '/') && strlen(arguments[0]) < sizeof beside - (size_t)(slash - beside) - 64) {
        static const char *const folders[] = { "", "../qwenmoe/", "../server/" }; /* installed; and in the build folder */
        for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
            snprintf(slash + 1, sizeof beside - (size_t)(slash + 1 - beside), "%s%s", folders[i], arguments[0]);
            if (access(beside, X_OK) == 0)
                execv(beside, arguments);
        }
    }
    execvp(arguments[0], arguments);
    say("cannot run %s: %s", arguments[0], strerror(errno));
}

int main(int count, char **values)
{
    wishes wishes;
    place place;
    char id[LINE_SIZE];
    int code, argument_count, program = read_wishes(count, values, &wishes, &code);
    if (program < 0)
        return code;
    if (agree(&wishes, &place, id) < 0)
        return EXIT_FAILED;
    char **arguments = make_arguments(values + program, count - program, &wishes, &place, id, &argument_count);
    if (!arguments) {
        say("no memory");
        return EXIT_FAILED;
    }
    if (wishes.dry_run) {
        printf("%s:", place.started_by);
        for (int i = 0; arguments[i]; i++)
            printf(" %s", arguments[i]);
        putchar('\n');
    } else {
        run(arguments);
    }
    free_arguments(arguments, argument_count);
    return wishes.dry_run ? 0 : EXIT_FAILED;
}
