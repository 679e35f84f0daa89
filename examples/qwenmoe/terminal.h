/* What the program does differently on a terminal: colours, progress bars, Ctrl-C. All use of termios, signals and the clock is
 * here. */
#ifndef QWENMOE_TERMINAL_H
#define QWENMOE_TERMINAL_H

#include <stdint.h>

typedef enum terminal_style { STYLE_PLAIN, STYLE_DIM, STYLE_BOLD } terminal_style;

int terminal_input(void);      /* stdin is a terminal */
int terminal_output(void);     /* stdout is a terminal */
int terminal_colours(void);    /* stdout is a terminal that shows styles, and NO_COLOR is not set */
int terminal_width(void);      /* columns of the terminal; 80 when unknown */
double terminal_seconds(void); /* a clock that only goes forward */

/* Text to stdout and at once to the reader. On a terminal control characters other than newline and tab become '?': a model may
 * say anything, and must not move the cursor or set the window's title. */
void terminal_write(terminal_style style, const char *text, int64_t length);

/* A qm_progress_callback that draws a bar on stderr. Draws nothing unless stderr is a terminal. user: the only
 * stage to draw, or NULL. Cancels the work after a Ctrl-C that was caught. */
int32_t terminal_progress(const char *stage, int64_t done, int64_t total, void *user);
void terminal_progress_clear(void);

/* From now on Ctrl-C only sets a flag and wakes terminal_wait. */
int terminal_catch_interrupt(void);
int terminal_interrupted(void); /* Ctrl-C since the last call of terminal_interrupt_handled */
void terminal_interrupt_handled(void);
void terminal_default_signals(void); /* Ctrl-C and SIGTERM end the program again, whatever was set before */
/* Sleeps until the descriptor is readable or Ctrl-C came. */
void terminal_wait(int descriptor);

#endif
