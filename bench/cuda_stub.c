// SPDX-License-Identifier: Apache-2.0
// A driver library without a device, for `python -m bench host`: every call succeeds and does nothing, so
// that what remains of a launch is the time of its host.
#include <stddef.h>

typedef int result;
static int something;

result cuInit(unsigned flags) { return 0; }
result cuDeviceGetCount(int* count) { return *count = 1, 0; }
result cuDriverGetVersion(int* version) { return *version = 12080, 0; }
result cuGetErrorString(result error, const char** text) { return *text = "an error of the stub", 0; }
result cuCtxGetCurrent(void** context) { return *context = &something, 0; }
result cuCtxSetCurrent(void* context) { return 0; }
result cuCtxGetDevice(int* device) { return *device = 0, 0; }
result cuCtxGetLimit(size_t* value, int limit) { return *value = 0, 0; }
result cuCtxSetLimit(int limit, size_t value) { return 0; }
result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
result cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &something, 0; }
result cuDeviceGetAttribute(int* value, int attribute, int device) { return *value = 232448, 0; }
result cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 0 ? 1024 : 0;  // the most threads of a block; no spills
  return 0;
}
result cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
result cuFuncSetCacheConfig(void* function, int config) { return 0; }
result cuModuleLoadData(void** module, const void* image) { return *module = &something, 0; }
result cuModuleUnload(void* module) { return 0; }
result cuModuleGetFunction(void** function, void* module, const char* name) {
  return *function = &something, 0;
}
result cuPointerGetAttribute(void* data, int attribute, unsigned long long pointer) {
  *(unsigned long long*)data = pointer;
  return 0;
}
result cuStreamIsCapturing(void* stream, int* status) { return *status = 0, 0; }
result cuLaunchKernelEx(const void* config, void* function, void** parameters, void** extra) { return 0; }
result cuOccupancyMaxActiveClusters(int* count, void* function, const void* config) { return *count = 1, 0; }
result cuTensorMapEncodeTiled() { return 0; }
result cuTensorMapEncodeIm2col() { return 0; }
result cuPointerGetAttributes() { return 0; }
