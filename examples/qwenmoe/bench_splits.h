/* qwenmoe bench --all-splits: each way for several devices to share a model, as measured and as predicted. */
#ifndef QWENMOE_BENCH_SPLITS_H
#define QWENMOE_BENCH_SPLITS_H

#include "arguments.h"

/* Loads the model once a split; prompts of `prompt` tokens, then `generate` more one by one. Returns the exit code. */
int bench_splits(arguments *arguments, int64_t prompt, int64_t generate);

#endif
