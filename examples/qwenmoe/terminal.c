/* Terminal, signals and clock; see terminal.h. */
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BAR_CELLS 30
#define BAR_INTERVAL 0.1 /* seconds between two drawings; also what passes before the first, so that short work shows none */

/* A signal handler has no argument, so what it touches is global: the flag, and a pipe that wakes poll without a race. */
static volatile sig_atomic_t interrupted;
static int wake_pipe[2] = { -1, -1 };

/* The bar on the screen. The library reports progress of one piece of work at a time. */
static struct {
    double next; /* when to draw again */
    int64_t last;
    int drawn;
} bar;

int terminal_input(void)
{
    return isatty(STDIN_FILENO);
}

int terminal_output(void)
{
    return isatty(STDOUT_FILENO);
}

int terminal_colours(void)
{
    const char *no_colour = getenv("NO_COLOR"), *name = getenv("TERM");
    return terminal_output() && !(no_colour && *no_colour) && name && strcmp(name, "dumb") != 0;
}

int terminal_width(void)
{
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40)
        return size.ws_col;
    return 80;
}

double terminal_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void write_safely(const char *text, int64_t length)
{
    for (int64_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        /* C1 controls are two bytes in UTF-8: 0xC2 0x80..0x9F. */
        int is_c1 = byte == 0xC2 && i + 1 < length && (unsigned char)text[i + 1] < 0xA0;
        if (is_c1)
            i++;
        putchar(is_c1 || byte == 0x7F || (byte < 0x20 && byte != '\n' && byte != '\t') ? '?' : byte);
    }
}

void terminal_write(terminal_style style, const char *text, int64_t length)
{
    static const char *const start[] = { "", "\033[2m", "\033[1m" };
    int styled = style != STYLE_PLAIN && terminal_colours();
    if (styled)
        fputs(start[style], stdout);
    if (terminal_output())
        write_safely(text, length);
    else
        fwrite(text, 1, (size_t)length, stdout);
    if (styled)
        fputs("\033[0m", stdout);
    fflush(stdout);
}

static void draw_bar(const char *stage, int64_t done, int64_t total)
{
    double part = (double)done / (double)total;
    int full = (int)(part * BAR_CELLS);
    char cells[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++)
        cells[i] = i < full ? '#' : '.';
    cells[BAR_CELLS] = 0;
    if (strcmp(stage, "load") == 0)
        fprintf(stderr, "\r%-8s [%s] %3.0f %%  %.0f of %.0f MiB ", stage, cells, part * 100, (double)done / 1048576,
                (double)total / 1048576);
    else
        fprintf(stderr, "\r%-8s [%s] %3.0f %%  %lld of %lld tokens ", stage, cells, part * 100, (long long)done,
                (long long)total);
    fflush(stderr);
    bar.drawn = 1;
}

int32_t terminal_progress(const char *stage, int64_t done, int64_t total, void *user)
{
    int is_wanted = !user || strcmp(stage, user) == 0;
    if (is_wanted && isatty(STDERR_FILENO) && total > 0) {
        double now = terminal_seconds();
        if (bar.next == 0 || done < bar.last)
            bar.next = now + BAR_INTERVAL;
        bar.last = done;
        if (done >= total) {
            terminal_progress_clear();
        } else if (now >= bar.next) {
            draw_bar(stage, done, total);
            bar.next = now + BAR_INTERVAL;
        }
    }
    return interrupted ? 1 : 0;
}

void terminal_progress_clear(void)
{
    if (bar.drawn)
        fputs("\r\033[K", stderr);
    bar.drawn = 0;
    bar.next = 0;
}

static void on_interrupt(int number)
{
    (void)number;
    int saved = errno;
    interrupted = 1;
    /* A full pipe wakes as well as one more byte would. */
    if (write(wake_pipe[1], "", 1) < 0)
        errno = saved;
    errno = saved;
}

int terminal_catch_interrupt(void)
{
    if (pipe(wake_pipe) < 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        fcntl(wake_pipe[i], F_SETFL, O_NONBLOCK);
        fcntl(wake_pipe[i], F_SETFD, FD_CLOEXEC);
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt; /* without SA_RESTART: reading a line ends with EINTR */
    sigemptyset(&action.sa_mask);
    return sigaction(SIGINT, &action, NULL);
}

void terminal_default_signals(void)
{
    static const int both[] = { SIGINT, SIGTERM };
    sigset_t signals;
    sigemptyset(&signals);
    for (int i = 0; i < 2; i++) {
        signal(both[i], SIG_DFL);
        sigaddset(&signals, both[i]);
    }
    sigprocmask(SIG_UNBLOCK, &signals, NULL);
}

int terminal_interrupted(void)
{
    return interrupted;
}

void terminal_interrupt_handled(void)
{
    char bytes[64];
    interrupted = 0;
    while (wake_pipe[0] >= 0 && read(wake_pipe[0], bytes, sizeof bytes) > 0)
        continue;
}

void terminal_wait(int descriptor)
{
    struct pollfd watched[2] = { { .fd = descriptor, .events = POLLIN }, { .fd = wake_pipe[0], .events = POLLIN } };
    poll(watched, wake_pipe[0] >= 0 ? 2 : 1, -1);
}
