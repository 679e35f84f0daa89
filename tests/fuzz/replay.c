/* Runs a fuzz target on the files and folders given as arguments, for the ordinary tests and for reproducing a finding:
 * linked with any fuzz_TARGET.c in place of libFuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The data lies at the end of a block of its own, so that the sanitizers see a read beyond it. Returns files run. */
static int64_t replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "replay: cannot open %s\n", path);
        return -1;
    }
    uint8_t *data = malloc(1 << 20), *exact = NULL;
    size_t size = data ? fread(data, 1, 1 << 20, file) : 0;
    fclose(file);
    if (data)
        exact = malloc(size ? size : 1);
    if (!exact) {
        free(data);
        return -1;
    }
    memcpy(exact, data, size);
    free(data);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    return 1;
}

static int64_t replay(const char *path)
{
    DIR *folder = opendir(path);
    if (!folder)
        return replay_file(path);
    int64_t count = 0;
    for (struct dirent *entry = readdir(folder); entry && count >= 0; entry = readdir(folder)) {
        char inner[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        int64_t ran = replay_file(inner);
        count = ran < 0 ? ran : count + ran;
    }
    closedir(folder);
    return count;
}

int main(int argc, char **argv)
{
    int64_t total = 0;
    for (int i = 1; i < argc; i++) {
        int64_t count = replay(argv[i]);
        if (count < 0)
            return 1;
        total += count;
    }
    printf("%lld inputs\n", (long long)total);
    return total == 0; /* a corpus that is not there is a fault of the test */
}
