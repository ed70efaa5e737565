// The GPU's half of an exported kernel: the driver, found at the first call; machine code, loaded once for each device;
// launches. `kernel.h` is what `export.py` writes of one kernel.
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

// Machine code that a launch may choose, with what it asks for.
struct Code {
  const unsigned char* image;
  unsigned threads, shared_bytes;
  int64_t resident_blocks;
  int cluster;          // programs of one
  int first_map, maps;  // of tensors, its last parameters
};

// Blocks of a tensor that the first code reaches from their start by 32-bit offsets: see `reaches` in window.py.
struct Window {
  int shape, stride, rank;  // where extents and strides begin in the context, and how many there are
  int axis;                 // along which it ends where the tensor does, or -1
  int64_t bytes;            // of an element
  int axes;
  struct { int axis; int64_t extent; } block[8];
};

// How boxes of a tensor are copied: its dimensions with that of neighbours first, the extents of a box in that order, and
// the driver's numbers of the type and of how rows are permuted.
struct Map {
  int data, shape, stride, rank;  // where the address, extents and strides begin in the context
  int64_t bytes;                  // of an element
  int order[5];
  unsigned boxes[5];
  int type, permutation;
};

#include "kernel.h"

#if TL_CUDA
// CUlaunchConfig with one CUlaunchAttribute.
struct Attribute { int number, pad, value[16]; };
struct Config {
  unsigned x, y, z, threads, threads_y, threads_z, shared_bytes;
  void* stream;
  Attribute* attributes;
  unsigned count;
};
#if TL_OVERLAPS
#define OVERLAPPING(F) F(overlap, "cuLaunchKernelEx", (const Config* config, void* function, void** parameters, \
                                                       void** extra))
#else
#define OVERLAPPING(F)
#endif
#define FUNCTIONS(F) \
  F(start, "cuInit", (unsigned flags)) \
  F(load, "cuModuleLoadData", (void** module, const void* image)) \
  F(function, "cuModuleGetFunction", (void** function, void* module, const char* name)) \
  F(allow, "cuFuncSetAttribute", (void* function, int attribute, int value)) \
  F(attribute, "cuDeviceGetAttribute", (int* value, int attribute, int device)) \
  F(device, "cuDeviceGet", (int* device, int number)) \
  F(retain, "cuDevicePrimaryCtxRetain", (void** context, int device)) \
  F(current, "cuCtxGetCurrent", (void** context)) \
  F(push, "cuCtxPushCurrent_v2", (void* context)) \
  F(pop, "cuCtxPopCurrent_v2", (void** context)) \
  F(error_name, "cuGetErrorName", (int code, const char** text)) \
  F(error_text, "cuGetErrorString", (int code, const char** text)) \
  OVERLAPPING(F) \
  F(launch, "cuLaunchKernel", (void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, \
                               unsigned, unsigned shared_bytes, void* stream, void** parameters, void** extra))
#if TL_MAPS  // a driver without it runs other kernels
#define MAP_FUNCTIONS(F) \
  F(encode, "cuTensorMapEncodeTiled", (void* map, int type, unsigned rank, void* address, const uint64_t* extents, \
                                       const uint64_t* strides, const unsigned* boxes, const unsigned* steps, \
                                       int interleave, int permutation, int promotion, int fill))
#endif
typedef void* Current;
#else
#define FUNCTIONS(F) \
  F(start, "hipInit", (unsigned flags)) \
  F(load, "hipModuleLoadData", (void** module, const void* image)) \
  F(function, "hipModuleGetFunction", (void** function, void* module, const char* name)) \
  F(attribute, "hipDeviceGetAttribute", (int* value, int attribute, int device)) \
  F(current, "hipGetDevice", (int* device)) \
  F(set, "hipSetDevice", (int device)) \
  F(error_name, "hipGetErrorName", (int code)) \
  F(error_text, "hipGetErrorString", (int code)) \
  F(launch, "hipModuleLaunchKernel", (void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, \
                                      unsigned, unsigned shared_bytes, void* stream, void** parameters, void** extra))
typedef int Current;
#endif
#ifndef MAP_FUNCTIONS
#define MAP_FUNCTIONS(F)
#endif
#define MEMBER(name, symbol, takes) int(*name) takes;
static struct { FUNCTIONS(MEMBER) MAP_FUNCTIONS(MEMBER) } driver;

static const int MAX_DEVICES = 64;
static struct {
  int ready;
  Current own;  // what is current where this device is
  int64_t multiprocessors;
  void* functions[sizeof codes / sizeof *codes];
} devices[MAX_DEVICES];
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

extern "C" {
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);
void* TVMFFIEnvGetStream(int32_t device_type, int32_t device_id);
}

static int fail(const char* text) {
  char whole[512];
  snprintf(whole, sizeof whole, "%s: %s", TL_NAME, text);
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", whole);
  return -1;
}

static int check(const char* symbol, int code) {
  if (!code) return 0;
  const char *name = "?", *words = "?";
#if TL_CUDA
  driver.error_name(code, &name);
  driver.error_text(code, &words);
#else
  name = reinterpret_cast<const char* (*)(int)>(driver.error_name)(code);
  words = reinterpret_cast<const char* (*)(int)>(driver.error_text)(code);
#endif
  char text[256];
  snprintf(text, sizeof text, "%s failed: error %d, %s: %s", symbol, code, name, words);
  return fail(text);
}
#define CHECK(symbol, call) do { if (check(symbol, driver.call)) return -1; } while (0)

static int find_driver() {
  static int found = 0;
  for (const char* const* path = libraries; !found && path != libraries + sizeof libraries / sizeof *libraries; path++) {
    void* library = dlopen(*path, RTLD_NOW);
    if (!library) continue;
    found = 1;
#define FIND(name, symbol, takes) \
    if (!(driver.name = reinterpret_cast<int(*) takes>(dlsym(library, symbol)))) found = 0;
    FUNCTIONS(FIND)
    MAP_FUNCTIONS(FIND)
    if (found && check("the start of the driver", driver.start(0))) return found = 0, -1;
  }
  return found ? 0 : fail("the driver of the GPU was not found; it needs " TL_LIBRARY);
}

// Makes a device this thread's; `leave` undoes it.
static int enter(int device) {
#if TL_CUDA
  CHECK("cuCtxPushCurrent", push(devices[device].own));
#else
  CHECK("hipSetDevice", set(device));
#endif
  return 0;
}

static int leave(Current before) {
#if TL_CUDA
  CHECK("cuCtxPopCurrent", pop(&before));
#else
  CHECK("hipSetDevice", set(before));
#endif
  return 0;
}

static int load_codes(int device) {
  for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++) {
    void** function = devices[device].functions + i;
    void* module;
    CHECK("the loading of machine code", load(&module, codes[i].image));
    CHECK("the loading of machine code", function(function, module, TL_KERNEL));
#if TL_CUDA
    if (codes[i].shared_bytes > TL_FREE_SHARED)
      CHECK("cuFuncSetAttribute", allow(*function, TL_MAX_DYNAMIC_SHARED, static_cast<int>(codes[i].shared_bytes)));
#endif
  }
  return 0;
}

static int prepare(int device) {
  if (find_driver()) return -1;
  int count = 0, handle = device;
  Current before;
#if TL_CUDA
  CHECK("cuDeviceGet", device(&handle, device));
  if (!devices[device].own) CHECK("cuDevicePrimaryCtxRetain", retain(&devices[device].own, handle));
#else
  devices[device].own = device;
#endif
  CHECK("the question for multiprocessors", attribute(&count, TL_MULTIPROCESSORS, handle));
  CHECK("the question for the device", current(&before));
  if (enter(device)) return -1;
  int code = load_codes(device);
  if (leave(before) || code) return -1;
  devices[device].multiprocessors = count;
  __atomic_store_n(&devices[device].ready, 1, __ATOMIC_RELEASE);
  return 0;
}

static int reaches(const int64_t* context) {
  for (int i = 0; i < TL_WINDOWS; i++) {
    const Window& w = windows[i];
    const int64_t *shape = context + w.shape, *stride = context + w.stride;
    int64_t whole = 0, others = 0;
    int empty = 0;
    for (int axis = 0; axis < w.rank; axis++) empty |= !shape[axis];
    for (int n = 0; n < w.axes; n++) {
      int axis = w.block[n].axis;
      int64_t extent = w.block[n].extent, inside = extent < shape[axis] ? extent : shape[axis];
      if (stride[axis] < 0) return 0;
      whole += (extent - 1) * stride[axis];
      if (axis != w.axis) others += (inside - 1) * stride[axis];
    }
    if (whole * w.bytes > TL_REACH) return 0;
    if (w.axis >= 0 && !empty && (stride[w.axis] <= 0 || others >= stride[w.axis])) return 0;
  }
  return 1;
}

// Whether maps can say the shapes and strides of a call: see `encodable` in bulk.py.
static int encodable(const int64_t* context) {
  for (int i = 0; i < TL_MAPS; i++)
    for (int axis = 0; axis < maps[i].rank; axis++) {
      int64_t extent = context[maps[i].shape + axis], stride = context[maps[i].stride + axis];
      if (extent <= 0 || (extent > 1 && (stride <= 0 || stride >= TL_MAP_END / maps[i].bytes))) return 0;
    }
  return 1;
}

#if TL_CLUSTER > 1
extern "C" int64_t tl_whole(const int64_t* context);
#else
static int tl_whole(const int64_t*) { return 1; }
#endif

// See `Lowered.suited` in compile.py.
static int choose(const int64_t* context) {
  if (!reaches(context) || !encodable(context)) return 1;
#ifdef TL_UNSHARED
  if (!tl_whole(context)) return TL_UNSHARED;
#endif
  return 0;
}

#if TL_MAPS
struct alignas(64) TensorMap { uint64_t opaque[16]; };

// The maps of a call behind its other parameters. Those of a thread's last call stay where nothing has changed.
static int put_maps(const Code& code, const int64_t* context, void** parameters) {
  static thread_local TensorMap made[TL_MAPS];
  static thread_local uint64_t known[TL_MAPS][11];
  for (int i = code.first_map; i < code.first_map + code.maps; i++) {
    const Map& m = maps[i];
    uint64_t now[11] = {static_cast<uint64_t>(context[m.data])}, *extents = now + 1, *strides = now + 6;
    unsigned steps[5] = {1, 1, 1, 1, 1};
    int same = now[0] == known[i][0];
    for (int d = 0; d < m.rank; d++) {
      extents[d] = static_cast<uint64_t>(context[m.shape + m.order[d]]);
      strides[d] = extents[d] > 1 ? static_cast<uint64_t>(context[m.stride + m.order[d]] * m.bytes) : TL_MAP_STRIDE;
    }
    for (int n = 1; n < 11; n++) same &= now[n] == known[i][n];
    *parameters++ = made + i;
    if (same) continue;
    known[i][0] = 0;
    CHECK("cuTensorMapEncodeTiled", encode(made + i, m.type, static_cast<unsigned>(m.rank),
                                           reinterpret_cast<void*>(context[m.data]), extents, strides + 1, m.boxes,
                                           steps, 0, m.permutation, TL_MAP_PROMOTION, 0));
    for (int n = 0; n < 11; n++) known[i][n] = now[n];
  }
  return 0;
}
#endif

// How many programs of a persistent grid run at once on a device; -1 after an error.
extern "C" int64_t tl_workers(const int64_t* context, int32_t device) {
  if (device < 0 || device >= MAX_DEVICES) return fail("there is no device of that number");
  if (!__atomic_load_n(&devices[device].ready, __ATOMIC_ACQUIRE)) {
    pthread_mutex_lock(&loading);
    int code = devices[device].ready ? 0 : prepare(device);
    pthread_mutex_unlock(&loading);
    if (code) return -1;
  }
  return devices[device].multiprocessors * codes[choose(context)].resident_blocks;
}

// Launches so many programs. The context holds what the kernel takes, in its order, each in 8 bytes.
extern "C" int32_t tl_launch(int64_t* context, int64_t programs, int32_t device) {
  if (!programs) return 0;
  const int which = choose(context);
  const Code& code = codes[which];
  if (code.cluster > 1 && !tl_whole(context)) return fail("the grid is not made of whole clusters");
  int64_t widest = (TL_CUDA ? INT32_MAX : UINT32_MAX / code.threads) / code.cluster, clusters = programs / code.cluster;
  int64_t rows = (clusters - 1) / widest + 1;
  while (clusters % rows && rows <= TL_ROWS) rows++;
  if (rows > TL_ROWS) return fail("too many programs; use larger tiles");
  void* parameters[TL_PARAMETERS];
  for (int i = 0; i < TL_NUMBERS; i++) parameters[i] = context + i;
#if TL_MAPS
  if (put_maps(code, context, parameters + TL_NUMBERS)) return -1;
#endif
  Current before;
  CHECK("the question for the device", current(&before));
  int here = before == devices[device].own;
  if (!here && enter(device)) return -1;
  void *function = devices[device].functions[which], *stream = TVMFFIEnvGetStream(TL_DEVICE, device);
  unsigned x = static_cast<unsigned>(clusters / rows * code.cluster), y = static_cast<unsigned>(rows);
#if TL_OVERLAPS
  Attribute attribute = {TL_OVERLAP, 0, {1}};
  Config config = {x, y, 1, code.threads, 1, 1, code.shared_bytes, stream, &attribute, 1};
  int failed = check("the launch", driver.overlap(&config, function, parameters, nullptr));
#else
  int failed = check("the launch", driver.launch(function, x, y, 1, code.threads, 1, 1, code.shared_bytes, stream,
                                                 parameters, nullptr));
#endif
  if (!here && leave(before)) return -1;
  return failed;
}
