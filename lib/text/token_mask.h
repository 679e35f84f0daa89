/* Which tokens of a vocabulary may come next: bit sets, by state of an automaton.
 *
 * A state is mostly one place with something behind it. What a place allows by itself is found once by a walk through the whole
 * tree of tokens and kept, whatever is behind; only tokens that go past the end of the place's rule are then looked at for what
 * is behind. So the text of a string costs the same walk in each field of each nested object, once.
 *
 * Where counts matter, tokens of more than QMI_TOKEN_BRIEF bytes are not allowed, which is what the automaton has to reach:
 * shorter ones can write the same. */
#ifndef QMI_TEXT_TOKEN_MASK_H
#define QMI_TEXT_TOKEN_MASK_H

#include "text/automaton.h"
#include "text/token_trie.h"

typedef struct qmi_token_masks qmi_token_masks;

/* Both are borrowed. The automaton's reach has to be QMI_TOKEN_BRIEF. */
int32_t qmi_token_masks_new(const qmi_token_trie *trie, qmi_automaton *automaton, const qmi_alloc *alloc, qmi_token_masks **out);
void qmi_token_masks_free(qmi_token_masks **masks);

/* 1: after `set` the text of this token may come. For single tokens, without a mask. */
int32_t qmi_token_fits(qmi_automaton *automaton, qmi_set set, const char *bytes, int64_t length);
/* The tokens that may come after `set`, bit t % 64 of word t / 64; borrowed until the next call. */
int32_t qmi_token_masks_find(qmi_token_masks *masks, qmi_set set, const uint64_t **bits);

int64_t qmi_token_masks_memory(const qmi_token_masks *masks);
void qmi_token_masks_clear(qmi_token_masks *masks); /* before the automaton collects, which changes its numbers */

#endif
