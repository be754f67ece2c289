// SPDX-License-Identifier: Apache-2.0
// Checks of what a caller of the C interface gives, before any of it is used. What is wrong is thrown as
// `Refused`, which `guarded` turns into a result and a message.
#pragma once

#include <cmath>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <utility>

#include "specdec.h"

namespace specdec {

inline constexpr int64_t kMostItems = INT32_MAX;  // nodes, requests, tokens of a vocabulary, pages, ...
inline constexpr int64_t kMostHeads = 1 << 16;  // heads, and elements of one: products of a few fit in int64

struct Refused {
  specdec_result result;
  char message[256];
};

// Some items at a distance in bytes, or in elements.
struct Axis {
  int64_t count, stride;
};

// Of one call. Its messages name the function, the argument, the rule, and what came.
class Check {
 public:
  explicit Check(const char* function, const char* part = nullptr) : function_(function), part_(part) {}

  // For the fields of a struct that an argument points to.
  Check in(const char* part) const { return Check(function_, part); }

  [[noreturn, gnu::format(printf, 4, 5)]] void refuse(specdec_result result, const char* name,
                                                      const char* format, ...) const;

  // A copy of the caller's struct. Fields that the caller does not know are zero.
  template <class T>
  T known(const char* name, const T* given) const {
    T out{};
    copy_struct(name, given, &out, sizeof(T));
    return out;
  }
  // Puts a pointer to such a copy in the place of the caller's pointer; null stays.
  template <class T>
  void replace(const char* name, const T*& given, T& copy) const {
    if (!given) return;
    copy = known(name, given);
    given = &copy;
  }

  // The size of an array's elements, which is said beside it. None has grown yet.
  template <class T>
  void element(const char* name, uint32_t size) const {
    if (size != sizeof(T))
      refuse(SPECDEC_ERROR_STRUCT, name, "must be %u, got %u", static_cast<uint32_t>(sizeof(T)), size);
  }

  void value(const char* name, int64_t value, int64_t least, int64_t most = INT64_MAX) const;
  void flag(const char* name, int32_t value) const;
  void number(const char* name, double value, double least, double most = HUGE_VAL) const;  // finite, too
  void not_nan(const char* name, double value) const;
  void required(const char* name, const void* pointer) const;

  // Memory of items of some bytes, at strides in elements of `unit` bytes: nothing is negative, it fits in an
  // address space, and it is null only where it has no items.
  void memory(const char* name, const void* data, int64_t unit, int64_t item,
              std::initializer_list<Axis> axes) const;
  // The same of a dense array.
  template <class T>
  void array(const char* name, const T* data, int64_t count, int64_t width = 1) const {
    constexpr int64_t kUnits = sizeof(T) / alignof(T);
    memory(name, data, alignof(T), sizeof(T), {{count, width * kUnits}, {width, kUnits}});
  }
  template <class T>
  void optional_array(const char* name, const T* data, int64_t count, int64_t width = 1) const {
    if (data) array(name, data, count, width);
  }

 private:
  void copy_struct(const char* name, const void* given, void* out, uint32_t size) const;

  const char *function_, *part_;
};

// Sets this thread's message.
specdec_result failed(specdec_result result, const char* function, const char* message) noexcept;

// Runs body(check) and lets no exception out.
template <class Body>
specdec_result guarded(const char* function, int32_t threads, Body&& body) noexcept {
  try {
    const Check check(function);
    check.value("threads", threads, 1, SPECDEC_MAX_THREADS);
    body(check);
    return SPECDEC_OK;
  } catch (const Refused& refused) {
    return failed(refused.result, nullptr, refused.message);
  } catch (const std::bad_alloc&) {
    return failed(SPECDEC_ERROR_MEMORY, function, "no memory is left");
  } catch (const std::length_error&) {  // a vector that no memory can hold
    return failed(SPECDEC_ERROR_MEMORY, function, "no memory is left");
  } catch (const std::exception& error) {
    return failed(SPECDEC_ERROR_INTERNAL, function, error.what());
  } catch (...) {
    return failed(SPECDEC_ERROR_INTERNAL, function, "unknown exception");
  }
}

}  // namespace specdec
