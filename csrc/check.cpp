// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace specdec {
namespace {

struct Head {
  uint32_t struct_size, version;
};
constexpr uint32_t kLargestStruct = 4096;  // what a later version may come to: a larger size is no size
constexpr double kMostBytes = 0x1p62;

thread_local char last_message[320];

}  // namespace

specdec_result failed(specdec_result result, const char* function, const char* message) noexcept {
  const char* between = function ? ": " : "";
  std::snprintf(last_message, sizeof last_message, "%s%s%s", function ? function : "", between, message);
  return result;
}

void Check::refuse(specdec_result result, const char* name, const char* format, ...) const {
  Refused refused;
  refused.result = result;
  const char* dot = part_ ? "." : "";
  const int used = std::snprintf(refused.message, sizeof refused.message, "%s: %s%s%s ", function_,
                                 part_ ? part_ : "", dot, name);
  va_list values;
  va_start(values, format);
  std::vsnprintf(refused.message + used, sizeof refused.message - used, format, values);
  va_end(values);
  throw refused;
}

void Check::copy_struct(const char* name, const void* given, void* out, uint32_t size) const {
  required(name, given);
  if (reinterpret_cast<uintptr_t>(given) % alignof(int64_t))
    refuse(SPECDEC_ERROR_VALUE, name, "must be aligned to %zu bytes", alignof(int64_t));
  Head head;
  std::memcpy(&head, given, sizeof head);
  const Check fields(function_, name);
  if (head.version != SPECDEC_ABI_VERSION)
    fields.refuse(SPECDEC_ERROR_STRUCT, "version", "must be %d, got %u", SPECDEC_ABI_VERSION, head.version);
  // No struct has grown yet; when one does, its first size stays the least.
  if (head.struct_size < size || head.struct_size > kLargestStruct)
    fields.refuse(SPECDEC_ERROR_STRUCT, "struct_size", "must be in [%u, %u], got %u", size, kLargestStruct,
                  head.struct_size);
  for (uint32_t i = size; i < head.struct_size; ++i)
    if (static_cast<const unsigned char*>(given)[i])
      fields.refuse(SPECDEC_ERROR_STRUCT, "struct_size",
                    "must be %u where later fields are used, which this library does not know, got %u", size,
                    head.struct_size);
  std::memcpy(out, given, size);
}

void Check::value(const char* name, int64_t value, int64_t least, int64_t most) const {
  if (value >= least && value <= most) return;
  if (least == most)
    refuse(SPECDEC_ERROR_VALUE, name, "must be %lld, got %lld", static_cast<long long>(least),
           static_cast<long long>(value));
  if (most == INT64_MAX)
    refuse(SPECDEC_ERROR_VALUE, name, "must be at least %lld, got %lld", static_cast<long long>(least),
           static_cast<long long>(value));
  refuse(SPECDEC_ERROR_VALUE, name, "must be in [%lld, %lld], got %lld", static_cast<long long>(least),
         static_cast<long long>(most), static_cast<long long>(value));
}

void Check::flag(const char* name, int32_t value) const {
  if (value != 0 && value != 1) refuse(SPECDEC_ERROR_VALUE, name, "must be 0 or 1, got %d", value);
}

void Check::number(const char* name, double value, double least, double most) const {
  if (!(value >= least && value <= most && std::isfinite(value)))
    refuse(SPECDEC_ERROR_VALUE, name, "must be finite and in [%g, %g], got %g", least, most, value);
}

void Check::not_nan(const char* name, double value) const {
  if (std::isnan(value)) refuse(SPECDEC_ERROR_VALUE, name, "must be a number, got nan");
}

void Check::required(const char* name, const void* pointer) const {
  if (!pointer) refuse(SPECDEC_ERROR_NULL, name, "must not be null");
}

void Check::memory(const char* name, const void* data, int64_t unit, int64_t item,
                   std::initializer_list<Axis> axes) const {
  double bytes = static_cast<double>(item);
  bool none = false;
  for (const Axis& axis : axes) {
    if (axis.stride < 0)
      refuse(SPECDEC_ERROR_VALUE, name, "must have strides of at least 0, got %lld",
             static_cast<long long>(axis.stride));
    none |= axis.count == 0;
    bytes += static_cast<double>(axis.count) * static_cast<double>(axis.stride) * static_cast<double>(unit);
  }
  if (none) return;
  if (bytes > kMostBytes) refuse(SPECDEC_ERROR_VALUE, name, "must span at most 2^62 bytes, got %g", bytes);
  if (reinterpret_cast<uintptr_t>(data) % unit)
    refuse(SPECDEC_ERROR_VALUE, name, "must be aligned to %lld bytes, got %p", static_cast<long long>(unit),
           data);
  if (item > 0) required(name, data);
}

}  // namespace specdec

const char* specdec_error_message(void) { return specdec::last_message; }
