/* Messages of the launcher. */
#ifndef LAUNCH_SAY_H
#define LAUNCH_SAY_H

void say(const char *format, ...) __attribute__((format(printf, 1, 2))); /* "qwenmoe-launch: ..." on stderr, with a newline */

#endif
