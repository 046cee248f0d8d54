/* A libcuda.so.1 that runs nothing: it writes down the last launch. Triton's own driver and launcher link to it. */
#include <stdint.h>
#include <string.h>

typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
} Launch;

Launch last;
void *last_function;
uint64_t launched;
/* Bytes of each parameter of the next launch, set by who wants its parameters, and what they were. */
unsigned sizes[64], parameters;
uint64_t values[64];
static uintptr_t made;

int cuLaunchKernelEx(const Launch *launch, void *function, void **given, void **extra) {
  last = *launch;
  last_function = function;
  ++launched;
  for (unsigned i = 0; i < parameters; ++i) {
    values[i] = 0;
    memcpy(values + i, given[i], sizes[i]);
  }
  parameters = 0;
  return 0;
}

int cuModuleLoadData(void **module, const void *image) { *module = (void *)++made; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = module; return 0; }
int cuModuleUnload(void *module) { return 0; }
/* Threads of a block; no registers, no spills. */
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
/* Shared memory of a block on sm_90. */
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 232448; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "stub"; return 0; }
int cuPointerGetAttribute(void *data, int attribute, uint64_t pointer) { *(uint64_t *)data = pointer; return 0; }
