/* An NVTX tool for the tests: what a profiler does, written to the file that NVTX_LOG names, a line an event.
 *
 * NVTX loads the library that NVTX_INJECTION64_PATH names and lets it fill tables of callbacks. The layouts below are
 * those of NVTX 3's binary interface, which does not change; no header is needed.
 *
 *   D domain name | C domain category name | S schema size | E schema name type length offset
 *   + thread domain category colour message schema payload-in-hex | - thread domain
 *   [ domain number message | ] domain number
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct { uint16_t version, size; uint32_t category; int32_t color_type; uint32_t color; int32_t payload_type;
                 int32_t payloads; uint64_t payload; int32_t message_type; const void *message; } attributes;
typedef struct { uint64_t schema; size_t size; const unsigned char *bytes; } payload_data;
typedef struct { uint64_t flags, type; const char *name, *description; uint64_t length, offset;
                 const void *semantics, *reserved; } entry;
typedef struct { uint64_t fields; const char *name; uint64_t type, flags; const entry *entries; size_t count, size,
                 align; uint64_t id; void *extension; } schema;
typedef struct { size_t id, slots; intptr_t *functions; } segment;
typedef struct { uint16_t version, size, module, compat; size_t segments; segment *first; const void *get, *info; }
    extension;
typedef struct { size_t size; int (*table)(int module, void ****out, unsigned *size); } exports;

static FILE *out;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uintptr_t names;
static char *registered[4096];

#define LINE(...) do { pthread_mutex_lock(&lock); if (out) { fprintf(out, __VA_ARGS__); fflush(out); } \
                       pthread_mutex_unlock(&lock); } while (0)

static long thread(void) { return syscall(SYS_gettid); }

static void *domain_create(const char *name) {
    uintptr_t handle = __sync_add_and_fetch(&names, 1);
    LINE("D\t%lu\t%s\n", (unsigned long)handle, name);
    return (void *)handle;
}

static void domain_destroy(void *domain) { (void)domain; }

static void *register_string(void *domain, const char *text) {
    uintptr_t handle = __sync_add_and_fetch(&names, 1);
    (void)domain;
    if (handle >= sizeof registered / sizeof *registered) abort();
    registered[handle] = strdup(text);
    return (void *)handle;
}

static void name_category(void *domain, uint32_t category, const char *name) {
    LINE("C\t%lu\t%u\t%s\n", (unsigned long)(uintptr_t)domain, category, name);
}

static uint64_t schema_register(void *domain, const schema *given) {
    /* Identifiers of schemas begin where those of the built-in types have ended. */
    uint64_t id = (1ull << 32) + __sync_add_and_fetch(&names, 1);
    (void)domain;
    LINE("S\t%lu\t%zu\n", (unsigned long)id, given->size);
    for (size_t i = 0; i < given->count; i++) {
        const entry *e = given->entries + i;
        LINE("E\t%lu\t%s\t%lu\t%lu\t%lu\n", (unsigned long)id, e->name ? e->name : "", (unsigned long)e->type,
             (unsigned long)e->length, (unsigned long)e->offset);
    }
    return id;
}

static uint8_t domain_is_enabled(void *domain) { (void)domain; return 1; }

static int push(void *domain, const attributes *a) {
    char hex[4096] = "";
    uint64_t id = 0;
    /* A structured payload is a pointer to as many records as the field after its type says. */
    if (a->payloads == 1) {
        const payload_data *data = (const payload_data *)(uintptr_t)a->payload;
        id = data->schema;
        if (2 * data->size >= sizeof hex) abort();
        for (size_t i = 0; i < data->size; i++) sprintf(hex + 2 * i, "%02x", data->bytes[i]);
    }
    const char *message = a->message_type == 3 ? registered[(uintptr_t)a->message] : (const char *)a->message;
    LINE("+\t%ld\t%lu\t%u\t%08x\t%s\t%lu\t%s\n", thread(), (unsigned long)(uintptr_t)domain, a->category, a->color,
         message ? message : "", (unsigned long)id, hex);
    return 0;
}

static int pop(void *domain) {
    LINE("-\t%ld\t%lu\n", thread(), (unsigned long)(uintptr_t)domain);
    return 0;
}

static uint64_t start(void *domain, const attributes *a) {
    uint64_t number = __sync_add_and_fetch(&names, 1);
    const char *message = a->message_type == 3 ? registered[(uintptr_t)a->message] : (const char *)a->message;
    LINE("[\t%lu\t%lu\t%s\n", (unsigned long)(uintptr_t)domain, (unsigned long)number, message ? message : "");
    return number;
}

static void end(void *domain, uint64_t number) {
    LINE("]\t%lu\t%lu\n", (unsigned long)(uintptr_t)domain, (unsigned long)number);
}

int InitializeInjectionNvtx2(const void *(*get)(uint32_t)) {
    const exports *callbacks = get(1);
    void ***table = NULL;
    unsigned size = 0;
    const char *path = getenv("NVTX_LOG");
    if (!path || !(out = fopen(path, "a")) || !callbacks->table(5, &table, &size) || size < 15) return 0;
    *table[2] = (void *)start;
    *table[3] = (void *)end;
    *table[4] = (void *)push;
    *table[5] = (void *)pop;
    *table[8] = (void *)name_category;
    *table[10] = (void *)register_string;
    *table[12] = (void *)domain_create;
    *table[14] = (void *)domain_destroy;
    return 1;
}

int InitializeInjectionNvtxExtension(extension *given) {
    if (given->module == 2) {
        given->first->functions[0] = (intptr_t)schema_register;
        given->first->functions[7] = (intptr_t)domain_is_enabled;
    }
    return 1;
}
