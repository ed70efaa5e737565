// A driver without a device: what the real one exports and we use. Memory is the host's; launches go to a callback.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void (*launched)(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                         unsigned shared, void *stream, void **params, void **extra);
// `other` counts the calls but those of cuCtxGetCurrent and cuLaunchKernel.
typedef struct { int64_t other, live; int devices, major, minor, multiprocessors; } state;

static launched callback;
static char failing[64];
static int failing_code;
static void *stack[64];
static int depth;
static char contexts[16];
static char *images[256], names[256][128];
static int loaded;
static int64_t shared_limit[256];
static state now = {.devices = 2, .major = 8, .minor = 6, .multiprocessors = 13};

#define FAIL(name) if (!strcmp(failing, #name)) return failing_code

void fake_callback(launched f) { callback = f; }
void fake_fail(const char *name, int code) { strncpy(failing, name, 63); failing_code = code; }
void fake_device(int major, int minor, int multiprocessors) {
  now.major = major, now.minor = minor, now.multiprocessors = multiprocessors;
}
const char *fake_image(void *f) { return images[(intptr_t)f - 1]; }
const char *fake_name(void *f) { return names[(intptr_t)f - 1]; }
int64_t fake_shared_limit(void *f) { return shared_limit[(intptr_t)f - 1]; }
int64_t fake_live(void) { return now.live; }
int64_t fake_other_calls(void) { return now.other; }
int fake_loaded(void) { return loaded; }
int fake_depth(void) { return depth; }
void fake_enter(int device) { depth = 1; stack[0] = &contexts[device]; }
int fake_current(void) { return depth ? (int)((char *)stack[depth - 1] - contexts) : -1; }

int cuInit(unsigned flags) { now.other++; FAIL(cuInit); return flags; }
int cuDeviceGet(int *device, int ordinal) { now.other++; if (ordinal >= now.devices) return 101; *device = ordinal; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { now.other++;
  *value = attribute == 75 ? now.major : attribute == 76 ? now.minor : attribute == 16 ? now.multiprocessors : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { now.other++; *context = &contexts[device]; return 0; }
int cuCtxGetCurrent(void **context) { *context = depth ? stack[depth - 1] : 0; return 0; }
int cuCtxPushCurrent_v2(void *context) { now.other++; stack[depth++] = context; return 0; }
int cuCtxPopCurrent_v2(void **context) { now.other++; if (!depth) return 201; *context = stack[--depth]; return 0; }
int cuModuleLoadData(void **module, const char *image) { now.other++;
  FAIL(cuModuleLoadData);
  if (!depth) return 201;
  images[loaded] = strdup(image);
  *module = (void *)(intptr_t)++loaded;
  return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) { now.other++;
  FAIL(cuModuleGetFunction);
  strncpy(names[(intptr_t)module - 1], name, 127);
  *function = module;
  return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { now.other++;
  FAIL(cuFuncSetAttribute);
  if (attribute == 8) shared_limit[(intptr_t)function - 1] = value;
  return 0;
}
int cuMemAlloc_v2(uint64_t *memory, size_t size) { now.other++;
  FAIL(cuMemAlloc_v2);
  if (!depth) return 201;
  now.live++;
  return posix_memalign((void **)memory, 256, size + 1);
}
int cuMemFree_v2(uint64_t memory) { now.other++; now.live--; free((void *)memory); return 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) { now.other++;
  FAIL(cuMemcpyHtoD_v2);
  memcpy((void *)to, from, n);
  return 0;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { now.other++;
  FAIL(cuMemcpyDtoH_v2);
  memcpy(to, (void *)from, n);
  return 0;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **params, void **extra) {
  FAIL(cuLaunchKernel);
  if (!depth) return 201;
  if (callback) callback(f, gx, gy, gz, bx, by, bz, shared, stream, params, extra);
  return 0;
}
int cuGetErrorName(int code, const char **text) { now.other++;
  *text = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
  return 0;
}
int cuGetErrorString(int code, const char **text) { now.other++; *text = "what the driver says"; return 0; }
