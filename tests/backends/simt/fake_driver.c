// A driver without a device: what the real ones export and we use, NVIDIA's or (with -DHIP) AMD's with its compiler.
// Memory is the host's; launches go to a callback.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*launched)(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                         unsigned shared, void *stream, void **params, void **extra);
// `other` counts the calls but those that a launch makes.
typedef struct { int64_t other, live; int devices, major, minor, multiprocessors; char arch[64]; } state;

static launched callback;
static char failing[64];
static int failing_code;
static void *stack[64];
static int depth;
static char contexts[16];
static char *images[256], names[256][128];
static int loaded, image_start;
static int64_t shared_limit[256];
static state now = {.devices = 2, .major = 8, .minor = 6, .multiprocessors = 13, .arch = "gfx942:sramecc+:xnack-"};

#define FAIL(name) if (!strcmp(failing, #name)) return failing_code

void fake_callback(launched f) { callback = f; }
void fake_fail(const char *name, int code) { strncpy(failing, name, 63); failing_code = code; }
void fake_device(int major, int minor, const char *arch) {
  now.major = major, now.minor = minor;
  strncpy(now.arch, arch, 63);
}
const char *fake_image(void *f) { return images[(intptr_t)f - 1]; }
const char *fake_name(void *f) { return names[(intptr_t)f - 1]; }
int64_t fake_shared_limit(void *f) { return shared_limit[(intptr_t)f - 1]; }
int64_t fake_live(void) { return now.live; }
int64_t fake_other_calls(void) { return now.other; }
int fake_loaded(void) { return loaded; }
int fake_depth(void) { return depth; }
void fake_enter(int device) { depth = 1; stack[0] = &contexts[device]; }
static void *current(void) { return depth ? stack[depth - 1] : 0; }
int fake_current(void) { return depth ? (int)((char *)current() - contexts) : -1; }

static int load(void **module, const char *image) {
  images[loaded] = strdup(image + image_start);
  *module = (void *)(intptr_t)++loaded;
  return 0;
}
static int find(void **function, void *module, const char *name) {
  strncpy(names[(intptr_t)module - 1], name, 127);
  *function = module;
  return 0;
}
static int allocate(void **memory, size_t size) {
  now.live++;
  return posix_memalign(memory, 256, size + 1);
}
static int release(void *memory) { now.live--; free(memory); return 0; }
static int copy(void *to, const void *from, size_t n) { memcpy(to, from, n); return 0; }
static int launch(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                  unsigned shared, void *stream, void **params, void **extra) {
  if (gz != 1 || by != 1 || bz != 1 || extra) return 1;
  if (callback) callback(f, gx, gy, gz, bx, by, bz, shared, stream, params, extra);
  return 0;
}

#define LAUNCH void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, \
               unsigned shared, void *stream, void **params, void **extra

#ifndef HIP
int cuInit(unsigned flags) { now.other++; FAIL(cuInit); return flags; }
int cuDeviceGet(int *device, int ordinal) {
  now.other++; if (ordinal >= now.devices) return 101; *device = ordinal; return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) { now.other++;
  *value = attribute == 75 ? now.major : attribute == 76 ? now.minor : attribute == 16 ? now.multiprocessors : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { now.other++; *context = &contexts[device]; return 0; }
int cuCtxGetCurrent(void **context) { FAIL(cuCtxGetCurrent); *context = current(); return 0; }
int cuCtxSetCurrent(void *context) { now.other++;
  if (depth && !context) depth--;
  else if (context) stack[depth ? depth - 1 : depth++] = context;
  return 0;
}
int cuModuleLoadData(void **module, const char *image) { now.other++;
  FAIL(cuModuleLoadData);
  return depth ? load(module, image) : 201;
}
int cuModuleGetFunction(void **function, void *module, const char *name) { now.other++;
  FAIL(cuModuleGetFunction);
  return find(function, module, name);
}
int cuFuncSetAttribute(void *function, int attribute, int value) { now.other++;
  FAIL(cuFuncSetAttribute);
  if (attribute == 8) shared_limit[(intptr_t)function - 1] = value;
  return 0;
}
int cuMemAlloc_v2(void **memory, size_t size) {
  now.other++; FAIL(cuMemAlloc_v2); return depth ? allocate(memory, size) : 201;
}
int cuMemFree_v2(void *memory) { now.other++; return release(memory); }
int cuMemcpyHtoD_v2(void *to, const void *from, size_t n) {
  now.other++; FAIL(cuMemcpyHtoD_v2); return copy(to, from, n);
}
int cuMemcpyDtoH_v2(void *to, const void *from, size_t n) {
  now.other++; FAIL(cuMemcpyDtoH_v2); return copy(to, from, n);
}
int cuLaunchKernel(LAUNCH) {
  FAIL(cuLaunchKernel);
  return depth ? launch(f, gx, gy, gz, bx, by, bz, shared, stream, params, extra) : 201;
}
typedef struct { int number, pad, value[16]; } attribute;
typedef struct {
  unsigned gx, gy, gz, bx, by, bz, shared;
  void *stream;
  attribute *attributes;
  unsigned count;
} config;
static int overlapping;
int fake_overlapping(void) { return overlapping; }  // launches that may begin before those before them have ended
int cuLaunchKernelEx(const config *c, void *f, void **params, void **extra) {
  FAIL(cuLaunchKernelEx);
  for (unsigned i = 0; i < c->count; i++) {
    if (c->attributes[i].number != 6) return 1;
    overlapping += c->attributes[i].value[0];
  }
  return depth ? launch(f, c->gx, c->gy, c->gz, c->bx, c->by, c->bz, c->shared, c->stream, params, extra) : 201;
}
// A map of a tensor as `fake.py` reads it: address, rank, size of elements, swizzle, then extents, strides, boxes.
int cuTensorMapEncodeTiled(uint64_t *map, int type, uint32_t rank, void *address, const uint64_t *extents,
                           const uint64_t *strides, const uint32_t *boxes, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) { now.other++;
  FAIL(cuTensorMapEncodeTiled);
  const int size = type == 0 ? 1 : type == 1 ? 2 : type == 2 || type == 7 ? 4 : type == 4 ? 8 : 0;
  if ((uintptr_t)map % 64 || !size || rank < 1 || rank > 5 || (uintptr_t)address % 16 || interleave || fill) return 1;
  if (boxes[0] * size % 16 || (swizzle && boxes[0] * size > 16u << swizzle)) return 1;
  if (promotion != 2) return 1;
  memset(map, 0, 128);
  map[0] = (uintptr_t)address;
  map[1] = rank | size << 8 | (swizzle ? 16 << swizzle : 0) << 16;
  for (uint32_t i = 0; i < rank; i++) {
    if (!extents[i] || extents[i] >> 32 || !boxes[i] || boxes[i] > 256 || steps[i] != 1) return 1;
    if (i && (strides[i - 1] % 16 || strides[i - 1] >> 40)) return 1;
    map[2 + i] = extents[i];
    map[7 + i] = i ? strides[i - 1] : size;
    ((uint16_t *)(map + 12))[i] = boxes[i];
  }
  return 0;
}
int cuGetErrorName(int code, const char **text) { now.other++;
  *text = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
  return 0;
}
int cuGetErrorString(int code, const char **text) { now.other++; *text = "what the driver says"; return 0; }
#else
// The thread's device is 0 until another is set.
int hipInit(unsigned flags) { now.other++; FAIL(hipInit); return flags; }
int hipGetDevice(int *device) { FAIL(hipGetDevice); *device = depth ? fake_current() : 0; return 0; }
int hipSetDevice(int device) {
  now.other++; if (device >= now.devices) return 101; stack[depth ? depth - 1 : depth++] = &contexts[device]; return 0;
}
int hipGetDevicePropertiesR0600(char *properties, int device) { now.other++;
  FAIL(hipGetDevicePropertiesR0600);
  if (device >= now.devices) return 101;
  strcpy(properties, "AMD Instinct");
  strcpy(properties + 1160, now.arch);
  return 0;
}
int hipDeviceGetAttribute(int *value, int attribute, int device) { now.other++;
  *value = attribute == 63 ? now.multiprocessors : -1;
  return 0;
}
int hipModuleLoadData(void **module, const char *image) {
  now.other++; FAIL(hipModuleLoadData); return load(module, image);
}
int hipModuleGetFunction(void **function, void *module, const char *name) { now.other++;
  FAIL(hipModuleGetFunction);
  return find(function, module, name);
}
int hipMalloc(void **memory, size_t size) { now.other++; FAIL(hipMalloc); return allocate(memory, size); }
int hipFree(void *memory) { now.other++; return release(memory); }
int hipMemcpyHtoD(void *to, const void *from, size_t n) { now.other++; FAIL(hipMemcpyHtoD); return copy(to, from, n); }
int hipMemcpyDtoH(void *to, const void *from, size_t n) { now.other++; FAIL(hipMemcpyDtoH); return copy(to, from, n); }
int hipModuleLaunchKernel(LAUNCH) {
  FAIL(hipModuleLaunchKernel);
  if ((uint64_t)gx * bx >> 32 || (uint64_t)gy * by >> 32) return 9;
  return launch(f, gx, gy, gz, bx, by, bz, shared, stream, params, extra);
}
const char *hipGetErrorName(int code) { now.other++; return code == 700 ? "hipErrorIllegalAddress" : "hipErrorOther"; }
const char *hipGetErrorString(int code) { now.other++; return "what the driver says"; }

// The compiler puts what the test gives, which begins as a code object does, before the text.
typedef struct { char *text, *code; const char *log; size_t size; } program;
typedef void (*compiling)(const char *text);
static compiling compile_callback;
static char header[4096], options[4096];
static int compiled, programs;

void fake_compiling(compiling f) { compile_callback = f; }
void fake_header(const char *bytes, int size) { memcpy(header, bytes, image_start = size); }
const char *fake_options(void) { return options; }
int fake_compiled(void) { return compiled; }
int fake_programs(void) { return programs; }

int hiprtcVersion(int *major, int *minor) { *major = 9, *minor = 0; return 0; }
const char *hiprtcGetErrorString(int code) { return "what the compiler says"; }
int hiprtcCreateProgram(program **p, const char *text, const char *name, int n, const char **h, const char **i) {
  FAIL(hiprtcCreateProgram);
  *p = calloc(1, sizeof(program));
  (*p)->text = strdup(text);
  programs++;
  return 0;
}
int hiprtcCompileProgram(program *p, int n, const char **given) {
  options[0] = 0;
  for (int i = 0; i < n; i++) strcat(strcat(options, i ? " " : ""), given[i]);
  if (strstr(p->text, "nonsense")) { p->log = "kernel.hip:2:1: error: unknown type name 'nonsense'"; return 6; }
  compiled++;
  compile_callback(p->text);
  p->size = image_start + strlen(p->text) + 1;
  p->code = malloc(p->size);
  memcpy(p->code, header, image_start);
  strcpy(p->code + image_start, p->text);
  return 0;
}
int hiprtcGetProgramLogSize(program *p, size_t *size) { *size = p->log ? strlen(p->log) + 1 : 1; return 0; }
int hiprtcGetProgramLog(program *p, char *log) { strcpy(log, p->log ? p->log : ""); return 0; }
int hiprtcGetCodeSize(program *p, size_t *size) { *size = p->size; return 0; }
int hiprtcGetCode(program *p, char *code) { memcpy(code, p->code, p->size); return 0; }
int hiprtcDestroyProgram(program **p) { free((*p)->text); free((*p)->code); free(*p); programs--; return 0; }
#endif
