/* Growing texts, memory, JSON texts of bytes that may not be UTF-8, and ids. */
#ifndef SERVER_TEXT_BUFFER_H
#define SERVER_TEXT_BUFFER_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

typedef struct text_buffer { /* zeroed: empty */
    char *data;              /* a zero byte follows once something was added */
    size_t length, capacity;
} text_buffer;

void *server_allocate(size_t count, size_t size);            /* zeroed; ends the program when there is no memory */
void *server_grow(void *pointer, size_t count, size_t size); /* realloc in the same way */
char *server_copy(const char *text, size_t length);          /* with a zero at its end */

void buffer_add(text_buffer *buffer, const char *data, size_t length);
void buffer_add_text(text_buffer *buffer, const char *text);
void buffer_print(text_buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buffer_add_json(text_buffer *buffer, const json_t *value); /* compact, in one line */
const char *buffer_text(const text_buffer *buffer);             /* "" when empty */
void buffer_free(text_buffer *buffer);                          /* empty afterwards */

json_t *json_text(const char *data, size_t length); /* what is not UTF-8 becomes U+FFFD */
/* Members of an object; the fallback (NULL for a text) where it is missing or of another type. */
const char *json_get_text(const json_t *object, const char *key); /* NULL */
int64_t json_get_int(const json_t *object, const char *key, int64_t fallback);
int json_get_bool(const json_t *object, const char *key, int fallback);

void make_id(char *id, size_t size, const char *prefix); /* one that no other reply of this server has */

#endif
