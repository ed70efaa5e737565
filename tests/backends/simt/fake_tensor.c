// What torch says of its tensors by DLPack's C interface, with a GPU in the place of the CPU; each kind of tensor is
// on the device of its number. The stream of a device is 7000 and its number.
#include <dlpack/dlpack.h>
#include <stddef.h>
#include <stdint.h>

enum { DEVICES = 3 };
static DLPackExchangeAPI torch, ours[DEVICES];
static DLDeviceType kind;

static int on(int number, void *object, DLManagedTensorVersioned **out) {
  int failed = torch.managed_tensor_from_py_object_no_sync(object, out);
  if (!failed) (*out)->dl_tensor.device = (DLDevice){kind, number};
  return failed;
}
#define DEVICE(N) static int tensor_##N(void *object, DLManagedTensorVersioned **out) { return on(N, object, out); }
DEVICE(0) DEVICE(1) DEVICE(2)

static int stream(DLDeviceType type, int32_t number, void **out) {
  if (type != kind) return 1;
  *out = (void *)(intptr_t)(7000 + number);
  return 0;
}

void fake_kind(int32_t type) { kind = (DLDeviceType)type; }
const void *fake_exchange(const DLPackExchangeAPI *real, int number) {
  int (*tensors[DEVICES])(void *, DLManagedTensorVersioned **) = {tensor_0, tensor_1, tensor_2};
  torch = ours[number] = *real;
  ours[number].managed_tensor_from_py_object_no_sync = tensors[number];
  ours[number].dltensor_from_py_object_no_sync = NULL;
  ours[number].current_work_stream = stream;
  return &ours[number];
}
