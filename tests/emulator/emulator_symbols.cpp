/* The program's own symbol table: what a kernel's address is called, and where the variables are that kernels share in a block.
 * In the emulator `__shared__` is `static thread_local`, so those are the thread-local symbols inside of functions. */
#include "emulator_inside.h"

#include <map>

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

struct symbol {
    uintptr_t value, size; /* of variables: from the start of the module's thread-local memory */
    std::string name;
};

struct module {
    uintptr_t base;
    size_t id;             /* for __tls_get_addr */
    std::vector<struct symbol> functions, variables;
};

extern "C" void *__tls_get_addr(size_t *index); /* System V ABI: two words, module and offset */

static void read_symbols(const char *path, struct module *m)
{
    FILE *file = fopen(path, "rb");
    std::vector<char> bytes;
    char piece[65536];
    size_t count;
    if (!file)
        return;
    while ((count = fread(piece, 1, sizeof piece, file)) > 0)
        bytes.insert(bytes.end(), piece, piece + count);
    fclose(file);
    const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)bytes.data();
    const ElfW(Shdr) *sections = (const ElfW(Shdr) *)(bytes.data() + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB)
            continue;
        const ElfW(Sym) *symbols = (const ElfW(Sym) *)(bytes.data() + sections[i].sh_offset);
        const char *names = bytes.data() + sections[sections[i].sh_link].sh_offset;
        for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; j++) {
            const char *name = names + symbols[j].st_name;
            const int type = ELF64_ST_TYPE(symbols[j].st_info);
            if (type == STT_FUNC && symbols[j].st_value)
                m->functions.push_back({ m->base + symbols[j].st_value, symbols[j].st_size, name });
            else if (type == STT_TLS && strncmp(name, "_ZZ", 3) == 0)
                m->variables.push_back({ symbols[j].st_value, symbols[j].st_size, name });
        }
    }
}

struct search {
    uintptr_t address;
    struct module *module;
    std::string path;
};

static int look_at(struct dl_phdr_info *info, size_t, void *user)
{
    struct search *s = (struct search *)user;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        if (info->dlpi_phdr[i].p_type != PT_LOAD || s->address < start || s->address >= start + info->dlpi_phdr[i].p_memsz)
            continue;
        s->path = info->dlpi_name && *info->dlpi_name ? info->dlpi_name : "/proc/self/exe";
        s->module->base = info->dlpi_addr;
        s->module->id = info->dlpi_tls_modid;
        return 1;
    }
    return 0;
}

/* The module that the address is in; modules stay loaded. */
static struct module *module_of(const void *address)
{
    static std::map<uintptr_t, struct module *> modules;
    static std::map<uintptr_t, struct module *> by_address;
    struct module *found = new module();
    struct search s = { (uintptr_t)address, found, "" };
    auto known = by_address.find((uintptr_t)address);
    if (known != by_address.end()) {
        delete found;
        return known->second;
    }
    if (dl_iterate_phdr(look_at, &s) && modules.count(found->base)) {
        struct module *same = modules[found->base];
        delete found;
        found = same;
    } else {
        if (!s.path.empty())
            read_symbols(s.path.c_str(), found);
        modules[found->base] = found;
    }
    by_address[(uintptr_t)address] = found;
    return found;
}

static const struct symbol *function_of(const void *address)
{
    for (const struct symbol &f : module_of(address)->functions)
        if ((uintptr_t)address >= f.value && (uintptr_t)address < f.value + (f.size ? f.size : 1))
            return &f;
    return NULL;
}

static std::string readable(const std::string &name)
{
    int status = 0;
    char *text = abi::__cxa_demangle(name.c_str(), NULL, NULL, &status);
    std::string out = text ? text : name;
    free(text);
    return out;
}

const char *emulator_kernel_name(const void *kernel)
{
    static std::map<const void *, std::string> names;
    std::string &name = names[kernel];
    if (name.empty()) {
        const struct symbol *f = function_of(kernel);
        name = f ? readable(f->name) : "a kernel without a name";
        const size_t end = name.find('(');
        if (end != std::string::npos && end > 0)
            name.resize(end);
    }
    return name.c_str();
}

size_t emulator_static_shared(const void *kernel)
{
    static std::map<const void *, size_t> known;
    auto i = known.find(kernel);
    if (i != known.end())
        return i->second;
    const struct symbol *f = function_of(kernel);
    size_t bytes = 0;
    if (f) /* variables of _ZXXXX are called _ZZXXXXEyyy */
        for (const struct symbol &v : module_of(kernel)->variables)
            if (v.name.compare(0, f->name.size() + 2, "_Z" + f->name.substr(1) + "E") == 0)
                bytes += v.size;
    return known[kernel] = bytes;
}

const std::vector<emulator_variable> &emulator_shared_variables(const void *kernel)
{
    static thread_local std::map<struct module *, std::vector<emulator_variable>> *known;
    struct module *m = module_of(kernel);
    if (!known)
        known = new std::map<struct module *, std::vector<emulator_variable>>();
    std::vector<emulator_variable> &out = (*known)[m];
    if (out.empty())
        for (const struct symbol &v : m->variables) {
            size_t index[2] = { m->id, v.value };
            if (v.name.find("emulator_") == std::string::npos)
                out.push_back({ (uint8_t *)__tls_get_addr(index), v.size });
        }
    return out;
}

std::string emulator_place(const void *pc)
{
    struct module m = {};
    struct search s = { (uintptr_t)pc - 1, &m, "" }; /* a return address: the call is before it */
    char line[512], command[1024];
    std::string out;
    if (!dl_iterate_phdr(look_at, &s))
        return "?";
    snprintf(command, sizeof command, "addr2line -Cfpse %s 0x%zx 2>/dev/null", s.path == "/proc/self/exe" ?
             ("/proc/" + std::to_string(getpid()) + "/exe").c_str() : s.path.c_str(), (size_t)((uintptr_t)pc - 1 - m.base));
    FILE *answer = popen(command, "r");
    while (answer && fgets(line, sizeof line, answer))
        out += line;
    if (answer)
        pclose(answer);
    while (!out.empty() && out.back() == '\n')
        out.pop_back();
    return out;
}
