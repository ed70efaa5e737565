// The GPU's half of an exported kernel: the driver, found at the first call; machine code, loaded once for each
// device; errors in words. What launches is the code of `start.py`; `kernel.h` is what `export.py` writes of a kernel.
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

// Machine code that a launch may choose, and the shared memory it asks for.
struct Code {
  const unsigned char* image;
  unsigned shared_bytes;
};

#include "kernel.h"

#if TL_CUDA
#if TL_MAPS  // a driver without it runs other kernels
#define MAP_FUNCTIONS(F) F(encode, "cuTensorMapEncodeTiled", ())
#endif
#define FUNCTIONS(F) \
  F(start, "cuInit", (unsigned flags)) \
  F(load, "cuModuleLoadData", (void** module, const void* image)) \
  F(function, "cuModuleGetFunction", (void** function, void* module, const char* name)) \
  F(allow, "cuFuncSetAttribute", (void* function, int attribute, int value)) \
  F(attribute, "cuDeviceGetAttribute", (int* value, int attribute, int device)) \
  F(device, "cuDeviceGet", (int* device, int number)) \
  F(retain, "cuDevicePrimaryCtxRetain", (void** context, int device)) \
  F(current, "cuCtxGetCurrent", (intptr_t* context)) \
  F(set, "cuCtxSetCurrent", (intptr_t context)) \
  F(error_name, "cuGetErrorName", (int code, const char** text)) \
  F(error_text, "cuGetErrorString", (int code, const char** text)) \
  F(launch, TL_OVERLAPS ? "cuLaunchKernelEx" : "cuLaunchKernel", ())
#else
// HIP's device is an int: the first half of what is given or asked for.
#define FUNCTIONS(F) \
  F(start, "hipInit", (unsigned flags)) \
  F(load, "hipModuleLoadData", (void** module, const void* image)) \
  F(function, "hipModuleGetFunction", (void** function, void* module, const char* name)) \
  F(attribute, "hipDeviceGetAttribute", (int* value, int attribute, int device)) \
  F(current, "hipGetDevice", (intptr_t* device)) \
  F(set, "hipSetDevice", (intptr_t device)) \
  F(error_name, "hipGetErrorName", (int code)) \
  F(error_text, "hipGetErrorString", (int code)) \
  F(launch, "hipModuleLaunchKernel", ())
#endif
#ifndef MAP_FUNCTIONS
#define MAP_FUNCTIONS(F)
#endif
#define MEMBER(name, symbol, takes) int(*name) takes;
static struct { FUNCTIONS(MEMBER) MAP_FUNCTIONS(MEMBER) } driver;

// What a launch must know of a device: `FIELDS` of start.py, and the functions of the codes.
struct Device {
  intptr_t own;
  int64_t multiprocessors, ordinal;
  void *current, *set, *launch, *encode, *functions[sizeof codes / sizeof *codes];
};
static const int MAX_DEVICES = 64;
static struct { int ready; Device device; } devices[MAX_DEVICES];
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

extern "C" void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);

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
  const char* const* const end = libraries + sizeof libraries / sizeof *libraries;
  for (const char* const* path = libraries; !found && path != end; path++) {
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

static int load_codes(Device& device) {
  for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++) {
    void *module, **function = device.functions + i;
    CHECK("the loading of machine code", load(&module, codes[i].image));
    CHECK("the loading of machine code", function(function, module, TL_KERNEL));
#if TL_CUDA
    if (codes[i].shared_bytes > TL_FREE_SHARED)
      CHECK("cuFuncSetAttribute", allow(*function, TL_MAX_DYNAMIC_SHARED, static_cast<int>(codes[i].shared_bytes)));
#endif
  }
  return 0;
}

static int prepare(Device& device, int number) {
  if (find_driver()) return -1;
  int count = 0, handle = number;
  intptr_t before = 0;
#if TL_CUDA
  CHECK("cuDeviceGet", device(&handle, number));
  if (!device.own) CHECK("cuDevicePrimaryCtxRetain", retain(reinterpret_cast<void**>(&device.own), handle));
#else
  device.own = number;
#endif
  CHECK("the question for multiprocessors", attribute(&count, TL_MULTIPROCESSORS, handle));
  CHECK("the question for the device", current(&before));
  CHECK("the choice of the device", set(device.own));
  int code = load_codes(device);
  CHECK("the choice of the device", set(before));
  device.multiprocessors = count;
  device.ordinal = number;
  device.current = reinterpret_cast<void*>(driver.current);
  device.set = reinterpret_cast<void*>(driver.set);
  device.launch = reinterpret_cast<void*>(driver.launch);
#if TL_MAPS
  device.encode = reinterpret_cast<void*>(driver.encode);
#endif
  return code;
}

// The device of a number, with the kernel loaded; null after an error.
extern "C" Device* tl_ready(int32_t number) {
  if (number < 0 || number >= MAX_DEVICES) return fail("there is no device of that number"), nullptr;
  auto& found = devices[number];
  int code = 0;
  if (!__atomic_load_n(&found.ready, __ATOMIC_ACQUIRE)) {
    pthread_mutex_lock(&loading);
    code = found.ready ? 0 : prepare(found.device, number);
    if (!code) __atomic_store_n(&found.ready, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&loading);
  }
  return code ? nullptr : &found.device;
}

// Raises what `tl_start` gave.
extern "C" void tl_failed(int64_t code) {
  static const char* const places[] = {"the launch", "cuTensorMapEncodeTiled", "the choice of the device"};
  if (code == TL_NOT_WHOLE) fail("the grid is not made of whole clusters");
  else if (code == TL_TOO_MANY) fail("too many programs; use larger tiles");
  else check(places[code >> TL_PLACE], static_cast<int>(code & ((1 << TL_PLACE) - 1)));
}
